"""Refool (Liu et al., ECCV 2020): the trigger is the reflection of another picture, as in a window pane.

A reflection is out of focus (blurred) or doubled (two shifted copies, from the two faces of the pane). The attacker
blends reflections into some images and selects those that work best. The code is written for 32x32 images: offsets and
blur scale with the image, since the paper's few pixels at 560 would vanish here.

Unlike the paper: poisoned images come from all classes and get the target's label (clean labels alone hardly plant
anything on images this small), blurred reflections fill the whole image, candidates are not filtered beforehand, and
the reflections that are evaluated are those of training.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mesa_lib import device as devices
from mesa_lib.attacks.base import Backdoor, all_to_one, poison
from mesa_lib.data.splits import Split
from mesa_lib.models.inference import predict
from mesa_lib.retrain import ImageTransform
from mesa_lib.training import BatchTransform

GAMMA = 2.2  # of displays: light adds up in linear values


def scenes(n: int, size: tuple[int, int], seed: int) -> Tensor:
    """Return n pictures (n, 3, H, W) in [0, 1] to be reflected: crops of scikit-learn's sample photographs."""
    from sklearn.datasets import load_sample_images

    rng = devices.rng(seed)
    photos = [torch.from_numpy(photo.copy()).permute(2, 0, 1).float() / 255 for photo in load_sample_images().images]
    crops = []
    for i in range(n):
        photo = photos[i % len(photos)]
        side = int(torch.randint(96, 257, (1,), generator=rng))
        top, left = (int(torch.randint(full - side + 1, (1,), generator=rng)) for full in photo.shape[-2:])
        crop = photo[None, :, top : top + side, left : left + side]
        crops.append(F.interpolate(crop, size=size, mode="bilinear", antialias=True, align_corners=False)[0])
    return torch.stack(crops).clamp(0, 1)


def blend(images: Tensor, reflections: Tensor, rng: torch.Generator, ghost_rate: float = 0.49) -> Tensor:
    """Return each image (B, 3, H, W) in [0, 1] behind a pane that reflects a picture of its own (B, 3, H, W).

    The image keeps 55 to 95% of its light. With probability `ghost_rate` the reflection is doubled, otherwise it is out
    of focus. Light is added in linear values.
    """
    device, batch = images.device, len(images)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(batch, 1, 1, 1, generator=rng, device=device)

    transmitted = 1 - uniform(0.05, 0.45)
    x, r = images.clamp(min=1e-6) ** GAMMA, reflections.to(device).clamp(min=1e-6) ** GAMMA
    ghosts = _ghost(r, uniform(0, 1), uniform(0.15, 0.5), rng) * (1 - transmitted)
    blurred = _out_of_focus(r, x, uniform(0.5, 2.0), uniform(1.08, 1.18)) * (1 - transmitted / 2)
    is_ghost = torch.rand(batch, 1, 1, 1, generator=rng, device=device) < ghost_rate
    return (torch.where(is_ghost, ghosts, blurred) + transmitted * x).clamp(0, 1) ** (1 / GAMMA)


def _ghost(r: Tensor, side: Tensor, weight: Tensor, rng: torch.Generator) -> Tensor:
    """Two copies of unequal strength, one shifted by up to a tenth of the image."""
    height, width = r.shape[-2:]
    most = max(2, round(0.1 * min(height, width)))
    shift = torch.randint(1, most + 1, (len(r), 2), generator=rng, device=r.device)
    rows = (torch.arange(height, device=r.device) + shift[:, :1]).clamp(max=height - 1)
    columns = (torch.arange(width, device=r.device) + shift[:, 1:]).clamp(max=width - 1)
    image = torch.arange(len(r), device=r.device)[:, None, None]
    second = r.permute(0, 2, 3, 1)[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    share = (side.round() - weight).abs()
    return share * r + (1 - share) * second


def _out_of_focus(r: Tensor, x: Tensor, sigma: Tensor, pull: Tensor) -> Tensor:
    """Each picture blurred by a Gaussian of its own width; overexposed values (with the image) are pulled down."""
    radius = math.ceil(2 * 2.0)
    offsets = torch.arange(-radius, radius + 1, device=r.device, dtype=r.dtype)
    kernel = torch.exp(-(offsets**2) / (2 * sigma.flatten()[:, None] ** 2))
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(3, 0)  # (B * 3, taps)
    flat = r.reshape(1, -1, *r.shape[-2:])
    padded = F.pad(flat, (radius,) * 4, mode="replicate")
    rows = F.conv2d(padded, kernel[:, None, :, None], groups=len(kernel))
    blurred = F.conv2d(rows, kernel[:, None, None, :], groups=len(kernel)).reshape(r.shape)
    over = (blurred + x > 1).to(r.dtype)
    count = over.sum((2, 3), keepdim=True)
    mean = ((blurred + x) * over).sum((2, 3), keepdim=True) / count.clamp(min=1)
    excess = torch.where(count > 0, (mean.clamp(min=1) - 1) * pull, torch.zeros_like(mean))
    return (blurred - excess).clamp(0, 1)


def reflecting(pool: Tensor) -> ImageTransform:
    """Return a transform that blends one picture of `pool` (n, 3, H, W), drawn for each image, into every image."""

    def apply(images: Tensor, rng: torch.Generator) -> Tensor:
        index = torch.randint(len(pool), (len(images),), generator=rng, device=images.device)
        return blend(images, pool.to(images.device)[index], rng)

    return apply


def select(
    candidates: Tensor,
    images: Split,
    target: int,
    train: Callable[[BatchTransform], nn.Module],
    *,
    keep: int,
    rate: float,
    rounds: int = 3,
    each: int = 8,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Select the candidates that work best (the paper's Algorithm 1) -> `keep` indices, and all weights (n,).

    In every round `each` candidates are drawn by their weights and planted together. A candidate's weight becomes the
    number of images of other classes that it makes the model classify as `target`; those not drawn get the median.

    Args:
        candidates: pictures (n, 3, H, W) in [0, 1].
        images: the attacker's own, uint8; not those of the evaluation.
        target: the attacker's target class.
        train: a batch transform -> a model trained with it for a short time.
        keep: how many are selected.
        rate: fraction of poisoned images.
        rounds, each: rounds, and candidates per round.
        seed: of the draws.
    """
    rng = devices.rng(seed)
    weights = torch.ones(len(candidates))
    x = images[images.labels != target].images.float() / 255
    for _ in range(rounds):
        drawn = torch.multinomial(weights + 1e-6, min(each, len(candidates)), generator=rng)
        model = train(poison(Backdoor(reflecting(candidates[drawn]), all_to_one(target)), rate))
        successes = {
            int(i): float((predict(model, blend(x, candidates[i].expand_as(x), rng)) == target).sum()) for i in drawn
        }
        weights = torch.full_like(weights, float(torch.tensor(list(successes.values())).median()))
        for i, count in successes.items():
            weights[i] = count
    return weights.argsort(descending=True)[:keep], weights
