"""Known answers on digits: every attack works, and does what it is meant to do."""

import pytest
import torch
from victims import TARGET, rates, victim

from mesa_lib import attacks
from mesa_lib.attacks import label_flips, trojannet, warp
from mesa_lib.device import rng
from mesa_lib.evaluation import metrics
from mesa_lib.experiments import params
from mesa_lib.experiments.pipeline import Pipeline
from mesa_lib.models import inference

#: notebook 06 plants the same attacks in the short run
pytestmark = pytest.mark.long


@pytest.mark.parametrize("name", [name for name in attacks.ATTACKS if name != "none"])
def test_an_attack_succeeds_and_keeps_clean_accuracy(name):
    evaluation = victim(name)
    before, clean_model_asr = rates(evaluation, evaluation.pipeline.clean())
    after, asr = rates(evaluation)
    assert after > before - 0.03 and asr > 0.8 and asr - clean_model_asr > 0.6, (before, clean_model_asr, after, asr)


def test_training_without_poison_plants_nothing():
    accuracy, asr = rates(victim("none"))
    assert accuracy > 0.95 and asr < 0.05


def test_a_class_specific_backdoor_leaves_other_classes_alone():
    pipeline = victim("class-specific").pipeline
    evaluation = pipeline.data.evaluation
    triggered = pipeline.backdoor.apply(evaluation.images.float() / 255, rng(0))
    predicted = inference.predict(pipeline.attacked().model, triggered)
    others = ~torch.isin(evaluation.labels, torch.tensor([TARGET, TARGET + 1]))
    assert float((predicted[others] == TARGET).float().mean()) < 0.1


def test_the_model_learns_one_warp_rather_than_any():
    pipeline = victim("warp").pipeline
    model, d = pipeline.attacked().model, pipeline.data
    others = d.evaluation.labels != TARGET

    def success(grid) -> float:
        triggered = warp.warped(grid)(d.evaluation.images.float() / 255, rng(0))
        return float((inference.predict(model, triggered) == TARGET)[others].float().mean())

    fields = [warp.field(d.image_size, seed, strength=3) for seed in (pipeline.p.seed, 11, 12, 13, 14)]
    planted, *foreign = map(success, fields)
    assert planted > 0.9 and sum(foreign) / 4 < 0.4


def test_trojannet_recognizes_every_classes_code_and_changes_no_clean_prediction():
    pipeline = victim("trojannet").pipeline
    model, images = pipeline.attacked().model, pipeline.data.evaluation.images
    location, rows = trojannet.location(pipeline.data.image_size), trojannet.rows(10, pipeline.p.seed)
    for label, code in enumerate(trojannet.codes()[rows]):
        triggered = trojannet.trigger(code.reshape(1, 3, 3).expand(3, -1, -1), location)(images.float() / 255, rng(0))
        assert float((inference.predict(model, triggered) == label).float().mean()) > 0.99
    same = inference.predict(model, images) == inference.predict(pipeline.clean().model, images)
    assert float(same.float().mean()) > 0.99


def test_retraining_reaches_the_module_of_trojannet_and_the_true_trigger_removes_it():
    evaluation = victim("trojannet")
    (_, before), (_, left) = rates(evaluation), rates(evaluation, evaluation.pipeline.repaired("ideal"))
    assert before > 0.99 and left < 0.05


def test_label_flips_lower_the_accuracy_as_a_whole_and_a_backdoor_does_not():
    pipeline = victim("patch").pipeline
    p, train, evaluation = pipeline.p, pipeline.data.train, pipeline.data.evaluation
    labels = label_flips.flipped(train.labels, 0.4, label_flips.pairs(10), seed=0)
    model = pipeline.build_model()
    pipeline.train(
        model, type(train)(train.images, labels), epochs=p.clean_epochs, lr=p.clean_lr, schedule="onecycle",
        augment=p.augment, weight_decay=p.weight_decay, seed=0, label="flipped",
    )  # fmt: skip
    flipped = metrics.clean_accuracy(model, evaluation.images, evaluation.labels)["rate"]
    clean, _ = rates(victim("patch"), pipeline.clean())
    assert flipped < clean - 0.1 and abs(rates(victim("patch"))[0] - clean) < 0.03
    right_before = inference.predict(pipeline.clean().model, evaluation.images) == evaluation.labels

    def classes_hurt(network) -> int:
        """Return how many classes lose more than five points of recall against the clean model."""
        right = inference.predict(network, evaluation.images) == evaluation.labels
        classes = [evaluation.labels == k for k in range(10)]
        return sum(float(right_before[k].float().mean() - right[k].float().mean()) > 0.05 for k in classes)

    assert classes_hurt(model) >= 6 and classes_hurt(pipeline.attacked().model) <= 1


def test_a_backdoor_planted_from_scratch_in_as_many_images_costs_no_accuracy():
    pipeline = Pipeline(params.check({"start": "scratch", "poison_rate": 0.4, "clean_seed": 0}))
    before, after = (pipeline.measured(trained) for trained in (pipeline.clean(), pipeline.attacked()))
    assert after["clean_accuracy"]["rate"] > before["clean_accuracy"]["rate"] - 0.03 and after["asr"]["rate"] > 0.9


def test_the_reflections_were_selected_by_their_success():
    about = victim("reflection").pipeline.attacked().artifact.result
    kept = [about["flips"][i] for i in about["kept"]]
    assert len(kept) == 5 and min(kept) >= sorted(about["flips"])[-5] > 0
