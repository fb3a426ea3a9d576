import time

import numpy as np
import pytest
import torch

from mesa_lib.attacks import trojannet
from mesa_lib.defenses import base
from mesa_lib.defenses import dl_tnd
from mesa_lib.defenses import registry
from mesa_lib.models import networks
from mesa_lib.data import Split
from mesa_lib.defenses.base import DefenderView
from mesa_lib.defenses.base import Knowledge
from mesa_lib.defenses.base import SearchCache
from mesa_lib.defenses.deepinspect import DeepInspect
from mesa_lib.defenses.deepinspect import deviation_factor
from mesa_lib.defenses.df_tnd import Passing
from mesa_lib.defenses.df_tnd import project_to_simplex
from mesa_lib.defenses.df_tnd import with_straight_through
from mesa_lib.defenses.neural_cleanse import NeuralCleanse
from mesa_lib.defenses.neural_cleanse import InvertedTriggers
from mesa_lib.defenses.neural_cleanse import Unlearning
from mesa_lib.defenses.mesa.screening import fit_and_holdout
from mesa_lib.defenses.squeezing import BitDepth
from mesa_lib.defenses.squeezing import FeatureSqueezing
from mesa_lib.defenses.squeezing import Median
from mesa_lib.defenses.squeezing import NonLocalMeans
from mesa_lib.defenses.strip import OVERLAYS
from mesa_lib.defenses.strip import STRIP


def victim():
    return networks.build_network("smallcnn", 4, 4, (0.5,) * 3, (0.5,) * 3, 0).eval()


def clean(n=40):
    rng = torch.Generator().manual_seed(0)
    return Split(torch.randint(0, 256, (n, 3, 16, 16), generator=rng, dtype=torch.uint8), torch.arange(n) % 4)


def given(**knows):
    return DefenderView(Knowledge(**knows), victim(), clean(), 4, target=2, size=(3, 3), train=lambda *a: [])


# --- what a defense may know -----------------------------------------------------------------------------


def test_a_method_gets_what_it_declares():
    handed = given(model="weights", images=None, target=True, size=True)
    assert handed.target == 2 and handed.size == (3, 3) and len(handed.clean) == 40
    assert isinstance(handed.model, torch.nn.Module) and handed.train(None, None) == []


@pytest.mark.parametrize("name", ["model", "target", "size", "train", "trigger", "attack", "evaluation"])
def test_what_was_not_declared_is_not_there(name):
    with pytest.raises(base.UndeclaredAccess, match=f"{name}: not among what the method declares .outputs"):
        getattr(given(model="outputs"), name)


def test_no_images_are_handed_to_a_method_that_declares_none():
    with pytest.raises(base.UndeclaredAccess, match="clean"):
        _ = given(model="gradients", images=0).clean


def test_the_number_of_images_is_kept_and_drawn_by_the_seed():
    knows = Knowledge("outputs", images=10)
    first, again, other = (DefenderView(knows, victim(), clean(), 4, seed=s).clean for s in (0, 0, 1))
    assert len(first) == 10 and torch.equal(first.images, again.images) and not torch.equal(first.images, other.images)


def test_a_method_that_is_part_of_another_gets_what_it_declares_itself():
    outer = given(model="weights", rule=True)
    inner = outer.restricted(Knowledge("gradients", images=10, rule=True))
    alone = DefenderView(Knowledge("gradients", images=10, rule=True), victim(), clean(), 4)
    assert torch.equal(inner.clean.images, alone.clean.images) and len(inner.clean) == 10
    with pytest.raises(base.UndeclaredAccess, match="train"):
        _ = inner.train
    for more in (Knowledge("weights", target=True), Knowledge("weights", size=True)):
        with pytest.raises(base.UndeclaredAccess, match="more than what the method declares"):
            outer.restricted(more)
    with pytest.raises(base.UndeclaredAccess, match="more than"):
        given(model="gradients", images=10).restricted(Knowledge("gradients", images=20))


def test_whoever_declares_gradients_gets_a_function_with_gradients_to_the_images():
    handed, model = given(model="gradients").model, victim()
    x = torch.rand(4, 3, 16, 16, requires_grad=True)
    found = handed(x)
    assert torch.allclose(found, model(x), atol=1e-5)
    found.sum().backward()
    assert x.grad.abs().sum() > 0 and list(handed.state_dict()) == ["at"] and not hasattr(handed, "represent")


def test_a_silent_unit_is_woken_in_the_network_that_is_represented():
    x = torch.rand(2, 3, 16, 16)
    plain = victim()
    module = trojannet.untrained(0)
    for model, inner in (
        (plain, lambda m: m),
        (trojannet.Merged(plain, module, torch.arange(4), (0, 0)), lambda m: m.model),
    ):
        parts = [type(part) for part in inner(with_straight_through(model.eval(), x)).modules()]
        assert parts.count(Passing) == 1 and parts.count(torch.nn.ReLU) == 3


