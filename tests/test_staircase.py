import copy
import math
from dataclasses import replace
from functools import partial

import pytest
import torch

from mesa_lib import distribution
from mesa_lib import mine
from mesa_lib import settings
from mesa_lib import staircase
from mesa_lib import success
from mesa_lib.models import networks
from mesa_lib.distribution import Level
from mesa_lib.settings import Settings
from mesa_lib.distribution import TriggerDistribution

CENTRE, WIDTH = torch.tensor([0.6, 0.4]), 0.25
TOY = Settings(
    alpha=0.3, betas=(0.8, 0.5), steps=250, batch=128, lr=3e-3, hidden=32, noise_dim=4, trigger_noise=0.0,
    ema_rate=0.05, images_per_trigger=1, critic_steps=1,
)  # fmt: skip
TINY = Settings(betas=(0.5, 0.9), steps=3, batch=8, hidden=8, noise_dim=4, trigger_size=(2, 3), images_per_trigger=1)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def bump(points, generator=None):
    """A smooth density on the unit square: 1 at CENTRE, falling to all sides."""
    return torch.exp(-(points - CENTRE.to(points)).square().sum(1, keepdim=True) / (2 * WIDTH**2))


# --- the hinge and the weights ---------------------------------------------------------------------------

SCORES = torch.tensor([[0.9, 0.3], [0.4, 0.0]])  # two triggers on two images


@pytest.mark.parametrize(
    ("kind", "beta", "loss"),
    [
        ("trigger", 0.5, 0.15),  # means 0.6 and 0.2: (0 + 0.3) / 2
        ("image", 0.5, 0.2),  # (0 + 0.2 + 0.1 + 0.5) / 4
        ("trigger", 0.8, 0.4),
        ("image", 0.8, 0.425),
        ("trigger", 0.1, 0.0),
        ("image", 0.1, 0.025),
    ],
)
def test_the_hinge_by_hand(kind, beta, loss):
    assert float(staircase.hinge(SCORES, beta, kind)) == pytest.approx(loss)


@pytest.mark.parametrize("kind", staircase.HINGES)
def test_the_log_hinge_is_zero_on_the_same_set_and_pulls_from_afar(kind):
    above = torch.full((4, 2), 0.81)
    assert staircase.hinge(above, 0.8, kind, "log") == 0 == staircase.hinge(above, 0.8, kind)
    assert float(staircase.hinge(above / 81, 0.8, kind, "log")) == pytest.approx(math.log(80))
    pulls = {}
    for scale in staircase.SCALES:
        logit = torch.full((1, 1), -9.0, requires_grad=True)  # F of about 1e-4
        staircase.hinge(torch.sigmoid(logit), 0.8, kind, scale).backward()
        pulls[scale] = float(-logit.grad)
    assert pulls["log"] == pytest.approx(1, rel=0.01) and pulls["probability"] < 2e-4


def test_with_one_image_a_trigger_both_hinges_agree():
    scores = torch.rand(50, 1, generator=rng())
    assert staircase.hinge(scores, 0.7, "trigger") == staircase.hinge(scores, 0.7, "image")


def test_a_trigger_above_the_level_is_pushed_no_further():
    scores = SCORES.clone().requires_grad_()
    staircase.hinge(scores, 0.5, "trigger").backward()
    assert torch.equal(scores.grad[0], torch.zeros(2)) and bool((scores.grad[1] < 0).all())


def levels(*known):
    return [Level(beta, torch.nn.Identity(), information) for beta, information in known]


@pytest.mark.parametrize(
    ("law", "known", "gammas"),
    [
        ("equal", [(0.9, 5.0), (0.8, 1.0), (0.5, 3.0)], [1 / 3, 1 / 3, 1 / 3]),
        ("equal", [(0.9, 5.0)], [1.0]),
        ("entropy", [(0.9, 2.0), (0.8, 2.0), (0.5, 2.0)], [0.1 / 0.9, 0.3 / 0.9, 0.5 / 0.9]),
        ("entropy", [(0.8, math.log(1)), (0.4, math.log(3))], [0.25, 0.75]),
        ("entropy", [(0.4, math.log(3)), (0.8, math.log(1))], [0.75, 0.25]),
        ("entropy", [(0.8, 1000.0), (0.4, 1000.0 + math.log(4))], [0.2, 0.8]),  # no overflow
    ],
)
def test_mixture_weights_by_hand(family, known, gammas):
    assert distribution.mixture_weights(levels(*known), family) == pytest.approx(gammas)


