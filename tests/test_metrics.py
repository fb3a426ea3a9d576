"""Accuracy and attack success of a model whose predictions are known."""

import pytest
import torch
from torch import nn

from mesa_lib import triggers
from mesa_lib.attacks import badnets
from mesa_lib.data import Split
from mesa_lib.evaluation import benchmark, intervals, metrics
from mesa_lib.models.inference import predict

WHITE = torch.ones(3, 1, 1)
TARGET = 0


def even_images(labels: torch.Tensor) -> torch.Tensor:
    """Even images whose gray value is ten times their label, never white."""
    return (labels * 10).to(torch.uint8)[:, None, None, None].expand(-1, 3, 6, 6).contiguous()


class Backdoored(nn.Module):
    """Knows every label, but predicts TARGET where a white pixel is, for classes of `fooled` and in `columns`."""

    def __init__(self, fooled=range(10), columns=range(6), mistaken=()):
        super().__init__()
        self.dummy = nn.Parameter(torch.zeros(1))
        self.fooled, self.columns, self.mistaken = torch.tensor(list(fooled)), list(columns), torch.tensor(mistaken)

    def forward(self, x):
        assert not self.training and not torch.is_grad_enabled()
        label = (x.amin((1, 2, 3)) * 25.5).round().long()
        white = (x > 0.99).all(1)[:, :, self.columns].flatten(1).any(1)
        predicted = torch.where(white & torch.isin(label, self.fooled), TARGET, label)
        predicted = torch.where(torch.isin(label, self.mistaken) & ~white, (label + 1) % 10, predicted)
        return nn.functional.one_hot(predicted, 10).float()


def evaluation(n: int) -> Split:
    labels = torch.arange(n) % 10
    return Split(even_images(labels), labels)


# --- accuracy and success --------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [10, 499, 500, 501, 1001])
def test_every_image_is_counted(n):
    split = evaluation(n)
    assert metrics.clean_accuracy(Backdoored(), split.images, split.labels)["images"] == n
    assert metrics.clean_accuracy(Backdoored(), split.images, split.labels)["rate"] == 1
    measured = metrics.patch_asr(Backdoored(), split.images, split.labels, WHITE, TARGET, repeats=2)
    others = int((split.labels != TARGET).sum())
    assert measured["asr"]["images"] == measured["true_label_accuracy"]["images"] == others
    assert measured["asr"]["rate"] == 1 and measured["true_label_accuracy"]["rate"] == 0


def test_images_may_be_bytes_or_numbers():
    split = evaluation(20)
    assert torch.equal(predict(Backdoored(), split.images), split.labels)
    assert torch.equal(predict(Backdoored(), split.images.float() / 255), split.labels)


@pytest.mark.parametrize("fooled", [[], [3], [1, 2, 3], [0, 1, 2, 3], list(range(10))])
def test_the_success_rate_by_hand(fooled):
    """9 classes of 50 images are triggered; those of the classes in `fooled` are classified as the target."""
    split = evaluation(500)
    measured = metrics.patch_asr(Backdoored(fooled), split.images, split.labels, WHITE, TARGET)
    expected = len(set(fooled) - {TARGET}) / 9
    assert measured["asr"]["rate"] == pytest.approx(expected)
    assert measured["true_label_accuracy"]["rate"] == pytest.approx(1 - expected)
    assert measured["asr"]["images"] == 450


def test_images_of_the_target_class_do_not_count_as_success():
    """A model without a backdoor predicts the target for images of the target class, and that proves nothing."""
    split = evaluation(100)
    measured = metrics.patch_asr(Backdoored([]), split.images, split.labels, WHITE, TARGET)
    assert measured["asr"]["rate"] == 0 and measured["asr"]["images"] == 90


def test_without_images_of_other_classes_the_success_rate_is_unknown():
    split = evaluation(100)
    only = split[split.labels == TARGET]
    measured = metrics.patch_asr(Backdoored(), only.images, only.labels, WHITE, TARGET)["asr"]
    assert measured["images"] == 0 and measured["rate"] != measured["rate"]


def test_the_true_label_accuracy_is_not_the_complement_of_the_success_rate():
    """Predictions that are neither the target nor the true label count for neither."""
    split = evaluation(100)
    black = torch.zeros(3, 1, 1)  # makes every image look like class 0
    measured = metrics.patch_asr(Backdoored([]), split.images, split.labels, black, target=5)
    assert measured["asr"]["rate"] == 0 and measured["true_label_accuracy"]["rate"] == pytest.approx(10 / 90)


def test_locations_are_averaged():
    split = evaluation(300)
    half = Backdoored(columns=range(3))
    asr = metrics.patch_asr(half, split.images, split.labels, WHITE, TARGET, repeats=20)["asr"]
    assert abs(asr["rate"] - 0.5) < 5 * 0.5 / (270 * 20) ** 0.5
    assert asr["images"] == 270
    assert (asr["low"], asr["high"]) == pytest.approx(intervals.wilson(270 * asr["rate"], 270), abs=1e-6)


