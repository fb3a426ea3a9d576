"""Confidence intervals, means and spreads."""

import math
from collections.abc import Iterable

import numpy as np
import torch
from scipy.stats import binomtest, bootstrap
from scipy.stats import t as student
from torch import Tensor


def wilson(hits: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """Return the Wilson score interval of a proportion (Wilson 1927), by default at 95%.

    SciPy's `binomtest` has it for whole numbers of hits; an image that is stamped several times counts as a fraction.

    Args:
        hits: number of successes, 0 to n; fractions are allowed.
        n: number of independent trials.
        z: quantile of the standard normal distribution.
    """
    if n == 0:
        return 0.0, 1.0
    p, zz = hits / n, z * z
    center, half = p + zz / (2 * n), z * math.sqrt(p * (1 - p) / n + zz / (4 * n * n))
    return max(0.0, (center - half) / (1 + zz / n)), min(1.0, (center + half) / (1 + zz / n))


def proportion(hits: Tensor) -> dict:
    """Return rate, number of images and 95% Wilson interval of hits, boolean (repeats, images) or (images,).

    Several repeats on one image are not independent trials, so the interval counts images, not repeats.

    Returns:
        `rate` (NaN without images), `images`, `low`, `high`.
    """
    per_image = torch.atleast_2d(hits.float()).mean(0)
    n = len(per_image)
    low, high = wilson(float(per_image.sum()), n)
    return {"rate": float(per_image.mean()) if n else math.nan, "images": n, "low": low, "high": high}


def mean_std(values: Iterable[float]) -> tuple[float, float]:
    """Return mean and sample standard deviation over repeats; the deviation of a single value is 0."""
    t = torch.as_tensor(list(values), dtype=torch.float64)
    return float(t.mean()), float(t.std()) if len(t) > 1 else 0.0


def clopper_pearson(hits: int, n: int) -> tuple[float, float]:
    """Return the exact 95% interval of a proportion of `hits` in `n` independent trials (Clopper, Pearson 1934)."""
    interval = binomtest(hits, n).proportion_ci(0.95, "exact")
    return float(interval.low), float(interval.high)


def t_interval(values: Iterable[float]) -> tuple[float, float]:
    """Return the 95% interval of a mean by Student's t; (nan, nan) of fewer than two values."""
    values = np.asarray(list(values), float)
    if len(values) < 2:
        return math.nan, math.nan
    half = float(student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))
    return float(values.mean()) - half, float(values.mean()) + half


def bootstrap_interval(values: Iterable[float], seed: int = 0) -> tuple[float, float]:
    """Return the 95% interval of a mean by the percentile bootstrap, 9,999 draws; (nan, nan) of fewer than three."""
    values = np.asarray(list(values), float)
    if len(values) < 3:
        return math.nan, math.nan
    options = {"n_resamples": 9999, "method": "percentile", "rng": np.random.default_rng(seed)}
    interval = bootstrap((values,), np.mean, **options).confidence_interval
    return float(interval.low), float(interval.high)
