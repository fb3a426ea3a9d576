"""The figures of attacks and defenses on the bench (notebooks 06 to 10), one function each, as in `mesa_lib.plots`."""

from collections.abc import Collection, Sequence
from typing import Literal

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, ScalarFormatter
from torch import Tensor

from mesa_lib.reporting.plots import COLORS


def _panels(number: int, columns: int, width: float, height: float, **options) -> tuple[Figure, list]:
    """A figure of so many panels in rows, and its axes; those left over are not drawn."""
    columns = min(columns, number)
    rows = -(-number // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(width * columns, height * rows), squeeze=False, **options)
    for axis in axes.flat[number:]:
        axis.axis("off")
    return figure, list(axes.flat[:number])


def matrices(shown: dict[str, Tensor], xlabel: str, ylabel: str) -> Figure:
    """Square matrices of fractions side by side: title -> (n, n) with values in [0, 1]."""
    figure, axes = _panels(len(shown), 4, 3.1, 3.1)
    for axis, (title, values) in zip(axes, shown.items(), strict=True):
        picture = axis.imshow(values, vmin=0, vmax=1, cmap="Blues")
        axis.set(title=title, xlabel=xlabel, ylabel=ylabel, xticks=range(len(values)), yticks=range(len(values)))
        axis.grid(False)
    figure.colorbar(picture, ax=axes, shrink=0.8, label="fraction of the row")
    return figure


def pruning(curves: dict[str, dict[str, Sequence[float]]]) -> Figure:
    """Accuracy and ASR as channels are taken out, one panel a model: title -> curve -> fractions."""
    figure, axes = _panels(len(curves), 3, 4.2, 3, sharey=True)
    for axis, (title, own) in zip(axes, curves.items(), strict=True):
        for name, values in own.items():
            axis.plot(100 * np.array(values), label=name, color=COLORS["clean" if name != "ASR" else "attacked"])
        axis.set(title=title, xlabel="channels taken out", ylim=(-3, 103))
    axes[0].set_ylabel("%")
    axes[-1].legend(loc="lower left")
    return figure


def histograms(shown: dict[str, dict[str, Tensor]], xlabel: str) -> Figure:
    """Distributions of a score, clean inputs and others over each other: title -> name -> values."""
    figure, axes = _panels(len(shown), 4, 3.6, 2.8)
    for axis, (title, own) in zip(axes, shown.items(), strict=True):
        values = {name: np.asarray(v, float) for name, v in own.items()}
        bins = np.linspace(min(v.min() for v in values.values()), max(v.max() for v in values.values()) + 1e-9, 31)
        for name, v in values.items():
            color = COLORS["clean" if name == "clean" else "attacked"]
            axis.hist(v, bins, weights=np.full(len(v), 100 / len(v)), alpha=0.6, label=name, color=color)
        axis.set(title=title, xlabel=xlabel)
    axes[0].set_ylabel("% of images")
    axes[0].legend()
    return figure


def verdicts(
    found: dict[str, dict],
    planted: dict[str, Collection[int]],
    columns: int = 4,
    *,
    ylabel: str = "score",
    one_scale: bool | Literal["row"] = False,
    log: bool = False,
) -> Figure:
    """The scores per class of detectors: title -> verdict. The planted classes in red; a star marks what is flagged.

    A class whose score is NaN has a cross for a bar; where the scores themselves are put to a threshold, it is drawn.
    one_scale: for scores that can be compared from panel to panel, or those of a row; log: on a logarithmic axis
    """
    figure, axes = _panels(len(found), columns, 2.7, 1.9, sharey=one_scale)
    tops = [np.nanmax(verdict["scores"]) for verdict in found.values()]
    for at, (axis, (title, verdict)) in enumerate(zip(axes, found.items(), strict=True)):
        scores = np.array(verdict["scores"], float)
        beside = {True: tops, "row": tops[at // columns * columns :][:columns], False: tops[at : at + 1]}[one_scale]
        colors = [COLORS["attacked" if k in planted[title] else "clean"] for k in range(len(scores))]
        axis.bar(range(len(scores)), scores, color=colors)
        axis.axhline(0, color="0.3", linewidth=0.8)
        if verdict.get("on") == "scores" and verdict["above"] <= 3 * max(beside):
            axis.axhline(verdict["above"], color="0.3", linestyle="--", linewidth=1)
        for k in np.flatnonzero(np.isnan(scores)):
            axis.annotate("x", (k, 0.06), xycoords=("data", "axes fraction"), fontsize=8, color="0.4", ha="center")
        for k in verdict["flagged"]:
            axis.annotate("*", (k, scores[k]), fontsize=14, ha="center", va="center", annotation_clip=False)
        axis.set_title(title, fontsize=9)
        axis.set(xticks=range(len(scores)), xlim=(-0.7, len(scores) - 0.3))
        if log:
            axis.set(yscale="log", ylim=(min(np.nanmin(v["scores"]) for v in found.values()) / 2, 2 * max(tops)))
            axis.yaxis.set(major_locator=LogLocator(), major_formatter=ScalarFormatter(), minor_locator=NullLocator())
        axis.set_xlabel("class", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.grid(axis="x", visible=False)
    for axis in axes[::columns]:
        axis.set_ylabel(ylabel, fontsize=8)
    return figure


def models(
    scores: dict[str, dict[str, Sequence[float]]],
    limits: dict[str, float],
    title: str = "",
    hits: dict[str, dict[str, Sequence[bool]]] | None = None,
) -> Figure:
    """One number a model, side by side: detector -> group (`clean` or another) -> values, and its threshold.

    hits: the same with booleans; a dot whose is False is hollow
    """
    figure, axes = _panels(len(scores), 4, 3.1, 2.8)
    for axis, (name, groups) in zip(axes, scores.items(), strict=True):
        for at, (group, values) in enumerate(groups.items()):
            spread = np.linspace(-0.15, 0.15, len(values)) if len(values) > 1 else [0]
            color = COLORS["clean" if group == "clean" else "attacked"]
            filled = hits[name][group] if hits else [True] * len(values)
            faces = [color if full else "none" for full in filled]
            axis.scatter(at + np.array(spread), values, s=28, facecolors=faces, edgecolors=color)
        axis.axhline(limits[name], color="0.3", linestyle="--", linewidth=1)
        axis.set(xticks=range(len(groups)), xticklabels=groups, xlim=(-0.5, len(groups) - 0.5))
        axis.set_title(name, fontsize=10)
        axis.grid(axis="x", visible=False)
    figure.suptitle(title)
    return figure


def against_limits(classes: pd.DataFrame, limits: dict[str, float]) -> Figure:
    """How many images are turned into each class, one panel a way of stamping, with its limit.

    classes: one line a class of a model, with its `data`, its kind (`class`: three at most) and for every way a column
    in per cent; limits: way -> per cent
    """
    kinds = dict(zip(classes["class"].unique(), (COLORS["attacked"], "gray", COLORS["clean"]), strict=False))
    figure, axes = plt.subplots(1, len(limits), figsize=(3.4 * len(limits), 3.6), sharey=True)
    for axis, (way, limit) in zip(axes, limits.items(), strict=True):
        sns.stripplot(
            classes, x=way, y="data", hue="class", dodge=True, palette=kinds, alpha=0.6, size=4, jitter=0.2, ax=axis
        )
        axis.axvline(limit, color="black", linewidth=1)
        axis.set(title=way, xlabel="images turned (%)", ylabel="", xlim=(-4, 104))
        handles = axis.get_legend_handles_labels()
        axis.get_legend().remove()
    figure.legend(*handles, loc="outside lower center", ncols=len(kinds), fontsize=9)
    return figure


def heat(table: pd.DataFrame, title: str, *, label: str = "%", low: float = 0, high: float = 100, good="low") -> Figure:
    """A matrix of numbers to one decimal, attacks down and defenses across, in colored fields; empty where is none.

    good: `low` or `high`, which end is what the defender wants (green)
    """
    written = table.astype(float).map(lambda value: "" if np.isnan(value) else f"{round(value, 1) + 0:g}")
    figure, axis = plt.subplots(figsize=(1.6 + 0.85 * len(table.columns), 1.5 + 0.42 * len(table)))
    colors = "RdYlGn_r" if good == "low" else "RdYlGn"
    sns.heatmap(
        table.astype(float), ax=axis, annot=written, fmt="", cmap=colors, vmin=low, vmax=high, linewidths=0.5,
        cbar_kws={"label": label}, annot_kws={"fontsize": 9},
    )  # fmt: skip
    axis.set(xlabel="", ylabel="")
    axis.tick_params(axis="x", rotation=40, labelsize=9)
    plt.setp(axis.get_xticklabels(), ha="right")
    axis.tick_params(axis="y", rotation=0, labelsize=9)
    axis.set_title(title, fontsize=11)
    return figure