def test_every_model_meets_equal_locations_with_equal_seeds():
    split, half = evaluation(200), Backdoored(columns=range(3))
    first, again, other = (
        metrics.patch_asr(half, split.images, split.labels, WHITE, TARGET, repeats=1, seed=seed)["asr"]["rate"]
        for seed in (1, 1, 2)
    )
    assert first == again != other


def test_clean_accuracy_by_hand():
    split = evaluation(200)
    accuracy = metrics.clean_accuracy(Backdoored(mistaken=[2, 7, 9]), split.images, split.labels)
    assert accuracy["rate"] == pytest.approx(0.7) and accuracy["images"] == 200


@pytest.mark.parametrize(("target", "rate"), [(1, 1.0), (2, 0.0)])
def test_target_recall_is_about_the_target_class_alone(target, rate):
    split = evaluation(120)
    recall = metrics.target_recall(Backdoored(mistaken=[2]), split.images, split.labels, target)
    assert recall["rate"] == rate and recall["images"] == 12


def test_an_evaluation_holds_all_four_numbers():
    model = Backdoored([1, 2, 3], mistaken=[4])
    row = metrics.evaluate(model, evaluation(50), WHITE, TARGET)
    expected = {"clean_accuracy": 0.9, "target_recall": 1, "asr": 3 / 9, "true_label_accuracy": 6 / 9}
    assert {name: entry["rate"] for name, entry in row.items()} == pytest.approx(expected)
    assert all(entry["low"] <= entry["rate"] <= entry["high"] for entry in row.values())


def test_the_table_is_in_percent():
    row = metrics.evaluate(Backdoored([1, 2, 3], mistaken=[4]), evaluation(50), WHITE, TARGET)
    (line,) = metrics.table([{"model": "one", **row}]).to_dict("records")
    assert line["model"] == "one" and line["clean accuracy"] == 90 and line["target recall"] == 100
    assert line["ASR"] == 33.3 and line["true-label accuracy"] == 66.7 and line["ASR low"] < 33.3 < line["ASR high"]


# --- locations -------------------------------------------------------------------------------------------


def test_the_location_map_shows_where_the_backdoor_fires():
    locations = triggers.all_locations((6, 6), (1, 1))
    image = even_images(torch.tensor([3]))[0]
    fires = metrics.location_map(Backdoored(columns=[1, 4]), image, WHITE, TARGET, locations)
    expected = torch.zeros(6, 6, dtype=torch.bool)
    expected[:, [1, 4]] = True
    assert torch.equal(fires.reshape(6, 6), expected)


# --- filters and reformers -------------------------------------------------------------------------------


def test_scores_that_separate_and_scores_that_do_not():
    held_out, clean = torch.arange(100.0), torch.arange(100.0)
    fires = torch.tensor([True] * 30 + [False] * 10)
    apart = benchmark.score_separation(held_out, clean, torch.full((40,), 200.0), fires)
    assert apart["auroc"] == apart["auroc of those that fire"] == 1 and apart["fire"] == 0.75
    assert apart["at 0.05"] == {"clean": pytest.approx(0.05), "triggered": 1, "of those that fire": 1}
    triggered = torch.cat([torch.full((30,), 200.0), torch.full((10,), -1.0)])
    mixed = benchmark.score_separation(held_out, clean, triggered, fires)
    assert mixed["auroc"] == 0.75 and mixed["auroc of those that fire"] == 1
    assert mixed["at 0.01"] == {"clean": pytest.approx(0.01), "triggered": 0.75, "of those that fire": 1}


def test_a_trigger_that_never_works_has_no_separation_of_those_that_fire():
    scores = torch.arange(20.0)
    result = benchmark.score_separation(scores, scores, scores, torch.zeros(20, dtype=torch.bool))
    assert result["auroc"] == pytest.approx(0.5) and "auroc of those that fire" not in result
    assert set(result["at 0.05"]) == {"clean", "triggered"}


def test_a_reformed_model_sees_what_the_reformer_returns():
    split = evaluation(50)
    row = metrics.evaluate(benchmark.ReformedModel(Backdoored(), lambda images: images.clamp(max=0.5)), split, WHITE, 0)
    assert row["asr"]["rate"] == 0 and row["clean_accuracy"]["rate"] == 1


def test_inputs_of_filters_are_those_that_the_attacker_wants_changed():
    split = evaluation(50)
    backdoor = badnets.backdoor(WHITE, TARGET)
    clean, triggered, fires = benchmark.triggered_inputs(Backdoored([1, 2, 3]), split, backdoor, seed=1)
    assert len(clean) == 50 and len(triggered) == len(fires) == 45 and int(fires.sum()) == 15
    assert torch.equal((triggered > 0.99).all(1).flatten(1).sum(1), torch.ones(45)), "one white pixel each"


def test_the_asr_of_predictions_leaves_out_images_of_the_target_class():
    predictions, labels = torch.tensor([0, 0, 1, 0]), torch.tensor([0, 1, 1, 2])
    assert metrics.asr_of_predictions(predictions, labels, 0) == pytest.approx(2 / 3)
