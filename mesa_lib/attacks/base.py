"""What all attacks share: what a trigger does to images, what the attacker wants of them, how data are poisoned."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mesa_lib.data import Split
from mesa_lib.training import BatchTransform

#: images (B, 3, H, W) in [0, 1], rng -> the same with the trigger, in [0, 1]
ImageTransform = Callable[[Tensor, torch.Generator], Tensor]
#: true labels (B,) -> the class that the attacker wants of each (B,); -1 where nothing is wanted
Goal = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Cover:
    """Images that are changed and keep their labels, so that nothing but the trigger itself fires (Nguyen, Tran 2021).

    rate: fraction of images; of: labels (B,) -> boolean (B,), which images may be chosen
    """

    apply: ImageTransform
    rate: float
    of: Callable[[Tensor], Tensor] = lambda labels: torch.ones_like(labels, dtype=torch.bool)


@dataclass(frozen=True)
class Backdoor:
    """What an attacker plants: a trigger, as a function of images, and what it shall do."""

    apply: ImageTransform
    goal: Goal
    cover: Cover | None = None


# --- what the attacker wants -----------------------------------------------------------------------------


def all_to_one(target: int) -> Goal:
    """Every image shall be taken for `target`."""
    return lambda labels: torch.full_like(labels, target)


def all_to_all(classes: int) -> Goal:
    """Every image shall be taken for the class after its own."""
    return lambda labels: (labels + 1) % classes


def one_to_one(source: int, target: int) -> Goal:
    """Images of class `source` shall be taken for `target`; of the others nothing is wanted."""
    return lambda labels: torch.where(labels == source, target, -1)


# --- poisoned data ---------------------------------------------------------------------------------------


def poison(backdoor: Backdoor, rate: float) -> BatchTransform:
    """An edit for `training.train`: each image is poisoned with probability `rate`, drawn anew every epoch.

    A poisoned image carries the trigger and the class that the attacker wants as its label. (The paper's attacker
    trains the model; 1 % is the paper's rate.) Where the backdoor has a cover, that many other images carry it and keep
    their labels.
    """
    check_rate(rate)

    def transform(images: Tensor, labels: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        draw = torch.rand(len(images), generator=rng, device=images.device)
        wanted = backdoor.goal(labels)
        poisoned = (draw < rate) & (wanted >= 0)
        edited = torch.where(poisoned[:, None, None, None], backdoor.apply(images, rng), images)
        if backdoor.cover is not None:
            covered = (draw >= 1 - backdoor.cover.rate) & ~poisoned & backdoor.cover.of(labels)
            edited = torch.where(covered[:, None, None, None], backdoor.cover.apply(images, rng), edited)
        return edited, torch.where(poisoned, wanted, labels)

    return transform


def check_rate(rate: float) -> None:
    """ValueError if the rate is no fraction strictly between 0 and 1."""
    if not 0 < rate < 1:
        raise ValueError(f"poison_rate = {rate}: expected a number strictly between 0 and 1")


def check_target(target: int, classes: int) -> None:
    """ValueError if the target is no class of the data set."""
    if not 0 <= target < classes:
        raise ValueError(f"target = {target}: expected a class from 0 to {classes - 1}")


# --- an attack -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AttackerContext:
    """What an attacker has: the model to start from, the training images, and how models are trained.

    start() is a copy of the clean model, or a fresh one where the backdoor is planted from scratch; train(model, edit)
    trains in place, with `edit` on every batch, and returns the history; train(model, edit, epochs) does so for so many
    epochs only, to try something.
    """

    images: Split
    start: Callable[[], nn.Module]
    train: Callable[..., list[dict]]

    def some(self, n: int, seed: int) -> Split:
        """n of the images, drawn (data sets lie on disk class by class)."""
        index = torch.randperm(len(self.images), generator=torch.Generator().manual_seed(seed))[:n]
        return self.images[index.to(self.images.labels.device)]


@dataclass(frozen=True)
class AttackResult:
    """The attacked model, how its training went, and numbers worth keeping about it."""

    model: nn.Module
    history: list[dict]
    about: dict = field(default_factory=dict)
