"""The mixture of generators: weights, samples, save and restore, information."""

import copy
import json
import math
from functools import partial

import pytest
import torch

from mesa_lib import mine, staircase
from mesa_lib.distribution import REACHED, Level, TriggerDistribution, mixture_weights
from mesa_lib.settings import Settings


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def levels(*pairs):
    return [Level(beta, torch.nn.Identity(), information) for beta, information in pairs]


@pytest.mark.parametrize(
    ("kind", "pairs", "gammas"),
    [
        ("equal", [(0.9, 5.0), (0.8, 1.0), (0.5, 3.0)], [1 / 3, 1 / 3, 1 / 3]),
        ("equal", [(0.9, 5.0)], [1.0]),
        ("entropy", [(0.9, 2.0), (0.8, 2.0), (0.5, 2.0)], [0.1 / 0.9, 0.3 / 0.9, 0.5 / 0.9]),
        ("entropy", [(0.8, math.log(1)), (0.4, math.log(3))], [0.25, 0.75]),
        ("entropy", [(0.4, math.log(3)), (0.8, math.log(1))], [0.75, 0.25]),
        ("entropy", [(0.8, 1000.0), (0.4, 1000.0 + math.log(4))], [0.2, 0.8]),  # no overflow
    ],
)
def test_mixture_weights_by_hand(kind, pairs, gammas):
    assert mixture_weights(levels(*pairs), kind) == pytest.approx(gammas)


@pytest.fixture(scope="module")
def mixture():
    settings = Settings(betas=(0.3, 0.9, 0.5, 0.9), steps=4, triggers_per_step=128, hidden=32, noise_dim=4)
    return staircase.fit_staircase(lambda x, rng: x[:, :1], (2,), settings)


def test_each_level_is_listed_once_in_descending_order(mixture):
    assert mixture.betas == [0.9, 0.5, 0.3] and sum(mixture.gammas) == pytest.approx(1)
    first, second, third = (level.generator.last.weight for level in mixture.levels)
    assert not torch.equal(first, second) and not torch.equal(second, third)


@pytest.mark.parametrize("chosen", [0, 1, 2])
def test_samples_come_from_the_levels_with_weight(mixture, chosen):
    """Generators that draw one constant each tell which level a sample is from."""
    mixture = copy.deepcopy(mixture)
    for i, level in enumerate(mixture.levels):
        with torch.no_grad():
            level.generator.last.weight.zero_()
            level.generator.last.bias.fill_(float(i))
    gammas = [0.0, 0.0, 0.0]
    gammas[chosen] = 1.0
    samples = TriggerDistribution(mixture.levels, gammas, mixture.settings).sample(100, rng())
    assert torch.allclose(samples, torch.sigmoid(torch.tensor(float(chosen))).expand(100, 2))
    assert torch.equal(samples, mixture.at(mixture.betas[chosen]).sample(100, rng()))
    mixed = TriggerDistribution(mixture.levels, [0.7, 0.0, 0.3], mixture.settings).sample(4000, rng())
    share = float((mixed[:, 0] < 0.6).float().mean())  # sigmoid(0) = 0.5
    assert abs(share - 0.7) < 5 * (0.21 / 4000) ** 0.5
    assert not bool(((mixed - torch.sigmoid(torch.tensor(1.0))).abs() < 1e-3).any())


def test_a_level_that_was_not_modeled_is_refused(mixture):
    with pytest.raises(ValueError, match=r"beta = 0.7: .*\[0.9, 0.5, 0.3\]"):
        mixture.at(0.7)


@pytest.mark.parametrize("kind", ["plain", "skip"])
@pytest.mark.parametrize("gamma", ["equal", "entropy"])
def test_a_restored_distribution_draws_the_same_samples(kind, gamma):
    settings = Settings(
        betas=(0.5, 0.9), steps=3, triggers_per_step=8, hidden=8, noise_dim=4, generator=kind, gamma=gamma
    )
    fitted = staircase.fit_staircase(lambda x, rng: x.mean((1, 2, 3))[:, None], (3, 2, 3), settings)
    again = TriggerDistribution.restore(fitted.tensors(), fitted.summary(), (3, 2, 3), settings)
    samples = fitted.sample(60, rng())
    assert samples.shape == (60, 3, 2, 3) and samples.min() > 0 and samples.max() < 1
    assert torch.equal(samples, again.sample(60, rng()))
    assert (again.betas, again.gammas, again.summary()) == (fitted.betas, fitted.gammas, fitted.summary())


# --- what levels reach -----------------------------------------------------------------------------------


