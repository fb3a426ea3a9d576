"""Confidence intervals, means and spreads."""

import math

import torch
from torch import Tensor


def wilson(hits: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % Wilson score interval of a proportion of `hits` in `n` independent trials."""
    if n == 0:
        return 0.0, 1.0
    p, zz = hits / n, z * z
    center, half = p + zz / (2 * n), z * math.sqrt(p * (1 - p) / n + zz / (4 * n * n))
    return max(0.0, (center - half) / (1 + zz / n)), min(1.0, (center + half) / (1 + zz / n))


def proportion(hits: Tensor) -> dict:
    """Rate, number of images and Wilson interval of hits, boolean (places, images): one answer per image.

    Several places of one image are no independent trials, so the interval counts images, not stampings.
    """
    hits = torch.atleast_2d(hits.float()).mean(0)  # per image
    n = len(hits)
    low, high = wilson(float(hits.sum()), n)
    return {"rate": float(hits.mean()) if n else math.nan, "images": n, "low": low, "high": high}


def mean_std(values) -> tuple[float, float]:
    """Mean and sample standard deviation over repeats (0 for a single one)."""
    t = torch.as_tensor(list(values), dtype=torch.float64)
    return float(t.mean()), float(t.std()) if len(t) > 1 else 0.0
