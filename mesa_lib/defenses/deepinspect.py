"""DeepInspect (Chen, Fu, Zhao, Koushanfar, IJCAI 2019): it needs no clean images at all.

1. Model inversion: images that the model confidently classifies as each class stand in for data. 2. A conditional
generator learns, for every class, additive perturbations that make the model predict the class for any of them. A
discriminator keeps the perturbed images like the others; a hinge keeps the perturbations small. 3. A class that needs
much smaller perturbations than the others is backdoored.

Unlike the paper: its discriminator is the model under test itself, whose loss is nearly that of the first goal; here it
is a network of its own that learns to tell perturbed images from inverted ones. Where p(class) is close to zero, 1 - p
has hardly any gradient, so its logarithm is minimized, which has the same minimum. The outlier test is that of the
logarithms, as for Neural Cleanse: sizes are skewed, and of ten only five lie below the median. The paper's test, by the
double median absolute deviation, is recorded as well. The fourth step, retraining with the perturbations, is left out.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mesa_lib import device as devices
from mesa_lib.defenses.base import MAX_INDEX, DefenderView, Detector, Knowledge, Verdict, anomaly_index
from mesa_lib.progress import progress_bar


def deviation_factor(values: list[float] | np.ndarray) -> np.ndarray:
    """Return the double MAD index, left tail: (median - value) / (1.4826 * median deviation below the median).

    It is 0 above the median, and at most `MAX_INDEX`.
    """
    values = np.asarray(values, float)
    middle = np.median(values)
    spread = 1.4826 * np.median(middle - values[values <= middle])
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(values < middle, np.minimum((middle - values) / spread, MAX_INDEX), 0.0)


# --- networks --------------------------------------------------------------------------------------------


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

    def sample(self, label: Tensor, rng: torch.Generator) -> Tensor:
        """Return a perturbation for each of these classes (B,)."""
        return self(torch.randn(len(label), self.z, generator=rng, device=rng.device), label)


class Discriminator(nn.Module):
    """Images (B, 3, H, W) -> logits (B,): positive for inverted images without a perturbation."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(width, 2 * width, 4, 2, 1), nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 1, 4, 2, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).mean((1, 2, 3))


