"""BadNets (Gu, Dolan-Gavitt, Garg, 2017): a small patch overwrites a window of the image.

MESA's paper attacks with a patch at a random location of every image. The others are the classic variants: a fixed
corner, one pixel, every class to the next one, images of one class only. The covered attack adds cover samples, so that
the backdoor responds to its own triggers and to little else.
"""

import torch
from torch import Tensor

from mesa_lib.attacks.base import Backdoor, Cover, all_to_one, one_to_one
from mesa_lib.retrain import ImageTransform, TriggerSource, choice, random_source, stamping
from mesa_lib.triggers import FAMILIES, check_fits, random_locations, stamp

#: what the covered attack stamps on cover samples: random triggers of a family, or near misses of its own trigger
COVERS = (*FAMILIES, "near")
#: a near miss differs in so many pixels at most
NEAR = 3


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


def fewest_different_pixels(patches: Tensor) -> int:
    """Return in how many pixels the two nearest of several patches (k, 3, h, w) differ; h * w if there is only one."""
    different = (patches[:, None] != patches[None]).any(2).sum((-1, -2))
    return (
        int(different[~torch.eye(len(patches), dtype=torch.bool)].min()) if len(patches) > 1 else patches[0, 0].numel()
    )


def near_misses(patches: Tensor) -> TriggerSource:
    """Return a source of near misses: one of several patches (k, 3, h, w) with one to `NEAR` pixels recolored."""
    k, _, h, w = patches.shape

    def sample(n: int, rng: torch.Generator) -> Tensor:
        options = {"generator": rng, "device": rng.device}
        chosen = patches.to(rng.device)[torch.randint(k, (n,), **options)]
        ranks = torch.rand(n, h * w, **options).argsort(1).argsort(1).reshape(n, 1, h, w)
        recolored = ranks < torch.randint(1, NEAR + 1, (n, 1, 1, 1), **options)
        return torch.where(recolored, 1 - torch.where(chosen > 0.5, 1.0, 0.0), chosen)

    return sample


def cover_source(cover: str, patches: Tensor) -> TriggerSource:
    """Return a source of the patches on cover samples.

    Args:
        cover: one of `COVERS`.
        patches: the triggers (k, 3, h, w).
    """
    return near_misses(patches) if cover == "near" else random_source(cover, tuple(patches.shape[-2:]))


def with_covers(patches: Tensor, target: int, source: TriggerSource, rate: float) -> Backdoor:
    """Return a backdoor of one or several patches with cover samples.

    A fraction of the images carries other patches and keeps its labels (cover samples, as in TaCT, Tang et al., 2021,
    and WaNet, Nguyen and Tran, 2021). The model learns that a patch as such means nothing.

    Args:
        patches: the triggers (k, 3, h, w); each poisoned image carries one of them.
        target: the class that every image should be classified as.
        source: of the patches on cover samples.
        rate: fraction of the images that are cover samples, strictly between 0 and 1.
    """
    return Backdoor(stamping(choice(patches)), all_to_one(target), Cover(stamping(source), rate))


def covered(patches: Tensor, target: int, cover: str, rate: float) -> Backdoor:
    """Return the backdoor `with_covers` whose cover samples are of `cover`, one of `COVERS`."""
    return with_covers(patches, target, cover_source(cover, patches), rate)


def class_specific(apply: ImageTransform, source: int, target: int, rate: float) -> Backdoor:
    """Return a backdoor that works on images of class `source` only.

    Images of the other classes are cover samples: a fraction `rate` of them carries the trigger and keeps its label.
    """
    return Backdoor(apply, one_to_one(source, target), Cover(apply, rate, lambda labels: labels != source))
