"""Figures of detectors: the scores of all classes, counts over models, and what patches do at each location."""

from collections.abc import Collection, Sequence
from typing import Literal

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from mesa_lib.evaluation.intervals import clopper_pearson
from mesa_lib.reporting.plots.style import COLORS, named_rows, percent_across, spread

#: color and mark of each further group of models
GROUPS = ((COLORS["attacked"], "o"), (COLORS["ideal"], "s"), (COLORS["clean model"], "D"))


def class_scores(
    scores: dict[str, Sequence[float]],
    planted: dict[str, Collection[int]],
    threshold: float,
    xlabel: str,
    title: str,
    *,
    scale: Literal["percent", "symlog", "linear"] = "percent",
) -> Figure:
    """Return one row a model or search and one dot a class; planted classes are orange diamonds.

    Args:
        scores: row -> one number a class.
        planted: row -> the attacker's classes.
        threshold: above which a class is flagged, in the unit of the scores.
        xlabel, title: of the figure.
        scale: of the axis; `percent` is linear below five and logarithmic above, `symlog` linear below one.
    """
    figure, axis = plt.subplots(figsize=(7.6, 1.5 + 0.36 * len(scores)))
    others, targets = [], []
    for y, (row, values) in enumerate(scores.items()):
        for k, (value, shift) in enumerate(zip(values, spread(len(values), 0.22), strict=True)):
            (targets if k in planted[row] else others).append((value, y if k in planted[row] else y + shift))
    groups = (("other class", others, "clean model", "o", 22), ("planted class", targets, "attacked", "D", 60))
    for label, dots, color, mark, size in groups:
        xs, ys = zip(*dots, strict=True) if dots else ((), ())
        axis.scatter(xs, ys, s=size, color=COLORS[color], marker=mark, label=label, alpha=0.85, zorder=3)
    axis.axvline(threshold, color="0.3", linestyle="--", linewidth=1.2, label="threshold")
    if scale == "percent":
        percent_across(axis)
    elif scale == "symlog":
        values = [value for row in scores.values() for value in row]
        axis.set_xscale("symlog", linthresh=1)
        axis.set_xlim(min(-0.05, 1.5 * min(values)), 1.5 * max(*values, threshold))
        axis.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axis.minorticks_off()
    named_rows(axis, scores, xlabel, title)
    figure.legend(loc="outside lower center", ncols=3, fontsize=9)
    return figure


def counts_by_detector(flags: dict[str, dict[str, Sequence[bool]]], title: str) -> Figure:
    """Return how many models each detector flags, one row a detector, with exact 95% CIs.

    Args:
        flags: detector -> group of models (three at most) -> whether each model is flagged.
        title: of the figure.
    """
    groups = list(next(iter(flags.values())))
    figure, axis = plt.subplots(figsize=(8, 1.6 + 0.46 * len(flags)))
    for (color, mark), group, shift in zip(GROUPS, groups, spread(len(groups), 0.27), strict=False):
        for y, row in enumerate(flags.values()):
            hits, n = int(sum(row[group])), len(row[group])
            low, high = clopper_pearson(hits, n)
            label = f"{group} ({n})" if y == 0 else None
            axis.plot([100 * low, 100 * high], [y + shift] * 2, color=color, linewidth=2, alpha=0.55)
            axis.plot(100 * hits / n, y + shift, mark, color=color, markersize=6.5, label=label, clip_on=False)
    for y in range(len(flags) - 1):
        axis.axhline(y + 0.5, color="0.85", linewidth=0.8)
    axis.set(yticks=range(len(flags)), yticklabels=list(flags), ylim=(len(flags) - 0.5, -0.5), xlim=(-2, 102))
    axis.set_xlabel("models flagged (%), with 95% CI")
    axis.set_title(title, fontsize=12, loc="left")
    axis.grid(axis="y", visible=False)
    figure.legend(loc="outside lower center", ncols=3, fontsize=9)
    return figure


def response_maps(maps: dict[str, Tensor], positions: tuple[Tensor, Tensor], title: str, high: float = 25) -> Figure:
    """Return maps of how many images are predicted as a class when a patch is stamped at each location.

    Args:
        maps: title of a panel -> percentages (rows, columns).
        positions: the row and the column, in pixels, that each row and column of the maps stand for.
        title: of the figure.
        high: end of the color scale, in percent.
    """
    figure, axes = plt.subplots(1, len(maps), figsize=(2.9 * len(maps), 3.1), squeeze=False)
    ticks = [np.arange(0, len(pixels), 5) for pixels in positions]
    for axis, (name, values) in zip(axes[0], maps.items(), strict=True):
        drawn = axis.imshow(values.numpy(), vmin=0, vmax=high, cmap="viridis")
        axis.set_xticks(ticks[1], positions[1].numpy()[ticks[1]])
        axis.set_yticks(ticks[0], positions[0].numpy()[ticks[0]])
        axis.set_title(name, fontsize=11)
        axis.set_xlabel("column of the patch (pixels)", fontsize=9)
        axis.tick_params(labelsize=9)
        axis.grid(False)
    axes[0, 0].set_ylabel("row of the patch (pixels)", fontsize=9)
    bar = figure.colorbar(drawn, ax=axes[0].tolist(), shrink=0.75, extend="max")
    bar.set_label("images predicted as the class (%)", fontsize=9)
    figure.suptitle(title, fontsize=12)
    return figure
