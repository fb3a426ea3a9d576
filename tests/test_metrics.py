import math

import pytest
import torch
from torch import nn

from mesa_lib import success
from mesa_lib import triggers
from mesa_lib.evaluation import intervals
from mesa_lib.evaluation import metrics
from mesa_lib.data import Split

WHITE = torch.ones(3, 1, 1)
TARGET = 0


def pictures(labels: torch.Tensor) -> torch.Tensor:
    """Even images whose gray value is ten times their label, never white."""
    return (labels * 10).to(torch.uint8)[:, None, None, None].expand(-1, 3, 6, 6).contiguous()


class Backdoored(nn.Module):
    """Knows every label, but answers TARGET where a white pixel shows, for classes of `fooled` and in `columns`."""

    def __init__(self, fooled=range(10), columns=range(6), mistaken=()):
        super().__init__()
        self.dummy = nn.Parameter(torch.zeros(1))
        self.fooled, self.columns, self.mistaken = torch.tensor(list(fooled)), list(columns), torch.tensor(mistaken)

    def forward(self, x):
        assert not self.training and not torch.is_grad_enabled()
        label = (x.amin((1, 2, 3)) * 25.5).round().long()
        white = (x > 0.99).all(1)[:, :, self.columns].flatten(1).any(1)
        answer = torch.where(white & torch.isin(label, self.fooled), TARGET, label)
        answer = torch.where(torch.isin(label, self.mistaken) & ~white, (label + 1) % 10, answer)
        return nn.functional.one_hot(answer, 10).float()


def evaluation(n: int) -> Split:
    labels = torch.arange(n) % 10
    return Split(pictures(labels), labels)


# --- accuracy and success --------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [10, 499, 500, 501, 1001])
def test_every_image_is_counted(n):
    part = evaluation(n)
    assert torch.equal(metrics.predict(Backdoored(), part.images), part.labels)
    assert metrics.clean_accuracy(Backdoored(), part.images, part.labels)["images"] == n
    found = metrics.patch_asr(Backdoored(), part.images, part.labels, WHITE, TARGET, locations=2)
    others = int((part.labels != TARGET).sum())
    assert found["asr"]["images"] == found["true_label_accuracy"]["images"] == others
    assert found["asr"]["rate"] == 1 and found["true_label_accuracy"]["rate"] == 0


def test_images_may_be_bytes_or_numbers():
    part = evaluation(20)
    assert torch.equal(metrics.predict(Backdoored(), part.images.float() / 255), part.labels)


@pytest.mark.parametrize("fooled", [[], [3], [1, 2, 3], [0, 1, 2, 3], list(range(10))])
def test_the_success_rate_by_hand(fooled):
    """9 classes of 50 images are asked; those of the classes in `fooled` go to the target."""
    part = evaluation(500)
    found = metrics.patch_asr(Backdoored(fooled), part.images, part.labels, WHITE, TARGET)
    expected = len(set(fooled) - {TARGET}) / 9
    assert found["asr"]["rate"] == pytest.approx(expected)
    assert found["true_label_accuracy"]["rate"] == pytest.approx(1 - expected)
    assert found["asr"]["images"] == 450


def test_images_of_the_target_class_do_not_count_as_success():
    """A model without backdoor answers the target for images of the target class, and that proves nothing."""
    part = evaluation(100)
    found = metrics.patch_asr(Backdoored([]), part.images, part.labels, WHITE, TARGET)
    assert found["asr"]["rate"] == 0 and found["asr"]["images"] == 90


def test_the_true_label_accuracy_is_no_mirror_of_the_success():
    """Answers that are neither the target nor the true label count for none of both."""
    part = evaluation(100)
    black = torch.zeros(3, 1, 1)  # makes every image look like class 0
    found = metrics.patch_asr(Backdoored([]), part.images, part.labels, black, target=5)
    assert found["asr"]["rate"] == 0 and found["true_label_accuracy"]["rate"] == pytest.approx(10 / 90)


def test_places_are_averaged():
    part = evaluation(300)
    half = Backdoored(columns=range(3))
    found = metrics.patch_asr(half, part.images, part.labels, WHITE, TARGET, locations=20)["asr"]
    assert abs(found["rate"] - 0.5) < 5 * 0.5 / (270 * 20) ** 0.5
    assert found["images"] == 270
    assert (found["low"], found["high"]) == pytest.approx(intervals.wilson(270 * found["rate"], 270), abs=1e-6)


def test_every_model_meets_the_same_places_with_the_same_seed():
    part, half = evaluation(200), Backdoored(columns=range(3))
    first, again, other = (
        metrics.patch_asr(half, part.images, part.labels, WHITE, TARGET, locations=1, seed=seed)["asr"]["rate"]
        for seed in (1, 1, 2)
    )
    assert first == again != other


def test_clean_accuracy_by_hand():
    part = evaluation(200)
    found = metrics.clean_accuracy(Backdoored(mistaken=[2, 7, 9]), part.images, part.labels)
    assert found["rate"] == pytest.approx(0.7) and found["images"] == 200


