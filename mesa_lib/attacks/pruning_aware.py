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
from ..inference import predict, representations
from ..training import Edit
from .base import Planted, Workshop


def last_norm(model: nn.Module) -> nn.BatchNorm2d:
    """The BatchNorm behind the last convolution, whose biases move the channels that the head reads."""
    return [part for part in model.modules() if isinstance(part, nn.BatchNorm2d)][-1]


def last_filters(model: nn.Module) -> nn.Conv2d:
    """The last convolution, one filter a channel."""
    return [part for part in model.modules() if isinstance(part, nn.Conv2d)][-1]


def plant(shop: Workshop, edit: Edit, seed: int, share: float = 0.75, images: int = 1000) -> Planted:
    """The four steps; `share` of the last layer's channels become decoys.

    Kept beside: by how much their biases were lowered, whether that put all of them below all channels in use (those
    that never fire cannot be undercut), and how often the last step changed the answer to a clean image.
    """
    clean = shop.start()
    model = copy.deepcopy(clean)
    some = shop.some(images, seed)
    before = representations(model, some.images).mean(0)
    decoys = before.argsort()[: int(share * len(before))]
    mask = torch.ones_like(model.head.weight)
    mask[:, decoys] = 0

    prune.custom_from_mask(model.head, "weight", mask)
    history = shop.train(model, edit)
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
    return Planted(model.eval(), history, about)


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
