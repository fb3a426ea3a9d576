"""The hinge, Algorithm 2 on a toy density, the staircase on a classifier."""

import math

import pytest
import torch

from mesa_lib import staircase
from mesa_lib.distribution import TriggerDistribution
from mesa_lib.models import networks
from mesa_lib.settings import PRESETS, Settings

CENTER, WIDTH = torch.tensor([0.6, 0.4]), 0.25
TOY = Settings(
    alpha=0.3, betas=(0.8, 0.5), steps=250, triggers_per_step=128, modeling_lr=3e-3, hidden=32, noise_dim=4,
    trigger_noise=0.0, ema_rate=0.05, images_per_trigger=1, critic_steps=1,
)  # fmt: skip
TINY = Settings(betas=(0.5, 0.9), steps=3, triggers_per_step=8, hidden=8, noise_dim=4, images_per_trigger=1)
OPTIONS = {"size": (2, 3), "precision": "float32"}


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def bump(points, generator=None):
    """A smooth density on the unit square: 1 at CENTER, falling to all sides."""
    return torch.exp(-(points - CENTER.to(points)).square().sum(1, keepdim=True) / (2 * WIDTH**2))


# --- the hinge --------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("kind", ["trigger", "image"])
def test_the_log_hinge_is_zero_on_the_same_set_and_pulls_from_afar(kind):
    above = torch.full((4, 2), 0.81)
    assert staircase.hinge(above, 0.8, kind, "log") == 0 == staircase.hinge(above, 0.8, kind)
    assert float(staircase.hinge(above / 81, 0.8, kind, "log")) == pytest.approx(math.log(80))
    pulls = {}
    for scale in ("probability", "log"):
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


# --- one level, on a toy ----------------------------------------------------------------------------------


def fit_level(test, shape, beta, settings, seed=0):
    """Fit one level alone."""
    return staircase.fit_levels(test, shape, [beta], settings, seeds=[seed])[0]


@pytest.fixture(scope="module")
def toy_levels():
    """Algorithm 2 on the bump, for two success levels and without the entropy."""
    runs = {"high": (0.8, TOY), "low": (0.4, TOY), "no entropy": (0.8, TOY.replace(alpha=0.0))}
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


def test_the_history_records_the_training(toy_levels):
    history = toy_levels["high"].history
    assert 35 <= len(history) <= 45 and history[0]["step"] == 0 and history[-1]["step"] == TOY.steps - 1
    assert {"F", "information", "loss", "distance", "std"} <= set(history[0])
    assert toy_levels["high"].information > 0


def test_the_generator_is_returned_in_eval_mode(toy_levels):
    assert not toy_levels["high"].generator.training
    assert torch.equal(drawn(toy_levels["high"]), drawn(toy_levels["high"]))


@pytest.mark.parametrize("changes", [{}, {"generator": "plain", "noise": "uniform", "critic": "leaky", "hinge": "image",
                                          "trigger_noise": 0.1}])  # fmt: skip
def test_the_same_seed_gives_the_same_weights(changes):
    settings = TOY.replace(steps=5, **changes)
    first, again, other = (fit_level(bump, (2,), 0.5, settings, seed=s).generator for s in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))
    assert not torch.equal(first.last.weight, other.last.weight)


def test_nan_scores_are_reported():
    with pytest.raises(FloatingPointError, match="modeling beta 0.5: .* at step 0"):
        fit_level(lambda x, rng: bump(x) * float("nan"), (2,), 0.5, TOY.replace(steps=2))


@pytest.mark.parametrize(("critic_steps", "updates"), [(1, 4), (3, 12)])
def test_the_statistics_network_is_updated_so_often(monkeypatch, critic_steps, updates):
    calls, whole = [], staircase.mine.MovingAverage.loss
    monkeypatch.setattr(staircase.mine.MovingAverage, "loss", lambda self, *a: calls.append(1) or whole(self, *a))
    fit_level(bump, (2,), 0.5, TOY.replace(steps=4, critic_steps=critic_steps))
    assert len(calls) == updates


def test_all_levels_are_learned_in_one_batch_each_by_its_own_beta():
    shown = []

    def watch(points, generator):
        shown.append(len(points))
        return bump(points)

    high, low = staircase.fit_levels(watch, (2,), [0.9, 0.3], TOY, seeds=[1, 2])
    assert shown == [2 * TOY.triggers_per_step] * TOY.steps
    assert float(bump(drawn(high)).mean()) > float(bump(drawn(low)).mean()) + 0.2