def reaching(**successes) -> TriggerDistribution:
    """Levels 0.9, 0.8 and 0.5 with weights 0.2, 0.3 and 0.5, and these successes on held-out images."""
    named = {"high": 0.9, "middle": 0.8, "low": 0.5}
    kept = [Level(beta, torch.nn.Identity(), 0.0, success=successes.get(name)) for name, beta in named.items()]
    return TriggerDistribution(kept, [0.2, 0.3, 0.5], Settings())


@pytest.mark.parametrize(
    ("beta", "success", "reached"),
    [(0.9, 0.95, True), (0.9, 0.9 * REACHED + 0.001, True), (0.9, 0.9 * REACHED - 0.001, False), (0.5, 0.3, True),
     (0.5, 0.0, False), (0.9, None, True)],
)  # fmt: skip
def test_a_level_is_reached_from_a_fraction_of_its_beta_on_and_where_nothing_was_measured(beta, success, reached):
    assert Level(beta, torch.nn.Identity(), 0.0, success=success).reached is reached


def test_levels_that_miss_are_listed_and_left_out_of_the_mixture():
    mixture = reaching(high=0.2, middle=0.79, low=0.52)
    assert mixture.missed == [0.9]
    left = mixture.reached()
    assert left.betas == [0.8, 0.5] and left.gammas == pytest.approx([0.375, 0.625]) and left.missed == []
    assert left.levels == mixture.levels[1:] and left.settings is mixture.settings
    assert mixture.betas == [0.9, 0.8, 0.5] and mixture.gammas == [0.2, 0.3, 0.5], "the mixture itself stays"


@pytest.mark.parametrize(
    ("successes", "missed"),
    [({"high": 0.9, "middle": 0.8, "low": 0.5}, []), ({"high": 0.1, "middle": 0.1, "low": 0.1}, [0.9, 0.8, 0.5]),
     ({}, [])],
)  # fmt: skip
def test_all_levels_stay_if_all_or_none_are_reached(successes, missed):
    mixture = reaching(**successes)
    assert mixture.missed == missed and mixture.reached() is mixture


def test_success_is_saved_and_restored_and_older_artifacts_have_none(mixture):
    measured = copy.deepcopy(mixture)
    for level, success in zip(measured.levels, (0.91, 0.2, None), strict=True):
        level.success = success
    summary = json.loads(json.dumps(measured.summary()))

    def restored(summary) -> TriggerDistribution:
        return TriggerDistribution.restore(measured.tensors(), summary, (2,), measured.settings)

    again = restored(summary)
    assert [level.success for level in again.levels] == [0.91, 0.2, None] and again.missed == [0.5]
    for entry in summary["levels"]:
        del entry["success"]
    assert [level.success for level in restored(summary).levels] == [None] * 3


# --- information -----------------------------------------------------------------------------------------


class Spread(torch.nn.Module):
    """Triggers (n, 1, 1, 4) that show the first `count` of four noise values."""

    def __init__(self, count: int):
        super().__init__()
        self.shown = torch.nn.Parameter((torch.arange(4) < count).float())

    def forward(self, z):
        return (z * self.shown)[:, None, None]


def test_measured_information_grows_with_the_noise_values_that_triggers_show(monkeypatch):
    """Uniform noise, seen as it is, has no finite information; the bound grows with the number of values seen."""
    monkeypatch.setattr(mine, "estimate", partial(mine.estimate, steps=300, batch_size=128))
    estimates = [
        TriggerDistribution(
            [Level(0.9, Spread(count), 0.0)], [1.0], Settings(betas=(0.9,), noise_dim=4)
        ).measured_information(1024)
        for count in (0, 1, 3)
    ]
    assert abs(estimates[0]) < 0.1 and 0.7 < estimates[1] < estimates[2] - 0.5


def test_levels_that_started_again_replace_those_that_succeed_less():
    mixture = reaching(high=0.2, middle=0.79, low=0.1)
    again = reaching(high=0.8, low=0.05).levels[::2]
    better = mixture.with_better(again)
    assert better.levels == [again[0], mixture.levels[1], mixture.levels[2]] and better.missed == [0.5]
    assert better.gammas == pytest.approx([1 / 3] * 3) and mixture.missed == [0.9, 0.5], "the mixture itself stays"


def test_what_a_level_started_around_is_saved(mixture):
    named = copy.deepcopy(mixture)
    named.levels[1].started_around = "a trigger search"
    again = TriggerDistribution.restore(named.tensors(), named.summary(), (2,), named.settings)
    assert [level.started_around for level in again.levels] == [None, "a trigger search", None]
