"""Figures of attacks and defenses in the benchmark."""

from collections.abc import Collection, Sequence
from typing import Literal

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, ScalarFormatter
from torch import Tensor

from mesa_lib.reporting.plots.style import COLORS, named_rows, panels, percent_across, spread


def _group_color(group: str) -> str:
    return COLORS["clean model" if group.startswith("clean") else "attacked"]


def matrices(matrices: dict[str, Tensor], xlabel: str, ylabel: str, title: str = "") -> Figure:
    """Return square matrices of fractions side by side: name -> (n, n) with values in [0, 1]."""
    figure, axes = panels(len(matrices), 4, 3.1, 3.1)
    for axis, (name, values) in zip(axes, matrices.items(), strict=True):
        image = axis.imshow(values.numpy(), vmin=0, vmax=1, cmap="Blues")
        axis.set(title=name, xlabel=xlabel, ylabel=ylabel, xticks=range(len(values)), yticks=range(len(values)))
        axis.grid(False)
    figure.colorbar(image, ax=axes, shrink=0.8, label="fraction of the row")
    figure.suptitle(title, fontsize=13)
    return figure


def pruning_curves(curves: dict[str, dict[str, Sequence[float]]], title: str = "") -> Figure:
    """Return accuracy and ASR while channels are pruned, one model a panel: name -> curve -> fractions in [0, 1]."""
    figure, axes = panels(len(curves), 3, 4.2, 3, sharey=True)
    for axis, (model, lines) in zip(axes, curves.items(), strict=True):
        for name, values in lines.items():
            axis.plot(100 * np.array(values), label=name, color=COLORS["attacked" if name == "ASR" else "clean model"])
        axis.set(title=model, xlabel="channels pruned", ylim=(-3, 103))
    axes[0].set_ylabel("clean accuracy, ASR (%)")
    axes[-1].legend(loc="lower left")
    figure.suptitle(title, fontsize=13)
    return figure


def score_histograms(scores: dict[str, dict[str, Tensor]], xlabel: str) -> Figure:
    """Return distributions of a filter's score, `clean` inputs and others overlaid: title -> group -> values (n,)."""
    figure, axes = panels(len(scores), 4, 3.6, 2.8)
    for axis, (title, groups) in zip(axes, scores.items(), strict=True):
        values = {name: np.asarray(v, float) for name, v in groups.items()}
        bins = np.linspace(min(v.min() for v in values.values()), max(v.max() for v in values.values()) + 1e-9, 31)
        for name, v in values.items():
            weights = np.full(len(v), 100 / len(v))
            axis.hist(v, bins, weights=weights, alpha=0.6, label=name, color=_group_color(name))
        axis.set(title=title, xlabel=xlabel)
    axes[0].set_ylabel("% of images")
    axes[0].legend()
    return figure


# --- detectors -------------------------------------------------------------------------------------------


