"""WaNet (Nguyen, Tran, ICLR 2021): the trigger is a fixed, smooth warp, so what it changes is another for every image.

A coarse field of displacements is drawn once and enlarged smoothly. So that the model learns this warp rather than any,
twice as many images are warped by noisy fields and keep their labels (the paper's noise mode; other smooth warps of the
same strength still fire in part).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mesa_lib.attacks.base import Backdoor, Cover, Goal
from mesa_lib.retrain import ImageTransform


def field(image_size: tuple[int, int], seed: int, points: int = 4, strength: float = 0.5) -> Tensor:
    """Where each pixel is taken from: (H, W, 2) in the coordinates of `grid_sample`, x before y.

    `points` x `points` random directions, scaled to a mean size of one, enlarged bicubically; `strength` moves a pixel
    by about that many halves of a pixel (grid coordinates span 2 over the image's H pixels).
    """
    coarse = torch.rand(1, 2, points, points, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    coarse = coarse / coarse.abs().mean()
    smooth = F.interpolate(coarse, size=image_size, mode="bicubic", align_corners=True)[0].permute(1, 2, 0)
    return (identity(image_size) + strength * smooth / image_size[0]).clamp(-1, 1)


def identity(image_size: tuple[int, int]) -> Tensor:
    """The grid that changes nothing (H, W, 2)."""
    rows, columns = (torch.linspace(-1, 1, side) for side in image_size)
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij")[::-1], -1)


def warped(grid: Tensor) -> ImageTransform:
    """Every image warped by the same field (H, W, 2)."""
    return lambda images, rng: _sample(images, grid.to(images).expand(len(images), -1, -1, -1))


def noisily_warped(grid: Tensor, noise: float = 1.0) -> ImageTransform:
    """The same with a field of its own for every image: each pixel's source is moved by up to `noise` half pixels more.

    The paper has 1, with a strength of 0.5.
    """

    def apply(images: Tensor, rng: torch.Generator) -> Tensor:
        moved = torch.rand(len(images), *grid.shape, generator=rng, device=images.device) * 2 - 1
        return _sample(images, (grid.to(images) + noise * moved / images.shape[-2]).clamp(-1, 1))

    return apply


def _sample(images: Tensor, grids: Tensor) -> Tensor:
    return F.grid_sample(images, grids, mode="bilinear", padding_mode="border", align_corners=True)


def backdoor(grid: Tensor, goal: Goal, rate: float, noise: float = 1.0) -> Backdoor:
    """The warp with its cover of noisy ones, twice the rate of poisoned images."""
    return Backdoor(warped(grid), goal, Cover(noisily_warped(grid, noise), min(2 * rate, 0.5)))
