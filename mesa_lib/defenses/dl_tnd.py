"""DL-TND (Wang et al., ECCV 2020), the data-limited detector: does one shortcut serve all images?

For each class k two perturbations are sought: a universal one that pushes all other images off their class and leaves
those of k where they are, and one for each image that pushes it to k. On a backdoored class both take the same
shortcut, so that the model's inner representations of the two perturbed images point the same way. Unlike the released
code: inner representations, as in the paper, less their mean over the clean images (values behind a ReLU all point one
way); one mask for the three channels; a few fixed sparsities instead of a binary search, judged at the last step.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from mesa_lib import device as devices
from mesa_lib.defenses.base import DefenderView, Detector, Knowledge, Verdict, anomaly_index
from mesa_lib.progress import progress_bar

#: classes whose perturbations are sought in one batch: each has one for every image
AT_ONCE = 10


@dataclass
class DLTND(Detector):
    """Score of a class: the `quantile` of the cosines over the images of other classes.

    above: the score from which a class is flagged; the paper's 0.54, of its networks, flags every clean model here
    """

    images_per_class: int = 2
    steps: int = 100
    sparsities: tuple[float, ...] = (0.3, 0.1, 0.03, 0.01)  # L1 weights, the strongest first
    lr_mask: float = 0.05
    lr_pattern: float = 0.1
    tau: float = 15.0
    enough: float = 0.7
    quantile: float = 0.25
    above: float = 0.95
    knows: Knowledge = field(default=Knowledge("weights", images=200), init=False)

    def detect(self, given: DefenderView) -> Verdict:
        given.model.requires_grad_(False)
        x, y = self._some(given)
        k, n = given.classes, len(y)
        with torch.no_grad():
            usual = given.model.represent(x).float().mean(0)
        parts = []
        for targets in torch.arange(k, device=given.device).split(AT_ONCE):  # no class asks another
            universal = self._universal(given, x, y, targets)
            own = self._per_image(given, x, y, targets)
            parts.append(F.cosine_similarity(universal - usual, own - usual, dim=2))
        cosines = torch.cat(parts)  # (K, n)
        scores = [float(cosines[label][y != label].quantile(self.quantile)) for label in range(k)]
        return Verdict(scores, anomaly_index(scores, "high").tolist(), self.above, "scores", {"images": n})

    def _some(self, given: DefenderView) -> tuple[Tensor, Tensor]:
        labels = given.clean.labels.cpu()
        index = torch.cat([(labels == c).nonzero()[: self.images_per_class, 0] for c in range(given.classes)])
        return given.clean.images[index].to(given.device).float() / 255, labels[index].to(given.device)

    def _minimize(self, given: DefenderView, x: Tensor, shape: tuple, loss_of, weight: float):
        """Proximal Adam on masks and patterns of `shape` (..., 3, H, W) -> the last masks and patterns."""
        mask = torch.full((*shape[:-3], 1, *shape[-2:]), 0.1, device=given.device).requires_grad_()
        pattern = torch.full(shape, 0.5, device=given.device).requires_grad_()
        optimizer = torch.optim.Adam(
            [{"params": [mask], "lr": self.lr_mask}, {"params": [pattern], "lr": self.lr_pattern}]
        )
        for _ in progress_bar(range(self.steps), "perturbing"):
            loss = loss_of(self._logits(given, x, mask, pattern))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                mask.copy_((mask - self.lr_mask * weight).clamp(0, 1))
                pattern.clamp_(0, 1)
        return mask.detach(), pattern.detach()

    def _logits(self, given: DefenderView, x: Tensor, mask: Tensor, pattern: Tensor) -> Tensor:
        """(K, n, classes), of x (n, 3, H, W) under perturbations that broadcast to (K, n, 3, H, W)."""
        mixed = torch.lerp(x, pattern, mask.expand_as(pattern))
        mixed = mixed.expand(len(pattern), *x.shape)
        with devices.autocast(given.device, given.precision):
            logits = given.model(mixed.flatten(0, 1).contiguous(memory_format=torch.channels_last)).float()
        return logits.reshape(len(pattern), len(x), -1)

    def _represent(self, given: DefenderView, x: Tensor, mask: Tensor, pattern: Tensor) -> Tensor:
        mixed = torch.lerp(x, pattern, mask.expand_as(pattern)).expand(len(pattern), *x.shape)
        with torch.no_grad(), devices.autocast(given.device, given.precision):
            return given.model.represent(mixed.flatten(0, 1)).float().reshape(len(pattern), len(x), -1)

    def _universal(self, given: DefenderView, x: Tensor, y: Tensor, targets: Tensor) -> Tensor:
        """Representations (K, n, channels) under the sparsest universal perturbation that works, class by class."""
        k = len(targets)
        keep = y[None] == targets[:, None]  # (K, n): images of the class itself
        own = F.one_hot(y, given.classes).bool()[None].expand(k, -1, -1)

        def margins(logits: Tensor) -> Tensor:
            """How far each image is from what is wanted of it: off its class, or still in it."""
            at = logits[own].reshape(k, -1)
            others = logits.masked_fill(own, -torch.inf).amax(2)
            return torch.where(keep, others - at, at - others)

        def works(found: Tensor) -> Tensor:
            return ((found < 0).float().mean(1, keepdim=True) >= self.enough).expand_as(found)

        return self._sparsest(given, x, (k, 1, 3, *given.image_size), margins, works)

    def _per_image(self, given: DefenderView, x: Tensor, y: Tensor, targets: Tensor) -> Tensor:
        """Representations (K, n, channels) under the sparsest perturbation that works, image by image and class."""
        k, n = len(targets), len(x)
        wanted = F.one_hot(targets, given.classes).bool()[:, None].expand(-1, n, -1)

        def margins(logits: Tensor) -> Tensor:
            return logits.masked_fill(wanted, -torch.inf).amax(2) - logits[wanted].reshape(k, n)

        return self._sparsest(given, x, (k, n, 3, *given.image_size), margins, lambda found: found < 0)

    def _sparsest(self, given: DefenderView, x: Tensor, shape: tuple, margins: Callable, works: Callable) -> Tensor:
        """Of all sparsities the smallest mask that works; where none does, that of the weakest sparsity.

        margins(logits (K, n, classes)) -> (K, n), below zero where a perturbation does what it should; works(margins)
        -> boolean (K, n)
        """
        best, chosen = None, None
        for weight in self.sparsities:
            mask, pattern = self._minimize(
                given, x, shape, lambda logits: margins(logits).clamp(min=-self.tau).mean(1).sum(), weight
            )
            with torch.no_grad():
                good = works(margins(self._logits(given, x, mask, pattern)))
            size = mask.sum((2, 3, 4)).expand_as(good).where(good, torch.inf)
            at = self._represent(given, x, mask, pattern)
            if best is None:
                best, chosen = at, size
            better = (size < chosen) | chosen.isinf()
            best, chosen = torch.where(better[..., None], at, best), torch.where(better, size, chosen)
        return best
