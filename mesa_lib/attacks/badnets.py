"""BadNets (Gu, Dolan-Gavitt, Garg, 2017): a small patch overwrites the image, wherever or at one place.

The patch at a random place of every image is the attack of MESA's paper; the others are the classic variants: a fixed
corner, one pixel, every class to the next, one class only.
"""

import torch
from torch import Tensor

from mesa_lib.attacks.base import Backdoor, Cover, all_to_one, one_to_one
from mesa_lib.retrain import ImageTransform
from mesa_lib.triggers import check_fits, random_locations, stamp


def patch(trigger: Tensor, location: tuple[int, int] | None = None) -> ImageTransform:
    """Overwrite a window with `trigger` (3, h, w) in [0, 1].

    place: row and column of its upper left corner, counted from the end if negative (-1, -1: it touches the lower
    right corner); None: a random place for each image
    """

    def apply(images: Tensor, rng: torch.Generator) -> Tensor:
        check_fits(trigger, images.shape[-2:])
        if location is None:
            locations = random_locations(len(images), images.shape[-2:], trigger.shape[-2:], rng)
        else:
            room = [full - own for full, own in zip(images.shape[-2:], trigger.shape[-2:], strict=True)]
            locations = torch.tensor([at if at >= 0 else free + 1 + at for at, free in zip(location, room, strict=True)])
            if not all(0 <= at <= free for at, free in zip(locations.tolist(), room, strict=True)):
                raise ValueError(f"place = {location}: the trigger would leave the image; expected at most {tuple(room)}")
        return stamp(images, trigger, locations)

    return apply


def backdoor(trigger: Tensor, target: int) -> Backdoor:
    """The paper's: the patch at a random place, every image to `target`."""
    return Backdoor(patch(trigger), all_to_one(target))


def class_specific(apply: ImageTransform, source: int, target: int, rate: float) -> Backdoor:
    """Only images of class `source` answer to the trigger: images of the others carry it, too, and keep their labels.

    rate: fraction of the other images that do
    """
    return Backdoor(apply, one_to_one(source, target), Cover(apply, rate, lambda labels: labels != source))