# --- one level, on a toy ---------------------------------------------------------------------------------


def fit_level(test, shape, beta, settings, seed=0):
    """One level alone."""
    return staircase.fit_levels(test, shape, [beta], settings, seeds=[seed])[0]


@pytest.fixture(scope="module")
def toy_levels():
    """Algorithm 2 on the bump, for two success levels and without the entropy."""
    runs = {"high": (0.8, TOY), "low": (0.4, TOY), "no entropy": (0.8, replace(TOY, alpha=0.0))}
    return {name: fit_level(bump, (2,), beta, s, seed=1) for name, (beta, s) in runs.items()}


def drawn(level, n=2000):
    with torch.no_grad():
        return level.generator(torch.randn(n, TOY.noise_dim, generator=rng(5)))


@pytest.mark.parametrize("name", ["high", "low", "no entropy"])
def test_a_level_reaches_its_success(toy_levels, name):
    level = toy_levels[name]
    assert float(bump(drawn(level)).mean()) > level.beta - 0.1
    assert level.history[-1]["F"] > level.history[0]["F"] or level.history[0]["F"] > level.beta


def test_the_entropy_spreads_the_samples(toy_levels):
    with_entropy, without = (drawn(toy_levels[name]).std(0).mean() for name in ("high", "no entropy"))
    assert with_entropy > 1.3 * without


def test_a_lower_level_is_wider(toy_levels):
    assert drawn(toy_levels["low"]).std(0).mean() > drawn(toy_levels["high"]).std(0).mean()


def test_history_tells_how_it_went(toy_levels):
    history = toy_levels["high"].history
    assert 35 <= len(history) <= 45 and history[0]["step"] == 0 and history[-1]["step"] == TOY.steps - 1
    assert {"F", "information", "loss", "distance", "std"} <= set(history[0])
    assert toy_levels["high"].information > 0


def test_the_generator_is_handed_over_ready_for_use(toy_levels):
    assert not toy_levels["high"].generator.training
    assert torch.equal(drawn(toy_levels["high"]), drawn(toy_levels["high"]))


@pytest.mark.parametrize("changes", [{}, {"generator": "plain", "noise": "uniform", "critic": "leaky", "hinge": "image",
                                          "trigger_noise": 0.1}])  # fmt: skip
def test_the_same_seed_gives_the_same_weights(changes):
    settings = replace(TOY, steps=5, **changes)
    first, again, other = (fit_level(bump, (2,), 0.5, settings, seed=s).generator for s in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))
    assert not torch.equal(first.last.weight, other.last.weight)


def test_nan_scores_are_reported():
    with pytest.raises(FloatingPointError, match="modeling beta 0.5: .* at step 0"):
        fit_level(lambda x, rng: bump(x) * float("nan"), (2,), 0.5, replace(TOY, steps=2))


@pytest.mark.parametrize(("critic_steps", "updates"), [(1, 4), (3, 12)])
def test_the_statistics_network_is_updated_so_often(monkeypatch, critic_steps, updates):
    calls, whole = [], staircase.mine.MovingAverage.loss
    monkeypatch.setattr(staircase.mine.MovingAverage, "loss", lambda self, *a: calls.append(1) or whole(self, *a))
    fit_level(bump, (2,), 0.5, replace(TOY, steps=4, critic_steps=critic_steps))
    assert len(calls) == updates