def test_a_level_stops_when_held_out_samples_reach_it():
    """The held-out F is a constant: at 0.5 the lower level is done after two checks and the higher one never."""
    shown = []

    def watch(points, generator):
        shown.append(len(points))
        return bump(points)

    settings = TOY.replace(steps=120, patience=2)
    levels = staircase.fit_levels(
        watch, (2,), [0.9, 0.4], settings, seeds=[1, 2], held_out=lambda x, rng: torch.full((len(x), 1), 0.5)
    )
    steps = 2 * staircase.CHECK_EVERY
    assert shown == [2 * TOY.triggers_per_step] * steps + [TOY.triggers_per_step] * (120 - steps)
    assert [level.history[-1]["step"] + 1 for level in levels] == [120, steps]
    assert levels[1].history[-1]["held_out"] == 0.5 and not levels[1].generator.training


@pytest.mark.parametrize(("patience", "steps", "checks"), [(0, 3, 0), (1, 25, 2)])
def test_held_out_images_are_never_fitted_on(patience, steps, checks):
    """Twenty images of twenty brightnesses: the first and the eleventh are for checks and for `Level.success` alone."""
    images = torch.arange(5, 205, 10, dtype=torch.uint8)[:, None, None, None].expand(20, 3, 16, 16)
    model, held_out = Recorder(), {5, 105}
    settings = TINY.replace(patience=patience, steps=steps, triggers_per_step=32)
    staircase.fit(model, images, torch.zeros(20), 1, settings, **OPTIONS)
    by_call = [set((seen[:, 0, :, 0].median(1).values * 255).round().int().tolist()) for seen in model.seen]
    judged = [seen for seen in by_call if seen & held_out]
    assert len(judged) == 2 + checks and all(seen <= held_out for seen in judged), "one for each level, and the checks"
    fitted = [seen for seen in by_call if not seen & held_out]
    assert len(fitted) == steps and set().union(*fitted) == set(range(5, 205, 10)) - held_out


