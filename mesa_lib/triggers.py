"""Triggers: small patches of pixels in [0, 1]; how they are drawn and how they are stamped onto images."""

from functools import cache

import numpy as np
import torch
from torch import Tensor

#: the families that `mixed` draws from; not `bw`, which would draw the attacker's own black-white patterns. One in 256
#: patches of `two` has such a pattern's layout in other colors; `unpaired` leaves `two` out as well
MIXED = ("uniform", "binary", "gray", "two")
MIXTURES = {"mixed": MIXED, "unpaired": MIXED[:3]}
FAMILIES = ("uniform", "binary", "bw", "gray", "two", *MIXTURES)


# --- single triggers -------------------------------------------------------------------------------------


def pattern(number: int) -> Tensor:
    """Return black-white pattern `number` in 0..511 as (3, 3, 3): nine bits, row by row, highest first, 1 is white."""
    if not 0 <= number < 512:
        raise ValueError(f"trigger = 'bw:{number}': expected a pattern number from 0 to 511")
    bits = [(number >> (8 - i)) & 1 for i in range(9)]
    return torch.tensor(bits, dtype=torch.float32).reshape(1, 3, 3).repeat(3, 1, 1)


@cache
def orbits() -> tuple[tuple[int, ...], ...]:
    """Return the 51 classes of the 512 patterns under rotation, flip and color inversion (MESA, section 4).

    Each class is a sorted tuple of pattern numbers; its first member names it, as in the authors' code.
    """
    seen: set[int] = set()
    classes = []
    for number in range(512):
        if number not in seen:
            grid = pattern(number)[0].int().numpy()
            orbit = {
                int("".join(map(str, (np.rot90(side, k) ^ invert).ravel())), 2)
                for side in (grid, np.fliplr(grid))
                for k in range(4)
                for invert in (0, 1)
            }
            seen |= orbit
            classes.append(tuple(sorted(orbit)))
    return tuple(classes)


def representatives() -> list[int]:
    """Return the names of the 51 classes: the smallest pattern number of each."""
    return [orbit[0] for orbit in orbits()]


def color(number: int, size: int = 3) -> Tensor:
    """Return seeded random colors (3, size, size) on the 8-bit grid, so that an image file can hold them."""
    if not 0 <= number < 2**32:
        raise ValueError(f"trigger = 'color:{number}': expected a number from 0 to {2**32 - 1}")
    values = np.random.RandomState(number).randint(0, 256, (3, size, size))
    return torch.from_numpy(values).float() / 255


# --- many triggers ---------------------------------------------------------------------------------------


def random_triggers(n: int, family: str, rng: torch.Generator, size: tuple[int, int] = (3, 3)) -> Tensor:
    """Return n random triggers (n, 3, h, w): what a defender can try without any modeling.

    Args:
        n: how many.
        family: `uniform` colors; `binary`, every channel 0 or 1; `bw`, black or white pixels; `gray`, any grays;
            `two`, each pixel one of two random colors; `mixed`, each trigger from one of these families except `bw`;
            `unpaired`, neither `bw` nor `two`.
        rng: source of randomness; its device is that of the result.
        size: height and width in pixels.
    """
    if family not in FAMILIES:
        raise ValueError(f"family = {family!r}: expected one of {', '.join(FAMILIES)}")
    options = {"generator": rng, "device": rng.device}
    if family in MIXTURES:
        candidates = torch.stack([random_triggers(n, name, rng, size) for name in MIXTURES[family]])
        return candidates[torch.randint(len(candidates), (n,), **options), torch.arange(n, device=rng.device)]
    if family == "two":
        first, second = torch.rand(2, n, 3, 1, 1, **options)
        return torch.where(torch.rand(n, 1, *size, **options) < 0.5, first, second)
    values = torch.rand(n, 1 if family in ("bw", "gray") else 3, *size, **options)
    return (values if family in ("uniform", "gray") else values.round()).expand(n, 3, *size)


def diversity(triggers: Tensor) -> dict[str, float]:
    """Return how different triggers (n, ...) are: mean pairwise distance and mean standard deviation per value.

    `distance` is the root mean square difference of two triggers, averaged over pairs: 0 for identical triggers, about
    0.41 for uniform noise, 0.71 for independent black-or-white values. `std` is the mean standard deviation of a value.
    """
    flat = triggers.flatten(1).float().cpu()
    distance = torch.pdist(flat) / flat.shape[1] ** 0.5
    return {"distance": float(distance.mean()), "std": float(flat.std(0).mean())}


# --- stamping --------------------------------------------------------------------------------------------


def check_fits(trigger_size: tuple[int, int], image_size: tuple[int, int]) -> None:
    """Raise ValueError if a trigger of h x w pixels is larger than the image."""
    (h, w), (height, width) = trigger_size, image_size
    if h > height or w > width:
        raise ValueError(f"a trigger of {h}x{w} pixels does not fit an image of {height}x{width}")


def random_locations(n: int, image_size: tuple[int, int], size: tuple[int, int], rng: torch.Generator) -> Tensor:
    """Return n locations (n, 2), row and column of the upper left corner, uniform over all that fit."""
    check_fits(size, image_size)
    rows = torch.randint(image_size[0] - size[0] + 1, (n,), generator=rng, device=rng.device)
    columns = torch.randint(image_size[1] - size[1] + 1, (n,), generator=rng, device=rng.device)
    return torch.stack([rows, columns], 1)


def all_locations(image_size: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Return every location that fits, row by row: ((H - h + 1) * (W - w + 1), 2)."""
    rows, columns = torch.arange(image_size[0] - size[0] + 1), torch.arange(image_size[1] - size[1] + 1)
    return torch.cartesian_prod(rows, columns)


def stamp(images: Tensor, trigger: Tensor, locations: Tensor) -> Tensor:
    """Return copies of the images with a window overwritten by the trigger: the paper's application rule.

    Differentiable with respect to images and trigger.

    Args:
        images: (B, 3, H, W) in [0, 1].
        trigger: (3, h, w), or (B, 3, h, w) for one trigger per image.
        locations: (B, 2), or (2,) for one location for all images.
    """
    check_fits(trigger.shape[-2:], images.shape[-2:])
    batch, (h, w) = len(images), trigger.shape[-2:]
    locations = locations.to(images.device).expand(batch, 2)
    rows = locations[:, 0, None, None] + torch.arange(h, device=images.device)[:, None]  # (B, h, 1)
    columns = locations[:, 1, None, None] + torch.arange(w, device=images.device)  # (B, 1, w)
    image = torch.arange(batch, device=images.device)[:, None, None]  # (B, 1, 1)
    patch = trigger.to(images.device, images.dtype).expand(batch, 3, h, w).permute(0, 2, 3, 1)
    stamped = images.permute(0, 2, 3, 1).index_put((image, rows, columns), patch)  # (B, H, W, 3), a copy
    return stamped.permute(0, 3, 1, 2)


def stamp_random(images: Tensor, trigger: Tensor, rng: torch.Generator) -> Tensor:
    """Return copies of the images, each stamped (see `stamp`) at a random location of its own."""
    return stamp(images, trigger, random_locations(len(images), images.shape[-2:], trigger.shape[-2:], rng))
