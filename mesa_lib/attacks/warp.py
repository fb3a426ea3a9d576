"""WaNet (Nguyen, Tran, ICLR 2021): the trigger is a fixed, smooth warp, so it changes every image differently.

A coarse field of displacements is drawn once and enlarged smoothly. So that the model learns this warp rather than any,
twice as many images are cover samples: warped by noisy fields, with their true labels (the paper's noise mode). Other
smooth warps of equal strength still work in part.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mesa_lib import device as devices
from mesa_lib.attacks.base import Backdoor, Cover, Goal
from mesa_lib.retrain import ImageTransform


def field(image_size: tuple[int, int], seed: int, points: int = 4, strength: float = 0.5) -> Tensor:
    """Return where each pixel is taken from: (H, W, 2) in the coordinates of `grid_sample`, x before y.

    Args:
        image_size: height and width.
        seed: of the field.
        points: the coarse field has points x points random directions, with a mean absolute value of one; it is
            enlarged bicubically.
        strength: moves a pixel by about that many half pixels (grid coordinates span 2 over the image's H pixels).
    """
    coarse = torch.rand(1, 2, points, points, generator=devices.rng(seed)) * 2 - 1
    coarse = coarse / coarse.abs().mean()
    smooth = F.interpolate(coarse, size=image_size, mode="bicubic", align_corners=True)[0].permute(1, 2, 0)
    return (identity(image_size) + strength * smooth / image_size[0]).clamp(-1, 1)


def identity(image_size: tuple[int, int]) -> Tensor:
    """Return the grid (H, W, 2) that changes nothing."""
    rows, columns = (torch.linspace(-1, 1, side) for side in image_size)
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij")[::-1], -1)


def warped(grid: Tensor) -> ImageTransform:
    """Return a transform that warps every image by one field (H, W, 2)."""
    return lambda images, rng: _sample(images, grid.to(images).expand(len(images), -1, -1, -1))


def noisily_warped(grid: Tensor, noise: float = 1.0) -> ImageTransform:
    """Return a transform that warps every image by a noisy copy of the field (H, W, 2), drawn for that image.

    Each pixel's source is moved by up to `noise` more half pixels. (The paper: noise 1 with a strength of 0.5.)
    """

    def apply(images: Tensor, rng: torch.Generator) -> Tensor:
        displacement = torch.rand(len(images), *grid.shape, generator=rng, device=images.device) * 2 - 1
        return _sample(images, (grid.to(images) + noise * displacement / images.shape[-2]).clamp(-1, 1))

    return apply


def _sample(images: Tensor, grids: Tensor) -> Tensor:
    return F.grid_sample(images, grids, mode="bilinear", padding_mode="border", align_corners=True)


def backdoor(grid: Tensor, goal: Goal, rate: float, noise: float = 1.0) -> Backdoor:
    """Return the warp with cover samples, twice as many as poisoned images (`rate`), at most one half."""
    return Backdoor(warped(grid), goal, Cover(noisily_warped(grid, noise), min(2 * rate, 0.5)))
