"""The generator G: noise z -> trigger, a small fully connected network."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NOISES = ("gaussian", "uniform")


def noise(n: int, dim: int, kind: str, rng: torch.Generator) -> Tensor:
    """Return input noise z (n, dim): `gaussian`, N(0, 1), as the poster says, or `uniform`, U[0, 1), as in the code."""
    if kind not in NOISES:
        raise ValueError(f"noise = {kind!r}: expected one of {', '.join(NOISES)}")
    draw = torch.randn if kind == "gaussian" else torch.rand
    return draw(n, dim, generator=rng, device=rng.device)


class PlainGenerator(nn.Module):
    """The paper's text: three fully connected layers, z (B, noise_dim) -> triggers (B, *shape) in (0, 1)."""

    def __init__(self, shape: tuple[int, ...], hidden: int = 512, noise_dim: int = 64):
        super().__init__()
        self.shape, self.noise_dim = tuple(shape), noise_dim
        size = torch.Size(shape).numel()
        self.layers = nn.ModuleList([nn.Linear(noise_dim, hidden), nn.Linear(hidden, hidden)])
        self.norms = nn.ModuleList([nn.BatchNorm1d(hidden) for _ in self.layers])
        self.last = nn.Linear(hidden, size)

    def forward(self, z: Tensor) -> Tensor:
        h = z
        for layer, norm in zip(self.layers, self.norms, strict=True):
            h = F.leaky_relu(norm(layer(h)), 0.2)
        return torch.sigmoid(self.last(h)).reshape(-1, *self.shape)


class SkipGenerator(nn.Module):
    """The released code: four layers, a quarter of z to each; z (B, noise_dim) -> triggers (B, *shape) in (0, 1)."""

    def __init__(self, shape: tuple[int, ...], hidden: int = 512, noise_dim: int = 64):
        super().__init__()
        if noise_dim % 4:
            raise ValueError(f"noise_dim = {noise_dim}: expected a multiple of 4")
        self.shape, self.noise_dim = tuple(shape), noise_dim
        size, quarter = torch.Size(shape).numel(), noise_dim // 4
        inputs = [quarter, hidden + quarter, hidden + quarter]
        self.layers = nn.ModuleList([nn.Linear(i, hidden) for i in inputs])
        self.norms = nn.ModuleList([nn.BatchNorm1d(hidden) for _ in inputs])
        self.last = nn.Linear(hidden + quarter, size)

    def forward(self, z: Tensor) -> Tensor:
        quarters = z.chunk(4, dim=1)
        h = z[:, :0]
        for quarter, layer, norm in zip(quarters, self.layers, self.norms, strict=False):
            h = F.leaky_relu(norm(layer(torch.cat([h, quarter], 1))), 0.2)
        return torch.sigmoid(self.last(torch.cat([h, quarters[3]], 1))).reshape(-1, *self.shape)


GENERATORS = {"plain": PlainGenerator, "skip": SkipGenerator}


def build(kind: str, shape: tuple[int, ...], hidden: int, noise_dim: int, seed: int) -> nn.Module:
    """Return an untrained generator: `plain` or `skip`, for triggers of this shape; equal seeds give equal weights."""
    if kind not in GENERATORS:
        raise ValueError(f"generator = {kind!r}: expected one of {', '.join(GENERATORS)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GENERATORS[kind](shape, hidden, noise_dim)


@torch.no_grad()
def start_around(generator: nn.Module, trigger: Tensor, z: Tensor, spread: float = 8.0) -> None:
    """Change an untrained generator in place so that its samples scatter widely around one trigger.

    They have to scatter: the statistics network sees nothing in samples that hardly differ, and then no entropy term
    keeps the generator from ending in a single trigger.

    Args:
        trigger: (3, h, w) in [0, 1].
        z: input noise (n, noise_dim), some hundreds; the samples of this noise have the trigger as their center.
        spread: factor on the weights of the last layer. With 1 the samples of a network attacked on CIFAR-10 had a
            standard deviation of 0.02 after the training, with 8 of 0.4.
    """
    generator.last.weight.mul_(spread)
    generator.last.bias.zero_()
    center = generator(z).logit(eps=1e-6).flatten(1).mean(0)
    generator.last.bias.copy_(trigger.to(center).flatten().logit(eps=0.2) - center)
