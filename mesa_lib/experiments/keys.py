"""What each stage of the pipeline depends on: the configurations, whose hashes are the keys of the artifact store.

A configuration holds every parameter that matters for a stage, those of the stages before it included, and the content
of files (images, checkpoint, trigger) instead of their paths.
"""

from collections.abc import Sequence

from torch import Tensor

from mesa_lib import store
from mesa_lib.experiments.params import Params

#: training from scratch, in addition to epochs and learning rate
FROM_SCRATCH = ("weight_decay", "label_smoothing")


def clean_seed(p: Params) -> int:
    """Return the seed of the clean model."""
    return p.seed if p.clean_seed < 0 else p.clean_seed


def clean_config(p: Params, fingerprint: str) -> dict:
    """Return the configuration of the clean model; fingerprint: of the data set."""
    names = ("network", "width", "batch_size", "augment", "device", "precision")
    config = {name: getattr(p, name) for name in names} | {"data": fingerprint, "seed": clean_seed(p)}
    if p.checkpoint:
        return config | {"checkpoint": store.tensors_key(store.load_checkpoint(p.checkpoint))}
    return config | {name: getattr(p, name) for name in ("clean_epochs", "clean_lr", *FROM_SCRATCH)}


def trigger_config(trigger: Tensor) -> list:
    """Return shape and values of a trigger (3, h, w)."""
    return [list(trigger.shape), [round(value, 6) for value in trigger.flatten().tolist()]]


def attack_config(p: Params, fingerprint: str, triggers: Sequence[Tensor], revision: int) -> dict:
    """Return the configuration of the attacked model.

    Args:
        triggers: the attacker's trigger, and those of `more_triggers`.
        revision: of the attack (`attacks.Attack`).
    """
    names = ("attack", "start", "target", "poison_rate", "attack_lr", "schedule", "retrain_augment", "seed")
    config = {name: getattr(p, name) for name in names}
    config |= {"clean": clean_config(p, fingerprint), "trigger": trigger_config(triggers[0]), "revision": revision}
    if p.attack in ("covered", "adaptive"):
        config |= {"cover": p.cover, "cover_rate": p.cover_rate}
        config |= {"more_triggers": [trigger_config(trigger) for trigger in triggers[1:]]}
    if p.start == "clean":
        return config | {"attack_epochs": p.attack_epochs}
    if p.checkpoint:  # the settings of training from scratch are not in the key of the clean model
        return config | {name: getattr(p, name) for name in ("clean_epochs", "clean_lr", *FROM_SCRATCH)}
    return config