def test_all_levels_are_learnt_in_one_batch_each_by_its_own_level():
    shown = []

    def watch(points, generator):
        shown.append(len(points))
        return bump(points)

    high, low = staircase.fit_levels(watch, (2,), [0.9, 0.3], TOY, seeds=[1, 2])
    assert shown == [2 * TOY.batch] * TOY.steps
    assert float(bump(drawn(high)).mean()) > float(bump(drawn(low)).mean()) + 0.2


def test_a_level_stops_when_held_out_samples_reach_it():
    """The held-out F is a constant: at 0.5 the lower level is done after two looks and the higher one never."""
    shown = []

    def watch(points, generator):
        shown.append(len(points))
        return bump(points)

    settings = replace(TOY, steps=120, patience=2)
    levels = staircase.fit_levels(
        watch, (2,), [0.9, 0.4], settings, seeds=[1, 2], held_out=lambda x, rng: torch.full((len(x), 1), 0.5)
    )
    steps = 2 * staircase.CHECK_EVERY
    assert shown == [2 * TOY.batch] * steps + [TOY.batch] * (120 - steps)
    assert [level.history[-1]["step"] + 1 for level in levels] == [120, steps]
    assert levels[1].history[-1]["held_out"] == 0.5 and not levels[1].generator.training


def test_without_patience_no_image_is_held_out():
    """Ten images of ten brightnesses: all are seen without the early stop, the held-out one apart with it."""
    images = torch.arange(5, 105, 10, dtype=torch.uint8)[:, None, None, None].expand(10, 3, 16, 16)
    for patience in (0, 1):
        model = Recorder()
        settings = replace(TINY, patience=patience, steps=25 if patience else 3, batch=32)
        staircase.fit(model, images, torch.zeros(10), 1, settings, precision="float32")
        by_call = [set((seen[:, 0, :, 0].median(1).values * 255).round().int().tolist()) for seen in model.seen]
        if patience:
            held = by_call[-1] if len(by_call[-1]) == 1 else by_call[-2]
            assert held == {5} and not any(held & seen for seen in by_call if len(seen) > 1)
        else:
            assert set().union(*by_call) == set(range(5, 105, 10))


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_trigger_noise_is_added_while_searching_only(noise):
    outside = []

    def watch(points, generator):
        outside.append(bool(((points < 0) | (points > 1)).any()))
        return bump(points)

    fit_level(watch, (2,), 0.5, replace(TOY, steps=3, trigger_noise=noise))
    assert any(outside) == (noise > 0)


# --- the staircase ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mixture():
    return staircase.fit_staircase(bump, (2,), replace(TOY, betas=(0.3, 0.9, 0.5, 0.9), steps=4))


def test_levels_stand_once_in_falling_order(mixture):
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


# --- on a classifier -------------------------------------------------------------------------------------


@pytest.fixture
def model():
    return networks.build_network("smallcnn", 4, 2, (0.5,) * 3, (0.2,) * 3, 0)


IMAGES = torch.randint(0, 256, (40, 3, 16, 16), generator=rng(), dtype=torch.uint8)
LABELS = torch.arange(40) % 4


@pytest.mark.parametrize("training", [True, False])
def test_the_classifier_is_left_as_it_was(model, training):
    model.train(training)
    model.head.bias.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    needed = [p.requires_grad for p in model.parameters()]
    staircase.fit(model, IMAGES, LABELS, 0, TINY, precision="float32")
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == needed
    assert all(p.grad is None for p in model.parameters())
    assert all(m.training is training for m in model.modules())


@pytest.mark.parametrize("kind", ["plain", "skip"])
@pytest.mark.parametrize("gamma", ["equal", "entropy"])
def test_a_restored_distribution_draws_the_same_samples(model, kind, gamma):
    settings = replace(TINY, generator=kind, gamma=gamma)
    fitted = staircase.fit(model, IMAGES, LABELS, 0, settings, precision="float32")
    again = TriggerDistribution.restore(fitted.tensors(), fitted.summary(), (3, 2, 3), settings)
    samples = fitted.sample(60, rng())
    assert samples.shape == (60, 3, 2, 3) and samples.min() > 0 and samples.max() < 1
    assert torch.equal(samples, again.sample(60, rng()))
    assert (again.betas, again.gammas, again.summary()) == (fitted.betas, fitted.gammas, fitted.summary())


