"""DF-TND (Wang et al., ECCV 2020), the data-free detector: it needs the weights only.

Noise images are perturbed until the inner representation is as high as it gets, with weights over its units that are
learned at the same time. On a backdoored model this drives up the shortcut: the logit of its class rises most.
"""

import copy
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mesa_lib import device as devices
from mesa_lib.defenses.base import DefenderView, Detector, Knowledge, Verdict, anomaly_index
from mesa_lib.progress import progress_bar


class StraightThrough(torch.autograd.Function):
    """ReLU whose gradient is one everywhere, so that silent units can be activated."""

    @staticmethod
    def forward(ctx, x):
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class StraightThroughReLU(nn.Module):
    """`StraightThrough` as a layer."""

    def forward(self, x: Tensor) -> Tensor:
        return StraightThrough.apply(x)


def with_straight_through_relu(model: nn.Module, x: Tensor) -> nn.Module:
    """Return a copy of `model` whose last ReLU before the representation of `x` passes all gradients.

    A network without ReLU (such as one with GELU) is copied unchanged.
    """
    model, called = copy.deepcopy(model), []
    relus = [
        (parent, name)
        for parent in model.modules()
        for name, part in parent.named_children()
        if isinstance(part, nn.ReLU)
    ]
    hooks = [getattr(*relu).register_forward_hook(lambda *_, relu=relu: called.append(relu)) for relu in relus]
    with torch.no_grad():
        model.represent(x)
    for hook in hooks:
        hook.remove()
    if called:
        setattr(*called[-1], StraightThroughReLU())
    return model


def project_to_simplex(w: Tensor) -> Tensor:
    """Return the nearest point to w (n,) whose values are >= 0 and sum to one."""
    ordered = w.sort(descending=True).values
    over = (ordered.cumsum(0) - 1) / torch.arange(1, len(w) + 1, device=w.device)
    rank = int((ordered > over).nonzero().max())
    return (w - over[rank]).clamp(min=0)


def perturbed(x: Tensor, mask: Tensor, pattern: Tensor) -> Tensor:
    """Return images x (B, 3, H, W) blended with a pattern by a mask, clipped to [0, 1]."""
    return ((1 - mask) * x + mask * pattern).clamp(0, 1)


@dataclass
class DFTND(Detector):
    """Score: how much the mean logit of a class rises.

    `above` is the anomaly index (of the rises, high side) of a flagged class; the paper's threshold, 100 on raw logits,
    belongs to its ResNet-50.
    """

    seeds: int = 10  # noise images
    steps: int = 200
    step: float = 0.1
    sparsity: float = 1e-3
    above: float = 7.0
    knowledge: Knowledge = field(default=Knowledge("weights", images=0), init=False)

    def detect(self, view: DefenderView) -> Verdict:
        """Return the verdict on the view's model."""
        device, rng = view.device, devices.rng(view.seed)
        view.model.requires_grad_(False)
        x = torch.rand(self.seeds, 3, *view.image_size, generator=rng).to(device)
        model = with_straight_through_relu(view.model, x)
        with torch.no_grad():
            before = view.model(x).float().mean(0)
            units = view.model.represent(x).shape[1]
        mask = torch.zeros_like(x)
        pattern = torch.zeros_like(x)
        weights = torch.full((units,), 1 / units, device=device)
        for shared in (False, True):
            if shared:  # one perturbation for all images from here on
                mask, pattern = (v.mean(0, keepdim=True).expand_as(x).clone() for v in (mask, pattern))
            for _ in progress_bar(range(self.steps), f"perturbing {'all images' if shared else 'each image'}"):
                mask, pattern, weights = self._climb(model, x, mask, pattern, weights, shared)
        with torch.no_grad():
            after = view.model(perturbed(x, mask, pattern)).float().mean(0)
        rises = (after - before).cpu()
        index = anomaly_index(rises, "high")
        about = {"units used": int((weights > 1e-3).sum())}
        return Verdict(rises.tolist(), index.tolist(), self.above, "index", about)

    def _climb(
        self, model: nn.Module, x: Tensor, mask: Tensor, pattern: Tensor, weights: Tensor, shared: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One step along the gradient's signs, soft-thresholded for the mask and projected for the weights."""
        mask, pattern, weights = (v.detach().requires_grad_() for v in (mask, pattern, weights))
        value = (model.represent(perturbed(x, mask, pattern)).float() @ weights).mean()
        gradients = torch.autograd.grad(value, (mask, pattern, weights))
        with torch.no_grad():
            by_mask, by_pattern = (g.mean(0, keepdim=True) if shared else g for g in gradients[:2])
            pattern = (pattern + self.step * by_pattern.sign()).clamp(-1, 1)
            raised = mask + self.step * by_mask.sign()
            mask = (raised.sign() * (raised.abs() - self.step * self.sparsity).clamp(min=0)).clamp(0, 1)
            return mask, pattern, project_to_simplex(weights + self.step * gradients[2].sign())
