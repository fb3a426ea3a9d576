import pytest
import torch
from victims import TARGET, victim

from mesa_lib.defenses.neural_cleanse import InvertedTriggers, NeuralCleanse, Unlearning
from mesa_lib.evaluation import metrics


@pytest.mark.long
@pytest.mark.parametrize("attack", ["corner", "patch"])
def test_neural_cleanse_flags_the_planted_class_which_needs_far_fewer_pixels(attack):
    """The index of the logarithms; that of the norms themselves is 1.4 to 2.8, by seed and number of threads."""
    verdict = victim(attack).verdict("Neural Cleanse").result
    norms = verdict["about"]["norms"]
    assert min(norms) == norms[TARGET] < 0.3 * sorted(norms)[1]
    assert verdict["flagged"] == [TARGET] and verdict["index"][TARGET] > NeuralCleanse().above > 2


@pytest.mark.long
def test_neural_cleanse_flags_no_clean_model():
    assert victim("none").verdict("Neural Cleanse").result["flagged"] == []


@pytest.mark.long
def test_neural_cleanse_unlearns_what_it_flags():
    evaluation, method = victim("patch"), Unlearning()
    result = method.repair(evaluation.view(method.knowledge))
    row = metrics.evaluate(result.model, evaluation.data.evaluation, evaluation.pipeline.backdoor, TARGET)
    assert row["clean_accuracy"]["rate"] > 0.95 and row["asr"]["rate"] < 0.2
    assert result.about == {"flagged": [TARGET]} and len(result.history) == evaluation.p.repair_epochs


def test_the_index_of_neural_cleanse_can_be_the_published_one():
    inverted = InvertedTriggers(None, None, [3.0, 20, 25, 30, 35, 40, 45, 50, 60, 70], [1.0] * 10)
    published, logarithmic = (NeuralCleanse(logarithm=logarithm).judge(inverted) for logarithm in (False, True))
    assert published.index[0] == pytest.approx((37.5 - 3) / (1.4826 * 12.5)) and published.index[9] == 0
    assert logarithmic.index[0] > 3 > published.index[0]
    assert logarithmic.scores == published.scores == [-n for n in inverted.norms]


def test_an_inverted_trigger_is_blended_by_its_mask():
    masks, patterns = torch.zeros(2, 1, 4, 4), torch.rand(2, 3, 4, 4)
    masks[1, :, 0, 0] = 0.25
    inverted, images = InvertedTriggers(masks, patterns, [0.0, 0.25], [1.0] * 2), torch.rand(5, 3, 4, 4)
    assert torch.equal(inverted.transform(0)(images, None), images)
    blended = inverted.transform(1)(images, None)
    assert torch.allclose(blended[:, :, 0, 0], 0.75 * images[:, :, 0, 0] + 0.25 * patterns[1, :, 0, 0])
    assert torch.equal(blended[:, :, 1:], images[:, :, 1:])
