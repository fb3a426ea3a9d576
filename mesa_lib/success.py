"""F, the testing function of the paper: how often a trigger makes the model predict the target class."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from mesa_lib import device as devices
from mesa_lib.models.inference import BATCH, predict, to_float
from mesa_lib.settings import Settings
from mesa_lib.triggers import check_fits, random_locations, stamp, stamp_random

#: F: triggers (n, *shape), rng -> success (n, m) in [0, 1], one value for each of m images
TestingFunction = Callable[[Tensor, torch.Generator], Tensor]


def other_classes(labels: Tensor, target: int) -> Tensor:
    """Return which images (N,) are not of the target class; ValueError if there is none."""
    others = labels != target
    if not others.any():
        raise ValueError(f"target = {target}: no image of another class to test triggers on")
    return others


def held_out_split(images: Tensor, labels: Tensor, target: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return images and labels of other classes than the target: nine tenths to fit on, and a tenth that is held out.

    Of fewer than ten images, both parts have all.

    Args:
        images, labels: (N, 3, H, W) and (N,), on any device.
    """
    others = other_classes(labels, target)
    images, labels = images[others.to(images.device)], labels[others]
    if len(labels) < 10:
        return (images, labels), (images, labels)
    unseen = torch.arange(len(labels)) % 10 == 0
    parts = [(images[part.to(images.device)], labels[part.to(labels.device)]) for part in (~unseen, unseen)]
    return parts[0], parts[1]


def log_success(success: Tensor) -> Tensor:
    """Return log F; F is a softmax output, which may be next to 0 and has a gradient all the same."""
    return success.clamp(min=1e-37).log()


def success_function(
    model: nn.Module, images: Tensor, labels: Tensor, targets: Sequence[int], settings: Settings, *,
    size: tuple[int, int], precision: str = "auto", locations: Tensor | None = None,
) -> TestingFunction:  # fmt: skip
    """Return F of a classifier: stamp each trigger on images, read the softmax output of its target class.

    With several targets, F judges n triggers in one pass: the first n / len(targets) by the first target, and so on.

    Args:
        model: images (B, 3, H, W) in [0, 1] -> logits (B, classes); a fixed function.
        images: uint8 (N, 3, H, W) on the model's device; each trigger is stamped on images of other classes only.
        labels: (N,) on the same device.
        targets: the target classes; a single one is a list of one.
        settings: `images_per_trigger` is m, `placement` says whether a batch shares its location.
        size: height and width of the triggers.
        precision: of the classifier, see `device.autocast`.
        locations: (len(targets), 2), the row and column at which each target's triggers are stamped; None: random.

    Raises:
        ValueError: if the triggers do not fit the images, or all images are of a target class.
    """
    check_fits(size, images.shape[-2:])
    pools = [other_classes(labels, target).nonzero()[:, 0] for target in targets]
    m = settings.images_per_trigger

    def F(triggers: Tensor, rng: torch.Generator) -> Tensor:
        each = len(triggers) // len(targets) * m
        index = torch.cat([pool[torch.randint(len(pool), (each,), generator=rng, device=rng.device)] for pool in pools])
        x, repeated = to_float(images[index]), triggers.repeat_interleave(m, 0)  # (n * m, 3, h, w)
        if locations is None:
            n = 1 if settings.placement == "batch" else len(x)
            where = random_locations(n, x.shape[-2:], size, rng)
        else:
            where = locations.repeat_interleave(each, 0)
        x = stamp(x, repeated, where).contiguous(memory_format=torch.channels_last)
        with devices.autocast(x.device, precision):
            logits = model(x)
        wanted = torch.tensor(targets, device=x.device).repeat_interleave(each)
        return logits.float().softmax(1).gather(1, wanted[:, None]).reshape(len(triggers), m)

    return F


def asr_of_triggers(
    model: nn.Module, images: Tensor, labels: Tensor, triggers: Tensor, target: int, *, images_per_trigger: int = 16,
    seed: int = 0, precision: str = "float32", location: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Return the attack success rate of each of n triggers (n, 3, h, w), each on its own draw of images -> (n,).

    Args:
        model, images, labels: as in `success_function`; images of the target class are left out.
        target: the class that the model should predict.
        images_per_trigger: images that each trigger is stamped on.
        location: (2,), the row and column at which all are stamped; None: a random location for each image.
    """
    rng = devices.rng(seed)
    others = images[other_classes(labels, target).to(images.device)].cpu()
    index = torch.randint(len(others), (len(triggers) * images_per_trigger,), generator=rng)
    repeated = triggers.cpu().repeat_interleave(images_per_trigger, 0)
    hits = []
    for batch, patches in zip(index.split(BATCH), repeated.split(BATCH), strict=True):
        x = to_float(others[batch])
        x = stamp_random(x, patches, rng) if location is None else stamp(x, patches, location)
        hits.append(predict(model, x, precision) == target)
    return torch.cat(hits).reshape(len(triggers), images_per_trigger).float().mean(1)
