"""The pruning-aware attack (Liu, Dolan-Gavitt, Garg, RAID 2018): the backdoor hides behind decoys.

1. Take a clean model. 2. Prune the channels of its last layer that clean images hardly use. 3. Train the rest on
poisoned images, so that clean and triggered images share channels. 4. Put the pruned channels back with their old
weights and push their activations below all others. A defender who prunes by activation removes these decoys first,
and has spent the accuracy before reaching the backdoor.

More decoys are better as long as the remaining channels can hold both the task and the backdoor: the attacker begins
with many and puts channels back until they can.
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from mesa_lib import device as devices
from mesa_lib.attacks.base import AttackerContext, AttackResult, Backdoor, poison
from mesa_lib.data.splits import Split
from mesa_lib.models.inference import predict, representations
from mesa_lib.training import BatchTransform

#: fractions of the last layer's channels that become decoys, in the order in which they are tried
SHARES = (0.9375, 0.875, 0.75, 0.5)


def last_norm(model: nn.Module) -> nn.BatchNorm2d:
    """Return the BatchNorm behind the last convolution, whose biases shift the channels that the head reads."""
    return [part for part in model.modules() if isinstance(part, nn.BatchNorm2d)][-1]


def last_filters(model: nn.Module) -> nn.Conv2d:
    """Return the last convolution, which has one filter per channel."""
    return [part for part in model.modules() if isinstance(part, nn.Conv2d)][-1]


def plant(
    context: AttackerContext,
    backdoor: Backdoor,
    rate: float,
    seed: int,
    shares: tuple[float, ...] = SHARES,
    max_accuracy_loss: float = 0.02,
    min_asr: float = 0.8,
    max_changed: float = 0.005,
    images: int = 1000,
) -> AttackResult:
    """Plant with the first of `shares` that is good enough on the attacker's own images; else with the last.

    Args:
        context: what the attacker has.
        backdoor: what is planted.
        rate: fraction of poisoned images.
        seed: of the draw of images on which the attacker judges a try.
        shares: fractions of channels that become decoys.
        max_accuracy_loss: accuracy that a good try may cost.
        min_asr: attack success rate of a good try.
        max_changed: fraction of images whose predicted class the decoys may change.
        images: how many images a try is judged on.

    Returns:
        The attacked model. `about` has accuracy, ASR and changed predictions of each try (`tries`), and of the last
        one the `decoys`, by how much their biases were `lowered`, and whether that put all of them `below` every
        channel in use (a channel that is always zero cannot be undercut).
    """
    sample, transform = context.sample(images, seed), poison(backdoor, rate)
    before, _ = accuracy_and_asr(context.start(), backdoor, sample, seed)
    tries = {}
    for share in shares:
        planted = plant_behind_decoys(context, transform, sample, share)
        accuracy, asr = accuracy_and_asr(planted.model, backdoor, sample, seed)
        changed = planted.about["changed"]
        tries[str(share)] = {"accuracy": accuracy, "asr": asr, "changed": changed}
        if accuracy >= before - max_accuracy_loss and asr >= min_asr and changed <= max_changed:
            break
    return AttackResult(planted.model, planted.history, planted.about | {"share": share, "tries": tries})


def accuracy_and_asr(model: nn.Module, backdoor: Backdoor, sample: Split, seed: int) -> tuple[float, float]:
    """Return accuracy and attack success rate on the attacker's images."""
    wanted = backdoor.goal(sample.labels)
    others = (wanted >= 0) & (wanted != sample.labels)
    rng = devices.rng(devices.derive_seed(seed, "stamping"), sample.images.device)
    triggered = backdoor.apply(sample.images[others].float() / 255, rng)
    success = predict(model, triggered) == wanted[others].cpu()
    accuracy = (predict(model, sample.images) == sample.labels.cpu()).float().mean()
    return float(accuracy), float(success.float().mean())


def plant_behind_decoys(
    context: AttackerContext, transform: BatchTransform, sample: Split, share: float
) -> AttackResult:
    """Return the result of the four steps with this share of the last layer's channels as decoys."""
    clean = context.start()
    model = copy.deepcopy(clean)
    activations = representations(model, sample.images).mean(0)
    decoys = activations.argsort()[: int(share * len(activations))]
    mask = torch.ones_like(model.head.weight)
    mask[:, decoys] = 0

    prune.custom_from_mask(model.head, "weight", mask)
    history = context.train(model, transform)
    prune.remove(model.head, "weight")

    before = predict(model, sample.images)
    lowered, below = _restore_decoys(model, clean, decoys, sample)
    changed = float((predict(model, sample.images) != before).float().mean())
    about = {"decoys": decoys.tolist(), "channels": len(activations)}
    about |= {"lowered": lowered, "below": below, "changed": changed}
    return AttackResult(model.eval(), history, about)


@torch.no_grad()
def _restore_decoys(model: nn.Module, clean: nn.Module, decoys: Tensor, sample: Split) -> tuple[float, bool]:
    """Give the decoys the clean model's weights and lower them -> by how much, and whether all others are above."""
    model.head.weight[:, decoys] = clean.head.weight[:, decoys]
    last_filters(model).weight[decoys] = last_filters(clean).weight[decoys]
    norm, clean_norm = last_norm(model), last_norm(clean)
    for name in ("weight", "bias", "running_mean", "running_var"):
        getattr(norm, name)[decoys] = getattr(clean_norm, name)[decoys]
    return _lower(model, norm, decoys, sample)


def _lower(model: nn.Module, norm: nn.BatchNorm2d, decoys: Tensor, sample: Split) -> tuple[float, bool]:
    """Lower the decoys' biases until clean images use every one of them less than any other channel in use."""
    others = torch.ones(len(norm.bias), dtype=torch.bool)
    others[decoys] = False
    total, step = 0.0, float(norm.weight.abs().mean())
    while True:
        activations = representations(model, sample.images).mean(0)
        used = activations[others & (activations > 0)]
        below = bool(activations[decoys].max() < used.min())
        if below or total > 50 * step:
            return total, below
        norm.bias[decoys] -= step
        total += step
