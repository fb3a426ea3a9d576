"""DL-TND (Wang et al., ECCV 2020), the data-limited detector: does one shortcut serve all images?

For each class k two perturbations are sought: a universal one that pushes all other images off their class and keeps
the images of k, and one for each image that pushes it to k. On a backdoored class both take one shortcut, so the
model's inner representations of the two perturbed images point in one direction.

Unlike the released code: inner representations, as in the paper, less their mean over the clean images (values behind a
ReLU all point in one direction); one mask for the three channels; a few fixed sparsities instead of a binary search,
judged at the last step.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from mesa_lib import device as devices
from mesa_lib.defenses.base import DefenderView, Detector, Knowledge, Verdict, anomaly_index
from mesa_lib.progress import progress_bar

#: classes whose perturbations are sought in one batch: each has one perturbation for every image
CLASSES_PER_BATCH = 10

#: logits (K, n, classes) -> (K, n), below zero where a perturbation has the wanted effect
Margins = Callable[[Tensor], Tensor]


@dataclass
class DLTND(Detector):
    """Score of a class: the `quantile` of the cosines over the images of other classes.

    `above` is the score from which a class is flagged; the paper's 0.54, of its networks, flags every clean model here.
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
    knowledge: Knowledge = field(default=Knowledge("weights", images=200), init=False)

    def detect(self, view: DefenderView) -> Verdict:
        """Return the verdict on the view's model."""
        view.model.requires_grad_(False)
        x, y = self._images(view)
        with torch.no_grad():
            center = view.model.represent(x).float().mean(0)
        parts = []
        for targets in torch.arange(view.classes, device=view.device).split(CLASSES_PER_BATCH):
            universal = self._universal(view, x, y, targets)
            per_image = self._per_image(view, x, targets)
            parts.append(F.cosine_similarity(universal - center, per_image - center, dim=2))
        cosines = torch.cat(parts)  # (K, n)
        scores = [float(cosines[label][y != label].quantile(self.quantile)) for label in range(view.classes)]
        return Verdict(scores, anomaly_index(scores, "high").tolist(), self.above, "scores", {"images": len(y)})

    def _images(self, view: DefenderView) -> tuple[Tensor, Tensor]:
        """A few images of every class, in [0, 1], and their labels."""
        labels = view.clean.labels.cpu()
        index = torch.cat([(labels == c).nonzero()[: self.images_per_class, 0] for c in range(view.classes)])
        return view.clean.images[index].to(view.device).float() / 255, labels[index].to(view.device)

    def _universal(self, view: DefenderView, x: Tensor, y: Tensor, targets: Tensor) -> Tensor:
        """Representations (K, n, channels) under the sparsest universal perturbation that works, class by class."""
        k = len(targets)
        keep = y[None] == targets[:, None]  # (K, n): images of the class itself
        true_class = F.one_hot(y, view.classes).bool()[None].expand(k, -1, -1)

        def margins(logits: Tensor) -> Tensor:
            """How far each image is from the goal: off its class, or still in it."""
            true = logits[true_class].reshape(k, -1)
            others = logits.masked_fill(true_class, -torch.inf).amax(2)
            return torch.where(keep, others - true, true - others)

        def works(values: Tensor) -> Tensor:
            return ((values < 0).float().mean(1, keepdim=True) >= self.enough).expand_as(values)

        return self._sparsest(view, x, (k, 1, 3, *view.image_size), margins, works)

    def _per_image(self, view: DefenderView, x: Tensor, targets: Tensor) -> Tensor:
        """Representations (K, n, channels) under the sparsest perturbation that works, image by image and class."""
        k, n = len(targets), len(x)
        wanted = F.one_hot(targets, view.classes).bool()[:, None].expand(-1, n, -1)

        def margins(logits: Tensor) -> Tensor:
            return logits.masked_fill(wanted, -torch.inf).amax(2) - logits[wanted].reshape(k, n)

        return self._sparsest(view, x, (k, n, 3, *view.image_size), margins, lambda values: values < 0)

    def _sparsest(
        self, view: DefenderView, x: Tensor, shape: tuple[int, ...], margins: Margins, works: Margins
    ) -> Tensor:
        """Representations under the smallest mask that works over all sparsities; if none, of the weakest sparsity.

        Args:
            view, x: the model and the images.
            shape: of the perturbations.
            margins: see `Margins`.
            works: margins (K, n) -> boolean (K, n).
        """
        best, smallest = None, None
        for weight in self.sparsities:
            mask, pattern = self._minimize(
                view, x, shape, lambda logits: margins(logits).clamp(min=-self.tau).mean(1).sum(), weight
            )
            with torch.no_grad():
                good = works(margins(self._logits(view, x, mask, pattern)))
            size = mask.sum((2, 3, 4)).expand_as(good).where(good, torch.inf)
            represented = self._represent(view, x, mask, pattern)
            if best is None:
                best, smallest = represented, size
            better = (size < smallest) | smallest.isinf()
            best = torch.where(better[..., None], represented, best)
            smallest = torch.where(better, size, smallest)
        return best

    def _minimize(
        self, view: DefenderView, x: Tensor, shape: tuple[int, ...], loss_of: Callable[[Tensor], Tensor], weight: float
    ) -> tuple[Tensor, Tensor]:
        """Proximal Adam on masks and patterns of `shape` (..., 3, H, W) -> the last masks and patterns."""
        mask = torch.full((*shape[:-3], 1, *shape[-2:]), 0.1, device=view.device).requires_grad_()
        pattern = torch.full(shape, 0.5, device=view.device).requires_grad_()
        optimizer = torch.optim.Adam(
            [{"params": [mask], "lr": self.lr_mask}, {"params": [pattern], "lr": self.lr_pattern}]
        )
        for _ in progress_bar(range(self.steps), "perturbing"):
            loss = loss_of(self._logits(view, x, mask, pattern))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                mask.copy_((mask - self.lr_mask * weight).clamp(0, 1))
                pattern.clamp_(0, 1)
        return mask.detach(), pattern.detach()

    def _logits(self, view: DefenderView, x: Tensor, mask: Tensor, pattern: Tensor) -> Tensor:
        """(K, n, classes), of x (n, 3, H, W) under perturbations that broadcast to (K, n, 3, H, W)."""
        mixed = torch.lerp(x, pattern, mask.expand_as(pattern)).expand(len(pattern), *x.shape)
        with devices.autocast(view.device, view.precision):
            logits = view.model(mixed.flatten(0, 1).contiguous(memory_format=torch.channels_last)).float()
        return logits.reshape(len(pattern), len(x), -1)

    def _represent(self, view: DefenderView, x: Tensor, mask: Tensor, pattern: Tensor) -> Tensor:
        """(K, n, channels), of x under perturbations as in `_logits`."""
        mixed = torch.lerp(x, pattern, mask.expand_as(pattern)).expand(len(pattern), *x.shape)
        with torch.no_grad(), devices.autocast(view.device, view.precision):
            return view.model.represent(mixed.flatten(0, 1)).float().reshape(len(pattern), len(x), -1)