def test_fitting_repeats(model):
    first, again, other = (
        staircase.fit(model, IMAGES, LABELS, 0, replace(TINY, seed=seed), precision="float32").sample(10, rng())
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


class Recorder(torch.nn.Module):
    """Answers class 1 by the brightness of the brightest pixel, and keeps what it was shown."""

    def __init__(self):
        super().__init__()
        self.dummy, self.seen = torch.nn.Parameter(torch.zeros(1)), []

    def __deepcopy__(self, memo):  # the staircase works on a copy; what it sees is looked at here
        return self

    def forward(self, x):
        self.seen.append(x.detach())
        peak = x.amax((1, 2, 3))
        return torch.stack([torch.zeros_like(peak), peak], 1) + 0 * self.dummy


@pytest.mark.parametrize("m", [1, 5])
@pytest.mark.parametrize("place", staircase.PLACES)
def test_success_is_the_softmax_of_the_target_on_stamped_images(location, m):
    model, settings = Recorder(), replace(TINY, location=location, images_per_trigger=m, trigger_size=(1, 1))
    images = torch.zeros(7, 3, 16, 16, dtype=torch.uint8)
    values = torch.linspace(0.2, 1, 30)
    test = success.success_function(model, images, 1, settings, "float32")
    scores = test(values.reshape(30, 1, 1, 1).expand(30, 3, 1, 1), rng())
    assert torch.allclose(scores, torch.sigmoid(values)[:, None].expand(30, m))
    (shown,) = model.seen
    where = set(shown[:, 0].flatten(1).argmax(1).tolist())
    assert len(shown) == 30 * m and (len(where) == 1 if location == "batch" else len(where) > 15)


def test_images_of_the_target_class_are_left_out():
    """Of dark images (class 0) and bright ones (class 1, the target), the model is shown dark ones only."""
    model, labels = Recorder(), torch.arange(20) % 2
    images = (10 + 190 * labels).to(torch.uint8)[:, None, None, None].expand(20, 3, 16, 16)
    staircase.fit(model, images, labels, 1, TINY, precision="float32")
    shown = torch.cat(model.seen).flatten(1).median(1).values
    assert len(shown) == 2 * 3 * 8 and torch.allclose(shown, torch.full_like(shown, 10 / 255))


def test_images_of_the_target_class_alone_are_refused(model):
    with pytest.raises(ValueError, match="target = 2: no image of another class"):
        staircase.fit(model, IMAGES, torch.full((40,), 2), 2, TINY)


def test_a_trigger_larger_than_the_image_is_refused(model):
    with pytest.raises(ValueError, match="17x3 pixels does not fit an image of 16x16"):
        staircase.fit(model, IMAGES, LABELS, 0, replace(TINY, trigger_size=(17, 3)))


# --- settings --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [("generator", "gan"), ("noise", "cauchy"), ("critic", "relu"), ("hinge", "both"), ("place", "corner"),
     ("gamma", "none"), ("scale", "odd"), ("betas", ()), ("betas", (0.9, 0.0)), ("betas", (1.1,)), ("betas", (-0.5,)),
     ("betas", (float("nan"),))],
)  # fmt: skip
def test_bad_settings_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"{name} = "):
        Settings(**{name: value})


@pytest.mark.parametrize("name", sorted(settings.PRESETS))
def test_presets_can_be_run(name):
    quick = replace(settings.PRESETS[name], steps=2, batch=4, hidden=8)
    fitted = staircase.fit_staircase(bump, (2,), quick)
    assert fitted.betas == [0.9, 0.8, 0.5] and fitted.sample(5, rng()).shape == (5, 2)


def overrides(settings, other):
    """The settings in which `other` differs: name -> value."""
    return {name: value for name, value in vars(other).items() if vars(settings)[name] != value}


