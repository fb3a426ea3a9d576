"""The repair: retrain on clean images, a fraction of which carries triggers that must not change the prediction.

A repair and its controls differ only in where the triggers come from. What a stamped image should be classified as is
its true label, as in the paper, or (our default) what the model says of the image without the trigger: that costs less
accuracy where clean images are few.
"""

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from mesa_lib import training
from mesa_lib.settings import RepairSettings
from mesa_lib.training import BatchTransform
from mesa_lib.triggers import random_triggers, stamp, stamp_random

#: (n, rng) -> n triggers (n, 3, h, w) in [0, 1]
TriggerSource = Callable[[int, torch.Generator], Tensor]
#: images (B, 3, H, W) in [0, 1], rng -> changed images, same shape and range
ImageTransform = Callable[[Tensor, torch.Generator], Tensor]


# --- sources of triggers ---------------------------------------------------------------------------------


def constant(trigger: Tensor) -> TriggerSource:
    """Return a source that always gives the same trigger (3, h, w): an inverted one, or the original."""
    return lambda n, rng: trigger.to(rng.device).expand(n, *trigger.shape)


def random_source(family: str, size: tuple[int, int]) -> TriggerSource:
    """Return a source of random triggers of a family (`triggers.random_triggers`): a control without modeling."""
    return lambda n, rng: random_triggers(n, family, rng, size)


def choice(triggers: Tensor) -> TriggerSource:
    """Return a source that draws each trigger from `triggers` (k, 3, h, w)."""
    return lambda n, rng: triggers.to(rng.device)[torch.randint(len(triggers), (n,), generator=rng, device=rng.device)]


def jitter(triggers: Tensor, std: float = 0.1) -> TriggerSource:
    """Return a source near `triggers` (k, 3, h, w): one of them plus Gaussian noise, clipped to [0, 1]."""

    def sample(n: int, rng: torch.Generator) -> Tensor:
        chosen = choice(triggers)(n, rng)
        return (chosen + std * torch.randn(chosen.shape, generator=rng, device=rng.device)).clamp(0, 1)

    return sample


def mixture(sources: Sequence[TriggerSource]) -> TriggerSource:
    """Return a source that draws each trigger from one of several sources with equal weight."""

    def sample(n: int, rng: torch.Generator) -> Tensor:
        index = torch.randint(len(sources), (n,), generator=rng, device=rng.device)
        candidates = torch.stack([source(n, rng) for source in sources])
        return candidates[index, torch.arange(n, device=rng.device)]

    return sample


# --- what happens to images and batches ------------------------------------------------------------------


def stamping(source: TriggerSource, location: Tensor | None = None) -> ImageTransform:
    """Return a transform that stamps a trigger of its own on each image, at `location` (2,) or a random one."""
    if location is not None:
        return lambda images, rng: stamp(images, source(len(images), rng), location)
    return lambda images, rng: stamp_random(images, source(len(images), rng), rng)


def one_of(transforms: Sequence[ImageTransform]) -> ImageTransform:
    """Return a transform that applies one of several to each image, with equal weight."""

    def apply(images: Tensor, rng: torch.Generator) -> Tensor:
        index = torch.randint(len(transforms), (len(images),), generator=rng, device=images.device)
        changed = torch.stack([transform(images, rng) for transform in transforms])
        return changed[index, torch.arange(len(images), device=images.device)]

    return apply


def on_fraction(transform: ImageTransform, rate: float) -> BatchTransform:
    """Return a batch transform for `training.train`: each image is changed with probability `rate`, labels stay."""
    if not 0 < rate < 1:
        raise ValueError(f"repair_rate = {rate}: expected a number strictly between 0 and 1")

    def apply(images: Tensor, labels: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        chosen = torch.rand(len(images), generator=rng, device=images.device) < rate
        return torch.where(chosen[:, None, None, None], transform(images, rng), images), labels

    return apply


# --- the repair ------------------------------------------------------------------------------------------


def retrain(
    model: nn.Module, images: Tensor, labels: Tensor, transform: ImageTransform | None, settings: RepairSettings, *,
    seed: int, precision: str = "auto", label: str = "repair",
) -> list[dict]:  # fmt: skip
    """Retrain `model` in place on images of which a fraction is transformed (see `repair`); return the history.

    By distillation a transformed image gets the output of the original model on the image as it was. Without a
    transform there would be nothing to learn; fine-tuning alone learns the labels.
    """
    s = settings
    distilled = s.repair_loss == "distillation" and transform is not None
    teacher = copy.deepcopy(model).eval() if distilled else None
    return training.train(
        model, images, labels, epochs=s.repair_epochs, lr=s.repair_lr, batch_size=s.batch_size, schedule=s.schedule,
        augment=s.retrain_augment, transform=None if transform is None else on_fraction(transform, s.repair_rate),
        teacher=teacher, statistics=s.repair_statistics, seed=seed, device=next(model.parameters()).device,
        precision=precision, label=label,
    )  # fmt: skip


def repair(
    model: nn.Module, images: Tensor, labels: Tensor, transform: ImageTransform | None,
    settings: RepairSettings | None = None, *, seed: int = 0, precision: str = "auto", label: str = "repair",
) -> tuple[nn.Module, list[dict]]:  # fmt: skip
    """Return a copy of `model` retrained on images of which a fraction is transformed, and the training history.

    Args:
        model: the backdoored classifier; left unchanged.
        images, labels: uint8 (N, 3, H, W) and (N,), the defender's clean images with their true labels.
        transform: what changes an image, such as `stamping(distribution.sample)`; None: fine-tuning alone.
        settings: rate, epochs, learning rate, schedule, augmentation and batch size; None: the defaults.
        label: of the progress bar.
    """
    model = copy.deepcopy(model)
    options = {"seed": seed, "precision": precision, "label": label}
    return model, retrain(model, images, labels, transform, settings or RepairSettings(), **options)
