"""I-BAU (Zeng, Chen, Park, Mao, Jin, Jia, ICLR 2022): adversarial unlearning by the implicit hypergradient.

Whatever trigger the attacker used, some universal perturbation d of clean images x activates the backdoor. The weights
w are trained against the worst one of bounded size, where L(w, d) is the mean cross-entropy of x + d:

    min_w  L(w, d(w))    with    d(w) = argmax_d L(w, d),  || d ||_2 <= radius

The worst perturbation depends on the weights, so the derivative of L(w, d(w)) has a second, implicit part. It contains
the inverse of a Hessian, which a fixed-point iteration replaces (`hypergradient`). Each round searches for d, then
takes one Adam step for each batch of clean images.

Unlike the paper: d is added to images in [0, 1], not to normalized ones. With a standard deviation of pixels of 0.25,
the paper's bound of 10 becomes 2.5, and the published step of the fixed-point iteration 0.1 * 0.25^2 = 0.006. The
default bound is 1: with 2.5, a small network for digits lost a third of its accuracy. Half of the loss in the outer
problem is of images without d, which the paper's objective leaves out. The steps of the search for d have a fixed
length, since the gradients of a confident model are tiny. Labels are the true ones. As published, x + d is not clipped,
and the implicit part ignores the bound on d. BatchNorm uses its running statistics throughout, and all is computed in
float32.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mesa_lib import device as devices
from mesa_lib.data.splits import Split
from mesa_lib.defenses import clean_batches
from mesa_lib.defenses.base import DefenderView, Knowledge, Repairer, RepairResult
from mesa_lib.models.inference import to_float


def hypergradient(
    inner: Tensor, outer: Tensor, delta: Tensor, weights: Sequence[Tensor], *, step: float, iterations: int
) -> list[Tensor]:
    """Return the gradient by the weights w of outer(w, d(w)), where d(w) minimizes inner(w, d).

    With the gradient step G(w, d) = d - step * d inner / d d, whose fixed point is d(w), it equals

        d outer / d w  +  (dG / d w)^T v,    v = d outer / d d + (dG / d d)^T v

    and v is found by iterating its equation from v = 0 (Grazzi et al., ICML 2020). The iteration converges where
    0 < step * eigenvalue < 2 for every eigenvalue of the Hessian of `inner` by d.

    Args:
        inner, outer: scalars, as functions of `delta` and `weights`.
        delta: minimizes `inner`, at least nearly; requires gradients.
        weights: tensors that require gradients.
        step: of G.
        iterations: of the equation for v; with 0 the implicit part is left out.

    Returns:
        One tensor per weight, detached.
    """
    options = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
    (slope,) = torch.autograd.grad(inner, delta, create_graph=True)
    stepped = delta - step * slope
    *direct, by_delta = torch.autograd.grad(outer, [*weights, delta], **options)
    v = torch.zeros_like(delta)
    for _ in range(iterations):
        v = by_delta + torch.autograd.grad(stepped, delta, v, **options)[0]
    implicit = torch.autograd.grad(stepped, weights, v, allow_unused=True, materialize_grads=True)
    return [(a + b).detach() for a, b in zip(direct, implicit, strict=True)]


def worst_perturbation(
    model: nn.Module, clean: Split, *, radius: float, steps: int, stride: float, batch_size: int, rng: torch.Generator
) -> Tensor:
    """Return the universal perturbation (3, H, W) that raises the cross-entropy on clean images most.

    Gradient ascent from zero on random batches; each step has a fixed length, and leads back into the ball.

    Args:
        model: in eval mode.
        clean: images, uint8, and their labels, on the device of `rng`.
        radius: largest L2 norm, for images in [0, 1].
        steps: number of steps.
        stride: length of a step, as a fraction of `radius`.
        batch_size: images per step.
    """
    delta = torch.zeros(clean.images.shape[1:], device=rng.device)
    for _ in range(steps):
        index = torch.randperm(len(clean), generator=rng, device=rng.device)[:batch_size]
        delta.requires_grad_()
        x = (to_float(clean.images[index]) + delta).contiguous(memory_format=torch.channels_last)
        loss = F.cross_entropy(model(x).float(), clean.labels[index])
        (gradient,) = torch.autograd.grad(loss, delta)
        delta = delta.detach() + stride * radius * gradient / gradient.norm().clamp(min=1e-12)
        delta = delta * (radius / delta.norm().clamp(min=radius))
    return delta


@dataclass
class ImplicitUnlearning(Repairer):
    """Train on clean images against the worst universal perturbation.

    Attributes:
        rounds: searches for a perturbation, each followed by one pass over the clean images.
        lr: Adam's learning rate.
        radius: largest L2 norm of a perturbation of images in [0, 1]; the paper's bound would be about 2.5.
        ascent_steps: steps of the search for a perturbation.
        ascent_stride: their length, as a fraction of `radius`.
        iterations: of the fixed-point equation of the hypergradient; the paper's value.
        implicit_step: step size in that equation.
        clean_share: weight, in [0, 1), of the loss on images without a perturbation; 0 is the paper's objective.
        batch_size: images per step of either problem.
    """

    rounds: int = 5
    lr: float = 1e-4
    radius: float = 1.0
    ascent_steps: int = 20
    ascent_stride: float = 0.1
    iterations: int = 5
    implicit_step: float = 0.006
    clean_share: float = 0.5
    batch_size: int = 32
    knowledge: Knowledge = field(default=Knowledge("weights"), init=False)

    def __post_init__(self):
        if not self.radius > 0:
            raise ValueError(f"radius = {self.radius}: expected a number above 0")
        if not 0 <= self.clean_share < 1:
            raise ValueError(f"clean_share = {self.clean_share}: expected a number of at least 0 and below 1")

    def repair(self, view: DefenderView) -> RepairResult:
        """Return the trained model; a record of the history, one a round, is of perturbed images."""
        model, clean = view.model, view.clean.to(view.device)
        weights = clean_batches.trainable(model)
        optimizer, perturbations = torch.optim.Adam(weights, self.lr), []
        rng = devices.rng(devices.derive_seed(view.seed, "I-BAU perturbation"), view.device)

        def begin() -> None:
            perturbations.append(worst_perturbation(
                model, clean, radius=self.radius, steps=self.ascent_steps, stride=self.ascent_stride,
                batch_size=self.batch_size, rng=rng,
            ))  # fmt: skip

        def step(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            delta = perturbations[-1].clone().requires_grad_()
            logits = model(x + delta).float()
            perturbed = F.cross_entropy(logits, y)
            loss = (1 - self.clean_share) * perturbed + self.clean_share * F.cross_entropy(model(x).float(), y)
            gradients = hypergradient(
                -perturbed, loss, delta, weights, step=self.implicit_step, iterations=self.iterations
            )
            for w, gradient in zip(weights, gradients, strict=True):
                w.grad = gradient
            optimizer.step()
            return loss.detach(), logits.detach()

        history = clean_batches.train(
            model, clean, step, epochs=self.rounds, batch_size=self.batch_size, lr=self.lr, statistics="frozen",
            seed=devices.derive_seed(view.seed, "I-BAU"), begin=begin, label="I-BAU",
        )  # fmt: skip
        norms = [float(delta.norm()) for delta in perturbations]
        return RepairResult(model, history, {"norms of perturbations": norms})