def scores_by_class(
    verdicts: dict[str, dict],
    planted: dict[str, Collection[int]],
    columns: int = 4,
    *,
    ylabel: str = "score",
    shared_scale: bool | Literal["row"] = False,
    log: bool = False,
) -> Figure:
    """Return the scores per class of detectors, one verdict a panel; a star marks each flagged class.

    A class whose score is NaN has a cross for a bar. The threshold is drawn where it applies to the scores themselves.

    Args:
        verdicts: title -> verdict (`Verdict.as_dict`).
        planted: title -> the attacker's classes, drawn in the color of attacked models.
        columns: panels in a row.
        shared_scale: True for scores that can be compared across panels, `row` across those of a row.
        log: logarithmic axis.
    """
    figure, axes = panels(len(verdicts), columns, 2.7, 1.9, sharey=shared_scale)
    tops = [np.nanmax(verdict["scores"]) for verdict in verdicts.values()]
    for i, (axis, (title, verdict)) in enumerate(zip(axes, verdicts.items(), strict=True)):
        row = tops[i // columns * columns :][:columns]
        on_scale = {True: tops, "row": row, False: tops[i : i + 1]}[shared_scale]
        _draw_verdict(axis, verdict, planted[title], max(on_scale))
        axis.set_title(title, fontsize=9)
        if log:
            lowest = min(np.nanmin(v["scores"]) for v in verdicts.values())
            axis.set(yscale="log", ylim=(lowest / 2, 2 * max(tops)))
            axis.yaxis.set(major_locator=LogLocator(), major_formatter=ScalarFormatter(), minor_locator=NullLocator())
    for axis in axes[::columns]:
        axis.set_ylabel(ylabel, fontsize=8)
    return figure


def _draw_verdict(axis: Axes, verdict: dict, planted: Collection[int], top: float) -> None:
    """Draw the bars of one verdict; `top` is the highest score on the axis."""
    scores = np.array(verdict["scores"], float)
    classes = range(len(scores))
    axis.bar(classes, scores, color=[COLORS["attacked" if k in planted else "clean model"] for k in classes])
    axis.axhline(0, color="0.3", linewidth=0.8)
    if verdict.get("on") == "scores" and verdict["above"] <= 3 * top:
        axis.axhline(verdict["above"], color="0.3", linestyle="--", linewidth=1)
    for k in np.flatnonzero(np.isnan(scores)):
        axis.annotate("x", (k, 0.06), xycoords=("data", "axes fraction"), fontsize=8, color="0.4", ha="center")
    for k in verdict["flagged"]:
        axis.annotate("*", (k, scores[k]), fontsize=14, ha="center", va="center", annotation_clip=False)
    axis.set(xticks=classes, xlim=(-0.7, len(scores) - 0.3))
    axis.set_xlabel("class", fontsize=8)
    axis.tick_params(labelsize=7)
    axis.grid(axis="x", visible=False)


def scores_by_model(
    scores: dict[str, dict[str, Sequence[float]]],
    thresholds: dict[str, float],
    title: str = "",
    hits: dict[str, dict[str, Sequence[bool]]] | None = None,
) -> Figure:
    """Return the highest score of each model, one detector a panel, and its threshold.

    Args:
        scores: detector -> group (`clean` or another) -> one value per model.
        thresholds: detector -> threshold.
        hits: in the shape of `scores`, whether the highest class is a planted one; a dot whose hit is False is hollow.
    """
    figure, axes = panels(len(scores), 4, 3.1, 2.8)
    for axis, (name, groups) in zip(axes, scores.items(), strict=True):
        for x, (group, values) in enumerate(groups.items()):
            shade = _group_color(group)
            filled = hits[name][group] if hits else [True] * len(values)
            faces = [shade if full else "none" for full in filled]
            axis.scatter(x + spread(len(values)), values, s=28, facecolors=faces, edgecolors=shade)
        axis.axhline(thresholds[name], color="0.3", linestyle="--", linewidth=1)
        axis.set(xticks=range(len(groups)), xticklabels=groups, xlim=(-0.5, len(groups) - 0.5))
        axis.set_title(name, fontsize=10)
        axis.grid(axis="x", visible=False)
    figure.suptitle(title)
    return figure


# --- repairs ---------------------------------------------------------------------------------------------


def points_by_repair(
    values: dict[str, dict[str, Sequence[float]]], xlabel: str, title: str, *, symlog: bool = True, line: float = 0
) -> Figure:
    """Return one row a repair and one point a model, colored by attacker.

    Args:
        values: repair -> attacker -> percentages or percentage points, one per model; an attacker may be missing.
        xlabel, title: of the figure.
        symlog: an axis of percentages, linear below five and logarithmic above; else a linear one.
        line: where a dashed vertical line is drawn.
    """
    attackers = list(dict.fromkeys(name for row in values.values() for name in row))
    figure, axis = plt.subplots(figsize=(8, 1.6 + 0.36 * len(values)))
    palette, marks = sns.color_palette("colorblind", len(attackers)), "osD^vPX*"
    for k, (attacker, shift) in enumerate(zip(attackers, spread(len(attackers), 0.28), strict=True)):
        found = [(x, y + shift) for y, row in enumerate(values.values()) for x in row.get(attacker, ())]
        xs, ys = zip(*found, strict=True)
        axis.scatter(xs, ys, s=34, color=palette[k], marker=marks[k % len(marks)], label=attacker, alpha=0.85, zorder=3)
    axis.axvline(line, color="0.3", linestyle="--", linewidth=1)
    if symlog:
        percent_across(axis)
        axis.minorticks_off()
    named_rows(axis, values, xlabel, title)
    figure.legend(loc="outside lower center", ncols=3, fontsize=9)
    return figure


# --- tables as figures -----------------------------------------------------------------------------------


def heatmap(
    table: pd.DataFrame,
    title: str,
    *,
    label: str = "%",
    low: float = 0,
    high: float = 100,
    good: Literal["low", "high"] = "low",
) -> Figure:
    """Return a table of numbers, attacks by defenses, as colored cells with one decimal; missing values stay empty.

    Args:
        label: of the color bar.
        low, high: ends of the color scale.
        good: which end the defender wants; it is blue, the other red.
    """
    texts = table.astype(float).map(lambda value: "" if np.isnan(value) else f"{round(value, 1) + 0:g}")
    figure, axis = plt.subplots(figsize=(1.6 + 0.85 * len(table.columns), 1.5 + 0.42 * len(table)))
    colors = "RdYlBu_r" if good == "low" else "RdYlBu"
    sns.heatmap(
        table.astype(float), ax=axis, annot=texts, fmt="", cmap=colors, vmin=low, vmax=high, linewidths=0.5,
        cbar_kws={"label": label}, annot_kws={"fontsize": 9},
    )  # fmt: skip
    axis.set(xlabel="", ylabel="")
    axis.tick_params(axis="x", rotation=40, labelsize=9)
    plt.setp(axis.get_xticklabels(), ha="right")
    axis.tick_params(axis="y", rotation=0, labelsize=9)
    axis.set_title(title, fontsize=11)
    return figure
