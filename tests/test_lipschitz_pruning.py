"""CLP on networks in which the channel of the backdoor is known."""

import copy

import pytest
import torch
from planted import Planted, accuracy, clean, triggered
from torch import nn

from mesa_lib.defenses.base import DefenderView
from mesa_lib.defenses.lipschitz_pruning import (
    LipschitzPruning,
    convolutions_with_norms,
    lipschitz_bounds,
    outliers,
)
from mesa_lib.models import networks


def view(model, **options):
    return DefenderView(LipschitzPruning().knowledge, model.eval(), clean(), 3, **options)


def test_the_channel_of_the_backdoor_and_no_other_is_pruned():
    model, images = Planted().eval(), clean()
    assert accuracy(model, images) == 1 and accuracy(model, triggered(images)) == 0
    result = LipschitzPruning().repair(view(model))
    assert result.about == {"pruned": 1, "of": 16, "layers": {"norm": {"pruned": 1, "of": 16}}}
    assert result.history == [] and not result.model.training
    expected = copy.deepcopy(model.state_dict())
    expected["norm.weight"][7] = expected["norm.bias"][7] = 0
    assert all(torch.equal(value, expected[name]) for name, value in result.model.state_dict().items())
    assert accuracy(result.model, images) == 1 and accuracy(result.model, triggered(images)) == 1


def test_the_method_gets_no_images_and_leaves_the_given_model_as_it_is():
    model = Planted()
    before = copy.deepcopy(model.state_dict())
    handed = view(model)
    with pytest.raises(AttributeError, match="clean"):
        _ = handed.clean
    LipschitzPruning().repair(handed)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_bound_is_the_spectral_norm_times_the_scale_of_the_normalization():
    conv, norm = nn.Conv2d(2, 3, (1, 2), bias=False), nn.BatchNorm2d(3, eps=1.0).eval()
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([[[3.0, 0], [0, 4]], [[1.0, 1], [1, 1]], [[0.0, 0], [3, 4]]])[:, :, None])
        norm.weight.copy_(torch.tensor([1.0, -6.0, 0.5]))
        norm.running_var.copy_(torch.tensor([3.0, 8.0, 0.0]))
    # singular values (4, 3), (2, 0), (5, 0); scales 1 / 2, 6 / 3, 0.5 / 1
    assert lipschitz_bounds(conv, norm).tolist() == pytest.approx([2.0, 4.0, 2.5])


@pytest.mark.parametrize("groups", [1, 4])
def test_the_bound_is_the_largest_singular_value_of_each_kernel(groups):
    conv, norm = nn.Conv2d(8, 12, 3, groups=groups), nn.BatchNorm2d(12)
    bounds = lipschitz_bounds(conv, norm)
    for k, kernel in enumerate(conv.weight.detach().double()):
        largest = torch.linalg.svdvals(kernel.reshape(8 // groups, 9)).max() / (1 + norm.eps) ** 0.5
        assert float(bounds[k]) == pytest.approx(float(largest))


def test_only_values_beyond_u_deviations_above_the_mean_are_outliers():
    values = torch.tensor([1.0] * 15 + [2.0])  # mean 1.0625, sample deviation 0.25: the last is 3.75 of them above
    assert outliers(values, 3.74).nonzero().flatten().tolist() == [15] and not outliers(values, 3.76).any()
    assert not outliers(-values, 0.3).any(), "low values are kept"
    assert not outliers(torch.tensor([1.0] * 9 + [1e6]), 3).any(), "ten channels"
    assert outliers(torch.tensor([1.0] * 10 + [1e6]), 3).sum() == 1
    assert not outliers(torch.tensor([5.0]), 3).any() and not outliers(torch.ones(20), 3).any()


# --- which BatchNorm belongs to which convolution --------------------------------------------------------


class Shuffled(nn.Module):
    """Declares its layers in another order than that of the forward pass."""

    def __init__(self):
        super().__init__()
        self.norm_b, self.norm_a = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.a, self.b, self.after_sum = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x):
        y = self.norm_b(nn.functional.max_pool2d(self.b(self.norm_a(self.a(x).relu())), 2))
        return self.after_sum(y + self.a(x)[:, :, ::2, ::2]).mean((2, 3))


@pytest.mark.parametrize("frozen_weights", [False, True])
def test_a_norm_belongs_to_the_convolution_that_it_reads(frozen_weights):
    model = Shuffled().eval().requires_grad_(not frozen_weights)
    with torch.no_grad():
        pairs = convolutions_with_norms(model, torch.zeros(1, 3, 4, 4))
    assert pairs == [("norm_a", model.a, model.norm_a), ("norm_b", model.b, model.norm_b)]
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


@pytest.mark.parametrize(("network", "width", "count"), [("smallcnn", 4, 4), ("resnet18", 4, 20), ("fastcnn", 24, 6)])
def test_every_norm_of_the_networks_has_the_convolution_before_it(network, width, count):
    model = networks.build_network(network, 4, width, (0.5,) * 3, (0.5,) * 3, 0).eval()
    parts = [part for part in model.modules() if isinstance(part, nn.Conv2d | nn.BatchNorm2d)]
    expected = {norm: conv for conv, norm in zip(parts, parts[1:], strict=False) if isinstance(norm, nn.BatchNorm2d)}
    assert {norm: conv for _, conv, norm in convolutions_with_norms(model, torch.zeros(1, 3, 16, 16))} == expected
    assert len(expected) == count


@pytest.mark.parametrize("network", ["smallcnn", "resnet18", "fastcnn"])
def test_a_channel_whose_kernel_is_enlarged_is_pruned_in_every_network(network):
    model = networks.build_network(network, 4, 16, (0.5,) * 3, (0.5,) * 3, 0).eval()
    name, conv, norm = convolutions_with_norms(model, torch.zeros(1, 3, 16, 16))[1]
    before = LipschitzPruning(u=5).repair(view(model)).about["layers"][name]
    with torch.no_grad():
        conv.weight[5] *= 1000
        norm.bias.fill_(1)
    result = LipschitzPruning().repair(view(model))
    pruned = result.model.get_submodule(name)
    assert before["pruned"] == 0 and result.about["layers"][name]["pruned"] == 1
    assert (pruned.weight == 0).nonzero().flatten().tolist() == (pruned.bias == 0).nonzero().flatten().tolist() == [5]
    again = LipschitzPruning().repair(view(model, seed=1)).model.state_dict()
    assert all(torch.equal(value, again[key]) for key, value in result.model.state_dict().items())


@pytest.mark.parametrize("norm", [nn.Identity(), nn.BatchNorm2d(4, affine=False), nn.InstanceNorm2d(4)])
def test_a_network_without_convolution_and_norm_is_refused(norm):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.Flatten(), nn.Linear(4 * 14 * 14, 3))
    with pytest.raises(ValueError, match="model = Sequential: expected a convolution .* followed by a BatchNorm2d"):
        LipschitzPruning().repair(view(model))
