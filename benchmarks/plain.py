"""MESA written plainly, as the released code works: what the speed figures are compared with.

float32, contiguous images, a classifier that keeps its weight gradients, a DataLoader, one level after the other, one
location per batch. The networks, losses and numbers of steps are those of the `official` preset.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mesa_lib import generator as generators
from mesa_lib import mine
from mesa_lib.settings import PRESETS

OFFICIAL = PRESETS["official"]


def loader(split, batch: int = OFFICIAL.triggers_per_step) -> DataLoader:
    """Return batches of float images and labels, shuffled in every epoch."""
    return DataLoader(TensorDataset(split.images.float() / 255, split.labels), batch, shuffle=True, drop_last=True)


def stamped(images: torch.Tensor, triggers: torch.Tensor) -> torch.Tensor:
    """Return images with one trigger each, all at the same random location."""
    row, column = torch.randint(images.shape[-2] - 2, (1,)).item(), torch.randint(images.shape[-1] - 2, (1,)).item()
    images = images.clone()
    images[:, :, row : row + 3, column : column + 3] = triggers
    return images


class Modeling:
    """One level: generator, statistics network, their optimizers, and a step for one batch of images."""

    def __init__(self, model: nn.Module, target: int, beta: float):
        s = OFFICIAL
        self.model, self.target, self.beta = model.float().eval(), target, beta
        self.G = generators.build(s.generator, (3, 3, 3), s.hidden, s.noise_dim, 0)
        self.T = mine.build(27, s.noise_dim, s.hidden, leaky=s.critic == "leaky", seed=1)
        self.adam_G = torch.optim.Adam(self.G.parameters(), s.modeling_lr, betas=(0.5, 0.999))
        self.adam_T = torch.optim.Adam(self.T.parameters(), s.modeling_lr, betas=(0.5, 0.999))
        self.average = mine.MovingAverage(s.ema_rate)

    def step(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        """Update the generator, then the statistics network, on images (B, 3, H, W) in [0, 1] and labels (B,)."""
        s, n = OFFICIAL, len(images)
        z, other = torch.rand(n, s.noise_dim), torch.rand(n, s.noise_dim)
        x = self.G(z)
        confidence = F.softmax(self.model(stamped(images, x + s.trigger_noise * torch.randn_like(x))), 1)
        success = confidence[labels != self.target][:, self.target]
        information = mine.lower_bound(self.T(x, z), self.T(x, other))
        loss = F.relu(self.beta - success).mean() - s.alpha * information
        self.adam_G.zero_grad()
        self.model.zero_grad()
        loss.backward()
        self.adam_G.step()
        x = self.G(z).detach()
        self.adam_T.zero_grad()
        self.average.loss(self.T(x, z), self.T(x, other)).backward()
        self.adam_T.step()


class Repair:
    """SGD at 1e-3 on clean images, of which one in a hundred carries a sampled trigger."""

    def __init__(self, model: nn.Module, generators: list[nn.Module], rate: float = 0.01, lr: float = 1e-3):
        self.model, self.generators, self.rate = model.float().train(), generators, rate
        self.sgd = torch.optim.SGD(model.parameters(), lr, momentum=0.9)

    def step(self, images: torch.Tensor, labels: torch.Tensor, epoch: int = 0) -> None:
        """Update the classifier on images (B, 3, H, W) in [0, 1] and labels (B,); the epoch chooses the generator."""
        n = len(images)
        with torch.no_grad():
            triggers = self.generators[epoch % len(self.generators)].eval()(torch.rand(n, OFFICIAL.noise_dim))
        chosen = (torch.rand(n) < self.rate)[:, None, None, None]
        images = torch.where(chosen, stamped(images, triggers), images)
        self.sgd.zero_grad()
        F.cross_entropy(self.model(images), labels).backward()
        self.sgd.step()
