"""p-values from clean models, and ROC curves, on scores whose answers are known."""

import numpy as np
import pytest

from mesa_lib.evaluation import detection


def test_a_p_value_counts_the_clean_models_that_score_as_high():
    p = detection.p_values([1, 2, 3, 4], [0, 2, 4, 5])
    assert p.tolist() == [1.0, 0.8, 0.4, 0.2]


@pytest.mark.parametrize(("reference", "scores"), [([], [1.0]), ([1.0], [np.nan]), ([np.nan], [1.0])])
def test_p_values_need_numbers(reference, scores):
    with pytest.raises(ValueError, match="expected one or more, no NaN"):
        detection.p_values(reference, scores)


@pytest.mark.parametrize("references", [20, 50])
def test_p_values_of_clean_models_are_not_too_small(references):
    """At most alpha of the clean models have a p-value up to alpha, with one stage and with the best of three."""
    rng = np.random.default_rng(0)
    one, three = [], []
    for _ in range(300):
        reference, judged = rng.normal(size=(references, 3)), rng.normal(size=(20, 3))
        one.append(detection.p_values(reference[:, 0], judged[:, 0]))
        three.append(detection.combined(reference, judged))
    for p in (np.concatenate(one), np.concatenate(three)):
        for alpha in (0.05, 0.2, 0.5):
            assert (p <= alpha).mean() < alpha + 0.02
        assert (p <= 0.2).mean() > 0.14


def test_one_stage_that_stands_out_is_enough():
    rng = np.random.default_rng(0)
    attacked = np.array([[9.0, 0.0, 0.0], [0.0, 0.0, 9.0], [0.0, 0.0, 0.0]])
    p = detection.combined(rng.normal(size=(50, 3)), attacked)
    assert p[0] == p[1] < 0.1 < p[2]


def test_a_roc_curve():
    curve = detection.roc([0, 1, 2], [1.5, 3, 4])
    assert curve["auc"] == pytest.approx(8 / 9)
    assert curve["fpr"][0] == curve["tpr"][0] == 0 and curve["fpr"][-1] == curve["tpr"][-1] == 1
