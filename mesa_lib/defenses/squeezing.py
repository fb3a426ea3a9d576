"""Feature Squeezing (Xu, Evans, Qi, NDSS 2018): a prediction that changes when the image is simplified is suspicious.

As a filter, the score is the largest L1 distance between the probabilities of an image and of its squeezed copies. As a
reformer, the squeezed image is classified in place of the image.
"""

from dataclasses import dataclass, field

import cv2
import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from mesa_lib.defenses.base import DefenderView, Filter, Knowledge, Reformer
from mesa_lib.models.inference import to_float


@dataclass(frozen=True)
class BitDepth(Reformer):
    """Round every value to 2 ** bits levels."""

    bits: int

    def __call__(self, images: Tensor) -> Tensor:
        top = 2**self.bits - 1
        return (to_float(images) * top).round() / top


@dataclass(frozen=True)
class Median(Reformer):
    """The median over `size` x `size` pixels of a channel, edges mirrored.

    As in SciPy: of an even number of values the upper of the middle two; a window of 2 is the pixel and the one before.
    """

    size: int

    def __call__(self, images: Tensor) -> Tensor:
        x = to_float(images)
        smoothed = ndimage.median_filter(x.cpu().numpy(), size=(1, 1, self.size, self.size), mode="reflect")
        return torch.from_numpy(smoothed).to(x.device)


@dataclass(frozen=True)
class NonLocalMeans(Reformer):
    """OpenCV's color non-local means on 8 bits: search window, patch and strength (13, 3, 2 in the paper)."""

    search: int = 13
    patch: int = 3
    strength: float = 2

    def __call__(self, images: Tensor) -> Tensor:
        x = to_float(images)
        arrays = (x * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        denoised = [
            cv2.fastNlMeansDenoisingColored(
                np.ascontiguousarray(array), None, self.strength, self.strength, self.patch, self.search
            )
            for array in arrays
        ]
        return (torch.from_numpy(np.stack(denoised)).permute(0, 3, 1, 2).float() / 255).to(x.device)


SQUEEZERS: dict[str, Reformer] = {
    "4 bits": BitDepth(4),
    "5 bits": BitDepth(5),
    "median 2x2": Median(2),
    "median 3x3": Median(3),
    "non-local means": NonLocalMeans(),
}
#: the paper's choice for CIFAR-10
JOINT = ("5 bits", "median 2x2", "non-local means")


@dataclass
class FeatureSqueezing(Filter):
    """Score: the largest distance over the squeezers, from 0 to 2."""

    squeezers: tuple[str, ...] = JOINT
    knowledge: Knowledge = field(default=Knowledge("outputs", images=0), init=False)

    def __post_init__(self):
        unknown = [name for name in self.squeezers if name not in SQUEEZERS]
        if unknown or not self.squeezers:
            raise ValueError(f"squeezers = {self.squeezers!r}: expected some of {', '.join(SQUEEZERS)}")

    def fit(self, view: DefenderView) -> "FeatureSqueezing":
        """Keep the view and return the filter."""
        self.view = view
        return self

    def score(self, images: Tensor) -> Tensor:
        """Return scores (N,) of images (N, 3, H, W), uint8 or in [0, 1]."""
        plain = self.view.outputs(images)
        distances = [(self.view.outputs(SQUEEZERS[name](images)) - plain).abs().sum(1) for name in self.squeezers]
        return torch.stack(distances).max(0).values
