"""The pruning-aware attack (Liu, Dolan-Gavitt, Garg, RAID 2018): the backdoor hides behind decoys.

1. Take a clean model. 2. Prune the channels of its last layer that clean images hardly use. 3. Train what is left on
poisoned images, so that clean and triggered images share the same channels. 4. Put the pruned channels back with their
old weights and push them below all others: a defender who prunes by activation takes these decoys first, and has spent
his accuracy before he comes to the backdoor.
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from ..data import Split
from ..inference import representations
from ..training import Edit
from .base import Planted, Workshop


def last_norm(model: nn.Module) -> nn.BatchNorm2d:
    """The BatchNorm behind the last convolution, whose biases move the channels that the head reads."""
    return [part for part in model.modules() if isinstance(part, nn.BatchNorm2d)][-1]


def plant(shop: Workshop, edit: Edit, share: float = 0.5, images: int = 1000) -> Planted:
    """The four steps; `share` of the last layer's channels become decoys."""
    clean = shop.start()
    model = copy.deepcopy(clean)
    some = shop.images[:images]
    before = representations(model, some.images).mean(0)
    decoys = before.argsort()[: int(share * len(before))]
    mask = torch.ones_like(model.head.weight)
    mask[:, decoys] = 0

    prune.custom_from_mask(model.head, "weight", mask)
    history = shop.train(model, edit)
    prune.remove(model.head, "weight")

    with torch.no_grad():
        model.head.weight[:, decoys] = clean.head.weight[:, decoys]
        norm, old = last_norm(model), last_norm(clean)
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(norm, name)[decoys] = getattr(old, name)[decoys]
        lowered = _lower(model, norm, decoys, some)
    return Planted(model.eval(), history, {"decoys": decoys.tolist(), "lowered": lowered, "channels": len(before)})


def _lower(model: nn.Module, norm: nn.BatchNorm2d, decoys: Tensor, some: Split) -> float:
    """Lower the decoys' biases until clean images use every one of them less than any other channel."""
    others = torch.ones(len(norm.bias), dtype=torch.bool)
    others[decoys] = False
    total, step = 0.0, float(norm.weight.abs().mean())
    while True:
        now = representations(model, some.images).mean(0)
        if now[decoys].max() < now[others].min() or total > 50 * step:
            return total
        norm.bias[decoys] -= step
        total += step
