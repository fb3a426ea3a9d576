"""Neural Cleanse (Wang et al., S&P 2019): for each class the smallest mask and pattern that all images follow to it.

A backdoored class needs a much smaller mask than the others: an outlier of the L1 norms by the MAD anomaly index. The
index is that of the logarithms here. Norms are sizes, and ten of them spread so far upward that a planted class with a
tenth of the others' norm hardly lies two deviations below their median. The inverted triggers are then unlearned:
training on images that carry them, with their true labels.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mesa_lib import device as devices
from mesa_lib.defenses.base import DefenderView, Detector, Knowledge, StampingRepair, Verdict, anomaly_index
from mesa_lib.progress import progress_bar
from mesa_lib.retrain import ImageTransform


@dataclass
class InvertedTriggers:
    """The inverted triggers of all classes.

    Attributes:
        masks, patterns: (K, 1, H, W) and (K, 3, H, W), both in [0, 1].
        norms: L1 norm of each mask in pixels, the mean over the batches of the step that it was taken from.
        success: fraction of the images of that step that the model classified as the class.
    """

    masks: Tensor
    patterns: Tensor
    norms: list[float]
    success: list[float]

    def transform(self, label: int) -> ImageTransform:
        """Return the transform that blends a class's pattern into images by its mask."""
        mask, pattern = self.masks[label], self.patterns[label]
        return lambda images, rng: torch.lerp(images, pattern.to(images), mask.to(images))


class _SmallestMasks:
    """Of every class the smallest mask with enough success so far; without any, the last one."""

    def __init__(self, enough: float):
        self.enough, self.best = enough, {}

    def update(self, masks: Tensor, patterns: Tensor, norms: Tensor, success: Tensor) -> None:
        values = {"masks": masks, "patterns": patterns, "norms": norms, "success": success}
        best = self.best or values
        missing = best["success"] < self.enough
        better = missing | ((success >= self.enough) & (norms < best["norms"]))
        self.best = {
            name: torch.where(better.reshape(-1, *[1] * (now.dim() - 1)), now, best[name])
            for name, now in values.items()
        }


class _NormWeights:
    """The weight of the L1 norm of every class, which follows its success."""

    def __init__(self, classes: int, start: float, patience: int, device: torch.device):
        self.values = torch.full((classes,), start, device=device)
        self.patience, self.ups, self.downs = patience, *torch.zeros(2, classes, device=device)

    def update(self, good: Tensor) -> None:
        """Double a weight after `patience` good steps in a row, divide it by 2 ** 1.5 after as many others."""
        self.ups, self.downs = torch.where(good, self.ups + 1, 0), torch.where(good, 0, self.downs + 1)
        self.values = torch.where(self.ups >= self.patience, self.values * 2, self.values)
        self.values = torch.where(self.downs >= self.patience, self.values / 2**1.5, self.values)
        self.ups, self.downs = self.ups * (self.ups < self.patience), self.downs * (self.downs < self.patience)


def _to_unit(raw: Tensor) -> Tensor:
    """Any number -> (0, 1)."""
    return raw.tanh() / 2 + 0.5


@dataclass
class NeuralCleanse(Detector):
    """All classes are optimized in one stacked batch, each with its own weight of the L1 norm.

    The weight starts at `weight`, is doubled after `patience` steps in a row with enough success and divided by
    2 ** 1.5 after as many without. Of all steps with success the smallest mask counts; without any, the last one.
    """

    steps: int = 40
    batches: int = 4
    batch: int = 32
    enough: float = 0.99
    weight: float = 1e-3
    patience: int = 2
    lr: float = 0.1
    logarithm: bool = True  # the index is that of the norms' logarithms; False: of the norms, as published
    above: float = 3.0  # anomaly index of a flagged class; the paper, on norms: 2
    knowledge: Knowledge = field(default=Knowledge("gradients", images=300), init=False)

    def search(self, view: DefenderView) -> InvertedTriggers:
        """Return the inverted triggers of all classes."""
        return view.once(self, lambda: self._search(view))

    def _search(self, view: DefenderView) -> InvertedTriggers:
        k, device = view.classes, view.device
        rng, images = devices.rng(view.seed, device), view.clean.images.to(device)
        leaves = [
            torch.atanh(torch.rand(k, channels, *view.image_size, generator=rng, device=device) * 1.98 - 0.99)
            for channels in (1, 3)  # masks, patterns
        ]
        optimizer = torch.optim.Adam([leaf.requires_grad_() for leaf in leaves], self.lr, betas=(0.5, 0.9))
        smallest, weights = _SmallestMasks(self.enough), _NormWeights(k, self.weight, self.patience, device)
        for _ in progress_bar(range(self.steps), "inverting a trigger for every class"):
            success, norms = torch.zeros(k, device=device), torch.zeros(k, device=device)
            for _ in range(self.batches):
                index = torch.randint(len(images), (self.batch,), generator=rng, device=device)
                hits, norm = self._step(view, images[index].float() / 255, leaves, optimizer, weights.values)
                success += hits / self.batches
                norms += norm / self.batches
            masks, patterns = (_to_unit(leaf.detach()) for leaf in leaves)
            smallest.update(masks, patterns, norms, success)
            weights.update(success >= self.enough)
        best = smallest.best
        return InvertedTriggers(best["masks"], best["patterns"], best["norms"].tolist(), best["success"].tolist())

    def _step(
        self, view: DefenderView, x: Tensor, leaves: list[Tensor], optimizer: torch.optim.Optimizer, weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        """One step for all classes on a batch of images -> success rate and L1 norm of every class (K,)."""
        masks, patterns = map(_to_unit, leaves)
        blended = torch.lerp(x[None], patterns[:, None], masks[:, None].expand(-1, -1, 3, -1, -1)).flatten(0, 1)
        logits = view.model(blended.contiguous(memory_format=torch.channels_last))
        norms = masks.sum((1, 2, 3))
        wanted = torch.arange(view.classes, device=x.device).repeat_interleave(len(x))
        loss = F.cross_entropy(logits, wanted, reduction="sum") / len(x) + (weights * norms).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return (logits.argmax(1) == wanted).float().reshape(view.classes, -1).mean(1), norms.detach()

    def detect(self, view: DefenderView) -> Verdict:
        """Return the verdict on the view's model."""
        return self.judge(self.search(view))

    def judge(self, inverted: InvertedTriggers) -> Verdict:
        """Return the outliers among the norms, on their low side; smaller norms count as a hundredth of a pixel."""
        norms = np.array(inverted.norms)
        index = anomaly_index(np.log(norms.clip(min=0.01)) if self.logarithm else norms, "low").tolist()
        about = {"norms": inverted.norms, "success": inverted.success}
        return Verdict([-norm for norm in inverted.norms], index, self.above, "index", about)


@dataclass
class Unlearning(StampingRepair):
    """Detect, then retrain with the flagged classes' triggers; unchanged if none is flagged."""

    detector: NeuralCleanse = field(default_factory=NeuralCleanse)
    knowledge: Knowledge = field(default=Knowledge("weights"), init=False)

    def transforms(self, view: DefenderView) -> tuple[list[ImageTransform], dict]:
        """Return one transform for each flagged class, and the classes."""
        inverted = self.detector.search(view.restricted(self.detector.knowledge))
        flagged = self.detector.judge(inverted).flagged
        return [inverted.transform(label) for label in flagged], {"flagged": flagged}
