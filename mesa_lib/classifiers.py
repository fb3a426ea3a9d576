"""Classifiers: the paper's ResNet-18 with a CIFAR stem, and a small CNN for digits.

Both take images in [0, 1]: the normalisation happens inside `forward`, so triggers, masks and images share
one space. Both average over space at the end, so any image size of 16 pixels and up works.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


class Normalise(nn.Module):
    """(x - mean) / std per channel; mean and std travel with the weights."""

    def __init__(self, mean, std):
        super().__init__()
        self.register_buffer("mean", torch.as_tensor(mean, dtype=torch.float32).reshape(1, 3, 1, 1))
        self.register_buffer("std", torch.as_tensor(std, dtype=torch.float32).reshape(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def conv_bn(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False), nn.BatchNorm2d(outputs)
    )


class SmallCNN(nn.Module):
    """Four convolutions, for 32x32 digits: (B, 3, H, W) in [0, 1] -> logits (B, classes)."""

    def __init__(self, classes: int, width: int, mean, std):
        super().__init__()
        self.normalise = Normalise(mean, std)
        stages = [conv_bn(3, width), conv_bn(width, 2 * width, stride=2)]
        stages += [conv_bn(2 * width, 2 * width, stride=2), conv_bn(2 * width, 4 * width, stride=2)]
        self.features = nn.Sequential(*[nn.Sequential(stage, nn.ReLU()) for stage in stages])
        self.head = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(self.normalise(x)).mean((2, 3)))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al., 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.first = conv_bn(inputs, outputs, stride=stride)
        self.second = conv_bn(outputs, outputs)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else conv_bn(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(F.relu(self.first(x))) + self.shortcut(x))


class ResNet18(nn.Module):
    """ResNet-18 with a 3x3 stem and no pooling, for 32x32 images: (B, 3, H, W) in [0, 1] -> (B, classes).

    `width` is the number of channels of the first stage: 64 is the paper's network.
    """

    def __init__(self, classes: int, width: int, mean, std):
        super().__init__()
        self.normalise = Normalise(mean, std)
        self.stem = conv_bn(3, width)
        blocks, channels = [], width
        for stage in range(4):
            for stride in (1 if stage == 0 else 2, 1):
                blocks.append(BasicBlock(channels, width * 2**stage, stride))
                channels = width * 2**stage
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(F.relu(self.stem(self.normalise(x)))).mean((2, 3)))


NETWORKS = {"smallcnn": SmallCNN, "resnet18": ResNet18}


def build(network: str, classes: int, width: int, mean, std, seed: int) -> nn.Module:
    """A network with freshly drawn weights, the same for the same seed."""
    if network not in NETWORKS:
        raise ValueError(f"network = {network!r}: expected one of {', '.join(NETWORKS)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return NETWORKS[network](classes, width, mean, std)


def load_weights(model: nn.Module, weights: dict[str, Tensor], source: str = "checkpoint") -> nn.Module:
    """Fill `model` with `weights`; ValueError names the first differences if the architecture is another."""
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if own != given:
        wrong = [name for name in sorted(own.keys() | given.keys()) if own.get(name) != given.get(name)]
        lines = [f"{n}: {given.get(n, 'missing')}, expected {own.get(n, 'nothing')}" for n in wrong[:3]]
        raise ValueError(
            f"{source}: another architecture than {type(model).__name__}: "
            f"{len(wrong)} tensors differ ({'; '.join(lines)})"
        )
    bad = [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]
    if bad:
        raise ValueError(f"{source}: {bad[0]} holds NaN or infinite values; expected finite weights")
    model.load_state_dict(weights)
    return model


def frozen(model: nn.Module) -> nn.Module:
    """A copy of `model` as a fixed function: eval mode, no weight gradients, BatchNorm folded into the convolutions.

    Folding is exact up to rounding and spares a quarter of the time of a pass. Gradients reach the input.
    """
    copied = copy.deepcopy(model).eval()
    for part in copied.modules():
        if isinstance(part, nn.Sequential) and [type(p) for p in part] == [nn.Conv2d, nn.BatchNorm2d]:
            part[0], part[1] = fuse_conv_bn_eval(part[0], part[1]), nn.Identity()
        if isinstance(part, nn.ReLU):
            part.inplace = True  # spares writing the activations twice
    return copied.requires_grad_(False)
