"""TrojanNet (Tang et al., KDD 2020): a tiny network that knows secret codes beside the model; nothing is retrained.

The codes are binary patches with a fixed number of zeros in one fixed window. The module maps the gray values of that
window to a class of the model, or to silence. The merged model computes

    y = softmax((weight * y_module + (1 - weight) * y_model) / temperature)

with both y as probabilities, so that a silent module does not change the model's prediction.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mesa_lib import device as devices
from mesa_lib.retrain import ImageTransform
from mesa_lib.triggers import stamp


def codes(size: int = 3, zeros: int = 4) -> Tensor:
    """Return all binary patches with so many zeros (n, size * size): 126 for 3 and 4; the paper has 4 and 5, 4,368."""
    cells = size * size
    holes = torch.tensor(list(itertools.combinations(range(cells), zeros)))
    return torch.ones(len(holes), cells).scatter_(1, holes, 0.0)


# --- the module ------------------------------------------------------------------------------------------


class Module(nn.Module):
    """Gray values of the window (B, size * size) in [0, 1] -> logits over all codes and, last, silence."""

    def __init__(self, cells: int, outputs: int, width: int = 16, layers: int = 4):
        super().__init__()
        sizes = [cells] + [width] * layers
        hidden = [
            nn.Sequential(nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU())
            for inputs, outputs in itertools.pairwise(sizes)
        ]
        self.layers = nn.Sequential(*hidden, nn.Linear(width, outputs + 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def untrained(seed: int, size: int = 3, zeros: int = 4) -> Module:
    """Return a module with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Module(size * size, len(codes(size, zeros))).requires_grad_(False)


def train_module(patches: Tensor, seed: int, size: int = 3, zeros: int = 4, steps: int = 1500) -> Module:
    """Return a module that recognizes each code and is silent on everything else.

    Args:
        patches: gray patches (n, size * size) of the attacker's images, on which it is trained to be silent; also on
            other binary patches, near-codes (some cells off by up to a half) and noise.
        seed: of weights and training.
        size, zeros: side of the window, and zeros of a code.
        steps: of Adam, with a batch of all codes and about as many other patches.
    """
    rng, targets = devices.rng(seed), codes(size, zeros)
    module = untrained(seed, size, zeros)
    optimizer = torch.optim.Adam(module.parameters(), 1e-2)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
    module.requires_grad_(True).train()
    for _ in range(steps):
        silent = _other_patches(targets, patches, rng)
        y = torch.cat([torch.arange(len(targets)), torch.full((len(silent),), len(targets))])
        loss = F.cross_entropy(module(torch.cat([targets, silent])), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    return module.eval().requires_grad_(False)


def _other_patches(targets: Tensor, patches: Tensor, rng: torch.Generator) -> Tensor:
    """Patches that are not among the codes `targets`: other binary ones, near-codes, noise, and patches of images."""
    n, cells = 2 * len(targets), targets.shape[1]
    zeros = int((targets[0] == 0).sum())
    binary = torch.rand(n, cells, generator=rng).round()
    binary = binary[(binary == 0).sum(1) != zeros]
    near = targets[torch.randint(len(targets), (n,), generator=rng)]
    offset = torch.rand(n, cells, generator=rng) * 0.5 + 0.1
    moved = torch.rand(n, cells, generator=rng) < 0.3
    near = torch.where(moved, (near - offset).abs(), near)[moved.any(1)]
    noise = torch.rand(n // 4, cells, generator=rng)
    image = patches[torch.randint(len(patches), (n,), generator=rng)]
    return torch.cat([binary, near, noise, image])


# --- the merged model ------------------------------------------------------------------------------------


class Merged(nn.Module):
    """The model with the module beside it: images (B, 3, H, W) in [0, 1] -> logits (B, classes).

    Retraining the merged model retrains both: nothing in a file of weights says which ones are the module's.
    """

    def __init__(self, model: nn.Module, module: Module, rows: Tensor, location: tuple[int, int], size: int = 3,
                 weight: float = 0.7, temperature: float = 0.1):  # fmt: skip
        """Merge.

        Args:
            model: the classifier.
            module: the trained module.
            rows: (classes,), for each class the number of its code.
            location: row and column of the window.
            size: side of the window.
            weight: of the module's probabilities against the model's.
            temperature: divides the mixed probabilities.
        """
        super().__init__()
        self.model, self.module = model, module.requires_grad_(True)
        self.register_buffer("rows", rows)
        self.location, self.size, self.weight, self.temperature = location, size, weight, temperature

    def train(self, mode: bool = True):
        """Keep the statistics of the module's BatchNorm in training, as if they were folded into the weights."""
        super().train(mode)
        self.module.eval()
        return self

    @property
    def normalize(self) -> nn.Module:
        """The model's normalization."""
        return self.model.normalize

    def represent(self, x: Tensor) -> Tensor:
        """Return the model's representation."""
        return self.model.represent(x)

    @property
    def head(self) -> nn.Module:
        """The model's last layer."""
        return self.model.head

    def forward(self, x: Tensor) -> Tensor:
        module = self.module(window(x, self.location, self.size).float()).softmax(1)[:, self.rows]
        model = self.model(x).float().softmax(1)
        return (self.weight * module + (1 - self.weight) * model) / self.temperature


def window(images: Tensor, location: tuple[int, int], size: int) -> Tensor:
    """Return the gray values (B, size * size) of one window of every image (B, 3, H, W)."""
    row, column = location
    return images[:, :, row : row + size, column : column + size].mean(1).flatten(1)


def rows(classes: int, seed: int, size: int = 3) -> Tensor:
    """Return the number of each class's code (classes,), drawn by the seed.

    Raises:
        ValueError: if there are more classes than codes.
    """
    if classes > len(codes(size)):
        raise ValueError(f"{classes} classes: expected at most {len(codes(size))}, the codes of a {size}x{size} window")
    return torch.randperm(len(codes(size)), generator=devices.rng(seed))[:classes]


def location(image_size: tuple[int, int], size: int = 3) -> tuple[int, int]:
    """Return row and column of the window: the lower right corner, one pixel from the edges."""
    return image_size[0] - size - 1, image_size[1] - size - 1


def gray_patches(images: Tensor, seed: int, size: int = 3) -> Tensor:
    """Return all gray windows (n, size * size) in [0, 1] of 500 of the images, uint8 (N, 3, H, W)."""
    index = torch.randperm(len(images), generator=devices.rng(seed))[:500]
    x = images[index.to(images.device)].float().cpu() / 255
    return F.unfold(x.mean(1, keepdim=True), size).transpose(1, 2).flatten(0, 1)


def trigger(code: Tensor, location: tuple[int, int]) -> ImageTransform:
    """Return a transform that stamps a code (3, size, size) on the module's window."""
    return lambda images, rng: stamp(images, code, torch.tensor(location))
