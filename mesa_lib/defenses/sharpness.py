"""FT-SAM (Zhu, Wei, Shen, Fan, Wu, ICCV 2023): fine-tuning with adaptive sharpness-aware minimization.

Fine-tuning on clean images hardly changes the weights of a backdoor: clean images give them next to no gradient. FT-SAM
minimizes the loss at the worst point of a neighborhood of the weights w instead:

    min_w  max_e  L(w + e)    subject to    || e / |w| ||_2 <= rho

The neighborhood is wide where |w| is large, as it is in the neurons that serve a backdoor, so these weights shrink.
To first order in e the worst point is e = rho * w^2 g / || w g ||_2, where g is the gradient of L at w. Each step takes
the gradient at w + e, goes back to w, and moves along that gradient by SGD with momentum.

Unlike the paper: epochs, learning rate, schedule, batch size and augmentation are those of fine-tuning in this project
(`settings.RepairSettings`), so the two repairs differ in nothing but the point at which the gradient is taken. The
schedule `onecycle` uses Nesterov momentum. The pass at w + e does not count in the running statistics of BatchNorm.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mesa_lib import device as devices
from mesa_lib import training
from mesa_lib.defenses import clean_batches
from mesa_lib.defenses.base import DefenderView, RepairResult
from mesa_lib.defenses.clean_batches import BatchStep


def worst_shift(weights: Sequence[Tensor], gradients: Sequence[Tensor], rho: float) -> list[Tensor]:
    """Return the shift e of all weights with || e / |w| ||_2 = rho along which a linear loss rises most.

    Args:
        weights, gradients: tensors of equal shapes.
        rho: radius of the neighborhood, in units of each weight's own size.

    Returns:
        One tensor per weight; all zero if every product of a weight and its gradient is.
    """
    scaled = [w.detach() * g for w, g in zip(weights, gradients, strict=True)]
    norm = torch.stack([part.norm() for part in scaled]).norm().clamp(min=1e-12)
    return [w.detach() * part * (rho / norm) for w, part in zip(weights, scaled, strict=True)]


@contextmanager
def kept_statistics(model: nn.Module) -> Iterator[None]:
    """Keep the running statistics of BatchNorm as they are inside the context; training mode still uses the batch's."""
    norms = [part for part in model.modules() if getattr(part, "track_running_stats", False)]
    for part in norms:
        part.track_running_stats = False
    try:
        yield
    finally:
        for part in norms:
            part.track_running_stats = True


def sharpness_aware_step(model: nn.Module, optimizer: training.Optimizer, rho: float, precision: str) -> BatchStep:
    """Return the optimizer step of `SharpnessAwareFineTuning` on one batch; precision: see `device.autocast`."""
    weights = clean_batches.trainable(model)

    def gradients(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        with devices.autocast(x.device, precision):
            logits = model(x).float()
            loss = F.cross_entropy(logits, y)
        return loss, logits, torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)

    def step(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        loss, logits, here = gradients(x, y)
        before = [w.detach().clone() for w in weights]
        with torch.no_grad():
            for w, shift in zip(weights, worst_shift(weights, here, rho), strict=True):
                w.add_(shift)
        with kept_statistics(model):
            _, _, there = gradients(x, y)
        with torch.no_grad():
            for w, value, gradient in zip(weights, before, there, strict=True):
                w.copy_(value)
                w.grad = gradient
        optimizer.sgd.step()
        if optimizer.scheduler is not None:
            optimizer.scheduler.step()
        return loss.detach(), logits.detach()

    return step


@dataclass
class SharpnessAwareFineTuning(clean_batches.FineTuned):
    """Fine-tuning on clean images at the worst point near the weights.

    Attributes:
        rho: radius of the neighborhood, relative to each weight (the paper's, for CIFAR-10); 0 is plain fine-tuning.
        epochs, lr, schedule, batch_size, augment: as in fine-tuning; the paper trains longer.
    """

    rho: float = 2.0

    def __post_init__(self):
        if not self.rho >= 0:
            raise ValueError(f"rho = {self.rho}: expected a number of at least 0")

    def repair(self, view: DefenderView) -> RepairResult:
        """Return the fine-tuned model; the history holds the loss at the weights, not at the worst point."""
        model, clean = view.model, view.clean
        optimizer = self.optimizer(model, clean)
        history = clean_batches.train(
            model, clean, sharpness_aware_step(model, optimizer, self.rho, view.precision), epochs=self.epochs,
            batch_size=self.batch_size, seed=devices.derive_seed(view.seed, "FT-SAM"), lr=self.lr,
            augment=self.augment, label="FT-SAM",
        )  # fmt: skip
        return RepairResult(model, history, {"rho": self.rho})
