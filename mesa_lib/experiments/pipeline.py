"""The stages of the series, each train-or-load: data -> clean -> attacked -> distribution -> repaired.

A notebook asks for what it needs; whatever is missing is made. Every function takes the checked parameters and
keys what it makes by all of those that matter for it, and by those of the stages before it.
"""

import copy
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from mesa_lib import attacks, distribution, inversion, retrain, staircase, store, training, triggers
from mesa_lib import data as datasets
from mesa_lib import device as devices
from mesa_lib.data import trigger_spec
from mesa_lib.defenses.mesa import repair_rounds, trigger_search
from mesa_lib.evaluation import metrics
from mesa_lib.experiments.params import Params
from mesa_lib.models import networks

#: the rows of the before/after table: name -> what the defender stamps while retraining
CONTROLS = {
    "fine-tune only": "no trigger at all",
    "random uniform": "random colors",
    "random binary": "every channel 0 or 1",
    "random mixed": "one of four random families each",
    "point": "one trigger reversed by SGD",
    "MESA": "samples of the distribution",
    "MESA rounds": "the same, until a look finds nothing",
    "ideal": "the attacker's own trigger",
    "clean, repaired": "samples of MESA, on the model never attacked",
}


@dataclass(frozen=True)
class TrainedModel:
    """A model and how it came about: `history`, `result` and `made` as stored, `loaded` or made just now."""

    model: nn.Module
    artifact: store.Artifact

    @property
    def history(self) -> list[dict]:
        return self.artifact.result["history"]

    @property
    def config(self) -> dict:
        return self.artifact.config


