"""Triggers: small patches of pixels in [0, 1], how they are named, drawn and stamped onto images.

One spelling everywhere: `bw:170` (black-white pattern 170), `colour:3` (seeded random colours, number 3),
`file:path.png` or `file:path.npy` (one's own, of any size up to the image).
"""

from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from . import paths

#: the laws of `mixed`; not `bw`, which would draw the black-white pattern of an attacker itself, one of only 512. One
#: in 256 patches of `two` has that pattern's layout in other colours; `unpaired` does without them
MIXED = ("uniform", "binary", "grey", "two")
MIXTURES = {"mixed": MIXED, "unpaired": MIXED[:3]}
LAWS = ("uniform", "binary", "bw", "grey", "two", *MIXTURES)


# --- black-white patterns --------------------------------------------------------------------------------


def pattern(number: int) -> Tensor:
    """Black-white pattern `number` in 0..511 -> (3, 3, 3): nine bits, row by row, highest first, 1 is white."""
    if not 0 <= number < 512:
        raise ValueError(f"trigger = 'bw:{number}': expected a pattern number from 0 to 511")
    bits = [(number >> (8 - i)) & 1 for i in range(9)]
    return torch.tensor(bits, dtype=torch.float32).reshape(1, 3, 3).repeat(3, 1, 1)


@cache
def orbits() -> tuple[tuple[int, ...], ...]:
    """The 512 patterns fall into 51 classes under rotation, flip and colour inversion (MESA, section 4).

    Each class is a sorted tuple of pattern numbers; its first member names it (as in the authors' code).
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
    """The names of the 51 classes: the least pattern number of each."""
    return [orbit[0] for orbit in orbits()]


# --- other triggers --------------------------------------------------------------------------------------


def colour(number: int, size: int = 3) -> Tensor:
    """Seeded random colours -> (3, size, size); values on the 8-bit grid, so an image file can hold them."""
    if not 0 <= number < 2**32:
        raise ValueError(f"trigger = 'colour:{number}': expected a number from 0 to {2**32 - 1}")
    draw = np.random.RandomState(number).randint(0, 256, (3, size, size))
    return torch.from_numpy(draw).float() / 255


def from_file(path: str | Path) -> Tensor:
    """An image file, or a .npy array (h, w, 3) or (3, h, w) of 0..255 or [0, 1] -> (3, h, w) in [0, 1]."""
    path = paths.find(path)
    try:
        if path.suffix == ".npy":
            array = np.load(path, allow_pickle=False)
        else:
            array = np.asarray(Image.open(path).convert("RGB"))
    except (OSError, EOFError, ValueError, UnidentifiedImageError) as error:
        raise ValueError(f"trigger = 'file:{path.name}': expected an image or a .npy array: {error}") from error
    if array.ndim != 3 or 3 not in (array.shape[0], array.shape[2]) or array.size == 0:
        raise ValueError(f"trigger = 'file:{path.name}': shape {array.shape}, expected (h, w, 3) or (3, h, w)")
    if array.dtype.kind not in "buif":
        raise ValueError(f"trigger = 'file:{path.name}': values of type {array.dtype}, expected numbers")
    trigger = torch.from_numpy(array.astype(np.float32))
    if array.shape[2] == 3:
        trigger = trigger.permute(2, 0, 1)
    trigger = trigger / 255 if array.dtype == np.uint8 else trigger
    if not (torch.isfinite(trigger).all() and trigger.min() >= 0 and trigger.max() <= 1):
        raise ValueError(f"trigger = 'file:{path.name}': values must be uint8 or lie in [0, 1]")
    return trigger.contiguous()


def parse(spec: str) -> Tensor:
    """`bw:170`, `colour:3` or `file:path.png` -> (3, h, w) in [0, 1]; ValueError says what was expected."""
    kind, _, value = spec.partition(":")
    if kind == "file" and value:
        return from_file(value)
    if kind not in ("bw", "colour") or not value.isdecimal():
        raise ValueError(f"trigger = {spec!r}: expected bw:NUMBER, colour:NUMBER or file:PATH")
    return pattern(int(value)) if kind == "bw" else colour(int(value))


def random(n: int, law: str, rng: torch.Generator, size: tuple[int, int] = (3, 3)) -> Tensor:
    """n random triggers -> (n, 3, h, w): what a defender can try without any modelling.

    `uniform` colours; `binary`, every channel 0 or 1; `bw`, black or white pixels; `grey`, any greys; `two`, each pixel
    one of two random colours; `mixed`, each trigger of one of these laws but `bw`; `unpaired`, neither `bw` nor `two`.
    """
    if law not in LAWS:
        raise ValueError(f"random triggers of law {law!r}: expected one of {', '.join(LAWS)}")
    options = {"generator": rng, "device": rng.device}
    if law in MIXTURES:
        drawn = torch.stack([random(n, name, rng, size) for name in MIXTURES[law]])
        return drawn[torch.randint(len(drawn), (n,), **options), torch.arange(n, device=rng.device)]
    if law == "two":
        first, second = torch.rand(2, n, 3, 1, 1, **options)
        return torch.where(torch.rand(n, 1, *size, **options) < 0.5, first, second)
    draw = torch.rand(n, 1 if law in ("bw", "grey") else 3, *size, **options)
    return (draw if law in ("uniform", "grey") else draw.round()).expand(n, 3, *size)


# --- stamping --------------------------------------------------------------------------------------------


def check_fits(trigger: Tensor, image_size: tuple[int, int]) -> None:
    """ValueError if the trigger (..., h, w) is larger than the image (H, W)."""
    (h, w), (height, width) = trigger.shape[-2:], image_size
    if h > height or w > width:
        raise ValueError(f"a trigger of {h}x{w} pixels does not fit an image of {height}x{width}")


def random_places(n: int, image_size: tuple[int, int], size: tuple[int, int], rng: torch.Generator) -> Tensor:
    """n places (row, column of the upper left corner) -> (n, 2), every place that fits equally likely."""
    rows = torch.randint(image_size[0] - size[0] + 1, (n,), generator=rng, device=rng.device)
    columns = torch.randint(image_size[1] - size[1] + 1, (n,), generator=rng, device=rng.device)
    return torch.stack([rows, columns], 1)


def all_places(image_size: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Every place that fits, row by row -> ((H - h + 1) * (W - w + 1), 2)."""
    rows, columns = torch.arange(image_size[0] - size[0] + 1), torch.arange(image_size[1] - size[1] + 1)
    return torch.cartesian_prod(rows, columns)


