"""STRIP (Gao et al., ACSAC 2019): overlay an input with clean images; if the answer stays the same, it is triggered.

The entropy of the answers to N overlays is low where a trigger dominates whatever it is mixed with. Needs outputs only.
The threshold is a quantile of clean images' entropies themselves (the paper: of a normal law fitted to them, which on
easy data puts it below zero).
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
    """Score: the negative mean entropy in bits, so that higher is more suspect; from -log2(classes) to 0.

    The paper's code adds; halves are the default here, fixed on digits with bw:170: the sum of a blended trigger and a
    digit is as confident as the sum of two digits.
    """

    overlay: str = "half"
    overlays: int = 32
    knows: Knowledge = field(default=Knowledge("outputs", images=500), init=False)

    def __post_init__(self):
        if self.overlay not in OVERLAYS:
            raise ValueError(f"overlay = {self.overlay!r}: expected one of {', '.join(OVERLAYS)}")

    def fit(self, given: DefenderView) -> "STRIP":
        """Keep the clean images that are laid over inputs."""
        self.given, self.pool = given, given.clean.images
        return self

    def score(self, images: Tensor) -> Tensor:
        """images (N, 3, H, W), uint8 or in [0, 1] -> (N,)."""
        rng = devices.rng(self.given.seed)
        entropies = []
        for one in to_float(images).split(64):
            index = torch.randint(len(self.pool), (len(one), self.overlays), generator=rng)
            over = self.pool[index.to(self.pool.device)].to(one.device).float() / 255  # (n, N, 3, H, W)
            mixed = OVERLAYS[self.overlay](one[:, None], over)
            p = self.given.outputs(mixed.flatten(0, 1)).reshape(len(one), self.overlays, -1)
            entropies.append(torch.special.entr(p).sum(2).mean(1) / math.log(2))
        return -torch.cat(entropies)


def adding() -> STRIP:
    """With the paper's overlay."""
    return STRIP("sum")
