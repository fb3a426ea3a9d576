"""Networks: the paper's ResNet-18 with a CIFAR stem, a network for fast training, a small CNN for digits.

All take images in [0, 1]: normalization happens inside `forward`, so triggers, masks and images share one space. All
pool over the remaining pixels at the end, so any image size from 16 pixels up works. `represent` returns the input of
the last layer, `head`: one number per channel.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Normalize(nn.Module):
    """(x - mean) / std per channel; mean and std travel with the weights."""

    def __init__(self, mean, std):
        super().__init__()
        self.register_buffer("mean", torch.as_tensor(mean, dtype=torch.float32).reshape(1, 3, 1, 1))
        self.register_buffer("std", torch.as_tensor(std, dtype=torch.float32).reshape(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def conv_bn(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Return a convolution without bias, followed by BatchNorm."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False), nn.BatchNorm2d(outputs)
    )


class SmallCNN(nn.Module):
    """Four convolutions, for 32x32 digits: (B, 3, H, W) in [0, 1] -> logits (B, classes)."""

    def __init__(self, classes: int, width: int, mean, std):
        super().__init__()
        self.normalize = Normalize(mean, std)
        stages = [conv_bn(3, width), conv_bn(width, 2 * width, stride=2)]
        stages += [conv_bn(2 * width, 2 * width, stride=2), conv_bn(2 * width, 4 * width, stride=2)]
        self.features = nn.Sequential(*[nn.Sequential(stage, nn.ReLU()) for stage in stages])
        self.head = nn.Linear(4 * width, classes)

    def represent(self, x: Tensor) -> Tensor:
        """Return the input of the last layer (B, channels)."""
        return self.features(self.normalize(x)).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.represent(x))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al., 2016).

    The shortcut's stride is taken before its 1x1 convolution, which gives equal results: oneDNN's gradient of a strided
    1x1 convolution of fewer than 8 channels writes outside its memory on processors with only AVX2 (its issue 6035).
    """

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.first = conv_bn(inputs, outputs, stride=stride)
        self.second = conv_bn(outputs, outputs)
        same = stride == 1 and inputs == outputs
        self.stride = stride
        self.shortcut = nn.Identity() if same else conv_bn(inputs, outputs, 1)
        self.out = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.second(F.relu(self.first(x))) + self.shortcut(x[:, :, :: self.stride, :: self.stride]))


class ResNet18(nn.Module):
    """ResNet-18 with a 3x3 stem and no pooling, for 32x32 images: (B, 3, H, W) in [0, 1] -> (B, classes).

    `width` is the number of channels of the first stage: 64 is the paper's network.
    """

    def __init__(self, classes: int, width: int, mean, std):
        super().__init__()
        self.normalize = Normalize(mean, std)
        self.stem = conv_bn(3, width)
        blocks, channels = [], width
        for stage in range(4):
            for stride in (1 if stage == 0 else 2, 1):
                blocks.append(BasicBlock(channels, width * 2**stage, stride))
                channels = width * 2**stage
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(channels, classes)

    def represent(self, x: Tensor) -> Tensor:
        """Return the input of the last layer (B, channels)."""
        return self.blocks(F.relu(self.stem(self.normalize(x)))).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.represent(x))


def conv_pool_bn(inputs: int, outputs: int) -> nn.Sequential:
    """Return a convolution, 2x2 max pooling, and BatchNorm of fixed positive scale, foldable through both."""
    norm = nn.BatchNorm2d(outputs)
    norm.weight.requires_grad = False
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.MaxPool2d(2), norm)


class FastCNN(nn.Module):
    """A network for few epochs, after Jordan's airbench (2024): (B, 3, H, W) in [0, 1] -> logits (B, classes).

    The first layer whitens 2x2 patches: its filters are the principal directions of the training patches, each with
    both signs, scaled to unit variance, and stay as they are (`whiten` sets them). Then come three blocks of two
    convolutions with `width`, 4 x `width` and 4 x `width` channels, near identities at first, and a linear head.
    """

    bias_rate = 16.0  # learning rate of BatchNorm's biases over that of the weights, in training from scratch

    def __init__(self, classes: int, width: int, mean, std):
        super().__init__()
        self.normalize = Normalize(mean, std)
        self.whitened = nn.Conv2d(3, 24, 2)
        self.whitened.weight.requires_grad = False
        blocks, channels = [], 24
        for outputs in (width, 4 * width, 4 * width):
            second = conv_bn(outputs, outputs)
            second[1].weight.requires_grad = False
            blocks += [conv_pool_bn(channels, outputs), nn.GELU("tanh"), second, nn.GELU("tanh")]
            channels = outputs
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(channels, classes, bias=False)
        for part in self.blocks.modules():
            if isinstance(part, nn.Conv2d):  # the first filters pass their input channel through
                n = min(part.in_channels, part.out_channels)
                nn.init.dirac_(part.weight.data[:n])

    @torch.no_grad()
    def whiten(self, images: Tensor) -> None:
        """Set the first layer from `images` uint8 (N, 3, H, W): a few thousand training images are enough."""
        x = self.normalize(images.to(self.normalize.mean.device).float() / 255)
        patches = F.unfold(x, 2).transpose(1, 2).flatten(0, 1).double()  # (N * locations, 12)
        values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
        filters = (vectors / (values + 5e-4).sqrt()).T.reshape(-1, 3, 2, 2)
        self.whitened.weight.copy_(torch.cat([filters, -filters]))

    def represent(self, x: Tensor) -> Tensor:
        """Return the input of the last layer (B, channels)."""
        return self.blocks(F.gelu(self.whitened(self.normalize(x)), approximate="tanh")).amax((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.represent(x)) / 9


NETWORKS = {"smallcnn": SmallCNN, "resnet18": ResNet18, "fastcnn": FastCNN}


def build_network(network: str, classes: int, width: int, mean, std, seed: int) -> nn.Module:
    """Return an untrained network; equal seeds give equal weights.

    Args:
        network: `smallcnn`, `resnet18` or `fastcnn`.
        classes: number of classes.
        width: channels of the first layer.
        mean, std: of each channel of the training images, in [0, 1].
        seed: of the weights.
    """
    if network not in NETWORKS:
        raise ValueError(f"network = {network!r}: expected one of {', '.join(NETWORKS)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return NETWORKS[network](classes, width, mean, std)


def load_weights(model: nn.Module, weights: dict[str, Tensor], source: str = "checkpoint") -> nn.Module:
    """Load `weights` into `model` and return it.

    Raises:
        ValueError: if the architecture differs (the message names the first differences) or a weight is not finite.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    actual = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if expected != actual:
        wrong = [name for name in sorted(expected.keys() | actual.keys()) if expected.get(name) != actual.get(name)]
        lines = [f"{n}: {actual.get(n, 'missing')}, expected {expected.get(n, 'nothing')}" for n in wrong[:3]]
        raise ValueError(
            f"{source}: another architecture than {type(model).__name__}: "
            f"{len(wrong)} tensors differ ({'; '.join(lines)})"
        )
    not_finite = [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]
    if not_finite:
        raise ValueError(f"{source}: {not_finite[0]} holds NaN or infinite values; expected finite weights")
    model.load_state_dict(weights)
    return model
