"""MM-BD (Wang, Xiang, Miller, Kesidis, IEEE S&P 2024): the largest margin of a class over all images, without data.

The margin of class c at an image is its logit minus the largest other logit. A backdoor, whatever the shape of its
trigger, lets the logit of the target class grow far beyond what the other classes reach. Gradient ascent from random
images finds the largest margin of each class. One margin far above the others gives the backdoor away.

Unlike the paper: its decision is a p-value. It fits a Gamma distribution to all margins but the largest and flags that
class where p < 0.05 (`gamma_p_value`). With few classes this flags too often, since a fit to few values is uncertain:
of sets of ten margins drawn from one Gamma distribution, 23 to 30% had p < 0.05. On small networks it also flagged many
clean models. Here, the decision is the ratio of a class's margin to the median margin; the p-value is recorded.

The ratio was at most 4.2 on clean models. The threshold misses backdoors that raise the logits less. Among models for
digits with an ASR of at least 98% (one per attack), the target's ratio was 27 for a patch at random locations and 5.3
for one at a fixed location. For a patch in the corner it was 2.1, for a warp 3.8, and for a class-specific patch 1.8.

All classes start from equal images, so that they differ by the network alone, and the ascent is Adam's for a fixed
number of steps. The paper's repair is left out.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from mesa_lib import device as devices
from mesa_lib.defenses.base import MAX_INDEX, DefenderView, Detector, Knowledge, Verdict
from mesa_lib.models.inference import batch_size_for
from mesa_lib.progress import progress_bar


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the margins (B,) of classes `labels` (B,): own logit minus the largest other one, of logits (B, K)."""
    own = labels[:, None]
    return logits.gather(1, own)[:, 0] - logits.scatter(1, own, -torch.inf).amax(1)


def ratio_to_median(margins: np.ndarray) -> np.ndarray:
    """Return margin / median for each class (K,), at most `MAX_INDEX`.

    Where the median is not positive, half of the classes are out of reach. Then a class of positive margin has
    `MAX_INDEX`, and the others 0.
    """
    middle = np.median(margins)
    if middle <= 0:
        return np.where(margins > 0, MAX_INDEX, 0.0)
    return np.minimum(margins, MAX_INDEX * middle) / middle


def gamma_p_value(margins: np.ndarray) -> float | None:
    """Return the p-value of the largest of K margins, as the maximum of K draws from the distribution of the others.

    This is 1 - F(largest) ** K. F is the Gamma distribution of highest likelihood (shape, location and scale) for the
    K - 1 others. None if these have fewer than three distinct values, or if none can be fitted.
    """
    *others, largest = np.sort(margins)
    if len(np.unique(others)) < 3:
        return None
    try:
        shape, location, scale = stats.gamma.fit(others)
    except (stats.FitError, FloatingPointError):
        return None
    with np.errstate(divide="ignore"):  # the largest margin may be the lowest value of F
        p = -np.expm1(len(margins) * np.log1p(-stats.gamma.sf(largest, shape, location, scale)))
    return float(p) if np.isfinite(p) else None


@dataclass
class MaximumMargin(Detector):
    """Score of a class: its largest margin over the starts, at the end of the ascent.

    The index is the score divided by the median score of all classes, so at least three classes are needed. `about`
    holds the paper's p-value, the median score and the settings.

    Adam's steps do not depend on the scale of the logits. On three networks for 32x32 digits, six times as many steps
    raised the sum of the margins by 4 to 8%. Steps of 0.1 to 0.5 gave similar ratios. SGD with momentum did as well
    with a step of 0.1, and failed on one network with a step of 1.

    Attributes:
        starts: random images per class.
        steps: of Adam.
        step: Adam's learning rate, in units of the pixel range [0, 1]; after each step, images are clipped to it.
        batch: images of 32x32 that climb at a time, of all classes; larger images go in smaller batches.
        above: the ratio to the median score that a flagged class exceeds.
    """

    starts: int = 30
    steps: int = 100
    step: float = 0.1
    batch: int = 300
    above: float = 5.0
    knowledge: Knowledge = field(default=Knowledge("gradients", images=0), init=False)

    def __post_init__(self):
        for name in ("starts", "steps", "batch"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} = {value!r}: expected a whole number of at least 1")
        if not 0 < self.step <= 1:
            raise ValueError(f"step = {self.step}: expected a number above 0, at most 1 (the range of a pixel)")
        if not 1 < self.above < MAX_INDEX:
            raise ValueError(f"above = {self.above}: expected a ratio to the median between 1 and {MAX_INDEX:g}")

    def detect(self, view: DefenderView) -> Verdict:
        """Return the verdict on the view's model.

        Raises:
            ValueError: if there are fewer than three classes, or another number of outputs.
            FloatingPointError: if a margin is not finite.
        """
        if view.classes < 3:
            raise ValueError(f"classes = {view.classes}: expected at least 3, to compare a margin with their median")
        margins = self.margins(view).double().numpy()
        about = {"p-value": gamma_p_value(margins), "median": float(np.median(margins))}
        about |= {"starts": self.starts, "steps": self.steps, "step": self.step}
        return Verdict(margins.tolist(), ratio_to_median(margins).tolist(), self.above, "index", about)

    def margins(self, view: DefenderView) -> Tensor:
        """Return the largest margin (K,) of each class, float32 on the CPU."""
        rng = devices.rng(devices.derive_seed(view.seed, "maximum margin"))
        starts = torch.rand(self.starts, 3, *view.image_size, generator=rng)
        outputs = view.outputs(starts[:1]).shape[1]
        if outputs != view.classes:
            raise ValueError(f"outputs = {outputs}: expected one logit for each of {view.classes} classes")
        size = batch_size_for(starts.shape[1:], self.batch, self.batch * 3 * 32 * 32)
        labels = torch.arange(view.classes).repeat_interleave(self.starts).split(size)
        images = torch.arange(self.starts).repeat(view.classes).split(size)
        label = "maximizing margins" if len(labels) == 1 else f"maximizing margins, {len(labels)} batches"
        ticks = iter(progress_bar(range(len(labels) * self.steps), label))
        ends = []
        for x, y in zip(images, labels, strict=True):
            with devices.autocast(view.device, view.precision):
                ends.append(self._climb(view.model, starts[x].to(view.device), y.to(view.device), ticks))
        next(ticks, None)
        found = torch.cat(ends).reshape(view.classes, self.starts).amax(1)
        if not found.isfinite().all():
            raise FloatingPointError(f"margins = {found.tolist()}: expected finite numbers; check the model's weights")
        return found

    def _climb(self, model: nn.Module, x: Tensor, labels: Tensor, ticks: Iterator) -> Tensor:
        """Return the margins (B,) of `labels` (B,) after ascent from images (B, 3, H, W); `ticks` counts the steps."""
        x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
        adam = torch.optim.Adam([x], self.step, maximize=True)
        for _ in range(self.steps):
            next(ticks)
            (x.grad,) = torch.autograd.grad(margin(model(x).float(), labels).sum(), x)
            adam.step()
            with torch.no_grad():
                x.clamp_(0, 1)
        with torch.no_grad():
            return margin(model(x).float(), labels).cpu()
