"""Blending (Chen et al., 2017): a faint pattern all over the image instead of a patch."""

import torch
from torch import Tensor

from mesa_lib.retrain import ImageTransform


def pattern(image_size: tuple[int, int], seed: int) -> Tensor:
    """Seeded random colors (3, H, W) in [0, 1), the pattern of the paper's "random" key."""
    return torch.rand(3, *image_size, generator=torch.Generator().manual_seed(seed))


def blend(pattern: Tensor, strength: float = 0.2) -> ImageTransform:
    """(1 - strength) * image + strength * pattern; pattern (3, H, W) in [0, 1], 0 < strength <= 1."""
    if not 0 < strength <= 1:
        raise ValueError(f"strength = {strength}: expected a number in (0, 1]")
    return lambda images, rng: torch.lerp(images, pattern.to(images).expand_as(images), strength)