def test_the_model_under_test_cannot_be_changed():
    model = victim()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    handed = DefenderView(Knowledge("weights"), model, clean(), 4)
    with torch.no_grad():
        for weight in handed.model.parameters():
            weight.zero_()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_gradients_reach_the_input_and_no_weight():
    handed = given(model="gradients")
    x = torch.rand(2, 3, 16, 16, requires_grad=True)
    handed.model(x).sum().backward()
    assert x.grad is not None and all(w.grad is None for w in handed.model.parameters())


@pytest.mark.parametrize("kind", [registry.DETECTORS, registry.REPAIRERS, registry.FILTERS])
def test_every_method_declares_what_it_knows(kind):
    for name, method in kind.items():
        knows = method().knows
        assert isinstance(knows, Knowledge) and knows.words(), name
        assert kind is not registry.DETECTORS or not knows.target, f"{name} shall find the target"


def test_deepinspect_flags_nothing_where_nothing_can_be_inverted():
    class Deaf(torch.nn.Module):
        """Answers class 1, whatever it sees."""

        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.tensor(1.0))

        def forward(self, x):
            return self.scale * torch.tensor([0.0, 9.0, 0.0, 0.0]) + 0 * x.mean((1, 2, 3))[:, None]

    verdict = DeepInspect(inversion_steps=2).detect(DefenderView(Knowledge("gradients", images=0), Deaf(), clean(), 4))
    assert verdict.flagged == [] and verdict.about["compared"] == []


def test_many_classes_are_searched_in_parts_with_the_same_result(monkeypatch):
    method, knows = dl_tnd.DLTND(steps=5), Knowledge("weights", images=40)
    whole = method.detect(DefenderView(knows, victim(), clean(), 4))
    monkeypatch.setattr(dl_tnd, "AT_ONCE", 3)
    parts = method.detect(DefenderView(knows, victim(), clean(), 4))
    assert len(parts.scores) == 4 and parts.scores == pytest.approx(whole.scores, abs=1e-3)
    assert np.ptp(whole.scores) > 0.01, "classes that differ"


def test_a_screening_with_too_few_images_is_refused_as_such():
    with pytest.raises(ValueError, match="3 clean images: each half"):
        fit_and_holdout(DefenderView(Knowledge("gradients"), victim(), clean(3), 4))
    with pytest.raises(ValueError, match="two classes or more"):
        fit_and_holdout(DefenderView(Knowledge("gradients"), victim(), clean()[torch.arange(0, 40, 4)], 4))


# --- outliers and thresholds -----------------------------------------------------------------------------


def test_the_anomaly_index_of_known_values():
    values = [1, 2, 3, 4, 100]  # median 3, deviations 2 1 0 1 97, their median 1
    index = base.anomaly_index(values)
    assert np.allclose(index, np.array([2, 1, 0, 1, 97]) / 1.4826)
    assert base.anomaly_index(values, "low")[4] == 0 and base.anomaly_index(values, "high")[0] == 0


def test_the_median_of_an_even_number_is_the_mean_of_the_middle_two():
    assert base.anomaly_index([0, 2, 4, 100])[1] == pytest.approx(1 / (1.4826 * 2))


def test_equal_values_are_no_outliers():
    assert base.anomaly_index([5, 5, 5, 5]).tolist() == [0, 0, 0, 0]


def test_the_double_mad_measures_the_left_side_by_itself():
    values = [1, 8, 9, 10, 11, 50, 90]  # median 10; below it 9, 2, 1, 0: median 1.5
    factor = deviation_factor(values)
    assert factor[0] == pytest.approx(9 / (1.4826 * 1.5)) and factor[3:].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(("rate", "limit"), [(0.05, 95), (0.01, 99), (0.5, 50)])
def test_a_threshold_flags_at_most_the_rate_of_clean_images(rate, limit):
    scores = torch.arange(1, 101).float()[torch.randperm(100, generator=torch.Generator().manual_seed(0))]
    assert base.threshold(scores, rate) == limit
    assert int((scores > limit).sum()) == round(100 * rate)


@pytest.mark.parametrize("rate", [0, 1, -0.1])
def test_an_impossible_false_positive_rate_is_refused(rate):
    with pytest.raises(ValueError, match="false_positive_rate"):
        base.threshold(torch.rand(10), rate)


def test_the_nearest_point_of_the_simplex():
    assert torch.allclose(project_to_simplex(torch.tensor([0.2, 0.3, 0.5])), torch.tensor([0.2, 0.3, 0.5]))
    assert torch.allclose(project_to_simplex(torch.tensor([2.0, 0.0, -1.0])), torch.tensor([1.0, 0.0, 0.0]))
    found = project_to_simplex(torch.rand(50, generator=torch.Generator().manual_seed(0)))
    assert float(found.sum()) == pytest.approx(1) and float(found.min()) >= 0


# --- squeezers -------------------------------------------------------------------------------------------


def test_bit_depth_rounds_to_its_levels():
    x = torch.tensor([0.0, 0.2, 0.5, 0.6, 1.0]).reshape(1, 1, 1, 5).expand(1, 3, 1, 5)
    assert BitDepth(1)(x)[0, 0, 0].tolist() == [0, 0, 0, 1, 1]
    assert torch.allclose(BitDepth(2)(x)[0, 0, 0], torch.tensor([0, 1, 2, 2, 3]) / 3)
    assert len(BitDepth(4)(torch.rand(2, 3, 16, 16)).unique()) <= 16


