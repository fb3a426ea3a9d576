"""ANP on a network in which the channel of the backdoor is known, and its steps against a direct computation."""

import copy

import pytest
import torch
from planted import Planted, accuracy, clean, triggered
from torch import nn

from mesa_lib.defenses.adversarial_pruning import AdversarialPruning, MaskedNetwork
from mesa_lib.defenses.base import DefenderView
from mesa_lib.models import networks


def view(model, **options):
    return DefenderView(AdversarialPruning().knowledge, model.eval(), clean(), 3, **options)


def with_factors(model, weight_factors, bias_factors):
    """A copy of the network whose BatchNorm parameters are multiplied by these vectors."""
    changed, start = copy.deepcopy(model), 0
    with torch.no_grad():
        for norm in (part for part in changed.modules() if isinstance(part, nn.BatchNorm2d)):
            part = slice(start, start := start + norm.num_features)
            norm.weight *= weight_factors[part]
            norm.bias *= bias_factors[part]
    return changed


def gradients(model, original, images, labels):
    """The loss and its gradients to the factors of the original's weights and biases, by those to the parameters."""
    norms, before = ([p for p in m.modules() if isinstance(p, nn.BatchNorm2d)] for m in (model, original))
    for norm in norms:
        norm.requires_grad_(True)
    loss = nn.functional.cross_entropy(model(images), labels)
    by_weight = torch.autograd.grad(loss, [norm.weight for norm in norms], retain_graph=True)
    by_bias = torch.autograd.grad(loss, [norm.bias for norm in norms])
    return (
        float(loss.detach()),
        torch.cat([g * norm.weight for g, norm in zip(by_weight, before, strict=True)]).detach(),
        torch.cat([g * norm.bias for g, norm in zip(by_bias, before, strict=True)]).detach(),
    )


def trained_looking(network, width=4):
    """An untrained network with random BatchNorm parameters and statistics."""
    model, rng = networks.build_network(network, 3, width, (0.5,) * 3, (0.5,) * 3, 0).eval(), torch.Generator()
    rng.manual_seed(3)
    for norm in (part for part in model.modules() if isinstance(part, nn.BatchNorm2d)):
        for value in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
            value.copy_(0.5 + torch.rand(value.shape, generator=rng))
    return model


def test_the_channel_of_the_backdoor_and_no_other_is_pruned():
    model, images = Planted().eval(), clean()
    assert accuracy(model, images) == 1 and accuracy(model, triggered(images)) == 0
    result = AdversarialPruning(steps=20, batch_size=32).repair(view(model))
    assert result.about["pruned"] == 1 and result.about["of"] == 16 and result.history == []
    lowest = result.about["lowest masks"]
    assert len(lowest) == 10 and lowest[0] < 0.2 < lowest[1] and lowest == sorted(lowest)
    expected = copy.deepcopy(model.state_dict())
    expected["norm.weight"][7] = 0
    assert all(torch.equal(value, expected[name]) for name, value in result.model.state_dict().items())
    assert accuracy(result.model, images) == 1 and accuracy(result.model, triggered(images)) == 1


def test_without_the_perturbation_no_mask_falls_below_the_threshold():
    result = AdversarialPruning(steps=20, batch_size=32, eps=0.0).repair(view(Planted()))
    assert result.about["pruned"] == 0


def test_the_threshold_decides_what_is_pruned():
    assert AdversarialPruning(steps=1, threshold=0.0).repair(view(Planted())).about["pruned"] == 0
    method = AdversarialPruning(steps=1, threshold=1.01, tolerance=1.0)
    assert method.repair(view(Planted())).about["pruned"] == 16


def test_pruning_stops_before_it_costs_more_accuracy_than_the_tolerance():
    """All 16 channels may go; without them the network guesses."""
    model = Planted()
    result = AdversarialPruning(steps=20, batch_size=32, threshold=1.01).repair(view(model))
    assert 1 <= result.about["pruned"] < result.about["below the threshold"] == 16
    assert accuracy(result.model, clean()) >= 0.96 and accuracy(result.model, triggered(clean())) == 1
    every = AdversarialPruning(steps=20, batch_size=32, threshold=1.01, tolerance=1.0).repair(view(model))
    assert every.about["pruned"] == 16 and accuracy(every.model, clean()) < 0.9


