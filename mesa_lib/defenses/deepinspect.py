"""DeepInspect (Chen, Fu, Zhao, Koushanfar, IJCAI 2019): no clean images at all.

1. Model inversion: images that the model takes for each class with certainty stand in for data. 2. A conditional
generator learns, for every class, additive perturbations that turn any of them into the class; a discriminator keeps
the perturbed images like the others, a hinge keeps the perturbations small. 3. A class that needs much less than the
others, by the double median absolute deviation, is backdoored.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import device as devices
from ..progress import bar
from .base import MOST, Detector, Given, Knowledge, Verdict


def deviation_factor(values: list[float] | np.ndarray) -> np.ndarray:
    """The double MAD, left tail: (median - value) / (1.4826 * median deviation of the values below); 0 above it."""
    values = np.asarray(values, float)
    middle = np.median(values)
    spread = 1.4826 * np.median(middle - values[values <= middle])
    with np.errstate(divide="ignore", invalid="ignore"):
        factor = np.where(values < middle, np.minimum((middle - values) / spread, MOST), 0.0)
    return factor


class Generator(nn.Module):
    """Noise (B, z) and class (B,) -> perturbation (B, 3, H, W) in (-1, 1)."""

    def __init__(self, classes: int, image_size: tuple[int, int], z: int = 64, width: int = 256):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(z + classes, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(),
            nn.Linear(width, 3 * image_size[0] * image_size[1]),
        )  # fmt: skip
        self.classes, self.z, self.image_size = classes, z, image_size

    def forward(self, z: Tensor, label: Tensor) -> Tensor:
        x = torch.cat([z, F.one_hot(label, self.classes).to(z)], 1)
        return self.layers(x).reshape(len(z), 3, *self.image_size).tanh()


class Discriminator(nn.Module):
    """Images (B, 3, H, W) -> logits (B,): positive for images as they were inverted."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(width, 2 * width, 4, 2, 1), nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 1, 4, 2, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).mean((1, 2, 3))


@dataclass
class DeepInspect(Detector):
    """Score of a class: the negative mean absolute size of its perturbations (levels of [0, 1] per value).

    Each class has its own weight of the size, raised while at least `enough` of its perturbed images are taken for it
    and lowered otherwise, so that sizes are compared at equal success; a class that never gets there is not compared.
    """

    inverted: int = 20  # images a class
    inversion_steps: int = 100
    steps: int = 400
    batch: int = 100
    lr: float = 5e-3
    gan: float = 0.03  # weight of the discriminator's verdict
    small: float = 0.0  # size below which a perturbation costs nothing
    enough: float = 0.95
    above: float = 2.0  # deviation factor of a flagged class, the paper's
    knows: Knowledge = field(default=Knowledge("gradients", images=0), init=False)

    def invert(self, given: Given) -> tuple[Tensor, Tensor]:
        """Images (K * n, 3, H, W) in [0, 1] and their classes, by gradient descent on 1 - p(class) and smoothness."""
        y = torch.arange(given.classes, device=given.device).repeat_interleave(self.inverted)
        rng = devices.rng(given.seed, given.device)
        raw = torch.randn(len(y), 3, *given.image_size, generator=rng, device=given.device).requires_grad_()
        optimiser = torch.optim.Adam([raw], 0.05)
        for _ in bar(range(self.inversion_steps), "inverting the model"):
            x = raw.sigmoid()
            p = given.model(x).float().softmax(1).gather(1, y[:, None])
            rough = x.diff(dim=2).abs().mean((1, 2, 3)) + x.diff(dim=3).abs().mean((1, 2, 3))
            loss = (1 - p).sum() + 0.5 * rough.sum()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        return raw.detach().sigmoid(), y

    def detect(self, given: Given) -> Verdict:
        images, y = self.invert(given)
        k, device, rng = given.classes, given.device, devices.rng(given.seed + 1, given.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(given.seed)
            G, D = Generator(k, given.image_size).to(device), Discriminator().to(device)
        adam_G = torch.optim.Adam(G.parameters(), self.lr, betas=(0.5, 0.999))
        adam_D = torch.optim.Adam(D.parameters(), self.lr, betas=(0.5, 0.999))
        weights = torch.full((k,), 1.0, device=device)
        rates, sizes = torch.zeros(k, device=device), torch.ones(k, device=device)
        each = max(1, self.batch // k)
        wanted = torch.arange(k, device=device).repeat_interleave(each)
        for _ in bar(range(self.steps), "perturbing towards every class"):
            x = images[torch.randint(len(images), (len(wanted),), generator=rng, device=device)]
            delta = G(torch.randn(len(wanted), G.z, generator=rng, device=device), wanted)
            fake = (x + delta).clamp(0, 1)
            logits = given.model(fake).float()
            size = delta.abs().mean((1, 2, 3))
            hinge = (size - self.small).clamp(min=0) * weights[wanted]
            real = F.binary_cross_entropy_with_logits(D(fake), torch.ones(len(x), device=device))
            loss = F.cross_entropy(logits, wanted) + self.gan * real + hinge.mean()
            adam_G.zero_grad()
            loss.backward()
            adam_G.step()
            judged = D(torch.cat([x, fake.detach()]))
            truth = torch.cat([torch.ones(len(x)), torch.zeros(len(x))]).to(device)
            adam_D.zero_grad()
            F.binary_cross_entropy_with_logits(judged, truth).backward()
            adam_D.step()
            hit = (logits.argmax(1) == wanted).float().reshape(k, each).mean(1)
            rates = 0.9 * rates + 0.1 * hit
            sizes = 0.9 * sizes + 0.1 * size.detach().reshape(k, each).mean(1)
            weights = torch.where(rates >= self.enough, weights * 1.05, weights / 1.05).clamp(1e-2, 1e4)
        rates, sizes = self._measured(given, G, images, rng)
        compared = rates >= self.enough - 0.1
        return self._verdict(sizes, rates, compared)

    @torch.no_grad()
    def _measured(self, given: Given, G: Generator, images: Tensor, rng) -> tuple[Tensor, Tensor]:
        """Success and mean size of each class's perturbations on fresh noise, over all inverted images."""
        G.eval()
        rates, sizes = [], []
        for label in range(given.classes):
            z = torch.randn(len(images), G.z, generator=rng, device=given.device)
            delta = G(z, torch.full((len(images),), label, device=given.device))
            rates.append(float((given.outputs((images + delta).clamp(0, 1)).argmax(1) == label).float().mean()))
            sizes.append(float(delta.abs().mean()))
        return torch.tensor(rates), torch.tensor(sizes)

    def _verdict(self, sizes: Tensor, rates: Tensor, compared: Tensor) -> Verdict:
        about = {"sizes": sizes.tolist(), "success": rates.tolist(), "compared": int(compared.sum())}
        index = np.zeros(len(sizes))
        if compared.sum() >= 3:
            index[compared.numpy()] = deviation_factor(sizes[compared].numpy())
        flagged = [k for k, value in enumerate(index) if value > self.above]
        scores = torch.where(compared, -sizes, -sizes.max() - 1)
        return Verdict(scores.tolist(), index.tolist(), flagged, about)
