"""Neural Cleanse (Wang et al., S&P 2019): the smallest mask and pattern that turn every image into a class, for each.

A class with a backdoor needs a much smaller mask than the others: an outlier of the L1 norms by the median absolute
deviation, here of their logarithms: norms are sizes, and ten sizes spread so far upwards that a planted class with a
tenth of the others' hardly lies two deviations below their median. Found triggers are then unlearned by training on
images that carry them, with their true labels.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mesa_lib import device as devices
from mesa_lib import retrain
from mesa_lib.defenses.base import DefenderView, Detector, Knowledge, Repairer, RepairResult, Verdict, anomaly_index
from mesa_lib.progress import progress_bar


@dataclass
class InvertedTriggers:
    """What was found for all classes: masks (K, 1, H, W), patterns (K, 3, H, W), both in [0, 1], and how they do."""

    masks: Tensor
    patterns: Tensor
    norms: list[float]  # L1 of each mask in pixels, the mean over the batches of the step that it was taken from
    success: list[float]  # of the images, in the step that the mask was taken from

    def apply(self, label: int):
        """As a trigger: images (B, 3, H, W) in [0, 1] -> blended."""
        mask, pattern = self.masks[label], self.patterns[label]
        return lambda images, rng: torch.lerp(images, pattern.to(images), mask.to(images))


@dataclass
class NeuralCleanse(Detector):
    """All classes are optimized in one stacked batch, each with its own weight of the L1 norm.

    The weight starts at `weight`, is doubled after `patience` steps in a row with enough success and divided by
    2 ** 1.5 after as many without. Of all steps with success the smallest mask counts; a class without any counts with
    its last one.
    """

    steps: int = 40
    batches: int = 4
    batch: int = 32
    enough: float = 0.99
    weight: float = 1e-3
    patience: int = 2
    lr: float = 0.1
    logarithm: bool = True  # the index is of the logarithms of the norms; False: of the norms, as published
    above: float = 3.0  # anomaly index of a flagged class; the paper, on norms: 2
    knows: Knowledge = field(default=Knowledge("gradients", images=300), init=False)

    def search(self, given: DefenderView) -> InvertedTriggers:
        return given.once(self, lambda: self._search(given))

    def _search(self, given: DefenderView) -> InvertedTriggers:
        k, device = given.classes, given.device
        rng = devices.rng(given.seed, device)
        images = given.clean.images.to(device)
        mask_at = torch.atanh(torch.rand(k, 1, *given.image_size, generator=rng, device=device) * 1.98 - 0.99)
        pattern_at = torch.atanh(torch.rand(k, 3, *given.image_size, generator=rng, device=device) * 1.98 - 0.99)
        leaves = [mask_at.requires_grad_(), pattern_at.requires_grad_()]
        optimizer = torch.optim.Adam(leaves, self.lr, betas=(0.5, 0.9))
        weights = torch.full((k,), self.weight, device=device)
        ups = torch.zeros(k, device=device)
        downs = torch.zeros(k, device=device)
        best = {"norm": torch.full((k,), float("inf"), device=device)}
        wanted = torch.arange(k, device=device).repeat_interleave(self.batch)

        for _ in progress_bar(range(self.steps), "reversing a trigger for every class"):
            hits, norms = torch.zeros(k, device=device), torch.zeros(k, device=device)
            for _ in range(self.batches):
                mask, pattern = (leaf.tanh() / 2 + 0.5 for leaf in leaves)
                index = torch.randint(len(images), (self.batch,), generator=rng, device=device)
                x = (images[index].float() / 255)[None]
                x = torch.lerp(x, pattern[:, None], mask[:, None].expand(-1, -1, 3, -1, -1)).flatten(0, 1)
                logits = given.model(x.contiguous(memory_format=torch.channels_last))
                norm = mask.sum((1, 2, 3))
                loss = F.cross_entropy(logits, wanted, reduction="sum") / self.batch + (weights * norm).sum()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                hits += (logits.argmax(1) == wanted).float().reshape(k, -1).mean(1) / self.batches
                norms += norm.detach() / self.batches
            mask, pattern = (leaf.detach().tanh() / 2 + 0.5 for leaf in leaves)
            good = hits >= self.enough
            if "mask" not in best:
                best |= {"mask": mask, "pattern": pattern, "success": hits, "norm": norms}
            better = good & ((norms < best["norm"]) | (best["success"] < self.enough))
            better |= ~good & (best["success"] < self.enough)  # none yet: the last one stands
            for name, now in (("mask", mask), ("pattern", pattern), ("success", hits), ("norm", norms)):
                best[name] = torch.where(better.reshape(-1, *[1] * (now.dim() - 1)), now, best[name])
            ups, downs = torch.where(good, ups + 1, 0), torch.where(good, 0, downs + 1)
            weights = torch.where(ups >= self.patience, weights * 2, weights)
            weights = torch.where(downs >= self.patience, weights / 2**1.5, weights)
            ups, downs = ups * (ups < self.patience), downs * (downs < self.patience)
        return InvertedTriggers(best["mask"], best["pattern"], best["norm"].tolist(), best["success"].tolist())

    def detect(self, given: DefenderView) -> Verdict:
        return self.judge(self.search(given))

    def judge(self, found: InvertedTriggers) -> Verdict:
        """The outliers among the norms, on their low side; norms below a hundredth of a pixel count as that."""
        norms = np.array(found.norms)
        index = anomaly_index(np.log(norms.clip(min=0.01)) if self.logarithm else norms, "low").tolist()
        about = {"norms": found.norms, "success": found.success}
        return Verdict([-norm for norm in found.norms], index, self.above, "index", about)


@dataclass
class Unlearning(Repairer):
    """Detect, then retrain with the flagged classes' triggers; unchanged if none is flagged."""

    detector: NeuralCleanse = field(default_factory=NeuralCleanse)
    knows: Knowledge = field(default=Knowledge("weights"), init=False)

    def repair(self, given: DefenderView) -> RepairResult:
        found = self.detector.search(given.restricted(self.detector.knows))
        flagged = self.detector.judge(found).flagged
        if flagged:
            applies = [found.apply(label) for label in flagged]
            given.train(given.model, given.clean, retrain.on_fraction(retrain.one_of(applies), given.rate))
        return RepairResult(given.model, {"flagged": flagged})
