"""BadNets (Gu, Dolan-Gavitt, Garg, 2017): a small patch overwrites a window of the image.

MESA's paper attacks with a patch at a random location of every image. The others are the classic variants: a fixed
corner, one pixel, every class to the next one, images of one class only.
"""

import torch
from torch import Tensor

from mesa_lib.attacks.base import Backdoor, Cover, all_to_one, one_to_one
from mesa_lib.retrain import ImageTransform
from mesa_lib.triggers import check_fits, random_locations, stamp


def patch(trigger: Tensor, location: tuple[int, int] | None = None) -> ImageTransform:
    """Return a transform that overwrites a window with `trigger` (3, h, w) in [0, 1].

    Args:
        trigger: the patch.
        location: row and column of its upper left corner, counted from the end if negative (at -1, -1 the patch
            touches the lower right corner); None: a random location for each image.
    """
    size = tuple(trigger.shape[-2:])

    def apply(images: Tensor, rng: torch.Generator) -> Tensor:
        image_size = tuple(images.shape[-2:])
        check_fits(size, image_size)
        if location is None:
            return stamp(images, trigger, random_locations(len(images), image_size, size, rng))
        last = [full - side for full, side in zip(image_size, size, strict=True)]
        where = [at if at >= 0 else end + 1 + at for at, end in zip(location, last, strict=True)]
        if not all(0 <= at <= end for at, end in zip(where, last, strict=True)):
            raise ValueError(
                f"location = {location}: the trigger would leave the image; expected at most {tuple(last)}"
            )
        return stamp(images, trigger, torch.tensor(where))

    return apply


def backdoor(trigger: Tensor, target: int) -> Backdoor:
    """Return the backdoor of MESA's paper: the patch at a random location, every image to `target`."""
    return Backdoor(patch(trigger), all_to_one(target))


def class_specific(apply: ImageTransform, source: int, target: int, rate: float) -> Backdoor:
    """Return a backdoor that works on images of class `source` only.

    Images of the other classes are cover samples: a fraction `rate` of them carries the trigger and keeps its label.
    """
    return Backdoor(apply, one_to_one(source, target), Cover(apply, rate, lambda labels: labels != source))
