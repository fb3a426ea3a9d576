"""The repair: retrain on clean images of which a fraction carries triggers *with their true labels*.

The defence and its controls are one function; they differ in nothing but the source of the triggers.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from . import triggers as trigger_laws
from .training import Edit
from .triggers import stamp, stamp_random

#: (n, rng) -> n triggers (n, 3, h, w), or None for no trigger at all
Source = Callable[[int, torch.Generator], Tensor] | None


def fixed(trigger: Tensor) -> Source:
    """Always the same trigger (3, h, w): the original (ideal repair) or a reversed one (point baseline)."""
    return lambda n, rng: trigger.to(rng.device).expand(n, *trigger.shape)


def random(law: str, size: tuple[int, int]) -> Source:
    """Random triggers, no modelling, of a law of `triggers.random`."""
    return lambda n, rng: trigger_laws.random(n, law, rng, size)


def stamping(source: Source, rate: float) -> Edit | None:
    """An edit for `training.train`: with probability `rate` an image gets a trigger of its own; labels stay."""
    return None if source is None else applying(stamped(source), rate)


def stamped(
    source: Callable[[int, torch.Generator], Tensor], place: Tensor | None = None
) -> Callable[[Tensor, torch.Generator], Tensor]:
    """A change of images: each gets a trigger of its own, at a random place or all at one (row, column)."""
    if place is not None:
        return lambda images, rng: stamp(images, source(len(images), rng), place)
    return lambda images, rng: stamp_random(images, source(len(images), rng), rng)


def applying(apply: Callable[[Tensor, torch.Generator], Tensor], rate: float) -> Edit:
    """The same with any change of images: apply(images (B, 3, H, W) in [0, 1], rng) -> changed images."""
    if not 0 < rate < 1:
        raise ValueError(f"repair_rate = {rate}: expected a number strictly between 0 and 1")

    def edit(images: Tensor, labels: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        chosen = torch.rand(len(images), generator=rng, device=images.device) < rate
        return torch.where(chosen[:, None, None, None], apply(images, rng), images), labels

    return edit


def one_of(applies: Sequence[Callable[[Tensor, torch.Generator], Tensor]]):
    """A change of images that is one of several for each image, drawn evenly."""

    def apply(images: Tensor, rng: torch.Generator) -> Tensor:
        which = torch.randint(len(applies), (len(images),), generator=rng, device=images.device)
        changed = torch.stack([own(images, rng) for own in applies])
        return changed[which, torch.arange(len(images), device=images.device)]

    return apply
