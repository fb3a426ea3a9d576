"""What all attacks share: what a trigger does to images, the attacker's goal, and how data are poisoned."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mesa_lib import device as devices
from mesa_lib.data.splits import Split
from mesa_lib.retrain import ImageTransform
from mesa_lib.training import BatchTransform

#: true labels (B,) -> the class that the attacker wants for each (B,); -1 where the attacker wants nothing
Goal = Callable[[Tensor], Tensor]


def _any_class(labels: Tensor) -> Tensor:
    return torch.ones_like(labels, dtype=torch.bool)


@dataclass(frozen=True)
class Cover:
    """Cover samples: changed images that keep their labels, so that nothing but the trigger itself works.

    (Nguyen and Tran, 2021.)

    Attributes:
        apply: what changes the images.
        rate: fraction of images.
        eligible: labels (B,) -> boolean (B,), which images may be chosen.
    """

    apply: ImageTransform
    rate: float
    eligible: Callable[[Tensor], Tensor] = _any_class


@dataclass(frozen=True)
class Backdoor:
    """What an attacker plants: a trigger as a change of images, the goal, and cover samples if there are any."""

    apply: ImageTransform
    goal: Goal
    cover: Cover | None = None


# --- the attacker's goal ---------------------------------------------------------------------------------


def all_to_one(target: int) -> Goal:
    """Return the goal that every image is classified as `target`."""
    return lambda labels: torch.full_like(labels, target)


def all_to_all(classes: int) -> Goal:
    """Return the goal that every image is classified as the class after its own."""
    return lambda labels: (labels + 1) % classes


def one_to_one(source: int, target: int) -> Goal:
    """Return the goal that images of class `source` are classified as `target`; others are left alone."""
    return lambda labels: torch.where(labels == source, target, -1)


# --- poisoned data ---------------------------------------------------------------------------------------


def poison(backdoor: Backdoor, rate: float) -> BatchTransform:
    """Return a batch transform for `training.train`: each image is poisoned with probability `rate`.

    A poisoned image carries the trigger, and its label is the class that the attacker wants. The draw is new in every
    epoch. (The paper's attacker trains the model; its rate is 1%.) With cover samples, that many other images are
    changed as well and keep their labels.

    Raises:
        ValueError: if `rate` is not strictly between 0 and 1.
    """
    check_rate(rate)

    def transform(images: Tensor, labels: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        draw = torch.rand(len(images), generator=rng, device=images.device)
        wanted = backdoor.goal(labels)
        poisoned = (draw < rate) & (wanted >= 0)
        changed = torch.where(poisoned[:, None, None, None], backdoor.apply(images, rng), images)
        if backdoor.cover is not None:
            covered = (draw >= 1 - backdoor.cover.rate) & ~poisoned & backdoor.cover.eligible(labels)
            changed = torch.where(covered[:, None, None, None], backdoor.cover.apply(images, rng), changed)
        return changed, torch.where(poisoned, wanted, labels)

    return transform


def check_rate(rate: float) -> None:
    """Raise ValueError if the rate is not a fraction strictly between 0 and 1."""
    if not 0 < rate < 1:
        raise ValueError(f"poison_rate = {rate}: expected a number strictly between 0 and 1")


def check_target(target: int, classes: int) -> None:
    """Raise ValueError if the target is not a class of the data set."""
    if not 0 <= target < classes:
        raise ValueError(f"target = {target}: expected a class from 0 to {classes - 1}")


# --- an attack -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AttackerContext:
    """What an attacker has.

    Attributes:
        images: the training images.
        start: () -> a copy of the clean model, or an untrained network where the backdoor is planted from scratch.
        train: (model, batch transform) -> the history of training the model in place; a third argument, a number of
            epochs, trains for that long only, to try something.
    """

    images: Split
    start: Callable[[], nn.Module]
    train: Callable[..., list[dict]]

    def sample(self, n: int, seed: int) -> Split:
        """Return n of the images at random (data sets lie on disk class by class)."""
        index = torch.randperm(len(self.images), generator=devices.rng(seed))[:n]
        return self.images[index.to(self.images.labels.device)]


@dataclass(frozen=True)
class AttackResult:
    """The attacked model, the history of its training, and numbers worth keeping about it."""

    model: nn.Module
    history: list[dict]
    about: dict = field(default_factory=dict)
