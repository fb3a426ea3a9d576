"""A classifier as a fixed function: what is folded, and that nothing else changes."""

import copy

import pytest
import torch
import torchvision
from torch import nn

from mesa_lib.models import networks
from mesa_lib.models.frozen import fold_batch_norms, frozen


def build(network="smallcnn", classes=4, width=2, seed=0):
    return networks.build_network(network, classes, width, (0.5, 0.4, 0.3), (0.2, 0.25, 0.5), seed)


def same(first, second) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first.values(), second.values(), strict=True))


@pytest.mark.parametrize("training", [True, False])
def test_frozen_is_a_copy_and_leaves_the_model_alone(training):
    model = build().train(training)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    fixed = frozen(model)
    assert fixed is not model and not fixed.training
    assert not any(p.requires_grad for p in fixed.parameters())
    assert model.training is training and all(p.requires_grad for p in model.parameters())
    fixed.head.bias.add_(1)
    assert same(before, model.state_dict())


@pytest.mark.parametrize("network", sorted(networks.NETWORKS))
def test_folding_the_batch_norms_changes_nothing_but_rounding(network):
    model = networks.build_network(network, 10, 4, [0.5] * 3, [0.2] * 3, seed=0).train()
    x = torch.rand(16, 3, 16, 16, requires_grad=True)
    for _ in range(3):  # statistics and scales that are not those of a fresh network
        model(x.detach() + torch.rand(1))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 2)  # above zero: folded through a maximum as well
            nn.init.normal_(module.bias)
    fixed = frozen(model)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fixed.modules())
    (expected,) = torch.autograd.grad(model.eval()(x)[:, 0].sum(), x)
    (gradient,) = torch.autograd.grad(fixed(x)[:, 0].sum(), x)
    assert torch.allclose(fixed(x), model(x), atol=1e-4, rtol=1e-4)
    assert torch.allclose(gradient, expected, atol=1e-4, rtol=1e-3) and gradient.abs().sum() > 0


def test_a_scale_below_zero_is_not_folded_through_a_maximum():
    model = build("fastcnn").eval()
    with torch.no_grad():
        model.blocks[0][2].weight[0] = -1
    fixed, x = frozen(model), torch.rand(4, 3, 16, 16)
    assert torch.allclose(fixed(x), model(x), atol=1e-5)


@pytest.mark.parametrize("network", sorted(networks.NETWORKS))
def test_weights_in_bfloat16_give_nearly_equal_logits(network):
    model, x = build(network, width=8).eval(), torch.rand(32, 3, 16, 16)
    fixed = frozen(model, "bf16")
    assert fixed.head.weight.dtype == torch.bfloat16 and model.head.weight.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = fixed(x).float()
    assert torch.allclose(logits, model(x), atol=0.02 + 0.02 * float(logits.abs().max()))


# --- which pairs are folded ------------------------------------------------------------------------------


def batch_norms(network: nn.Module) -> int:
    return sum(isinstance(part, nn.BatchNorm2d) for part in network.modules())


def with_statistics(network: nn.Module, x: torch.Tensor) -> nn.Module:
    """Give the BatchNorms of an untrained network the statistics of a batch, and scales and shifts that matter."""
    torch.manual_seed(0)
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = 1.0
            if part.affine:
                nn.init.uniform_(part.weight, 0.5, 1.5)
                nn.init.normal_(part.bias, std=0.2)
    with torch.no_grad():
        network.train()(x)
    return network.eval()


@pytest.fixture
def x():
    return torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "total", "folded"),
    [
        ("resnet18", 20, 20),
        ("vgg11_bn", 8, 8),
        ("mobilenet_v3_small", 34, 34),
        ("densenet121", 121, 59),  # the others stand before a convolution
    ],
)
def test_networks_of_torchvision_are_folded(name, total, folded, x):
    options = {"init_weights": False} if name == "vgg11_bn" else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(torchvision.models, name)(weights=None, num_classes=5, **options)
    if name == "vgg11_bn":
        model.classifier = nn.Linear(512 * 49, 5)  # the three large layers take most of the time
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    with_statistics(model, x)
    fixed = frozen(model)
    assert (batch_norms(model), batch_norms(model) - batch_norms(fixed)) == (total, folded)
    with torch.no_grad():
        expected, logits = model(x), fixed(x)
    assert expected.std() > 1e-3, "the comparison means something"
    assert torch.allclose(logits, expected, atol=float(expected.std()) / 100, rtol=1e-4)


@pytest.mark.parametrize(("name", "count"), [("smallcnn", 4), ("resnet18", 20), ("fastcnn", 6)])
def test_the_number_of_folded_norms_is_returned(name, count):
    model = build(name).eval()
    assert batch_norms(model) == count == fold_batch_norms(model) and batch_norms(model) == 0
    assert fold_batch_norms(model) == 0


