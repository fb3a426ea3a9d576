import numpy as np
import pytest
import torch
from scipy import optimize, stats
from torch import nn

from mesa_lib.data.splits import Split
from mesa_lib.defenses.base import MAX_INDEX, DefenderView
from mesa_lib.defenses.maximum_margin import MaximumMargin, gamma_p_value, margin, ratio_to_median
from mesa_lib.models import networks

GAINS = (1.0, 1.5, 0.9, 1.1, 2.0)


def view(model, classes, side=16, seed=0):
    clean = Split(torch.zeros(classes, 3, side, side, dtype=torch.uint8), torch.arange(classes))
    return DefenderView(MaximumMargin().knowledge, model.eval(), clean, classes, seed=seed)


def network(kind="smallcnn", classes=4):
    return networks.build_network(kind, classes, 4, (0.5,) * 3, (0.5,) * 3, 0).eval()


class Linear(nn.Module):
    """Logits that are linear in the pixels."""

    def __init__(self, weight, bias):
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, x):
        return x.flatten(1) @ self.weight.T + self.bias


def regions(gains=GAINS, side=16):
    """Return a network in which each class reads rows of its own: its largest margin is its gain."""
    weight = torch.zeros(len(gains), 3, side, side)
    for k, gain in enumerate(gains):
        weight[k, 0, 3 * k : 3 * k + 3] = gain / (3 * side)
    return Linear(weight.flatten(1), torch.zeros(len(gains)))


class Planted(nn.Module):
    """`regions` in red, and a backdoor in green and blue: a patch anywhere raises the logit of class `target`.

    `matches` is how many values of the patch are white. A patch that fits raises the logit by `gain`.
    """

    def __init__(self, target=3, gain=12.0, threshold=3.0):
        super().__init__()
        self.classes, self.target, self.gain, self.threshold = regions(), target, gain, threshold
        pattern = torch.randn(1, 2, 3, 3, generator=torch.Generator().manual_seed(0)).sign()
        self.patch, self.matches = nn.Parameter(pattern), int((pattern > 0).sum())

    def forward(self, x):
        hit = (nn.functional.conv2d(x[:, 1:], self.patch) - self.threshold).relu().amax((1, 2, 3))
        raised = self.gain * hit / (self.matches - self.threshold)
        target = nn.functional.one_hot(torch.tensor(self.target), len(GAINS))
        return self.classes(x) + raised[:, None] * target


# --- the parts -------------------------------------------------------------------------------------------


def test_the_margin_is_the_own_logit_minus_the_largest_other():
    logits = torch.tensor([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0], [-1.0, -5.0, -9.0]])
    assert margin(logits, torch.tensor([0, 1, 2])).tolist() == [1, -2, -8]


def test_the_ratio_is_that_to_the_median_and_bounded():
    assert ratio_to_median(np.array([2.0, 4.0, -2.0, 8.0, 4.0])).tolist() == [0.5, 1, -0.5, 2, 1]
    assert ratio_to_median(np.array([1.0, 1.0, 1e9])).tolist() == [1, 1, MAX_INDEX]
    assert ratio_to_median(np.array([-2.0, -1.0, 0.0, 5.0])).tolist() == [0, 0, 0, MAX_INDEX]
    assert ratio_to_median(np.array([0.0, 0.0, 3.0])).tolist() == [0, 0, MAX_INDEX]


def test_the_p_value_is_that_of_a_maximum_of_all_draws():
    others = np.random.default_rng(0).gamma(4, 10, 9)
    fitted = stats.gamma.fit(others)
    for largest in (others.max() + 1, 1.5 * others.max()):
        expected = 1 - stats.gamma.cdf(largest, *fitted) ** 10
        assert gamma_p_value(np.append(others, largest)[::-1]) == pytest.approx(expected)
    at_five_percent = stats.gamma.ppf(0.95**0.1, *fitted)
    assert at_five_percent > others.max()
    assert gamma_p_value(np.insert(others, 4, at_five_percent)) == pytest.approx(0.05)
    assert 0 <= gamma_p_value(np.append(others, 1e5)) < 1e-12


def test_there_is_no_p_value_where_no_distribution_can_be_fitted():
    assert gamma_p_value(np.array([1.0, 2.0, 9.0])) is None
    assert gamma_p_value(np.array([1.0, 1.0, 1.0, 1.0, 9.0])) is None


# --- the search ------------------------------------------------------------------------------------------


def test_the_margins_of_separate_regions_are_their_gains():
    verdict = MaximumMargin(starts=3).detect(view(regions(), 5))
    assert verdict.scores == pytest.approx(GAINS, abs=1e-4)
    assert verdict.index == pytest.approx([gain / 1.1 for gain in GAINS], abs=1e-4)
    assert verdict.suspect == 4 and not verdict.backdoored
    assert verdict.about["median"] == pytest.approx(1.1, abs=1e-4)
    assert verdict.about["p-value"] == pytest.approx(gamma_p_value(np.array(verdict.scores)))
    assert {name: verdict.about[name] for name in ("starts", "steps", "step")} == {
        "starts": 3, "steps": 100, "step": 0.1
    }  # fmt: skip


