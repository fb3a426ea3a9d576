"""DF-TND (Wang et al., ECCV 2020), the data-free detector: weights only.

Noise images are perturbed until the inner representation is driven up as far as it goes, with weights over its units
that are learned along. On a backdoored model the shortcut is among what is driven up: its class's logit rises most.
"""

import copy
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mesa_lib import device as devices
from mesa_lib.defenses.base import DefenderView, Detector, Knowledge, Verdict, anomaly_index
from mesa_lib.progress import progress_bar


class PassingReLU(torch.autograd.Function):
    """ReLU whose gradient is one everywhere, so that units that are silent can be woken."""

    @staticmethod
    def forward(ctx, x):
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Passing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return PassingReLU.apply(x)


def with_straight_through(model: nn.Module, x: Tensor) -> nn.Module:
    """A copy whose last ReLU on the way to the representation of `x` lets gradients pass; with none (GELU), a copy."""
    model, called = copy.deepcopy(model), []
    relus = [(parent, name) for parent in model.modules() for name, part in parent.named_children()
             if isinstance(part, nn.ReLU)]  # fmt: skip
    hooks = [getattr(*where).register_forward_hook(lambda *_, where=where: called.append(where)) for where in relus]
    with torch.no_grad():
        model.represent(x)
    for hook in hooks:
        hook.remove()
    if called:
        setattr(*called[-1], Passing())
    return model


def project_to_simplex(w: Tensor) -> Tensor:
    """The nearest point with values >= 0 that sum to one."""
    ordered = w.sort(descending=True).values
    over = (ordered.cumsum(0) - 1) / torch.arange(1, len(w) + 1, device=w.device)
    rank = int((ordered > over).nonzero().max())
    return (w - over[rank]).clamp(min=0)


def perturbed(x: Tensor, mask: Tensor, pattern: Tensor) -> Tensor:
    return ((1 - mask) * x + mask * pattern).clamp(0, 1)


@dataclass
class DFTND(Detector):
    """Score: how much the mean logit of a class rises.

    above: the anomaly index (of the rises, high side) of a flagged class; the paper's 100 on raw logits belongs to its
    ResNet-50
    """

    seeds: int = 10
    steps: int = 200
    step: float = 0.1
    sparsity: float = 1e-3
    above: float = 7.0
    knows: Knowledge = field(default=Knowledge("weights", images=0), init=False)

    def detect(self, given: DefenderView) -> Verdict:
        device, rng = given.device, devices.rng(given.seed)
        given.model.requires_grad_(False)
        x = torch.rand(self.seeds, 3, *given.image_size, generator=rng).to(device)
        model = with_straight_through(given.model, x)
        with torch.no_grad():
            before = given.model(x).float().mean(0)
            units = given.model.represent(x).shape[1]
        mask = torch.zeros_like(x)
        pattern = torch.zeros_like(x)
        weights = torch.full((units,), 1 / units, device=device)
        for phase in ("of each image", "of all"):
            if phase == "of all":  # one for all from here on
                mask, pattern = (v.mean(0, keepdim=True).expand_as(x).clone() for v in (mask, pattern))
            for _ in progress_bar(range(self.steps), f"perturbations {phase}"):
                mask, pattern, weights = self._climb(model, x, mask, pattern, weights, phase == "of all")
        with torch.no_grad():
            after = given.model(perturbed(x, mask, pattern)).float().mean(0)
        rises = (after - before).cpu()
        index = anomaly_index(rises, "high")
        about = {"units used": int((weights > 1e-3).sum())}
        return Verdict(rises.tolist(), index.tolist(), self.above, "index", about)

    def _climb(self, model, x, mask, pattern, weights, shared: bool):
        """One step of signs, soft-thresholded for the mask and projected for the weights."""
        mask, pattern, weights = (v.detach().requires_grad_() for v in (mask, pattern, weights))
        value = (model.represent(perturbed(x, mask, pattern)).float() @ weights).mean()
        signs = torch.autograd.grad(value, (mask, pattern, weights))
        with torch.no_grad():
            by_mask, by_pattern = (g.mean(0, keepdim=True) if shared else g for g in signs[:2])
            pattern = (pattern + self.step * by_pattern.sign()).clamp(-1, 1)
            moved = mask + self.step * by_mask.sign()
            mask = (moved.sign() * (moved.abs() - self.step * self.sparsity).clamp(min=0)).clamp(0, 1)
            return mask, pattern, project_to_simplex(weights + self.step * signs[2].sign())
