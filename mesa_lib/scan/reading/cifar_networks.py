"""The networks of most public checkpoints for 32x32 images, under the names that their tensors have there.

ResNet (He et al., CVPR 2016), pre-activation ResNet (He et al., ECCV 2016) and VGG (Simonyan and Zisserman, ICLR 2015)
with a 3x3 stem and without pooling at first. BackdoorBench, WaNet and many others save them with these names.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

#: blocks of each stage
RESNETS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}
#: blocks of each stage, with the normalization before the convolution
PREACTIVATED = {"preactresnet18": (2, 2, 2, 2), "preactresnet34": (3, 4, 6, 3)}
#: channels of the convolutions; 0: max pooling
VGGS = {
    "vgg11": (64, 0, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0),
    "vgg13": (64, 64, 0, 128, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0),
    "vgg16": (64, 64, 0, 128, 128, 0, *(256,) * 3, 0, *(512,) * 3, 0, *(512,) * 3, 0),
    "vgg19": (64, 64, 0, 128, 128, 0, *(256,) * 4, 0, *(512,) * 4, 0, *(512,) * 4, 0),
}
NAMES = (*RESNETS, *PREACTIVATED, *VGGS)


def _convolution(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        outputs = self.expansion * width
        self._convolutions(inputs, width, stride)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(_convolution(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

    def _convolutions(self, inputs: int, width: int, stride: int) -> None:
        self.conv1, self.bn1 = _convolution(inputs, width, 3, stride), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = _convolution(width, width), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.shortcut(x))


class Bottleneck(BasicBlock):
    """A 3x3 convolution between two 1x1 convolutions, and a shortcut."""

    expansion = 4

    def _convolutions(self, inputs: int, width: int, stride: int) -> None:
        self.conv1, self.bn1 = _convolution(inputs, width, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = _convolution(width, width, 3, stride), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = _convolution(width, 4 * width, 1), nn.BatchNorm2d(4 * width)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(out)))))
        return F.relu(out + self.shortcut(x))


class PreActBlock(nn.Module):
    """Two 3x3 convolutions, each after its normalization, and a shortcut that begins after the first of these."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), _convolution(inputs, width, 3, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(width), _convolution(width, width)
        if stride != 1 or inputs != width:
            self.shortcut = nn.Sequential(_convolution(inputs, width, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(x))
        around = self.shortcut(out) if hasattr(self, "shortcut") else x
        return self.conv2(F.relu(self.bn2(self.conv1(out)))) + around


class ResNet(nn.Module):
    """Images (B, channels, H, W), normalized -> logits (B, classes)."""

    def __init__(self, block: type[nn.Module], depths: tuple[int, ...], classes: int, channels: int = 3):
        super().__init__()
        self.conv1 = _convolution(channels, 64)
        if block is not PreActBlock:
            self.bn1 = nn.BatchNorm2d(64)
        inputs = 64
        for number, depth in enumerate(depths, 1):
            width, blocks = 64 * 2 ** (number - 1), []
            for i in range(depth):
                blocks.append(block(inputs, width, 2 if i == 0 and number > 1 else 1))
                inputs = block.expansion * width
            setattr(self, f"layer{number}", nn.Sequential(*blocks))
        self.linear = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        if hasattr(self, "bn1"):
            x = F.relu(self.bn1(x))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        return self.linear(x.mean((2, 3)))


class VGG(nn.Module):
    """Images (B, channels, H, W), normalized -> logits (B, classes)."""

    def __init__(self, plan: tuple[int, ...], classes: int, channels: int = 3):
        super().__init__()
        layers: list[nn.Module] = []
        for width in plan:
            if width:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
                channels = width
            else:
                layers.append(nn.MaxPool2d(2, 2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


def builder(name: str, classes: int, channels: int = 3) -> Callable[[], nn.Module]:
    """Return a function that builds the network of a name of `NAMES`, untrained."""
    if name in VGGS:
        return lambda: VGG(VGGS[name], classes, channels)
    if name in PREACTIVATED:
        return lambda: ResNet(PreActBlock, PREACTIVATED[name], classes, channels)
    block = BasicBlock if name in ("resnet18", "resnet34") else Bottleneck
    return lambda: ResNet(block, RESNETS[name], classes, channels)