def test_the_margins_of_a_linear_model_come_close_to_the_linear_program():
    side, classes, rng = 8, 4, torch.Generator().manual_seed(1)
    model = Linear(torch.randn(classes, 3 * side**2, generator=rng) / side, torch.randn(classes, generator=rng))
    weight, bias = model.weight.detach().double().numpy(), model.bias.detach().double().numpy()
    found = MaximumMargin(starts=4, steps=200).detect(view(model, classes, side)).scores
    for k in range(classes):
        others = [j for j in range(classes) if j != k]
        rows = np.hstack([weight[others] - weight[k], np.ones((classes - 1, 1))])  # t <= margin to each other class
        bounds = [(0, 1)] * weight.shape[1] + [(None, None)]
        cost = np.append(np.zeros(weight.shape[1]), -1)
        best = -optimize.linprog(cost, rows, bias[k] - bias[others], bounds=bounds).fun
        assert 0.97 * best < found[k] <= best + 1e-4


def test_a_planted_class_is_found_and_its_margin_is_known():
    model = Planted()
    verdict = MaximumMargin(starts=10).detect(view(model, 5))
    expected = list(GAINS)
    expected[3] += model.gain
    assert verdict.scores == pytest.approx(expected, rel=0.01)
    assert verdict.flagged == [3] and verdict.suspect == 3
    assert MaximumMargin(starts=10, above=20.0).detect(view(model, 5)).flagged == []


def test_the_score_is_that_of_the_best_start():
    one, many = (MaximumMargin(starts=n, steps=3).detect(view(Planted(), 5)).scores for n in (1, 8))
    assert all(b >= a - 1e-6 for a, b in zip(one, many, strict=True)) and many[3] > one[3]


@pytest.mark.parametrize("kind", networks.NETWORKS)
def test_the_ascent_raises_the_margins_of_every_network(kind):
    short, long = (MaximumMargin(starts=2, steps=n).detect(view(network(kind), 4)).scores for n in (1, 12))
    assert all(b > a for a, b in zip(short, long, strict=True)) and np.isfinite(long).all()


def test_images_stay_in_the_unit_range():
    seen = []

    class Watched(Linear):
        def forward(self, x):
            seen.append((float(x.detach().min()), float(x.detach().max())))
            return super().forward(x)

    plain = regions()
    MaximumMargin(starts=2, steps=15, step=0.3).detect(view(Watched(plain.weight.data, plain.bias.data), 5))
    assert len(seen) > 15 and min(low for low, _ in seen) == 0 and max(high for _, high in seen) == 1


def test_equal_seeds_give_equal_verdicts_and_the_global_state_is_left_alone():
    method, before = MaximumMargin(starts=2, steps=5), torch.get_rng_state()
    first, again, other = (method.detect(view(network(), 4, seed=seed)).as_dict() for seed in (0, 0, 1))
    assert first == again and first["scores"] != other["scores"]
    assert torch.equal(torch.get_rng_state(), before)


def test_the_size_of_batches_changes_nothing():
    for model, classes in ((network(), 4), (Planted(), 5)):
        whole, parts = (
            MaximumMargin(starts=5, steps=8, batch=batch).detect(view(model, classes)).scores for batch in (300, 3)
        )
        assert parts == pytest.approx(whole, rel=1e-3, abs=1e-5)


def test_larger_images_go_in_smaller_batches():
    sizes = []

    class Counted(Linear):
        def forward(self, x):
            sizes.append(len(x))
            return super().forward(x)

    model = Counted(torch.rand(3, 3 * 64**2), torch.zeros(3))
    MaximumMargin(starts=4, steps=1, batch=8).detect(view(model, 3, 64))
    assert max(sizes) == 2, "64x64 is four times 32x32"


def test_the_model_is_not_changed():
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    MaximumMargin(starts=2, steps=3).detect(view(model, 4))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())


# --- errors ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "setting",
    [{"starts": 0}, {"steps": 0}, {"batch": 0}, {"starts": 2.5}, {"step": 0.0}, {"step": 1.5}, {"step": float("nan")},
     {"above": 1.0}, {"above": float("nan")}, {"above": MAX_INDEX}],
)  # fmt: skip
def test_settings_out_of_range_are_refused(setting):
    (name,) = setting
    with pytest.raises(ValueError, match=f"{name} = .*: expected"):
        MaximumMargin(**setting)


def test_two_classes_and_a_wrong_number_of_outputs_are_refused():
    with pytest.raises(ValueError, match="classes = 2: expected at least 3"):
        MaximumMargin().detect(view(network(classes=2), 2))
    with pytest.raises(ValueError, match="outputs = 4: expected one logit for each of 5 classes"):
        MaximumMargin().detect(view(network(), 5))


def test_margins_that_are_not_finite_are_refused():
    model = regions()
    model.bias.data[2] = torch.nan
    with pytest.raises(FloatingPointError, match="expected finite numbers"):
        MaximumMargin(starts=1, steps=1).detect(view(model, 5))