@pytest.mark.parametrize(("target", "rate"), [(1, 1.0), (2, 0.0)])
def test_recall_looks_at_the_target_class_alone(target, rate):
    part = evaluation(120)
    found = metrics.recall(Backdoored(mistaken=[2]), part.images, part.labels, target)
    assert found["rate"] == rate and found["images"] == 12


def test_a_report_holds_all_four_numbers():
    part = evaluation(50)
    model = Backdoored([1, 2, 3], mistaken=[4])
    row = metrics.evaluate(model, part, WHITE, TARGET)
    expected = {"clean_accuracy": 0.9, "target_recall": 1, "asr": 3 / 9, "true_label_accuracy": 6 / 9}
    assert {name: entry["rate"] for name, entry in row.items()} == pytest.approx(expected)
    assert all(entry["low"] <= entry["rate"] <= entry["high"] for entry in row.values())


def test_the_table_is_in_per_cent():
    part = evaluation(50)
    row = metrics.evaluate(Backdoored([1, 2, 3], mistaken=[4]), part, WHITE, TARGET)
    (line,) = metrics.table([{"model": "one", **row}]).to_dict("records")
    assert line["model"] == "one" and line["clean accuracy"] == 90 and line["target recall"] == 100
    assert line["ASR"] == 33.3 and line["true-label accuracy"] == 66.7 and line["ASR low"] < 33.3 < line["ASR high"]


# --- intervals -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [(0, 10, 0, 0.2775), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1), (1, 100, 0.0018, 0.0545), (0, 0, 0, 1)],
)
def test_wilson_against_known_values(hits, n, low, high):
    assert intervals.wilson(hits, n) == pytest.approx((low, high), abs=1e-4)


def test_a_proportion_counts_images_and_not_stampings():
    hits = torch.tensor([[True, True, False, False], [True, False, False, False]])
    found = intervals.proportion(hits)
    assert found["rate"] == pytest.approx(3 / 8) and found["images"] == 4
    assert (found["low"], found["high"]) == pytest.approx(intervals.wilson(1.5, 4))


def test_a_proportion_of_no_images_is_unknown():
    found = intervals.proportion(torch.empty(0, dtype=torch.bool))
    assert math.isnan(found["rate"]) and (found["images"], found["low"], found["high"]) == (0, 0, 1)


# --- places, samples, spread -----------------------------------------------------------------------------


def test_the_place_map_shows_where_the_backdoor_fires():
    locations = triggers.all_locations((6, 6), (1, 1))
    fires = metrics.location_map(Backdoored(columns=[1, 4]), pictures(torch.tensor([3]))[0], WHITE, TARGET, locations)
    expected = torch.zeros(6, 6, dtype=torch.bool)
    expected[:, [1, 4]] = True
    assert torch.equal(fires.reshape(6, 6), expected)


def test_each_sample_has_a_success_rate_of_its_own():
    part = evaluation(60)
    samples = torch.stack([WHITE, 0.98 * WHITE, WHITE] * 20)
    rates = success.asr_of_triggers(Backdoored(), part.images, part.labels, samples, TARGET, images_per_trigger=16)
    assert torch.equal(rates, torch.tensor([1.0, 0.0, 1.0] * 20))  # 960 stampings cross the batch of 500


def test_samples_are_tried_on_other_classes_only():
    part = evaluation(60)
    gray = 0.5 * WHITE.expand(10, 3, 1, 1)
    rates = success.asr_of_triggers(Backdoored([]), part.images, part.labels, gray, TARGET)
    assert torch.equal(rates, torch.zeros(10))


def test_identical_triggers_have_no_diversity():
    assert triggers.diversity(torch.rand(1, 3, 3, 3).expand(20, 3, 3, 3)) == {"distance": 0, "std": 0}


def test_diversity_of_known_laws():
    rng = torch.Generator().manual_seed(0)
    uniform = triggers.diversity(torch.rand(200, 3, 10, 10, generator=rng))
    binary = triggers.diversity(torch.rand(200, 3, 10, 10, generator=rng).round())
    assert uniform["distance"] == pytest.approx(math.sqrt(1 / 6), abs=0.01)
    assert uniform["std"] == pytest.approx(math.sqrt(1 / 12), abs=0.01)
    assert binary["distance"] == pytest.approx(math.sqrt(1 / 2), abs=0.01)
    two = triggers.diversity(torch.tensor([[0.0, 0.0], [0.6, 0.8]]))
    assert two["distance"] == pytest.approx(math.sqrt(0.5))


@pytest.mark.parametrize(
    ("values", "expected"), [([1, 2, 3], (2, 1)), ([0.5], (0.5, 0)), ([2, 2], (2, 0)), ((1, 3), (2, math.sqrt(2)))]
)
def test_mean_and_sample_deviation(values, expected):
    assert intervals.mean_std(values) == pytest.approx(expected)
