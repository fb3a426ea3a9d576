"""Data poisoning by label flips: no trigger; the whole model is to suffer. A contrast to the backdoors."""

from collections.abc import Callable

import torch
from torch import Tensor

from mesa_lib.attacks.base import check_rate


def symmetric(classes: int) -> Callable[[Tensor, torch.Generator], Tensor]:
    """Any other class, each equally likely."""

    def flip(labels: Tensor, rng: torch.Generator) -> Tensor:
        return (labels + torch.randint(1, classes, labels.shape, generator=rng)) % classes

    return flip


def pairs(classes: int) -> Callable[[Tensor, torch.Generator], Tensor]:
    """Always the class after the own one."""
    return lambda labels, rng: (labels + 1) % classes


def flipped(labels: Tensor, rate: float, family: Callable[[Tensor, torch.Generator], Tensor], seed: int) -> Tensor:
    """Labels (N,) of which a fraction `rate`, drawn once for all training, is changed by `law`."""
    check_rate(rate)
    rng = torch.Generator().manual_seed(seed)
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    chosen[torch.randperm(len(labels), generator=rng)[: round(rate * len(labels))]] = True
    labels = labels.cpu()
    return torch.where(chosen, family(labels, rng), labels)
