"""STRIP (Gao et al., ACSAC 2019): overlay an input with clean images; if the prediction stays, it carries a trigger.

The entropy of the predictions under N overlays is low where a trigger dominates whatever it is mixed with. Needs
outputs only. The threshold is a quantile of the entropies of clean images. (The paper takes the quantile of a normal
distribution fitted to them, which lies below zero on easy data.)
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mesa_lib import device as devices
from mesa_lib.defenses.base import DefenderView, Filter, Knowledge
from mesa_lib.models.inference import to_float

#: how an input x and an overlay o are mixed; the paper's code adds, without clipping
OVERLAYS = {
    "sum": lambda x, o: x + o,
    "clipped sum": lambda x, o: (x + o).clamp(max=1),
    "half": lambda x, o: 0.5 * x + 0.5 * o,
    "more input": lambda x, o: 0.7 * x + 0.3 * o,
}


@dataclass
class STRIP(Filter):
    """Score: the negative mean entropy in bits, from -log2(classes) to 0; higher is more suspicious.

    The paper's code adds images. The default here averages them, fixed on digits with bw:170: the sum of a blended
    trigger and a digit is as confident as the sum of two digits.
    """

    overlay: str = "half"
    overlays: int = 32
    knowledge: Knowledge = field(default=Knowledge("outputs", images=500), init=False)

    def __post_init__(self):
        if self.overlay not in OVERLAYS:
            raise ValueError(f"overlay = {self.overlay!r}: expected one of {', '.join(OVERLAYS)}")

    def fit(self, view: DefenderView) -> "STRIP":
        """Keep the clean images that are laid over inputs, and return the filter."""
        self.view, self.pool = view, view.clean.images
        return self

    def score(self, images: Tensor) -> Tensor:
        """Return scores (N,) of images (N, 3, H, W), uint8 or in [0, 1]."""
        rng = devices.rng(self.view.seed)
        entropies = []
        for batch in to_float(images).split(64):
            index = torch.randint(len(self.pool), (len(batch), self.overlays), generator=rng)
            over = self.pool[index.to(self.pool.device)].to(batch.device).float() / 255  # (n, N, 3, H, W)
            mixed = OVERLAYS[self.overlay](batch[:, None], over)
            p = self.view.outputs(mixed.flatten(0, 1)).reshape(len(batch), self.overlays, -1)
            entropies.append(torch.special.entr(p).sum(2).mean(1) / math.log(2))
        return -torch.cat(entropies)


def adding() -> STRIP:
    """Return STRIP with the paper's overlay."""
    return STRIP("sum")
