"""Intervals and spreads against known values."""

import math

import pytest
import torch

from mesa_lib.evaluation import intervals


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [(0, 10, 0, 0.2775), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1), (1, 100, 0.0018, 0.0545), (0, 0, 0, 1)],
)
def test_wilson_against_known_values(hits, n, low, high):
    assert intervals.wilson(hits, n) == pytest.approx((low, high), abs=1e-4)


@pytest.mark.parametrize(("hits", "n"), [(0, 7), (3, 7), (7, 7), (250, 400)])
def test_wilson_of_whole_numbers_is_that_of_scipy(hits, n):
    from scipy.stats import binomtest

    known = binomtest(hits, n).proportion_ci(0.95, "wilson")
    assert intervals.wilson(hits, n) == pytest.approx((known.low, known.high), abs=1e-4)


def test_a_proportion_counts_images_and_not_repeats():
    hits = torch.tensor([[True, True, False, False], [True, False, False, False]])
    rate = intervals.proportion(hits)
    assert rate["rate"] == pytest.approx(3 / 8) and rate["images"] == 4
    assert (rate["low"], rate["high"]) == pytest.approx(intervals.wilson(1.5, 4))


def test_a_proportion_of_no_images_is_unknown():
    rate = intervals.proportion(torch.empty(0, dtype=torch.bool))
    assert math.isnan(rate["rate"]) and (rate["images"], rate["low"], rate["high"]) == (0, 0, 1)


@pytest.mark.parametrize(
    ("values", "expected"), [([1, 2, 3], (2, 1)), ([0.5], (0.5, 0)), ([2, 2], (2, 0)), ((1, 3), (2, math.sqrt(2)))]
)
def test_mean_and_sample_deviation(values, expected):
    assert intervals.mean_std(values) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"), [(0, 10, 0, 0.3085), (9, 10, 0.5550, 0.9975), (10, 10, 0.6915, 1)]
)
def test_the_exact_interval_against_known_values(hits, n, low, high):
    assert intervals.clopper_pearson(hits, n) == pytest.approx((low, high), abs=1e-4)


def test_the_bootstrap_interval_covers_the_mean_and_narrows_with_more_values():
    values = [0.1, 0.2, 0.3, 0.4, 0.9]
    low, high = intervals.bootstrap_interval(values)
    assert min(values) < low < sum(values) / 5 < high < max(values)
    assert intervals.bootstrap_interval(values) == (low, high), "seeded"
    narrow = intervals.bootstrap_interval(values * 20)
    assert narrow[1] - narrow[0] < (high - low) / 3
    assert all(map(math.isnan, intervals.bootstrap_interval([0.1, 0.2])))
