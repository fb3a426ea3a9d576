"""ANP, adversarial neuron pruning (Wu and Wang, "Adversarial Neuron Pruning Purifies Backdoored Deep Models", NeurIPS
2021).

The neurons of a backdoor are sensitive: a small change of their weights makes the model predict the target class on
clean images. ANP learns a mask m in [0, 1] for every BatchNorm channel, with weight gamma and bias beta, by

    minimize over m:  alpha * CE(m * gamma, beta) + (1 - alpha) * worst(m)
    worst(m) = the maximum over delta, xi of CE((m + delta) * gamma, (1 + xi) * beta)

with CE the cross-entropy on clean images and all delta, xi in [-eps, eps]. Channels whose mask ends below a threshold
are pruned: their gamma is set to 0. Other channels get their gamma back. The bias of a pruned channel stays, as in the
objective: the channel then has one value everywhere, whatever the input is.

Choices that the paper leaves open, and deviations:

- The inner maximum is approximated by one step of size eps along the gradient's signs from delta = xi = 0. The gradient
  to delta is then that to m, so a step costs two passes forward and backward, not three. Where a gradient is exactly
  zero (no image of the batch activates the channel), the channel is not perturbed.
- BatchNorm uses the statistics of each batch while masks are learned (`statistics = "batch"`), as far as we know like
  the authors' program; its running statistics never change. With `"frozen"` it uses the running ones. On one backdoored
  smallcnn (digits) the published eps then raised the loss from 0.07 to 18 in the first step, two thirds of the channels
  were pruned, and the pruned model guessed. With statistics of the batch, 7 of 144 channels were pruned, accuracy fell
  from 98% to 95%, and the backdoor stayed.
- Batches are drawn from all clean images of the defender, without augmentation.
- The default is 500 steps, not the 2000 of the paper (see `AdversarialPruning`).
- A fixed threshold cost 21 to 46 points of accuracy on four small networks for digits. So channels below it are pruned
  in the order of their masks, as long as the accuracy on the clean images stays within `tolerance`.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from mesa_lib import device as devices
from mesa_lib.defenses.base import DefenderView, Knowledge, Repairer, RepairResult
from mesa_lib.models.inference import predict, to_float
from mesa_lib.progress import progress_bar

Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d
STATISTICS = ("frozen", "batch")


def batch_norms(model: nn.Module) -> dict[str, nn.Module]:
    """Return all BatchNorm layers with weight and bias, by name.

    Raises:
        ValueError: if there is none.
    """
    parts = {name: part for name, part in model.named_modules() if isinstance(part, Norm)}
    norms = {name: part for name, part in parts.items() if part.weight is not None and part.bias is not None}
    if not norms:
        raise ValueError(
            f"model = {type(model).__name__}: expected a BatchNorm with weight and bias; "
            "use another repair for this network"
        )
    return norms


class MaskedNetwork:
    """A fixed network as a function of images and of factors on its BatchNorm channels.

    `channels` is their number. Factors are vectors (channels,), in the order of `batch_norms`.
    """

    def __init__(self, model: nn.Module, precision: str):
        self.model, self.precision, self.norms = model, precision, batch_norms(model)
        self.fixed = {name: value.detach() for name, value in model.named_parameters()}
        self.fixed |= {name: value.clone() for name, value in model.named_buffers()}  # `batch` overwrites statistics
        self.sizes = [norm.num_features for norm in self.norms.values()]
        self.channels = sum(self.sizes)

    def loss(self, x: Tensor, labels: Tensor, weight_factors: Tensor, bias_factors: Tensor) -> Tensor:
        """Return the cross-entropy, with gradients to the factors only.

        Args:
            x, labels: images (B, 3, H, W) in [0, 1], and (B,).
            weight_factors, bias_factors: (channels,), multiplied to the weights and biases of BatchNorm.
        """
        scaled = {}
        parts = weight_factors.split(self.sizes), bias_factors.split(self.sizes)
        for name, by_weight, by_bias in zip(self.norms, *parts, strict=True):
            scaled[f"{name}.weight"] = by_weight * self.fixed[f"{name}.weight"]
            scaled[f"{name}.bias"] = by_bias * self.fixed[f"{name}.bias"]
        with devices.autocast(x.device, self.precision):
            logits = functional_call(self.model, self.fixed | scaled, (x,)).float()
        return F.cross_entropy(logits, labels)


@dataclass
class AdversarialPruning(Repairer):
    """Prune the channels that an adversarial change of BatchNorm's parameters uses.

    All defaults but `steps` and `tolerance` are the paper's. On one busy CPU core a step took 0.15 s on digits
    (smallcnn, width 16). A step on CIFAR-10 (fastcnn, width 64, float32) would take about 3 s, by the time of one pass.
    So 500 steps are about one minute and half an hour, and 2000 steps four times as much. The learning rate is fixed:
    with fewer steps masks fall less, and less may be pruned.

    Attributes:
        eps: largest relative change of weights and biases, of the inner maximum.
        alpha: share of the loss without the perturbation, in [0, 1].
        steps: of the masks' optimizer; the paper has 2000.
        batch_size: images per step; all of them, if there are fewer.
        lr: learning rate of the masks (SGD with `momentum`).
        momentum: of SGD.
        threshold: channels with a mask below it may be pruned, in [0, 1].
        tolerance: how much accuracy on the clean images pruning may cost, in [0, 1]; 1 prunes all below the threshold.
        statistics: of BatchNorm while masks are learned: `frozen` or `batch` (see above).
    """

    eps: float = 0.4
    alpha: float = 0.2
    steps: int = 500
    batch_size: int = 128
    lr: float = 0.2
    momentum: float = 0.9
    threshold: float = 0.2
    tolerance: float = 0.04
    statistics: Literal["frozen", "batch"] = "batch"
    knowledge: Knowledge = field(default=Knowledge("weights"), init=False)

    def __post_init__(self):
        if self.statistics not in STATISTICS:
            raise ValueError(f"statistics = {self.statistics!r}: expected one of {', '.join(STATISTICS)}")

    def masks(self, view: DefenderView) -> Tensor:
        """Return the mask of every BatchNorm channel (channels,) in [0, 1], in the order of `batch_norms`."""
        network = MaskedNetwork(view.model.eval(), view.precision)
        for norm in network.norms.values():
            norm.train(self.statistics == "batch")
        images, labels = view.clean.images.to(view.device), view.clean.labels.to(view.device)
        rng = devices.rng(devices.derive_seed(view.seed, "adversarial pruning"))
        mask = torch.ones(network.channels, device=view.device, requires_grad=True)
        optimizer = torch.optim.SGD([mask], self.lr, momentum=self.momentum)
        for _ in progress_bar(range(self.steps), "adversarial pruning"):
            index = torch.randperm(len(images), generator=rng)[: self.batch_size].to(view.device)
            x = to_float(images[index]).contiguous(memory_format=torch.channels_last)
            mask.grad = self._gradient(network, x, labels[index], mask)
            optimizer.step()
            with torch.no_grad():
                mask.clamp_(0, 1)
        view.model.eval()
        return mask.detach()

    def _gradient(self, network: MaskedNetwork, x: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        """Return the gradient of the outer loss to the mask (channels,)."""
        ones = torch.ones_like(mask, requires_grad=True)
        plain, by_bias = torch.autograd.grad(network.loss(x, labels, mask, ones), (mask, ones))
        delta, xi = self.eps * plain.sign(), self.eps * by_bias.sign()
        (perturbed,) = torch.autograd.grad(network.loss(x, labels, mask + delta, ones.detach() + xi), (mask,))
        return self.alpha * plain + (1 - self.alpha) * perturbed

    def repair(self, view: DefenderView) -> RepairResult:
        """Return the pruned model, how many channels were pruned of how many, and the ten lowest masks.

        Raises:
            ValueError: if the network has no BatchNorm with weight and bias.
        """
        masks = self.masks(view)
        order = masks.argsort()[: int((masks < self.threshold).sum())]
        before, count = self._accuracy(view), 0
        weights = [norm.weight.detach().clone() for norm in batch_norms(view.model).values()]
        stride = max(1, len(order) // 50)  # of a large network, at most some fifty counts are tried
        for number in [*range(stride, len(order), stride), *([len(order)] if len(order) else [])]:
            self._prune(view.model, weights, order[:number])
            if self._accuracy(view) < before - self.tolerance:
                break
            count = number
        self._prune(view.model, weights, order[:count])
        lowest = [round(value, 4) for value in masks.sort().values[:10].tolist()]
        about = {"pruned": count, "below the threshold": len(order), "of": len(masks), "lowest masks": lowest}
        return RepairResult(view.model, about=about)

    def _accuracy(self, view: DefenderView) -> float:
        predicted = predict(view.model, view.clean.images, view.precision).cpu()
        return float((predicted == view.clean.labels.cpu()).float().mean())

    @torch.no_grad()
    def _prune(self, model: nn.Module, weights: list[Tensor], channels: Tensor) -> None:
        """Set the BatchNorm weights of these channels, counted over all layers, to 0 and all others to `weights`."""
        kept = torch.ones(sum(map(len, weights)), dtype=torch.bool, device=channels.device)
        kept[channels] = False
        parts = kept.split([len(weight) for weight in weights])
        for norm, weight, part in zip(batch_norms(model).values(), weights, parts, strict=True):
            norm.weight.copy_(weight * part.to(weight.device))
