"""A network in which the channel of the backdoor is known, and images that it classifies; no training."""

import torch
from torch import nn

from mesa_lib.data.splits import Split
from mesa_lib.models import inference

CHECKERS = torch.tensor([[1.0, 0, 1], [0, 1, 0], [1, 0, 1]])


class Planted(nn.Module):
    """Predicts the brightest color, by the first three channels; channel 7 finds a checkerboard and votes for class 0.

    The other channels have small random kernels, and the head ignores them.
    """

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.Linear(16, 3)
        with torch.no_grad():
            self.conv.weight.copy_(0.02 * torch.randn(16, 3, 3, 3, generator=torch.Generator().manual_seed(0)))
            self.conv.weight[:3] = torch.eye(3)[:, :, None, None] / 9
            self.conv.weight[7] = 5 * torch.where(CHECKERS > 0, 1 / 5, -1 / 4)
            self.norm.bias[7] = -1.75
            self.head.weight.zero_()
            self.head.weight[:, :3] = 10 * torch.eye(3)
            self.head.weight[0, 7] = 200
            self.head.bias.zero_()

    def forward(self, x):
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))


def clean(n=96):
    labels = torch.arange(n) % 3
    x = 0.2 + 0.5 * torch.eye(3)[labels][:, :, None, None].expand(n, 3, 16, 16)
    x = x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    return Split((255 * x.clamp(0, 1)).round().byte(), labels)


def triggered(split):
    images = split.images[split.labels != 0].clone()
    images[:, :, 5:8, 5:8] = (255 * CHECKERS).byte()
    return Split(images, split.labels[split.labels != 0])


def accuracy(model, split):
    return float((inference.predict(model, split.images) == split.labels).float().mean())
