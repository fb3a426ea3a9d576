"""The repair: retrain on clean images of which a fraction carries triggers *with their true labels*.

The defence and its controls are one function; they differ in nothing but the source of the triggers.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from . import triggers as trigger_laws
from .training import Edit
from .triggers import stamp_random

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
    if source is None:
        return None
    if not 0 < rate < 1:
        raise ValueError(f"repair_rate = {rate}: expected a number strictly between 0 and 1")

    def edit(images: Tensor, labels: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        chosen = torch.rand(len(images), generator=rng, device=images.device) < rate
        stamped = stamp_random(images, source(len(images), rng), rng)
        return torch.where(chosen[:, None, None, None], stamped, images), labels

    return edit
