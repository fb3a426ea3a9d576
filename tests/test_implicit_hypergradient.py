"""I-BAU: the hypergradient of problems with known answers, the worst perturbation, and a planted backdoor."""

import pytest
import torch
from torch import nn
from toys import repaired_twice

from mesa_lib import device as devices
from mesa_lib.data.splits import Split
from mesa_lib.defenses import implicit_hypergradient
from mesa_lib.defenses.base import DefenderView
from mesa_lib.defenses.implicit_hypergradient import ImplicitUnlearning, hypergradient, worst_perturbation
from mesa_lib.models import inference, networks


def build(network="smallcnn"):
    return networks.build_network(network, 2, 4, (0.5,) * 3, (0.5,) * 3, 0).eval()


def handed(method, model, clean, seed=0):
    return DefenderView(method.knowledge, model, clean, 2, seed=seed)


class Linear(nn.Module):
    """Two classes whose logits are 0 and the product of image and `direction`."""

    def __init__(self, direction):
        super().__init__()
        self.direction = nn.Parameter(direction)

    def forward(self, x):
        logit = (x * self.direction).sum((1, 2, 3))
        return torch.stack([torch.zeros_like(logit), logit], 1)


class PixelBackdoor(nn.Module):
    """Predicts 1 where the image is bright; the pixel (0, 0), times one large weight, is the logit of class 0."""

    def __init__(self):
        super().__init__()
        self.shortcut = nn.Parameter(torch.tensor(30.0))

    def forward(self, x):
        return torch.stack([self.shortcut * x[:, 0, 0, 0], 40 * (x[:, :, 1:].mean((1, 2, 3)) - 0.4)], 1)


# --- the hypergradient -----------------------------------------------------------------------------------


def quadratic():
    """Return the parts of min_w |d(w) - goal|^2 / 2 + |w|^2 / 2, where d(w) minimizes d'Ad / 2 - d'Bw."""
    rng = torch.Generator().manual_seed(0)
    a, b, goal, w = (torch.randn(shape, generator=rng).double() for shape in ((4, 4), (4, 3), (4,), (3,)))
    a = a @ a.T / 4 + torch.eye(4)
    w.requires_grad_()
    delta = torch.linalg.solve(a, b @ w).detach().requires_grad_()
    inner = delta @ a @ delta / 2 - delta @ b @ w
    outer = (delta - goal).square().sum() / 2 + w.square().sum() / 2
    exact = w.detach() + b.T @ torch.linalg.solve(a, (delta - goal).detach())
    return a, b, delta, w, inner, outer, exact


def test_the_hypergradient_of_a_quadratic_problem_becomes_exact_with_more_iterations():
    a, _, delta, w, inner, outer, exact = quadratic()
    step = 1 / float(torch.linalg.eigvalsh(a).max())
    errors = []
    for iterations in (0, 1, 5, 20, 400):
        (found,) = hypergradient(inner, outer, delta, [w], step=step, iterations=iterations)
        errors.append(float((found - exact).norm()))
    assert errors == sorted(errors, reverse=True) and errors[0] > 0.1 and errors[-1] < 1e-9


def test_a_few_iterations_are_the_first_terms_of_the_neumann_series():
    a, b, delta, w, inner, outer, _ = quadratic()
    by_delta = torch.autograd.grad(outer, delta, retain_graph=True)[0]
    contraction = torch.eye(4).double() - 0.1 * a
    v = sum(torch.linalg.matrix_power(contraction, k) @ by_delta for k in range(5))
    (found,) = hypergradient(inner, outer, delta, [w], step=0.1, iterations=5)
    assert torch.allclose(found, w.detach() + 0.1 * b.T @ v) and not found.requires_grad


def test_the_hypergradient_is_the_derivative_of_the_outer_loss_along_the_inner_minima():
    """The inner minimum of sum(exp(w) cosh(d - w^2)) is d = w^2: neither problem is quadratic."""
    w = torch.tensor([0.5, -0.3, 0.8], dtype=torch.float64, requires_grad=True)
    delta = w.detach().square().requires_grad_()
    inner = (w.exp() * torch.cosh(delta - w**2)).sum()
    outer = (delta.sin() * w).sum()
    (found,) = hypergradient(inner, outer, delta, [w], step=0.3, iterations=200)
    (exact,) = torch.autograd.grad(((w**2).sin() * w).sum(), w)
    assert torch.allclose(found, exact)