def stamp(images: Tensor, trigger: Tensor, places: Tensor) -> Tensor:
    """Overwrite a window of every image with the trigger: the paper's application rule.

    images (B, 3, H, W) in [0, 1]; trigger (3, h, w), or (B, 3, h, w) for one per image; places (B, 2) or
    (2,) for one place for all. Returns a new tensor; the images stay as they are. Differentiable in both.
    """
    check_fits(trigger, images.shape[-2:])
    batch, (h, w) = len(images), trigger.shape[-2:]
    places = places.to(images.device).expand(batch, 2)
    rows = places[:, 0, None, None] + torch.arange(h, device=images.device)[:, None]  # (B, h, 1)
    columns = places[:, 1, None, None] + torch.arange(w, device=images.device)  # (B, 1, w)
    which = torch.arange(batch, device=images.device)[:, None, None]  # (B, 1, 1)
    patch = trigger.to(images.device, images.dtype).expand(batch, 3, h, w).permute(0, 2, 3, 1)
    stamped = images.permute(0, 2, 3, 1).index_put((which, rows, columns), patch)  # (B, H, W, 3), a copy
    return stamped.permute(0, 3, 1, 2)


def stamp_random(images: Tensor, trigger: Tensor, rng: torch.Generator) -> Tensor:
    """`stamp` with a random place for each image."""
    check_fits(trigger, images.shape[-2:])
    places = random_places(len(images), images.shape[-2:], trigger.shape[-2:], rng)
    return stamp(images, trigger, places)
