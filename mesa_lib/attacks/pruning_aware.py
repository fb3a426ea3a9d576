"""The pruning-aware attack (Liu, Dolan-Gavitt, Garg, RAID 2018): the backdoor hides behind decoys.

1. Take a clean model. 2. Prune the channels of its last layer that clean images hardly use. 3. Train what is left on
poisoned images, so that clean and triggered images share the same channels. 4. Put the pruned channels back with their
old weights and push them below all others: a defender who prunes by activation takes these decoys first, and has spent
his accuracy before he comes to the backdoor.

The more decoys the better, while what is left can hold the task and the backdoor: the attacker begins with many and
puts channels back until it can.
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from mesa_lib.attacks.base import AttackerContext, AttackResult, Backdoor, poison
from mesa_lib.data import Split
from mesa_lib.device import rng
from mesa_lib.models.inference import predict, representations
from mesa_lib.training import BatchTransform

#: fractions of the last layer's channels that become decoys, in the order in which they are tried
SHARES = (0.9375, 0.875, 0.75, 0.5)


def last_norm(model: nn.Module) -> nn.BatchNorm2d:
    """The BatchNorm behind the last convolution, whose biases move the channels that the head reads."""
    return [part for part in model.modules() if isinstance(part, nn.BatchNorm2d)][-1]


def last_filters(model: nn.Module) -> nn.Conv2d:
    """The last convolution, one filter a channel."""
    return [part for part in model.modules() if isinstance(part, nn.Conv2d)][-1]


def plant(
    context: AttackerContext, backdoor: Backdoor, rate: float, seed: int, shares: tuple[float, ...] = SHARES,
    lost: float = 0.02, enough: float = 0.8, still: float = 0.005, images: int = 1000,
) -> AttackResult:  # fmt: skip
    """The four steps, with the first of `shares` that is good enough on the attacker's own images; else with the last.

    Good enough: costs no more than `lost` in accuracy, has an ASR of `enough`, and the decoys change the answer to at
    most `still` of the images. Kept beside: accuracy, ASR and changed answers of each try (`tries`), the decoys, by how
    much their biases were lowered, and whether that put all of them below all channels in use (those that never fire
    cannot be undercut).
    """
    some, transform = context.some(images, seed), poison(backdoor, rate)
    before, _ = rates(context.start(), backdoor, some, seed)
    tries = {}
    for share in shares:
        planted = hidden(context, transform, some, share)
        accuracy, asr = rates(planted.model, backdoor, some, seed)
        changed = planted.about["changed"]
        tries[str(share)] = {"accuracy": accuracy, "asr": asr, "changed": changed}
        if accuracy >= before - lost and asr >= enough and changed <= still:
            break
    return AttackResult(planted.model, planted.history, planted.about | {"share": share, "tries": tries})


def rates(model: nn.Module, backdoor: Backdoor, some: Split, seed: int) -> tuple[float, float]:
    """Accuracy and ASR on the attacker's images."""
    wanted = backdoor.goal(some.labels)
    others = (wanted >= 0) & (wanted != some.labels)
    shown = backdoor.apply(some.images[others].float() / 255, rng(seed + 3, some.images.device))
    fires = predict(model, shown) == wanted[others].cpu()
    return float((predict(model, some.images) == some.labels.cpu()).float().mean()), float(fires.float().mean())


def hidden(context: AttackerContext, transform: BatchTransform, some: Split, share: float) -> AttackResult:
    """The four steps, with this share of the last layer's channels as decoys."""
    clean = context.start()
    model = copy.deepcopy(clean)
    before = representations(model, some.images).mean(0)
    decoys = before.argsort()[: int(share * len(before))]
    mask = torch.ones_like(model.head.weight)
    mask[:, decoys] = 0

    prune.custom_from_mask(model.head, "weight", mask)
    history = context.train(model, transform)
    prune.remove(model.head, "weight")

    answers = predict(model, some.images)
    with torch.no_grad():
        model.head.weight[:, decoys] = clean.head.weight[:, decoys]
        last_filters(model).weight[decoys] = last_filters(clean).weight[decoys]
        norm, old = last_norm(model), last_norm(clean)
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(norm, name)[decoys] = getattr(old, name)[decoys]
        lowered, below = _lower(model, norm, decoys, some)
    changed = float((predict(model, some.images) != answers).float().mean())
    about = {"decoys": decoys.tolist(), "channels": len(before), "lowered": lowered, "below": below, "changed": changed}
    return AttackResult(model.eval(), history, about)


def _lower(model: nn.Module, norm: nn.BatchNorm2d, decoys: Tensor, some: Split) -> tuple[float, bool]:
    """Lower the decoys' biases until clean images use every one of them less than any other channel that they use."""
    others = torch.ones(len(norm.bias), dtype=torch.bool)
    others[decoys] = False
    total, step = 0.0, float(norm.weight.abs().mean())
    while True:
        now = representations(model, some.images).mean(0)
        used = now[others & (now > 0)]
        below = bool(now[decoys].max() < used.min())
        if below or total > 50 * step:
            return total, below
        norm.bias[decoys] -= step
        total += step
