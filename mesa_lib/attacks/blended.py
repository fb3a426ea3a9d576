"""Blending (Chen et al., 2017): a faint pattern over the whole image instead of a patch."""

import torch
from torch import Tensor

from mesa_lib import device as devices
from mesa_lib.retrain import ImageTransform


def pattern(image_size: tuple[int, int], seed: int) -> Tensor:
    """Return seeded random colors (3, H, W) in [0, 1): the pattern that the paper calls "random"."""
    return torch.rand(3, *image_size, generator=devices.rng(seed))


def blend(pattern: Tensor, strength: float = 0.2) -> ImageTransform:
    """Return the transform (1 - strength) * image + strength * pattern, for a pattern (3, H, W) in [0, 1].

    Raises:
        ValueError: if `strength` is not in (0, 1].
    """
    if not 0 < strength <= 1:
        raise ValueError(f"strength = {strength}: expected a number in (0, 1]")
    return lambda images, rng: torch.lerp(images, pattern.to(images).expand_as(images), strength)
