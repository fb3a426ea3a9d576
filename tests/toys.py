"""Models with known predictions, for the tests of scans: no training, a backdoor of one pixel."""

import torch
from torch import Tensor, nn

from mesa_lib import scan as scanning
from mesa_lib.data import Split
from mesa_lib.defenses.mesa.inversion_search import Effort
from mesa_lib.scan.detector import ScanDetector, ScanScreening
from mesa_lib.settings import Settings


class Coded(nn.Module):
    """Predicts the class from the mean of green; predicts 1 where red is high at the pixel `location`, if there is one.

    order: of the outputs; change(logits, images): what is done to the logits at last
    """

    def __init__(self, location=None, order=(0, 1, 2), change=lambda logits, x: logits):
        super().__init__()
        self.location, self.order, self.change = location, list(order), change
        self.levels = nn.Parameter(torch.linspace(0.1, 0.6, 3))

    def forward(self, x):
        logits = (-120 * (x[:, 1].mean((1, 2))[:, None] - self.levels) ** 2)[:, self.order]
        if self.location is not None:
            hit = (14 * (x[:, 0, self.location[0], self.location[1]] - 0.6)).sigmoid()
            logits = logits + 40 * hit[:, None] * nn.functional.one_hot(torch.tensor(1), 3)
        return self.change(logits, x)


def fit_head(features: nn.Module, head: nn.Linear, images: Tensor, labels: Tensor) -> None:
    """Give an untrained network the head that classifies these images (uint8) correctly, by least squares."""
    with torch.no_grad():
        x = features.eval()(images.float() / 255)
        x = torch.cat([x, torch.ones(len(x), 1)], 1).double()
        wanted = 8 * nn.functional.one_hot(labels, head.out_features).double()
        solved = torch.linalg.lstsq(x, wanted, driver="gelsd").solution.float()
        head.weight.copy_(solved[:-1].T)
        head.bias.copy_(solved[-1])


def coded_images() -> scanning.Images:
    """Return 120 images of three classes that `Coded` classifies correctly."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(120) % 3
    x = 0.3 * torch.rand(120, 3, 16, 16, generator=rng)
    x[:, 1] = torch.linspace(0.1, 0.6, 3)[labels][:, None, None] + 0.02 * torch.rand(120, 16, 16, generator=rng) - 0.01
    return scanning.Images(Split((255 * x).round().byte(), labels), ("red <b>", "green", "blue"), ("120 images.",))


def quick_detector() -> ScanDetector:
    """Return the scan's detector with fewer steps, for 3x3 only."""
    few = Settings(betas=(0.9,), steps=30, triggers_per_step=16)
    repair = few.replace(betas=(0.9, 0.5), steps=20)
    screening = ScanScreening(sizes=((3, 3),), settings=few, effort=Effort(shortlist=6))
    return ScanDetector(screening, few.replace(steps=80), repair_modeling=repair)


def tiny_detector(side: int = 16, size: int = 3) -> ScanDetector:
    """Return the scan's detector with next to no steps: for tests of everything but the verdict."""
    few = Settings(betas=(0.9,), steps=2, triggers_per_step=2)
    effort = Effort(1, 1, 1, 1, 1, 1, 1, 1, 1, shortlist=2, patches_per_location=2)
    search = {"stride": max(8, side // 4), "effort": effort}
    screening = ScanScreening(sizes=((size, size),), settings=few, side=side, **search)
    return ScanDetector(screening, few, repair_modeling=few, side=side)


def repaired_twice(repair, model: nn.Module):
    """Return the results of two repairs with one seed, whose weights are equal; those of another seed are not.

    repair: seed -> `RepairResult`; the model that it is given stays as it is
    """
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, again, other = (repair(seed) for seed in (0, 0, 1))
    after = first.model.state_dict()
    assert all(torch.equal(value, again.model.state_dict()[name]) for name, value in after.items())
    assert not all(torch.equal(value, other.model.state_dict()[name]) for name, value in after.items())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()), "a copy is trained"
    return first, again