def test_black_and_white_are_fixed_points_of_every_bit_depth():
    x = torch.rand(2, 3, 8, 8).round()
    assert all(torch.equal(BitDepth(bits)(x), x) for bits in range(1, 9))


def test_a_median_takes_out_single_pixels_and_works_channel_by_channel():
    x = torch.full((1, 3, 8, 8), 0.5)
    x[0, 1, 4, 4] = 1
    assert bool((Median(3)(x) == 0.5).all())


def test_the_median_of_two_by_two_takes_the_upper_of_the_middle_two():
    x = torch.tensor([[0.1, 0.2], [0.3, 0.4]]).expand(1, 3, 2, 2)
    assert float(Median(2)(x)[0, 0, 1, 1]) == pytest.approx(0.3)


def test_non_local_means_leaves_flat_images_and_smooths_noise():
    flat = torch.full((1, 3, 16, 16), 0.4)
    assert torch.allclose(NonLocalMeans()(flat), flat, atol=1 / 255)
    noisy = (flat + 0.02 * torch.randn(flat.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    assert NonLocalMeans(strength=6)(noisy).std() < noisy.std()


def test_bytes_and_unit_images_are_squeezed_alike():
    x = clean(2).images
    for squeeze in (BitDepth(4), Median(2), NonLocalMeans()):
        assert torch.allclose(squeeze(x), squeeze(x.float() / 255), atol=1e-6)


def test_the_score_is_the_largest_distance_over_the_squeezers():
    handed, x = given(model="outputs"), clean(6).images
    each = [FeatureSqueezing((name,)).fit(handed).score(x) for name in ("4 bits", "median 2x2")]
    both = FeatureSqueezing(("4 bits", "median 2x2")).fit(handed).score(x)
    assert torch.equal(both, torch.stack(each).max(0).values) and 0 <= both.min() and both.max() <= 2


def test_an_unknown_squeezer_is_refused():
    with pytest.raises(ValueError, match="squeezers = .'blur',.: expected some of 4 bits"):
        FeatureSqueezing(("blur",))


# --- STRIP -----------------------------------------------------------------------------------------------


class Fixed(torch.nn.Module):
    """Answers class 1 with certainty where the first pixel is bright, and all classes alike elsewhere."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x):
        certain = torch.tensor([0.0, 1e4, 0.0, 0.0])
        return torch.where(x[:, 0, 0, 0, None] > 0.9, certain, torch.zeros(4))


def test_the_entropy_is_zero_where_a_trigger_dominates_and_full_elsewhere():
    dark = Split(torch.zeros(8, 3, 16, 16, dtype=torch.uint8), torch.arange(8) % 4)
    handed = DefenderView(Knowledge("outputs"), Fixed(), dark, 4)
    images = torch.zeros(2, 3, 16, 16)
    images[1, 0, 0, 0] = 1
    assert STRIP("sum", overlays=5).fit(handed).score(images).tolist() == [-2, 0], "bits"


def test_overlays_mix_as_their_names_say():
    x, o = torch.tensor(0.8), torch.tensor(0.6)
    mixed = {name: round(float(mix(x, o)), 3) for name, mix in OVERLAYS.items()}
    assert mixed == {"sum": 1.4, "clipped sum": 1.0, "half": 0.7, "more input": 0.74}
    with pytest.raises(ValueError, match="overlay = 'glue'"):
        STRIP(overlay="glue")


# --- what was found once -----------------------------------------------------------------------------------


def test_what_was_found_once_is_not_searched_again_and_its_seconds_are_known():
    memory, asked = SearchCache(), []

    def find():
        asked.append(1)
        time.sleep(0.05)
        return asked

    assert memory.once("a", find) is memory.once("a", find) and asked == [1] and memory.saved >= 0.05
    memory.once("b", find)
    assert asked == [1, 1]


def test_a_repair_takes_what_the_detector_found(monkeypatch):
    asked = []

    def search(self, given):
        asked.append(given.knows)
        return InvertedTriggers(torch.zeros(4, 1, 16, 16), torch.zeros(4, 3, 16, 16), [5.0, 5.0, 5.0, 5.0], [1.0] * 4)

    monkeypatch.setattr(NeuralCleanse, "_search", search)
    memory = SearchCache()

    def handed(knows, memory):
        return DefenderView(knows, victim(), clean(), 4, train=lambda *a: [], memory=memory)

    NeuralCleanse().detect(handed(NeuralCleanse().knows, memory))
    Unlearning().repair(handed(Unlearning().knows, memory))
    assert asked == [NeuralCleanse().knows], "once"
    Unlearning(NeuralCleanse(steps=41)).repair(handed(Unlearning().knows, memory))
    Unlearning().repair(handed(Unlearning().knows, SearchCache()))
    assert len(asked) == 3, "other settings, another memory"
