"""The images that are kept for the accuracy of a repaired model."""

import torch

from mesa_lib import device as devices
from mesa_lib.data.splits import Split

#: the fraction of every class that is held out
HELD_OUT = 0.2


def hold_out(images: Split, seed: int) -> tuple[Split, Split]:
    """Return a fifth of every class, at least one image, and the rest, both in random order."""
    order = torch.randperm(len(images), generator=devices.rng(devices.derive_seed(seed, "hold out")))
    chosen = torch.zeros(len(images), dtype=torch.bool)
    for k in images.labels.unique():
        of_class = order[images.labels[order] == k]
        chosen[of_class[: max(1, round(HELD_OUT * len(of_class)))]] = True
    return images[order[chosen[order]]], images[order[~chosen[order]]]
