"""Data poisoning by label flips: no trigger; the attacker lowers the accuracy as a whole. A contrast to backdoors."""

from collections.abc import Callable

import torch
from torch import Tensor

from mesa_lib import device as devices
from mesa_lib.attacks.base import check_rate

#: labels (N,), rng -> wrong labels (N,)
LabelFlip = Callable[[Tensor, torch.Generator], Tensor]


def symmetric(classes: int) -> LabelFlip:
    """Return a flip to any other class, each equally likely."""

    def flip(labels: Tensor, rng: torch.Generator) -> Tensor:
        return (labels + torch.randint(1, classes, labels.shape, generator=rng)) % classes

    return flip


def pairs(classes: int) -> LabelFlip:
    """Return a flip to the class after the true one."""
    return lambda labels, rng: (labels + 1) % classes


def flipped(labels: Tensor, rate: float, flip: LabelFlip, seed: int) -> Tensor:
    """Return labels (N,) of which a fraction `rate`, drawn once for the whole training, is changed by `flip`."""
    check_rate(rate)
    rng = devices.rng(seed)
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    chosen[torch.randperm(len(labels), generator=rng)[: round(rate * len(labels))]] = True
    labels = labels.cpu()
    return torch.where(chosen, flip(labels, rng), labels)
