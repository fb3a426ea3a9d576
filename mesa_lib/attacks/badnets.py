"""BadNets (Gu, Dolan-Gavitt, Garg, 2017): a small patch overwrites the image, wherever or at one place.

The patch at a random place of every image is the attack of MESA's paper; the others are the classic variants: a fixed
corner, one pixel, every class to the next, one class only.
"""

import torch
from torch import Tensor

from ..triggers import check_fits, random_places, stamp
from .base import Apply, Backdoor, Cover, all_to_one, one_to_one


def patch(trigger: Tensor, place: tuple[int, int] | None = None) -> Apply:
    """Overwrite a window with `trigger` (3, h, w) in [0, 1].

    place: row and column of its upper left corner, counted from the end if negative (-1, -1: it touches the lower
    right corner); None: a random place for each image
    """

    def apply(images: Tensor, rng: torch.Generator) -> Tensor:
        check_fits(trigger, images.shape[-2:])
        if place is None:
            places = random_places(len(images), images.shape[-2:], trigger.shape[-2:], rng)
        else:
            room = [full - own for full, own in zip(images.shape[-2:], trigger.shape[-2:], strict=True)]
            places = torch.tensor([at if at >= 0 else free + 1 + at for at, free in zip(place, room, strict=True)])
            if not all(0 <= at <= free for at, free in zip(places.tolist(), room, strict=True)):
                raise ValueError(f"place = {place}: the trigger would leave the image; expected at most {tuple(room)}")
        return stamp(images, trigger, places)

    return apply


def backdoor(trigger: Tensor, target: int) -> Backdoor:
    """The paper's: the patch at a random place, every image to `target`."""
    return Backdoor(patch(trigger), all_to_one(target))


def class_specific(apply: Apply, source: int, target: int, rate: float) -> Backdoor:
    """Only images of class `source` answer to the trigger: images of the others carry it, too, and keep their labels.

    rate: fraction of the other images that do
    """
    return Backdoor(apply, one_to_one(source, target), Cover(apply, rate, lambda labels: labels != source))