class Parts(nn.Module):
    """Convolutions and norms that a subclass connects in `forward`."""

    def __init__(self):
        super().__init__()
        self.conv, self.other = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.norm, self.last = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.pool, self.pair = nn.MaxPool2d(2), nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))


class Plain(Parts):
    def forward(self, x):
        return self.last(self.other(self.norm(self.conv(x)))).mean((2, 3))


class SharedConvolution(Parts):
    def forward(self, x):
        return self.norm(self.conv(x)).mean((2, 3)) + self.last(self.conv(2 * x)).mean((2, 3))


class TwoReaders(Parts):
    def forward(self, x):
        y = self.conv(x)
        return (self.norm(y) + y).mean((2, 3))


class SharedNorm(Parts):
    def forward(self, x):
        return self.norm(self.other(self.norm(self.conv(x)))).mean((2, 3))


class ReadsTheWeight(Parts):
    def forward(self, x):
        return self.norm(self.conv(x)).mean((2, 3)) + self.conv.weight.sum()


class TwoNames(Parts):
    """One convolution under two names: replacing it under one would leave the other."""

    def __init__(self):
        super().__init__()
        self.alias = self.conv

    def forward(self, x):
        return self.norm(self.alias(x)).mean((2, 3))


class PooledTwice(Parts):
    def forward(self, x):
        y = self.pool(self.conv(x))
        return (self.norm(y) + y).mean((2, 3))


class PiecesOfASequence(Parts):
    def forward(self, x):
        y = self.pair[0](x)
        return (self.pair[1](y) + y).mean((2, 3))


class DependsOnTheData(Parts):
    """Takes another way for bright images; only the sequence, which is called as a whole, can be folded."""

    def forward(self, x):
        y = self.conv(x)
        y = self.norm(y) if x.mean() > 0.5 else self.norm(y) + y
        return self.pair(y).mean((2, 3))


class DependsOnAnArgument(Parts):
    """With the default argument, the convolution has two readers."""

    def forward(self, x, mask=None):
        y = self.conv(x)
        return self.norm(y).mean((2, 3)) if mask is not None else (self.norm(y) + y).mean((2, 3))


class BatchStatistics(Parts):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3, track_running_stats=False)

    def forward(self, x):
        return self.norm(self.conv(x)).square().mean((2, 3))


class WithoutScale(Parts):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3, affine=False)

    def forward(self, x):
        return self.norm(self.conv(x)).mean((2, 3))


class Hooked(Parts):
    """The hook sees the output of the convolution alone."""

    def __init__(self):
        super().__init__()
        self.conv.register_forward_hook(lambda module, inputs, output: output.square())

    def forward(self, x):
        return self.norm(self.conv(x)).mean((2, 3))


class WeightNormalized(Parts):
    """The weight is computed from other tensors before every call."""

    def __init__(self):
        super().__init__()
        self.conv = nn.utils.parametrizations.weight_norm(self.conv)

    def forward(self, x):
        return self.norm(self.conv(x)).mean((2, 3))


@pytest.mark.parametrize(
    ("network", "folded"),
    [
        (Plain, 2), (SharedConvolution, 0), (TwoReaders, 0), (SharedNorm, 0), (ReadsTheWeight, 0), (TwoNames, 0),
        (PooledTwice, 0), (PiecesOfASequence, 0), (DependsOnTheData, 1), (DependsOnAnArgument, 0), (BatchStatistics, 0),
        (WithoutScale, 1), (Hooked, 0), (WeightNormalized, 0),
    ],
)  # fmt: skip
def test_only_a_convolution_with_one_reader_is_folded(network, folded, x):
    torch.manual_seed(1)
    model = with_statistics(network(), x)
    before = copy.deepcopy(model.state_dict())
    fixed = copy.deepcopy(model)
    assert fold_batch_norms(fixed) == folded
    with torch.no_grad():
        for images in (x, 0.2 * x, 1 - 0.2 * x):
            assert torch.allclose(fixed(images), model(images), atol=1e-4)
            assert torch.allclose(frozen(model)(images), model(images), atol=1e-4)
    assert same(before, model.state_dict())


class Remembers(Parts):
    """Keeps its activations, as networks that are to be explained do."""

    def forward(self, x):
        self.activations = self.norm(self.conv(x))
        return self.activations.mean((2, 3))


def test_tracing_leaves_nothing_in_the_network(x):
    model = Remembers().eval()
    fixed = frozen(model)
    assert not hasattr(model, "activations") and not hasattr(fixed, "activations")
    assert batch_norms(fixed) == batch_norms(model) - 1 and fixed(x).shape == (4, 3)
