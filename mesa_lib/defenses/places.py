"""Where on the image a patch would have to be, for each class: forward passes with random patches.

A backdoor that answers at one place only is silent almost everywhere. Patches of random colours at a grid of places
tell where: the trigger's neighbours among them fire there and nowhere else.
"""

import torch
from torch import Tensor

from .. import device as devices
from .. import triggers
from .base import Given


def grid(image_size: tuple[int, int], size: tuple[int, int], stride: int) -> Tensor:
    """Every `stride`-th place that fits, and the last row and column -> (P, 2)."""
    rows, columns = (
        torch.tensor(sorted({*range(0, full - own + 1, stride), full - own}))
        for full, own in zip(image_size, size, strict=True)
    )
    return torch.cartesian_prod(rows, columns)


@torch.no_grad()
def answers(given: Given, places: Tensor, size: tuple[int, int], each: int) -> Tensor:
    """How often `each` random patches of extreme colours turn images of other classes -> (classes, P).

    Each patch is stamped on one drawn image.
    """
    rng, clean, rates = devices.rng(given.seed + 3), given.clean, []
    images, labels = clean.images.cpu(), clean.labels.cpu()
    for some in places.split(max(1, 512 // each)):
        n = len(some) * each
        index = torch.randint(len(images), (n,), generator=rng)
        drawn = triggers.random(n, "binary", rng, size)
        x = triggers.stamp(images[index].float() / 255, drawn, some.repeat_interleave(each, 0))
        given_answers = given.outputs(x).argmax(1).reshape(len(some), each)
        true = labels[index].reshape(len(some), each)
        turned = [(given_answers == k) & (true != k) for k in range(given.classes)]
        others = [(true != k).sum(1).clamp(min=1) for k in range(given.classes)]
        rates.append(torch.stack([t.sum(1) / o for t, o in zip(turned, others, strict=True)]))
    return torch.cat(rates, 1)


def likeliest(given: Given, size: tuple[int, int], stride: int = 2, each: int = 40) -> Tensor:
    """For every class the place at which random patches turn most images into it -> (classes, 2)."""
    places = grid(given.image_size, size, stride)
    return places[answers(given, places, size, each).argmax(1)]
