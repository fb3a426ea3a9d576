import math

import pytest
import torch

from mesa_lib import mine


def pairs(correlation, n=8000, seed=0):
    """Two unit Gaussians of this correlation, n samples (n, 1) of each."""
    x, noise = torch.randn(2, n, 1, generator=torch.Generator().manual_seed(seed))
    return x, correlation * x + math.sqrt(1 - correlation**2) * noise


@pytest.mark.parametrize("correlation", [0.5, 0.8, 0.95])
def test_the_estimate_is_near_the_closed_form(correlation):
    information, history = mine.estimate(*pairs(correlation), steps=700, batch_size=256, hidden=32, lr=3e-3)
    assert abs(information - -0.5 * math.log(1 - correlation**2)) < 0.1
    assert len(history) == 700 and history[-1] > history[0]


def test_independent_samples_carry_no_information():
    information, _ = mine.estimate(*pairs(0.0, seed=1), steps=150, batch_size=256, hidden=16)
    assert abs(information) < 0.05


def test_the_estimate_repeats():
    first, again, other = (mine.estimate(*pairs(0.8, 500), steps=10, seed=seed) for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize(("correlation", "nats"), [(0, 0), (0.5, 0.14384), (0.8, 0.51083), (0.95, 1.16395)])
def test_closed_form_of_gaussian_information(correlation, nats):
    assert mine.gaussian_information(correlation) == pytest.approx(nats, abs=1e-5)
    assert mine.gaussian_information(-correlation) == mine.gaussian_information(correlation)


@pytest.mark.parametrize(
    ("joint", "marginal", "nats"),
    [
        ([2.0, 4.0], [0.0, 0.0], 3.0),
        ([1.0, 1.0], [1.0, 1.0], 0.0),
        ([0.0], [math.log(1.0), math.log(3.0)], -math.log(2.0)),
        ([5.0, 7.0], [1000.0, 1000.0], -994.0),  # no overflow
    ],
)
def test_the_bound_by_hand(joint, marginal, nats):
    assert float(mine.lower_bound(torch.tensor(joint), torch.tensor(marginal))) == pytest.approx(nats, abs=1e-5)


# --- the moving average ----------------------------------------------------------------------------------


@pytest.mark.parametrize("constant", [-3.0, 0.0, 2.5])
def test_after_constant_batches_the_average_is_the_constant(constant):
    average = mine.MovingAverage(0.01)
    for _ in range(50):
        average.loss(torch.zeros(4), torch.full((4,), constant))
        assert float(average.log_mean) == pytest.approx(constant, abs=1e-4)


def test_the_first_batch_keeps_54_per_cent_after_620_steps():
    average = mine.MovingAverage(0.001)
    average.loss(torch.zeros(2), torch.zeros(2))  # exp T = 1 in the first batch
    for _ in range(619):
        average.loss(torch.zeros(2), torch.full((2,), -60.0))  # and 0 in all others
    weight = math.exp(float(average.log_mean))
    assert weight == pytest.approx(0.999**619, rel=1e-3) and round(100 * weight) == 54


def test_the_gradient_is_that_of_equation_12():
    joint, marginal = (torch.tensor(v, requires_grad=True) for v in ([1.0, 2.0], [0.0, 1.0]))
    average = mine.MovingAverage(0.1)
    average.log_mean = torch.tensor(0.7)
    average.loss(joint, marginal).backward()
    mean = 0.9 * math.exp(0.7) + 0.1 * (1 + math.e) / 2
    assert torch.allclose(joint.grad, torch.tensor([-0.5, -0.5]))
    assert torch.allclose(marginal.grad, torch.tensor([1.0, math.e]) / 2 / mean)


# --- the statistics network ------------------------------------------------------------------------------


def test_the_network_gives_one_value_a_pair_for_any_shape():
    T = mine.build(3 * 2 * 2, 4, 8, seed=0)
    assert T(torch.rand(5, 3, 2, 2), torch.rand(5, 4)).shape == (5,)


def test_leaky_damps_the_negative_side_only():
    linear, leaky = (mine.build(2, 2, 16, leaky=kind, seed=0) for kind in (False, True))
    x, z = torch.randn(2, 200, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for T in (linear, leaky):
            T.last.bias.zero_()
        plain, damped = linear(3 * x, 3 * z), leaky(3 * x, 3 * z)
    assert plain.min() < 0 < plain.max()
    assert torch.allclose(damped, torch.where(plain > 0, plain, 0.2 * plain))


def test_weights_follow_the_seed():
    first, again, other = (mine.build(2, 2, 4, seed=seed).last.weight for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_an_estimate_does_not_depend_on_the_number_of_threads_and_leaves_it_as_it_was():
    rng = torch.Generator().manual_seed(0)
    z = torch.randn(400, 4, generator=rng)
    before, estimates = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            estimates.append(mine.estimate(z + 0.5, z, steps=30, batch_size=64, hidden=16)[0])
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert estimates[0] == estimates[1]
