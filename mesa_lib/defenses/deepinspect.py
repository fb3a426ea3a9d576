"""DeepInspect (Chen, Fu, Zhao, Koushanfar, IJCAI 2019): no clean images at all.

1. Model inversion: images that the model takes for each class with certainty stand in for data. 2. A conditional
generator learns, for every class, additive perturbations that turn any of them into the class; a discriminator keeps
the perturbed images like the others, a hinge keeps the perturbations small. 3. A class that needs much less than the
others is backdoored.

Unlike the paper: its discriminator is the model under test itself, which asks nearly the same as the first loss; here
it is a network of its own that learns to tell perturbed images from inverted ones. Where p(class) is next to nothing,
1 - p has no gradient to speak of; its logarithm, which has the same minimum, is taken instead. The outlier test is that
of the logarithms, as for Neural Cleanse, since sizes are skewed and of ten only five lie below the median; the paper's,
by the double median absolute deviation, is told beside it. The fourth step, retraining with the perturbations, is left
out.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mesa_lib import device as devices
from mesa_lib.defenses.base import MOST, DefenderView, Detector, Knowledge, Verdict, anomaly_index
from mesa_lib.progress import progress_bar


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

    Each class has its own weight of the size, raised while its perturbed images are taken for it and lowered otherwise.
    In the second half, every `look` steps, all are measured: the smallest size at which at least `enough` of the images
    of other classes are taken for the class is what counts. A class that never gets there is not compared.
    """

    inverted: int = 20  # images a class
    inversion_steps: int = 100
    smooth: float = 0.5  # weight of the roughness of inverted images
    steps: int = 600
    look: int = 20
    batch: int = 100
    lr: float = 2e-3
    gan: float = 0.03  # weight of the discriminator's verdict
    small: float = 0.0  # size below which a perturbation costs nothing
    enough: float = 0.95
    logarithm: bool = True  # False: the paper's double MAD, whose limit is 2
    above: float = 3.5
    knows: Knowledge = field(default=Knowledge("gradients", images=0), init=False)

    def invert(self, given: DefenderView) -> tuple[Tensor, Tensor]:
        """Images (at most K * n, 3, H, W) in [0, 1] and their classes, by descent on -log p(class) and smoothness.

        Images that the model does not take for their class are left out.
        """
        y = torch.arange(given.classes, device=given.device).repeat_interleave(self.inverted)
        rng = devices.rng(given.seed, given.device)
        raw = torch.randn(len(y), 3, *given.image_size, generator=rng, device=given.device).requires_grad_()
        optimizer = torch.optim.Adam([raw], 0.05)
        for _ in progress_bar(range(self.inversion_steps), "inverting the model"):
            x = raw.sigmoid()
            surprise = F.cross_entropy(given.model(x).float(), y, reduction="sum")
            rough = x.diff(dim=2).abs().mean((1, 2, 3)) + x.diff(dim=3).abs().mean((1, 2, 3))
            loss = surprise + self.smooth * rough.sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        x = raw.detach().sigmoid()
        taken = given.outputs(x).argmax(1).to(given.device) == y
        return x[taken], y[taken]

    def detect(self, given: DefenderView) -> Verdict:
        images, y = self.invert(given)
        if len(y.unique()) < 2:  # nothing stands in for data: no class can be compared
            return self._verdict(torch.full((given.classes,), torch.inf), torch.zeros(given.classes), 0.0)
        k, device, rng = given.classes, given.device, devices.rng(given.seed + 1, given.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(given.seed)
            G, D = Generator(k, given.image_size).to(device), Discriminator().to(device)
        adam_G = torch.optim.Adam(G.parameters(), self.lr, betas=(0.5, 0.999))
        adam_D = torch.optim.Adam(D.parameters(), self.lr, betas=(0.5, 0.999))
        weights = torch.full((k,), 1.0, device=device)
        aim = (1 + self.enough) / 2  # the rates of single batches swing about it
        rates, best, reached = torch.zeros(k, device=device), torch.full((k,), torch.inf), torch.zeros(k)
        each = max(1, self.batch // k)
        wanted = torch.arange(k, device=device).repeat_interleave(each)
        for step in progress_bar(range(self.steps), "perturbing toward every class"):
            index = torch.randint(len(images), (len(wanted),), generator=rng, device=device)
            x, foreign = images[index], y[index] != wanted
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
            hit = ((logits.argmax(1) == wanted) & foreign).reshape(k, each).sum(1) / foreign.reshape(k, each).sum(1)
            hit = torch.where(hit.isnan(), rates, hit)  # a batch without an image of another class
            rates = 0.9 * rates + 0.1 * hit
            weights = torch.where(rates >= aim, weights * 1.05, weights / 1.05).clamp(1e-2, 1e4)
            if step >= self.steps // 2 and step % self.look == self.look - 1:
                now, sizes = self._measured(given, G, images, y, rng)
                better = (now >= self.enough) & (sizes < best)
                best, reached = (
                    torch.where(better, sizes, best),
                    torch.where(better | (best == torch.inf), now, reached),
                )
        certain = given.outputs(images).gather(1, y.cpu()[:, None]).mean()
        return self._verdict(best, reached, float(certain))

    @torch.no_grad()
    def _measured(self, given: DefenderView, G: Generator, images: Tensor, y: Tensor, rng) -> tuple[Tensor, Tensor]:
        """Success and mean size of each class's perturbations on fresh noise, over inverted images of other classes."""
        rates, sizes = [], []
        for label in range(given.classes):
            x = images[y != label]
            delta = G(torch.randn(len(x), G.z, generator=rng, device=given.device), y.new_full((len(x),), label))
            rates.append(float((given.outputs((x + delta).clamp(0, 1)).argmax(1) == label).float().mean()))
            sizes.append(float(delta.abs().mean()))
        return torch.tensor(rates), torch.tensor(sizes)

    def _verdict(self, sizes: Tensor, rates: Tensor, certain: float) -> Verdict:
        """sizes: infinite of a class that never got there, which is not compared."""
        compared = sizes < torch.inf
        sizes = torch.where(compared, sizes, sizes[compared].max() + 1 if compared.any() else 1.0)
        about = {"sizes": sizes.tolist(), "success": rates.tolist(), "compared": compared.nonzero()[:, 0].tolist()}
        about["certainty of the inverted images"] = certain
        about["double MAD"] = []  # of the classes that are compared
        index = np.zeros(len(sizes))
        if compared.sum() >= 3:
            known = sizes[compared].double().numpy()
            about["double MAD"] = deviation_factor(known).tolist()
            index[compared.numpy()] = (
                anomaly_index(np.log(known.clip(min=1e-6)), "low") if self.logarithm else about["double MAD"]
            )
        return Verdict((-sizes).tolist(), index.tolist(), self.above, "index", about)