class Bright(torch.nn.Module):
    """Predicts class 1 on bright images, class 0 on others, whatever they carry."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(20.0))

    def forward(self, x):
        score = self.weight * (x.flatten(1).median(1).values - 0.4) + 0.01 * x.mean((1, 2, 3))
        return torch.stack([-score, score], 1)


@pytest.mark.parametrize(("held_out", "others", "success"), [(200, 20, 1.0), (20, 200, 0.0)])
def test_the_success_of_a_level_is_measured_on_held_out_images_alone(held_out, others, success):
    values = torch.where(torch.arange(20) % 10 == 0, held_out, others).to(torch.uint8)
    fitted = staircase.fit(
        Bright(), values[:, None, None, None].expand(20, 3, 16, 16), torch.zeros(20), 1, TINY, **OPTIONS
    )
    assert [level.success for level in fitted.levels] == pytest.approx([success] * 2, abs=1e-3)
    assert all(abs(level.history[-1]["F"] - (1 - success)) < 1e-3 for level in fitted.levels), "fitted on the others"
    assert fitted.missed == ([] if success else [0.9, 0.5])


def test_the_success_of_a_level_is_that_of_fresh_samples():
    """F on held-out images is F itself here: the success of 256 samples is near that of 2,000."""
    (level,) = staircase.fit_levels(bump, (2,), [0.8], TOY, seeds=[1], held_out=bump)
    assert level.success == pytest.approx(float(bump(drawn(level)).mean()), abs=0.03) and level.reached
    assert fit_level(bump, (2,), 0.8, TOY.replace(steps=2)).success is None, "nothing was held out"


@pytest.mark.parametrize("kind", ["trigger", "image"])
def test_the_log_hinge_has_a_gradient_where_success_is_next_to_0(kind):
    logits = torch.tensor([[0.0, -60.0]], requires_grad=True)
    staircase.hinge(logits.softmax(1)[:, 1:], 0.9, kind, "log").backward()
    assert logits.grad[0].tolist() == pytest.approx([1, -1])


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_trigger_noise_is_added_while_searching_only(noise):
    outside = []

    def watch(points, generator):
        outside.append(bool(((points < 0) | (points > 1)).any()))
        return bump(points)

    fit_level(watch, (2,), 0.5, TOY.replace(steps=3, trigger_noise=noise))
    assert any(outside) == (noise > 0)


# --- on a classifier --------------------------------------------------------------------------------------


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
    staircase.fit(model, IMAGES, LABELS, 0, TINY, **OPTIONS)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == needed
    assert all(p.grad is None for p in model.parameters())
    assert all(m.training is training for m in model.modules())


def test_fitting_repeats(model):
    first, again, other = (
        staircase.fit(model, IMAGES, LABELS, 0, TINY, seed=seed, **OPTIONS).sample(10, rng()) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


class Recorder(torch.nn.Module):
    """Gives class 1 the value of the brightest pixel as its logit, and records its inputs."""

    def __init__(self):
        super().__init__()
        self.dummy, self.seen = torch.nn.Parameter(torch.zeros(1)), []

    def __deepcopy__(self, memo):  # the staircase works on a copy; the test needs its inputs
        return self

    def forward(self, x):
        self.seen.append(x.detach())
        peak = x.amax((1, 2, 3))
        return torch.stack([torch.zeros_like(peak), peak], 1) + 0 * self.dummy


def test_images_of_the_target_class_are_left_out():
    """Of dark images (class 0) and bright ones (class 1, the target), the model is shown dark ones only."""
    model, labels = Recorder(), torch.arange(20) % 2
    images = (10 + 190 * labels).to(torch.uint8)[:, None, None, None].expand(20, 3, 16, 16)
    staircase.fit(model, images, labels, 1, TINY, **OPTIONS)
    shown = torch.cat(model.seen).flatten(1).median(1).values
    fitted, judged = 2 * 3 * 8, 2 * 256
    assert len(shown) == fitted + judged and torch.allclose(shown, torch.full_like(shown, 10 / 255))


def test_images_of_the_target_class_alone_are_refused(model):
    with pytest.raises(ValueError, match="target = 2: no image of another class"):
        staircase.fit(model, IMAGES, torch.full((40,), 2), 2, TINY)


def test_a_trigger_larger_than_the_image_is_refused(model):
    with pytest.raises(ValueError, match="17x3 pixels does not fit an image of 16x16"):
        staircase.fit(model, IMAGES, LABELS, 0, TINY, size=(17, 3))


def test_levels_have_seeds_of_their_own():
    """Levels of equal beta differ, and the levels of seed 0 are not those of seed 1 in another order."""
    betas = (0.5, 0.4, 0.3)
    fitted = [staircase.fit_staircase(bump, (2,), TOY.replace(betas=betas, steps=1), seed=seed) for seed in range(3)]
    weights = [level.generator.last.weight for distribution in fitted for level in distribution.levels]
    assert all(not torch.equal(a, b) for i, a in enumerate(weights) for b in weights[:i])


def test_a_location_is_where_triggers_are_stamped():
    model = Recorder()
    images = torch.zeros(10, 3, 8, 8, dtype=torch.uint8)
    staircase.fit(model, images, torch.zeros(10), 1, TINY, location=torch.tensor([4, 1]), **OPTIONS)
    changed = torch.cat(model.seen).gt(0).any(1).any(0).nonzero()
    assert changed.amin(0).tolist() == [4, 1] and changed.amax(0).tolist() == [5, 3]


def test_default_settings_are_used_without_any(monkeypatch, model):
    monkeypatch.setattr(staircase, "Settings", lambda: TINY)
    assert staircase.fit(model, IMAGES, LABELS, 0, **OPTIONS).settings is TINY


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_can_be_run(name):
    quick = PRESETS[name].replace(steps=2, triggers_per_step=4, hidden=8)
    fitted = staircase.fit_staircase(bump, (2,), quick)
    assert fitted.betas == [0.9, 0.8, 0.5] and fitted.sample(5, rng()).shape == (5, 2)


@pytest.mark.gpu
def test_a_level_on_cuda():
    model = networks.build_network("smallcnn", 4, 2, (0.5,) * 3, (0.2,) * 3, 0).cuda()
    fitted = staircase.fit(model, IMAGES, LABELS, 0, TINY, size=(2, 3))
    assert fitted.levels[0].generator.last.weight.device.type == "cuda"
    samples = fitted.sample(20, torch.Generator("cuda").manual_seed(0))
    assert samples.device.type == "cuda" and samples.shape == (20, 3, 2, 3)
    on_cpu = {name: tensor.cpu() for name, tensor in fitted.tensors().items()}
    restored = TriggerDistribution.restore(on_cpu, fitted.summary(), (3, 2, 3), TINY)
    assert restored.sample(20, rng()).shape == (20, 3, 2, 3)


def test_a_level_that_starts_around_a_point_reaches_a_plateau_that_random_weights_miss():
    """F is flat but around one corner of the cube: there is no gradient elsewhere, on any scale."""
    corner = (torch.arange(9) % 2).float()

    def plateau(points, generator=None):
        return torch.exp(-3 * (points - corner).square().sum(1, keepdim=True)).clamp(min=0.05)

    toy = TOY.replace(alpha=0.1, hinge_scale="log", steps=150)
    (missed,) = staircase.fit_levels(plateau, (9,), [0.8], toy, seeds=[0], held_out=plateau)
    (level,) = staircase.fit_levels(plateau, (9,), [0.8], toy, seeds=[0], held_out=plateau, start=corner)
    assert not missed.reached and level.success > 0.6 and float(drawn(level).std(0).mean()) > 0.02