def test_presets_differ_where_text_and_code_do():
    official, paper = settings.PRESETS["official"], settings.PRESETS["paper"]
    expected = {"generator", "noise", "critic", "hinge", "trigger_noise", "place", "gamma"}
    assert set(overrides(official, paper)) == expected
    assert replace(official, **overrides(official, paper)) == paper
    assert overrides(paper, paper) == {}


@pytest.mark.gpu
def test_a_level_on_cuda():
    model = networks.build_network("smallcnn", 4, 2, (0.5,) * 3, (0.2,) * 3, 0).cuda()
    fitted = staircase.fit(model, IMAGES, LABELS, 0, TINY)
    assert fitted.levels[0].generator.last.weight.device.type == "cuda"
    samples = fitted.sample(20, torch.Generator("cuda").manual_seed(0))
    assert samples.device.type == "cuda" and samples.shape == (20, 3, 2, 3)
    on_cpu = {name: tensor.cpu() for name, tensor in fitted.tensors().items()}
    restored = TriggerDistribution.restore(on_cpu, fitted.summary(), (3, 2, 3), TINY)
    assert restored.sample(20, rng()).shape == (20, 3, 2, 3)


class Spread(torch.nn.Module):
    """Triggers (n, 1, 1, 4) that show the first `known` of four noise values."""

    def __init__(self, known: int):
        super().__init__()
        self.shown = torch.nn.Parameter((torch.arange(4) < known).float())

    def forward(self, z):
        return (z * self.shown)[:, None, None]


def test_measured_information_grows_with_what_the_triggers_tell_of_the_noise(monkeypatch):
    """Uniform noise, seen as it is, has no finite information; the bound grows with the number of values seen."""
    monkeypatch.setattr(mine, "estimate", partial(mine.estimate, steps=300, batch_size=128))
    found = [
        TriggerDistribution(
            [Level(0.9, Spread(known), 0.0)], [1.0], Settings(betas=(0.9,), noise_dim=4)
        ).measured_information(1024)
        for known in (0, 1, 3)
    ]
    assert abs(found[0]) < 0.1 and 0.7 < found[1] < found[2] - 0.5


# --- at one place ----------------------------------------------------------------------------------------


class Window(torch.nn.Module):
    """The classes' logits are means of red in three windows of 4x4."""

    at = ((0, 0), (4, 4), (0, 4))

    def forward(self, x):
        return torch.stack([x[:, 0, r : r + 4, c : c + 4].mean((1, 2)) for r, c in self.at], 1)


def test_triggers_are_stamped_where_the_testing_function_is_told():
    images, white = torch.zeros(5, 3, 8, 8, dtype=torch.uint8), torch.ones(2, 3, 4, 4)
    settings = Settings(trigger_size=(4, 4), images_per_trigger=3)
    full, empty = math.e / (math.e + 2), 1 / (math.e + 2)
    for location, value in (((4, 4), full), ((0, 0), empty)):
        test = success.success_function(Window(), images, 1, settings, "float32", torch.tensor(location))
        assert torch.allclose(test(white, rng()), torch.full((2, 3), value))


def test_a_target_without_images_of_other_classes_is_refused():
    images, labels = torch.zeros(3, 3, 8, 8, dtype=torch.uint8), torch.tensor([1, 1, 1])
    with pytest.raises(ValueError, match="target = 1: no image of another class"):
        success.success_function(Window(), images, labels, [0, 1], Settings(trigger_size=(4, 4)), "float32")


def test_every_target_can_have_a_place_of_its_own():
    images, labels = torch.zeros(6, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 2] * 2)
    settings = Settings(trigger_size=(4, 4), images_per_trigger=2)
    test = success.success_function(
        Window(), images, labels, [1, 2], settings, "float32", torch.tensor([[4, 4], [0, 0]])
    )
    found = test(torch.ones(4, 3, 4, 4), rng())  # the first two are judged by class 1, at its window
    full, empty = math.e / (math.e + 2), 1 / (math.e + 2)
    assert torch.allclose(found, torch.tensor([full, full, empty, empty])[:, None].expand(4, 2))
