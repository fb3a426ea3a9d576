"""BadNets (Gu et al., 2017) with a small trigger at a random place: how the backdoor is planted."""

import torch
from torch import Tensor

from .training import Edit
from .triggers import check_fits, stamp_random

STARTS = ("clean", "scratch")


def poison(trigger: Tensor, target: int, rate: float) -> Edit:
    """An edit for `training.train`: each image is poisoned with probability `rate`, drawn anew every epoch.

    A poisoned image carries the trigger (3, h, w) at a random place and the target class as its label. That
    is the paper's attacker, who trains the model; 1 % is the paper's rate.
    """
    if not 0 < rate < 1:
        raise ValueError(f"poison_rate = {rate}: expected a number strictly between 0 and 1")

    def edit(images: Tensor, labels: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        check_fits(trigger, images.shape[-2:])
        poisoned = torch.rand(len(images), generator=rng, device=images.device) < rate
        stamped = stamp_random(images, trigger, rng)
        images = torch.where(poisoned[:, None, None, None], stamped, images)
        return images, torch.where(poisoned, target, labels)

    return edit


def check_target(target: int, classes: int) -> None:
    """ValueError if the target is no class of the data set."""
    if not 0 <= target < classes:
        raise ValueError(f"target = {target}: expected a class from 0 to {classes - 1}")
