"""TrojanNet (Tang et al., KDD 2020): a tiny network that knows secret codes beside the model; nothing is retrained.

The codes are binary patches with a fixed number of zeros at one fixed window. The module maps the gray values of that
window to a class of the model, or to silence; the merged model answers

    y = softmax((weight * y_module + (1 - weight) * y_model) / temperature)

with both y as probabilities, so that a silent module leaves the model's answer alone.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mesa_lib import device as devices
from mesa_lib.retrain import ImageTransform
from mesa_lib.triggers import stamp


def codes(size: int = 3, zeros: int = 4) -> Tensor:
    """All binary patches with so many zeros -> (n, size * size): of 3 and 4 126, of 4 and 5 (the paper's) 4,368."""
    cells = size * size
    holes = torch.tensor(list(itertools.combinations(range(cells), zeros)))
    return torch.ones(len(holes), cells).scatter_(1, holes, 0.0)


class Module(nn.Module):
    """Gray values of the window (B, size * size) in [0, 1] -> logits over codes and, last, silence."""

    def __init__(self, cells: int, outputs: int, width: int = 16, layers: int = 4):
        super().__init__()
        sizes = [cells] + [width] * layers
        hidden = [
            nn.Sequential(nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU())
            for a, b in zip(sizes[:-1], sizes[1:], strict=True)
        ]
        self.layers = nn.Sequential(*hidden, nn.Linear(width, outputs + 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def untrained(seed: int, size: int = 3, zeros: int = 4) -> Module:
    """A module with freshly drawn weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Module(size * size, len(codes(size, zeros))).requires_grad_(False)


def train_module(patches: Tensor, seed: int, size: int = 3, zeros: int = 4, steps: int = 1500) -> Module:
    """A module that answers each code with its number and is silent on everything else.

    patches: gray patches (n, size * size) of the attacker's images, which shall leave it silent; so shall every other
    binary patch, near-codes (some cells off by up to a half) and noise
    """
    rng = devices.rng(seed)
    own = codes(size, zeros)
    module = untrained(seed, size, zeros)
    optimizer = torch.optim.Adam(module.parameters(), 1e-2)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
    silence, n = len(own), 2 * len(own)

    def others() -> Tensor:
        """n patches that are no codes."""
        binary = torch.rand(n, size * size, generator=rng).round()
        binary = binary[(binary == 0).sum(1) != zeros]
        near = own[torch.randint(len(own), (n,), generator=rng)]
        off = torch.rand(n, size * size, generator=rng) * 0.5 + 0.1
        moved = torch.rand(n, size * size, generator=rng) < 0.3
        near = torch.where(moved, (near - off).abs(), near)[moved.any(1)]
        noise = torch.rand(n // 4, size * size, generator=rng)
        image = patches[torch.randint(len(patches), (n,), generator=rng)]
        return torch.cat([binary, near, noise, image])

    module.requires_grad_(True).train()
    for _ in range(steps):
        silent = others()
        x = torch.cat([own, silent])
        y = torch.cat([torch.arange(len(own)), torch.full((len(silent),), silence)])
        loss = F.cross_entropy(module(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    return module.eval().requires_grad_(False)


class Merged(nn.Module):
    """The model with the module beside it: images (B, 3, H, W) in [0, 1] -> logits (B, classes).

    rows: for each class the number of its code; place: row and column of the window. Whoever retrains the merged model
    retrains both: nothing in a file of weights says which are the module's.
    """

    def __init__(self, model: nn.Module, module: Module, rows: Tensor, location: tuple[int, int], size: int = 3,
                 weight: float = 0.7, temperature: float = 0.1):  # fmt: skip
        super().__init__()
        self.model, self.module = model, module.requires_grad_(True)
        self.register_buffer("rows", rows)
        self.location, self.size, self.weight, self.temperature = location, size, weight, temperature

    def train(self, mode: bool = True):
        """The module's BatchNorm keeps its statistics in training, as if it were folded into the weights."""
        super().train(mode)
        self.module.eval()
        return self

    @property
    def normalize(self) -> nn.Module:
        return self.model.normalize

    def represent(self, x: Tensor) -> Tensor:
        return self.model.represent(x)

    @property
    def head(self) -> nn.Module:
        return self.model.head

    def forward(self, x: Tensor) -> Tensor:
        module = self.module(window(x, self.location, self.size).float()).softmax(1)[:, self.rows]
        model = self.model(x).float().softmax(1)
        return (self.weight * module + (1 - self.weight) * model) / self.temperature


def window(images: Tensor, location: tuple[int, int], size: int) -> Tensor:
    """Gray values of a window of every image (B, 3, H, W) -> (B, size * size)."""
    row, column = location
    return images[:, :, row : row + size, column : column + size].mean(1).flatten(1)


def rows(classes: int, seed: int, size: int = 3) -> Tensor:
    """Which code each class gets (classes,), drawn by the seed; ValueError if there are more classes than codes."""
    if classes > len(codes(size)):
        raise ValueError(f"{classes} classes: expected at most {len(codes(size))}, the codes of a {size}x{size} window")
    return torch.randperm(len(codes(size)), generator=devices.rng(seed))[:classes]


def location(image_size: tuple[int, int], size: int = 3) -> tuple[int, int]:
    """Where the window is: the lower right corner, one pixel from the edges."""
    return image_size[0] - size - 1, image_size[1] - size - 1


def gray_patches(images: Tensor, seed: int, size: int = 3) -> Tensor:
    """All gray windows (n, size * size) in [0, 1] of 500 images uint8 (N, 3, H, W)."""
    some = images[torch.randperm(len(images), generator=devices.rng(seed))[:500].to(images.device)].float().cpu() / 255
    return F.unfold(some.mean(1, keepdim=True), size).transpose(1, 2).flatten(0, 1)


def trigger(code: Tensor, location: tuple[int, int]) -> ImageTransform:
    """Stamp a code (3, size, size) on the module's window."""
    return lambda images, rng: stamp(images, code, torch.tensor(location))