@pytest.mark.parametrize("network", ["smallcnn", "resnet18", "fastcnn"])
def test_the_masked_network_is_one_with_multiplied_parameters(network):
    model, images = trained_looking(network), clean(8)
    masked, x = MaskedNetwork(model, "float32"), images.images.float() / 255
    rng = torch.Generator().manual_seed(0)
    by_weight, by_bias = (torch.rand(masked.channels, generator=rng) for _ in range(2))
    expected = nn.functional.cross_entropy(with_factors(model, by_weight, by_bias)(x), images.labels)
    assert torch.allclose(masked.loss(x, images.labels, by_weight, by_bias), expected, atol=1e-5)


def test_two_steps_are_those_of_a_direct_computation():
    model, images = trained_looking("smallcnn"), clean(12)
    method = AdversarialPruning(eps=0.1, alpha=0.3, steps=2, batch_size=12, lr=3.0, momentum=0.8, statistics="frozen")
    handed = DefenderView(method.knowledge, model, images, 3)
    x, y = images.images.float() / 255, images.labels
    ones = torch.ones(36)
    mask, velocity = ones.clone(), torch.zeros(36)
    for _ in range(2):
        plain_loss, plain, by_bias = gradients(with_factors(model, mask, ones), model, x, y)
        factors = mask + 0.1 * plain.sign(), ones + 0.1 * by_bias.sign()
        worse_loss, worse, _ = gradients(with_factors(model, *factors), model, x, y)
        assert worse_loss > plain_loss
        velocity = 0.8 * velocity + 0.3 * plain + 0.7 * worse
        mask = (mask - 3 * velocity).clamp(0, 1)
    assert torch.allclose(method.masks(handed), mask, atol=1e-5) and 0 < float(mask.min()) < 0.9


def test_masks_stay_between_zero_and_one_and_depend_on_the_seed_alone():
    model, method = trained_looking("smallcnn"), AdversarialPruning(steps=8, batch_size=16, lr=10.0)
    first, again, other = (method.masks(view(model, seed=seed)) for seed in (0, 0, 1))
    assert float(first.min()) == 0 and float(first.max()) == 1
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("statistics", ["frozen", "batch"])
@pytest.mark.parametrize("network", ["smallcnn", "resnet18", "fastcnn"])
def test_only_the_weights_of_pruned_channels_change(network, statistics):
    model = trained_looking(network)
    before = copy.deepcopy(model.state_dict())
    method = AdversarialPruning(steps=2, batch_size=16, threshold=0.999, tolerance=1.0, statistics=statistics)
    result = method.repair(view(model))
    changed = result.model.state_dict()
    norms = {name for name, part in model.named_modules() if isinstance(part, nn.BatchNorm2d)}
    zeros = 0
    for name, value in changed.items():
        if name.removesuffix(".weight") in norms:
            assert bool(((value == before[name]) | (value == 0)).all())
            zeros += int((value == 0).sum())
        else:
            assert torch.equal(value, before[name]), name
    assert 0 < zeros == result.about["pruned"] < result.about["of"]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()), "the given model"
    assert not any(part.training for part in result.model.modules())
    flags = [p.requires_grad for p in model.parameters()]
    assert [p.requires_grad for p in result.model.parameters()] == flags


def test_statistics_of_the_batch_make_the_masks_independent_of_running_statistics():
    model, method = trained_looking("smallcnn"), AdversarialPruning(steps=1, statistics="batch")
    other = copy.deepcopy(model)
    other.features[0][0][1].running_var.mul_(4)
    assert torch.equal(method.masks(view(model)), method.masks(view(other)))
    frozen = AdversarialPruning(steps=1, statistics="frozen")
    assert not torch.equal(frozen.masks(view(model)), frozen.masks(view(other)))


def test_a_network_without_normalization_is_refused():
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 3))
    with pytest.raises(ValueError, match="model = Sequential: expected a BatchNorm with weight and bias"):
        AdversarialPruning().repair(view(model))


def test_unknown_statistics_are_refused():
    with pytest.raises(ValueError, match="statistics = 'running': expected one of frozen, batch"):
        AdversarialPruning(statistics="running")