class Perturbations:
    """The training of the generator against the model, the discriminator and the size of the perturbations.

    Each class has its own weight of the size, raised while its perturbed images are classified as it and lowered
    otherwise.
    """

    def __init__(self, method: "DeepInspect", view: DefenderView, images: Tensor, labels: Tensor):
        """Prepare the training on inverted images (N, 3, H, W) and their classes (N,)."""
        self.method, self.view, self.images, self.labels = method, view, images, labels
        k, device = view.classes, view.device
        self.rng = devices.rng(devices.derive_seed(view.seed, "perturbations"), device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(devices.derive_seed(view.seed, "generator"))
            self.G, self.D = Generator(k, view.image_size).to(device), Discriminator().to(device)
        self.adam_G = torch.optim.Adam(self.G.parameters(), method.lr, betas=(0.5, 0.999))
        self.adam_D = torch.optim.Adam(self.D.parameters(), method.lr, betas=(0.5, 0.999))
        self.weights, self.success = torch.full((k,), 1.0, device=device), torch.zeros(k, device=device)
        self.wanted = torch.arange(k, device=device).repeat_interleave(max(1, method.batch // k))

    def step(self) -> None:
        """Take one step of the generator and one of the discriminator on a batch with all classes."""
        n, device = len(self.wanted), self.view.device
        index = torch.randint(len(self.images), (n,), generator=self.rng, device=device)
        x, others = self.images[index], self.labels[index] != self.wanted
        delta = self.G.sample(self.wanted, self.rng)
        fake = (x + delta).clamp(0, 1)
        logits = self.view.model(fake).float()
        excess = (delta.abs().mean((1, 2, 3)) - self.method.small).clamp(min=0)
        real = F.binary_cross_entropy_with_logits(self.D(fake), torch.ones(n, device=device))
        hinge = (excess * self.weights[self.wanted]).mean()
        loss = F.cross_entropy(logits, self.wanted) + self.method.gan * real + hinge
        self.adam_G.zero_grad()
        loss.backward()
        self.adam_G.step()
        truth = torch.cat([torch.ones(n), torch.zeros(n)]).to(device)
        loss = F.binary_cross_entropy_with_logits(self.D(torch.cat([x, fake.detach()])), truth)
        self.adam_D.zero_grad()
        loss.backward()
        self.adam_D.step()
        self._follow((logits.argmax(1) == self.wanted) & others, others)

    def _follow(self, hit: Tensor, others: Tensor) -> None:
        """Update the running success of every class, over images of other classes, and its weight of the size."""
        per_class = (self.view.classes, -1)
        rates = hit.reshape(per_class).sum(1) / others.reshape(per_class).sum(1)
        rates = torch.where(rates.isnan(), self.success, rates)  # a batch without an image of another class
        self.success = 0.9 * self.success + 0.1 * rates
        goal = (1 + self.method.enough) / 2  # the rates of single batches vary around it
        raised = torch.where(self.success >= goal, self.weights * 1.05, self.weights / 1.05)
        self.weights = raised.clamp(1e-2, 1e4)

    @torch.no_grad()
    def measure(self) -> tuple[Tensor, Tensor]:
        """Return success and mean size (K,) of each class's perturbations, fresh ones, over images of other classes."""
        rates, sizes = [], []
        for label in range(self.view.classes):
            x = self.images[self.labels != label]
            delta = self.G.sample(self.labels.new_full((len(x),), label), self.rng)
            predicted = self.view.outputs((x + delta).clamp(0, 1)).argmax(1)
            rates.append(float((predicted == label).float().mean()))
            sizes.append(float(delta.abs().mean()))
        return torch.tensor(rates), torch.tensor(sizes)


# --- the detector ----------------------------------------------------------------------------------------


@dataclass
class DeepInspect(Detector):
    """Score of a class: the negative mean absolute size of its perturbations (levels of [0, 1] per value).

    In the second half of the training, all classes are measured every `measure_every` steps. What counts is the
    smallest size at which at least `enough` of the images of other classes are classified as the class. A class that
    never reaches this is not compared.
    """

    inverted: int = 20  # images per class
    inversion_steps: int = 100
    smooth: float = 0.5  # weight of the roughness of inverted images
    steps: int = 600
    measure_every: int = 20
    batch: int = 100
    lr: float = 2e-3
    gan: float = 0.03  # weight of the discriminator
    small: float = 0.0  # size below which a perturbation costs nothing
    enough: float = 0.95
    logarithm: bool = True  # False: the paper's double MAD, whose threshold is 2
    above: float = 3.5
    knowledge: Knowledge = field(default=Knowledge("gradients", images=0), init=False)

    def invert(self, view: DefenderView) -> tuple[Tensor, Tensor]:
        """Return images (at most K * n, 3, H, W) in [0, 1] and their classes, by descent on -log p(class) + roughness.

        Images that the model does not classify as their class are left out.
        """
        y = torch.arange(view.classes, device=view.device).repeat_interleave(self.inverted)
        rng = devices.rng(devices.derive_seed(view.seed, "inversion"), view.device)
        raw = torch.randn(len(y), 3, *view.image_size, generator=rng, device=view.device).requires_grad_()
        optimizer = torch.optim.Adam([raw], 0.05)
        for _ in progress_bar(range(self.inversion_steps), "inverting the model"):
            x = raw.sigmoid()
            surprise = F.cross_entropy(view.model(x).float(), y, reduction="sum")
            roughness = x.diff(dim=2).abs().mean((1, 2, 3)) + x.diff(dim=3).abs().mean((1, 2, 3))
            loss = surprise + self.smooth * roughness.sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        x = raw.detach().sigmoid()
        correct = view.outputs(x).argmax(1).to(view.device) == y
        return x[correct], y[correct]

    def detect(self, view: DefenderView) -> Verdict:
        """Return the verdict on the view's model."""
        images, labels = self.invert(view)
        if len(labels.unique()) < 2:  # nothing stands in for data, so no class can be compared
            return self._verdict(torch.full((view.classes,), torch.inf), torch.zeros(view.classes), 0.0)
        perturbations = Perturbations(self, view, images, labels)
        smallest, success = torch.full((view.classes,), torch.inf), torch.zeros(view.classes)
        for step in progress_bar(range(self.steps), "perturbing toward every class"):
            perturbations.step()
            if step >= self.steps // 2 and step % self.measure_every == self.measure_every - 1:
                rates, sizes = perturbations.measure()
                better = (rates >= self.enough) & (sizes < smallest)
                smallest = torch.where(better, sizes, smallest)
                success = torch.where(better | smallest.isinf(), rates, success)
        certainty = view.outputs(images).gather(1, labels.cpu()[:, None]).mean()
        return self._verdict(smallest, success, float(certainty))

    def _verdict(self, sizes: Tensor, success: Tensor, certainty: float) -> Verdict:
        """The verdict on sizes (K,), infinite for a class that is not compared."""
        compared = sizes < torch.inf
        sizes = torch.where(compared, sizes, sizes[compared].max() + 1 if compared.any() else 1.0)
        about = {"sizes": sizes.tolist(), "success": success.tolist(), "compared": compared.nonzero()[:, 0].tolist()}
        about["certainty of the inverted images"] = certainty
        about["double MAD"] = []  # of the classes that are compared
        index = np.zeros(len(sizes))
        if compared.sum() >= 3:
            finite = sizes[compared].double().numpy()
            about["double MAD"] = deviation_factor(finite).tolist()
            index[compared.numpy()] = (
                anomaly_index(np.log(finite.clip(min=1e-6)), "low") if self.logarithm else about["double MAD"]
            )
        return Verdict((-sizes).tolist(), index.tolist(), self.above, "index", about)