class Pipeline:
    """All stages for one set of parameters; data and device are looked up once."""

    def __init__(self, p: Params, images: datasets.Dataset | None = None):
        """`images`: the data of these parameters, if they are at hand already"""
        self.p = p
        self.device = devices.pick_device(p.device)
        devices.keep_memory()
        self.trigger = trigger_spec.parse_trigger(p.trigger)
        self._images = images

    @cached_property
    def data(self) -> datasets.Dataset:
        p = self.p
        found = self._images or datasets.load(p.dataset, p.data_dir, p.split_seed, p.image_size)
        attacks.check_target(self.p.target, len(found.classes))
        triggers.check_fits(self.trigger, found.image_size)
        for name in ("modeling", "evaluation"):
            own = int((getattr(found, name).labels == self.p.target).sum())
            if own in (0, len(getattr(found, name))):
                raise ValueError(
                    f"target = {self.p.target}: {own} of the {len(getattr(found, name))} {name} images are of this "
                    "class; expected some, and some of others"
                )
        return found

    @cached_property
    def attack(self) -> attacks.Attack:
        """What is planted, and how."""
        p, size = self.p, (self.p.image_size, self.p.image_size)
        setting = attacks.AttackSpec(self.trigger, p.target, len(self.data.classes), size, p.poison_rate, p.seed)
        attack = attacks.build_attack(p.attack, setting)
        if attack.trained_start and p.start == "scratch":
            raise ValueError(
                f"start = {p.start!r}: the attack {p.attack} begins with a trained model; expected 'clean'"
            )
        return attack

    @property
    def patch_size(self) -> tuple[int, int]:
        """Height and width of the patch that is planted; of an attack without one, those of the `trigger`."""
        return self.attack.size or tuple(self.trigger.shape[-2:])

    @property
    def backdoor(self) -> attacks.Backdoor:
        """The trigger and what the attacker wants; of an attack that chooses its trigger, what it chose."""
        known = self.attack.backdoor
        return known(self.attacked().artifact.result) if callable(known) else known

    def check(self) -> datasets.Dataset:
        """What can be refused before anything runs: data, target, trigger, and a checkpoint that does not fit."""
        _ = self.attack
        if self.p.checkpoint:
            networks.load_weights(self.fresh(), store.load_checkpoint(self.p.checkpoint), self.p.checkpoint)
        return self.data

    # --- keys --------------------------------------------------------------------------------------------

    def _clean_config(self) -> dict:
        p = self.p
        names = ["network", "width", "batch_size", "augment", "device", "precision"]
        config = {name: getattr(p, name) for name in names} | {"data": self.data.fingerprint}
        config["seed"] = p.seed if p.clean_seed < 0 else p.clean_seed
        if p.checkpoint:
            weights = store.load_checkpoint(p.checkpoint)
            return config | {"checkpoint": store.tensors_key(weights)}
        config |= {"epochs": p.clean_epochs, "lr": p.clean_lr}
        config |= {"weight_decay": p.weight_decay, "label_smoothing": p.label_smoothing}
        return config

    def _attack_config(self) -> dict:
        p = self.p
        config = {
            "clean": self._clean_config(),
            "start": p.start,
            "target": p.target,
            "rate": p.poison_rate,
            "augment": p.retrain_augment,
            "seed": p.seed,
        }
        config["trigger"] = [list(self.trigger.shape), [round(v, 6) for v in self.trigger.flatten().tolist()]]
        if p.attack != "patch":
            config["attack"] = p.attack
        if self.attack.revision:
            config["revision"] = self.attack.revision
        if p.start == "scratch":  # the schedule of clean training, which is in the key unless the model was given
            given = ("clean_epochs", "clean_lr", "weight_decay", "label_smoothing") if p.checkpoint else ()
            return config | {name: getattr(p, name) for name in given}
        return config | {"epochs": p.attack_epochs, "lr": p.attack_lr, "schedule": p.schedule}

    # --- models ------------------------------------------------------------------------------------------

    def fresh(self, seed: int | None = None) -> nn.Module:
        """An untrained network of the configured architecture."""
        d, p = self.data, self.p
        model = networks.build_network(p.network, len(d.classes), p.width, d.mean, d.std, p.seed if seed is None else seed)
        return model.to(self.device, memory_format=torch.channels_last)

    def _from_scratch(self, model: nn.Module, *, seed: int, label: str, **settings) -> list[dict]:
        """Clean training, and the attack that has it for its schedule."""
        p, images = self.p, self.data.train.images
        if isinstance(model, networks.FastCNN):
            model.whiten(images[:: max(1, len(images) // 5000)])
        return self.train(
            model, self.data.train, epochs=p.clean_epochs, lr=p.clean_lr, schedule="onecycle",
            weight_decay=p.weight_decay, label_smoothing=p.label_smoothing,
            bias_rate=getattr(model, "bias_rate", 1.0), seed=seed, label=label, **settings,
        )  # fmt: skip

    def restore(self, artifact: store.Artifact, wrap: Callable[[nn.Module], nn.Module] = lambda model: model) -> TrainedModel:
        """The network of an artifact's weights; `wrap`: what a fresh one becomes before they fit."""
        return TrainedModel(networks.load_weights(wrap(self.fresh()), artifact.tensors).eval(), artifact)

    def train(self, model: nn.Module, split: datasets.Split, *, seed: int, label: str, **settings) -> list[dict]:
        """`training.train` on this device, with the batch size and precision of the parameters."""
        p = self.p
        return training.train(
            model, split.images, split.labels, batch_size=p.batch_size, seed=seed,
            device=self.device, precision=p.precision, label=label, **settings,
        )  # fmt: skip

    def clean(self) -> TrainedModel:
        """The classifier before any attack, trained on the training images (or given as a checkpoint)."""
        p = self.p
        seed = p.seed if p.clean_seed < 0 else p.clean_seed

        def make():
            model = self.fresh(seed)
            if p.checkpoint:
                networks.load_weights(model, store.load_checkpoint(p.checkpoint), p.checkpoint)
                history = []
            else:
                history = self._from_scratch(model, seed=seed, augment=p.augment, label="clean training")
            return model.state_dict(), {"history": history}

        return self.restore(store.train_or_load("clean", self._clean_config(), make, self.device))

    def attacked(self) -> TrainedModel:
        """The backdoored classifier: the clean one trained further on poisoned images, or one from scratch.

        (TrojanNet is the exception: it is put into the clean one without any training.)
        """
        p = self.p

        def start() -> nn.Module:
            return copy.deepcopy(self.clean().model) if p.start == "clean" else self.fresh()

        def train(model: nn.Module, transform: training.BatchTransform | None, epochs: int = 0) -> list[dict]:
            if p.start == "scratch" and not epochs:
                return self._from_scratch(
                    model, seed=p.seed + 1, augment=p.retrain_augment, transform=transform, label="attack from scratch"
                )
            return self.train(
                model, self.data.train, epochs=epochs or p.attack_epochs, lr=p.attack_lr, schedule=p.schedule,
                augment=p.retrain_augment, transform=transform, seed=p.seed + 1, label="attack",
            )  # fmt: skip

        def make():
            planted = self.attack.plant(attacks.AttackerContext(self.data.train, start, train))
            return planted.model.state_dict(), {"history": planted.history} | planted.about

        artifact = store.train_or_load("attacked", self._attack_config(), make, self.device)
        return self.restore(artifact, self.attack.wrap)

    # --- what the defender makes -------------------------------------------------------------------------

    def distribution(self, **changes) -> tuple[distribution.TriggerDistribution, store.Artifact]:
        """The modeled trigger distribution of the attacked model; `changes` override settings (alpha=10)."""
        settings = self.p.mesa(**changes)
        config = {"attacked": self._attack_config(), "mesa": asdict(settings)}

        def make():
            model, images = self.attacked().model, self.data.modeling
            fitted = staircase.fit(
                model, images.images, images.labels, self.p.target, settings, precision=self.p.precision
            )
            return fitted.tensors(), fitted.summary()

        artifact = store.train_or_load("distribution", config, make, self.device)
        shape = (3, *settings.trigger_size)
        fitted = distribution.TriggerDistribution.restore(artifact.tensors, artifact.result, shape, settings)
        return fitted, artifact

    def inversion(self, repeat: int = 0) -> Tensor:
        """The point baseline: one trigger (3, h, w) reversed on the same attacked model and modeling images."""
        size = tuple(self.trigger.shape[-2:])
        config = {"attacked": self._attack_config(), "point": {"repeat": repeat, "size": size}}

        def make():
            found = inversion.invert_trigger(
                self.attacked().model, self.data.modeling.images, self.p.target,
                seed=self.p.seed * 1000 + repeat, size=size, precision=self.p.precision,
            )  # fmt: skip
            return {"trigger": found}, {}

        return store.train_or_load("point", config, make, self.device).tensors["trigger"]

    def repaired(self, control: str, repeat: int = 0, beta: float | None = None) -> TrainedModel:
        """The attacked model retrained on the modeling images with the triggers that `control` names.

        (Of `clean, repaired` it is the clean model: what the same retraining makes of a model without a backdoor.)
        All controls (`CONTROLS`) share optimizer, rate, epochs, augmentation and seed. `repeat` counts the
        point baseline's triggers; `beta` takes one level of the staircase instead of the mixture.
        """
        if control not in CONTROLS:
            raise ValueError(f"control = {control!r}: expected one of {', '.join(CONTROLS)}")
        p = self.p
        config = {"attacked": self._attack_config(), "control": control}
        config |= {"rate": p.repair_rate, "epochs": p.repair_epochs, "lr": p.repair_lr, "schedule": p.schedule}
        config["augment"] = p.retrain_augment
        if control == "point":
            config["repeat"] = repeat
        if control.startswith("random") and self.patch_size != tuple(self.trigger.shape[-2:]):
            config["size"] = self.patch_size
        if control.startswith("MESA") or control == "clean, repaired":
            config |= {"mesa": asdict(p.mesa()), "beta": beta}
        if control == "MESA rounds":
            config |= {"rounds": p.rounds, "clear_below": p.clear_below, "search": trigger_search.FAMILY}

        def make():
            if control == "MESA rounds":
                return self._in_rounds()
            start = self.clean() if control == "clean, repaired" else self.attacked()
            ideal = retrain.on_fraction(self.backdoor.apply, p.repair_rate) if control == "ideal" else None
            model, history = self.repair(start.model, self._source(control, repeat, beta), control, transform=ideal)
            return model.state_dict(), {"history": history}

        wrap = (lambda model: model) if control == "clean, repaired" else self.attack.wrap
        return self.restore(store.train_or_load("repaired", config, make, self.device), wrap)

    def _source(self, control: str, repeat: int, beta: float | None) -> retrain.TriggerSource:
        """The triggers that a control stamps."""
        if control.startswith("random"):
            return retrain.random_source(control.split()[1], self.patch_size)
        if control == "point":
            return retrain.constant(self.point(repeat))
        if control in ("MESA", "clean, repaired"):
            fitted = self.distribution()[0]
            return (fitted.at(beta) if beta is not None else fitted).sample
        return None

    def repair(
        self,
        model: nn.Module,
        source: retrain.TriggerSource,
        label: str,
        number: int = 0,
        transform: training.BatchTransform | None = None,
    ) -> tuple[nn.Module, list[dict]]:
        """A copy of `model` after one repair, and how it went; `number` counts the rounds before.

        Stamped is what `source` draws, or done what `edit` does to the images.
        """
        model, transform = copy.deepcopy(model), transform or retrain.STAMPING_OLD(source, self.p.repair_rate)
        return model, self.run_retraining(model, self.data.modeling, transform, f"repair ({label})", number)

    def run_retraining(
        self, model: nn.Module, images: datasets.Split, transform: training.BatchTransform | None, label: str, number: int = 0
    ) -> list[dict]:
        """Train a model in place as this defender retrains: every repair goes through here."""
        return self.train(
            model, images, seed=self.p.seed + 2 + 1000 * number, transform=transform, label=label, **self.retraining()
        )

    def retraining(self) -> dict:
        """The settings of all retraining by the defender."""
        p = self.p
        return {"epochs": p.repair_epochs, "lr": p.repair_lr, "schedule": p.schedule, "augment": p.retrain_augment}

    def _in_rounds(self) -> tuple[dict[str, Tensor], dict]:
        """MESA until a look finds nothing; the first round is that of `MESA`."""
        p, first, images = self.p, self.repaired("MESA"), self.data.modeling
        histories = [first.history]

        def repair(model: nn.Module, source: retrain.TriggerSource, number: int) -> nn.Module:
            if number == 0:
                return first.model
            model, history = self.repair(model, source, f"round {number + 1}", number)
            histories.append(history)
            return model

        model, _, records = repair_rounds.repair_until_clear(
            self.attacked().model, images.images, images.labels, p.target, p.mesa(), repair, most=p.rounds,
            clear_below=p.clear_below, first=self.distribution()[0], precision=p.precision,
        )  # fmt: skip
        return model.state_dict(), {"history": sum(histories, []), "rounds": records}

    # --- what is measured --------------------------------------------------------------------------------

    def measured(self, made: TrainedModel) -> dict:
        """`metrics.report` of a model on the evaluation images, kept beside the model."""
        config = {"model": made.config, "trigger": self._attack_config()["trigger"], "target": self.p.target}
        if self.p.attack != "patch":
            config["attack"] = self._attack_config()  # what the trigger depends on: seed, rate, ...
        evaluation = self.data.evaluation

        def make():
            row = metrics.evaluate(made.model, evaluation, self.backdoor, self.p.target, precision=self.p.precision)
            return {}, row

        return store.train_or_load("measured", config, make, self.device).result

    def table(self, controls: Iterable[str] = CONTROLS) -> list[dict]:
        """The before/after table: one row a model, with every control; the point baseline a row a repeat."""
        rows = [{"model": "clean, never attacked", "triggers stamped": "", **self.measured(self.clean())}]
        rows.append({"model": "attacked", "triggers stamped": "", **self.measured(self.attacked())})
        for control in controls:
            for repeat in range(self.p.inversion_repeats if control == "point" else 1):
                made = self.repaired(control, repeat)
                name = f"point {repeat + 1}" if control == "point" else control
                rows.append({"model": name, "triggers stamped": CONTROLS[control], **self.measured(made)})
        return rows

    def identity(self) -> dict:
        """What the run is about, by content: images, trigger, a given checkpoint, and all settings up to the attack."""
        return self._attack_config()

    def report(self) -> store.Artifact:
        """The table with all parameters, kept as the result of the series."""
        config = {"params": self.p.model_dump(), "attacked": self._attack_config(), "rows": CONTROLS}
        return store.train_or_load("report", config, lambda: ({}, {"rows": self.table()}), self.device)
