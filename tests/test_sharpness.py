"""FT-SAM: the worst point near the weights, one step against a direct computation, and a planted backdoor."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mesa_lib import training
from mesa_lib.data.splits import Split
from mesa_lib.defenses import clean_batches, sharpness
from mesa_lib.defenses.base import DefenderView
from mesa_lib.defenses.sharpness import SharpnessAwareFineTuning
from mesa_lib.models import inference, networks


def build(network="smallcnn"):
    return networks.build_network(network, 2, 4, (0.5,) * 3, (0.5,) * 3, 0).eval()


def handed(method, model, clean, seed=0):
    return DefenderView(method.knowledge, model, clean, 2, seed=seed)


class WeakBackdoor(nn.Module):
    """Predicts 1 where the image is bright; the pixel (0, 0), times one large weight, is the logit of class 0."""

    def __init__(self):
        super().__init__()
        self.shortcut = nn.Parameter(torch.tensor(20.0))

    def forward(self, x):
        bright = torch.where(x[:, :, 1:].mean((1, 2, 3)) > 0.4, 3.0, -10.0)
        return torch.stack([self.shortcut * x[:, 0, 0, 0], bright], 1)


# --- the worst point -------------------------------------------------------------------------------------


def test_no_shift_of_the_relative_norm_raises_a_linear_loss_more():
    rng = torch.Generator().manual_seed(0)
    weights = [torch.randn(3, 4, generator=rng), torch.randn(5, generator=rng)]
    gradients = [torch.randn(w.shape, generator=rng) for w in weights]
    rho = 0.3

    def relative(shifts):
        return torch.cat([(e / w.abs()).flatten() for e, w in zip(shifts, weights, strict=True)]).norm()

    def rise(shifts):
        return float(sum((e * g).sum() for e, g in zip(shifts, gradients, strict=True)))

    worst = sharpness.worst_shift(weights, gradients, rho)
    scaled = torch.cat([(w * g).flatten() for w, g in zip(weights, gradients, strict=True)])
    assert float(relative(worst)) == pytest.approx(rho)
    assert rise(worst) == pytest.approx(rho * float(scaled.norm()))
    for _ in range(200):
        other = [w.abs() * torch.randn(w.shape, generator=rng) for w in weights]
        other = [e * (rho / relative(other)) for e in other]
        assert rise(other) <= rise(worst) + 1e-6


def test_without_a_gradient_the_worst_point_is_where_the_weights_are():
    (shift,) = sharpness.worst_shift([torch.ones(3)], [torch.zeros(3)], 2.0)
    assert shift.tolist() == [0, 0, 0]


@pytest.mark.parametrize("rho", [0.0, 0.5])
def test_a_step_takes_the_gradient_at_the_worst_point_and_starts_from_the_weights(toy, rho):
    model = build().train()
    reference = copy.deepcopy(model)
    x, y = toy.images[:16].float() / 255, toy.labels[:16]
    optimizer = training.Optimizer(model, 0.1, 0.0, 1.0, "constant", 1)
    loss, logits = sharpness.sharpness_aware_step(model, optimizer, rho, "float32")(x, y)

    weights = list(reference.parameters())
    gradients = torch.autograd.grad(F.cross_entropy(reference(x), y), weights)
    statistics = {name: value.clone() for name, value in reference.named_buffers()}
    norm = sum(((w * g) ** 2).sum() for w, g in zip(weights, gradients, strict=True)).sqrt()
    elsewhere = copy.deepcopy(reference)
    with torch.no_grad():
        for w, g in zip(elsewhere.parameters(), gradients, strict=True):
            w.add_(rho * w.abs() ** 2 * g / norm)
    there = torch.autograd.grad(F.cross_entropy(elsewhere(x), y), list(elsewhere.parameters()))
    for after, before, gradient in zip(model.parameters(), weights, there, strict=True):
        assert torch.allclose(after, before - 0.1 * gradient, atol=1e-6)
    assert loss.item() == pytest.approx(F.cross_entropy(logits, y).item())
    for name, value in model.named_buffers():
        assert torch.equal(value, statistics[name]), "the second pass does not count in BatchNorm's statistics"


# --- the repair ------------------------------------------------------------------------------------------


def test_the_large_weight_of_a_planted_backdoor_shrinks_below_what_fine_tuning_leaves(toy):
    images = toy.images.clone()
    images[:, 0, 0, 0] = 12  # the pixel of the trigger is dark on clean images, but not black
    clean, shortcut = Split(images, toy.labels), {}
    triggered = images[toy.labels == 1]
    triggered[:, 0, 0, 0] = 255

    def asr(model):
        return float((inference.predict(model, triggered) == 0).float().mean())

    assert asr(WeakBackdoor()) == 1
    for rho in (0.0, 2.0):
        method = SharpnessAwareFineTuning(rho=rho, epochs=20, lr=8, schedule="constant", augment="none")
        result = method.repair(handed(method, WeakBackdoor(), clean))
        assert result.history[-1]["accuracy"] == 1
        shortcut[rho] = result.model.shortcut.item()
        assert asr(result.model) == (shortcut[rho] > 3)
    assert shortcut[0.0] > 10 and shortcut[2.0] < 3


@pytest.mark.parametrize("network", list(networks.NETWORKS))
def test_every_network_learns_and_equal_seeds_give_equal_weights(toy, network):
    method, model = SharpnessAwareFineTuning(epochs=2, rho=0.5), build(network)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, again = (method.repair(handed(method, model, toy)) for _ in range(2))
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()), "a copy is trained"
    assert [record["epoch"] for record in first.history] == [1, 2] and not first.model.training
    assert first.history[1]["loss"] < first.history[0]["loss"] and first.history == again.history


def test_another_seed_gives_other_weights(toy):
    method = SharpnessAwareFineTuning(epochs=1)
    first, other = (method.repair(handed(method, build(), toy, seed)).model for seed in (0, 1))
    assert not torch.equal(first.head.weight, other.head.weight)


def test_a_loss_that_is_not_finite_ends_in_one_clear_message(toy):
    method = SharpnessAwareFineTuning(epochs=2, lr=1e30, schedule="constant")
    with pytest.raises(FloatingPointError, match="FT-SAM: loss = .*epoch 1/2.*try a smaller learning rate than 1e.30"):
        method.repair(handed(method, build(), toy))


def test_a_network_without_weights_to_train_is_refused(toy):
    method = SharpnessAwareFineTuning()
    with pytest.raises(ValueError, match="SmallCNN: expected a network with weights that require gradients"):
        method.repair(handed(method, build().requires_grad_(False), toy))
    with pytest.raises(ValueError, match="rho = -1"):
        SharpnessAwareFineTuning(rho=-1)


# --- epochs over clean images ----------------------------------------------------------------------------


def test_every_image_is_used_once_an_epoch_and_the_history_is_that_of_the_batches(toy):
    model, seen = build(), []

    def step(x, y):
        assert model.training
        seen.append(y)
        return torch.tensor(float(len(y))), F.one_hot(torch.ones_like(y), 2).float()

    begun = []
    history = clean_batches.train(
        model, toy, step, epochs=2, batch_size=40, seed=0, lr=1, begin=lambda: begun.append(len(seen))
    )
    assert [len(y) for y in seen] == [32] * 6 and begun == [0, 3] and not model.training
    assert torch.equal(torch.cat(seen[:3]).sort().values, toy.labels.sort().values)
    assert history == [{"epoch": epoch, "loss": 32.0, "accuracy": 0.5} for epoch in (1, 2)]