def test_weights_that_a_loss_does_not_use_have_no_gradient():
    delta, used, unused = (torch.ones(2, requires_grad=True) for _ in range(3))
    inner, outer = (delta - used).square().sum(), delta.sum()
    found = hypergradient(inner, outer, delta, [used, unused], step=0.5, iterations=3)
    assert torch.allclose(found[0], torch.ones(2)) and found[1].tolist() == [0, 0]


# --- the worst perturbation ------------------------------------------------------------------------------


def test_the_worst_perturbation_of_a_linear_model_is_its_direction_at_the_bound():
    rng = torch.Generator().manual_seed(0)
    direction = torch.randn(3, 4, 4, generator=rng)
    images = torch.randint(0, 256, (50, 3, 4, 4), generator=rng, dtype=torch.uint8)
    options = {"radius": 0.7, "steps": 12, "stride": 0.1, "batch_size": 16, "rng": devices.rng(0)}
    for label, sign in ((0, 1), (1, -1)):
        clean = Split(images, torch.full((50,), label))
        delta = worst_perturbation(Linear(direction), clean, **options)
        assert torch.allclose(delta, sign * 0.7 * direction / direction.norm(), atol=1e-5)


def test_too_few_steps_stay_inside_the_ball(toy):
    options = {"radius": 2.0, "steps": 3, "stride": 0.1, "batch_size": 16, "rng": devices.rng(0)}
    delta = worst_perturbation(build(), toy, **options)
    assert delta.shape == (3, 16, 16) and not delta.requires_grad and 0 < float(delta.norm()) <= 0.6 + 1e-6


# --- the repair ------------------------------------------------------------------------------------------


def test_the_shortcut_of_a_planted_trigger_pixel_is_unlearned(toy):
    images = toy.images.clone()
    images[:, 0, 0, 0] = 0
    clean, triggered = Split(images, toy.labels), images[toy.labels == 1]
    triggered[:, 0, 0, 0] = 255
    model = PixelBackdoor()
    assert torch.equal(inference.predict(model, images), toy.labels)
    assert bool((inference.predict(model, triggered) == 0).all())
    for iterations in (0, 5):
        method = ImplicitUnlearning(rounds=12, lr=1.0, radius=1.0, iterations=iterations, ascent_steps=15)
        result = method.repair(handed(method, model, clean))
        assert torch.equal(inference.predict(result.model, images), toy.labels)
        assert bool((inference.predict(result.model, triggered) == 1).all())
        assert abs(result.model.shortcut.item()) < 5 and model.shortcut.item() == 30
        assert len(result.history) == 12 and max(result.about["norms of perturbations"]) <= 1 + 1e-5


def test_one_step_is_adam_along_the_hypergradient(toy, monkeypatch):
    monkeypatch.setattr(
        implicit_hypergradient, "hypergradient", lambda inner, outer, delta, weights, **_: [w * 0 + 1 for w in weights]
    )
    model = build()
    method = ImplicitUnlearning(rounds=1, lr=0.01, batch_size=len(toy), ascent_steps=1)
    repaired = method.repair(handed(method, model, toy)).model
    for before, after in zip(model.parameters(), repaired.parameters(), strict=True):
        assert torch.allclose(before - after, torch.full_like(before, 0.01), atol=1e-6)


@pytest.mark.parametrize("network", list(networks.NETWORKS))
def test_every_network_is_trained_and_equal_seeds_give_equal_weights(toy, network):
    method, model = ImplicitUnlearning(rounds=1, ascent_steps=3), build(network)
    first, again = repaired_twice(lambda seed: method.repair(handed(method, model, toy, seed)), model)
    before, after = model.state_dict(), first.model.state_dict()
    assert not torch.equal(after["head.weight"], before["head.weight"])
    frozen = [name for name in before if "running" in name]
    assert frozen and all(torch.equal(after[name], before[name]) for name in frozen)
    assert first.history == again.history and first.history[0].keys() == {"epoch", "loss", "accuracy"}


def test_a_loss_that_is_not_finite_ends_in_one_clear_message(toy):
    method = ImplicitUnlearning(rounds=2, lr=1e30, ascent_steps=2)
    with pytest.raises(FloatingPointError, match="I-BAU: loss = .*try a smaller learning rate than 1e.30"):
        method.repair(handed(method, build(), toy))


def test_settings_that_make_no_sense_are_refused(toy):
    with pytest.raises(ValueError, match="radius = 0"):
        ImplicitUnlearning(radius=0)
    with pytest.raises(ValueError, match="clean_share = 1"):
        ImplicitUnlearning(clean_share=1)
    method = ImplicitUnlearning()
    with pytest.raises(ValueError, match="SmallCNN: expected a network with weights that require gradients"):
        method.repair(handed(method, build().requires_grad_(False), toy))
