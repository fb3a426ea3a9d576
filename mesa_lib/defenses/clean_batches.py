"""Epochs over the defender's clean images, for repairs that take optimizer steps of their own.

Batches, augmentation, history and the check for finite values follow `training.train`, which trains everything else.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from mesa_lib import device as devices
from mesa_lib import training
from mesa_lib.data.splits import Split
from mesa_lib.defenses.base import Knowledge, Repairer
from mesa_lib.models.inference import to_float
from mesa_lib.progress import progress_bar

#: takes one optimizer step on images (B, 3, H, W) in [0, 1] and labels (B,) -> the loss (a scalar) and the logits
#: (B, classes), both as they were before the step
BatchStep = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass
class FineTuned(Repairer):
    """A repair that trains on clean images; the defaults are those of fine-tuning.

    Attributes:
        epochs, lr, schedule, batch_size, augment: of the training.
    """

    epochs: int = 10
    lr: float = 0.02
    schedule: Literal["constant", "onecycle"] = "onecycle"
    batch_size: int = 32
    augment: str = "crop"
    knowledge: Knowledge = field(default=Knowledge("weights"), init=False)

    def optimizer(self, model: nn.Module, clean: Split) -> training.Optimizer:
        """Return the optimizer of all epochs."""
        return training.Optimizer(model, self.lr, 0.0, 1.0, self.schedule, self.epochs * count(clean, self.batch_size))


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """Return the weights that training may change.

    Raises:
        ValueError: if there are none.
    """
    weights = [w for w in model.parameters() if w.requires_grad]
    if not weights:
        raise ValueError(f"model = {type(model).__name__}: expected a network with weights that require gradients")
    return weights


def count(clean: Split, batch_size: int) -> int:
    """Return the number of batches in one epoch."""
    return math.ceil(len(clean) / batch_size)


def train(
    model: nn.Module, clean: Split, step: BatchStep, *, epochs: int, batch_size: int, seed: int, lr: float,
    augment: str = "none", statistics: str = "updated", begin: Callable[[], None] | None = None, label: str = "repair",
) -> list[dict]:  # fmt: skip
    """Train `model` in place: call `step` on every batch of every epoch.

    Every image is used once an epoch, in batches whose sizes differ by at most one.

    Args:
        model: in eval mode afterward; its device is used.
        clean: images, uint8, and their labels.
        step: takes the optimizer step on a batch.
        seed: of the order and the augmentation of the images.
        lr: the learning rate that `step` uses, for messages.
        augment: see `training.augmented`.
        statistics: `frozen` keeps the running statistics of BatchNorm as they are, and dropout off; else `updated`.
        begin: called before every epoch.
        label: of the progress bar, and in messages.

    Returns:
        One record an epoch: `epoch`, mean `loss` and `accuracy` on the batches as trained.

    Raises:
        FloatingPointError: if the loss or a weight is no longer finite; the model is then unusable.
    """
    device = next(model.parameters()).device
    model.to(memory_format=torch.channels_last).train(statistics == "updated")
    images, labels = clean.images.to(device), clean.labels.to(device)
    batches, rng, history = count(clean, batch_size), devices.rng(seed, device), []
    steps = iter(progress_bar(range(epochs * batches), label))
    for epoch in range(1, epochs + 1):
        if begin is not None:
            begin()
        loss_sum = hits = torch.zeros((), device=device)
        for index in torch.tensor_split(torch.randperm(len(images), generator=rng, device=device), batches):
            next(steps)
            x, y = training.augmented(to_float(images[index]), augment, rng), labels[index]
            loss, logits = step(x.contiguous(memory_format=torch.channels_last), y)
            loss_sum = loss_sum + loss.detach() * len(x)
            hits = hits + (logits.detach().argmax(1) == y).sum()
        history.append({"epoch": epoch, "loss": float(loss_sum) / len(images), "accuracy": float(hits) / len(images)})
        _check_finite(model, history[-1], epochs, label, lr)
    next(steps, None)
    model.eval()
    return history


def _check_finite(model: nn.Module, record: dict, epochs: int, label: str, lr: float) -> None:
    """Raise FloatingPointError if the loss of this epoch or any weight is NaN or infinite."""
    wrong = [name for name, tensor in model.state_dict().items() if not torch.isfinite(tensor).all()]
    if math.isfinite(record["loss"]) and not wrong:
        return
    found = f"loss = {record['loss']}" + (f", and {wrong[0]} has NaN or infinite values" if wrong else "")
    raise FloatingPointError(
        f"{label}: {found} in epoch {record['epoch']}/{epochs}: expected finite numbers; "
        f"try a smaller learning rate than {lr}"
    )
