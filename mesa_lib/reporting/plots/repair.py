"""Figures of repairs and their controls: the attack success rate (ASR) that each leaves."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mesa_lib.reporting.plots.style import COLORS, PERCENT_TICKS, color, panels, percent_axis

#: the parts of a residual check (`repair_rounds.ResidualCheck`), as figures and tables name them
CHECKS = {"earlier": "earlier samples", "sampled": "new generator", "searched": "trigger search"}
#: how `asr_by_trigger` draws a row of the table: marker, color, label
TRIGGER_ROWS = {
    "beta 0.9": ("v", COLORS["fine-tuning"], "MESA, beta 0.9"),
    "MESA": ("o", COLORS["MESA"], "MESA, mixture"),
    "ideal": ("s", COLORS["ideal"], "ideal"),
    "clean model": ("_", COLORS["clean model"], "clean-model ASR"),
    "clean model, repaired": ("|", "0.4", "clean model, repaired"),
}


def asr_by_control(tables: dict[str, list[dict]], title: str = "") -> Figure:
    """Return the ASR of the original trigger on each model, with 95% CIs; the dotted line is the clean model's.

    The axis is linear below 5% and logarithmic above.

    Args:
        tables: attack -> rows of its before/after table (`Pipeline.table`), each with `model` and `asr`; one is
            `clean model`. All tables have the same models.
        title: what the figure shows, as a sentence.
    """
    most = max(len(rows) for rows in tables.values())
    figure, axes = panels(len(tables), len(tables), 7.6 / len(tables) ** 0.5, 0.33 * most + 1.5, sharey=True)
    for axis, (attack, rows) in zip(axes, tables.items(), strict=True):
        names = [row["model"] for row in rows]
        for y, row in enumerate(rows):
            rate, low, high = (100 * row["asr"][key] for key in ("rate", "low", "high"))
            axis.plot([low, high], [y, y], color=color(names[y]), lw=3, alpha=0.7)
            axis.plot(rate, y, "o", color=color(names[y]), mec="black", mew=0.5, ms=7)
            axis.annotate(f"{rate:.1f}", (rate, y), xytext=(0, 6), textcoords="offset points", ha="center", fontsize=9)
        clean_rate = 100 * rows[names.index("clean model")]["asr"]["rate"]
        axis.axvline(clean_rate, color="black", ls=":", lw=1.2, label="clean-model ASR")
        axis.set_xscale("symlog", linthresh=5, linscale=1.5)
        axis.set_xticks(PERCENT_TICKS, list(map(str, PERCENT_TICKS)), fontsize=9)
        axis.minorticks_off()
        axis.set_yticks(range(len(names)), names)
        axis.set(xlim=(-0.3, 160), ylim=(len(names) - 0.5, -0.8), title=f"attack: {attack}")
        axis.set_xlabel("ASR of the original trigger (%), 95% CI", fontsize=11)
    axes[0].legend(fontsize=9, loc="lower right")
    if title:
        figure.suptitle(title, fontsize=12)
    return figure


def asr_by_source(points: dict[str, dict[str, tuple[float, float]]], title: str = "") -> Figure:
    """Return what a repair leaves against how much its triggers activate the backdoor; one point a source of triggers.

    Colors are sources, markers are attacks. Both axes are linear near zero and logarithmic above.

    Args:
        points: attack -> source -> mean ASR of its triggers on the attacked model, and ASR of the attacker's trigger
            after the repair that stamps them, both in [0, 1].
        title: what the figure shows, as a sentence.
    """
    figure, axis = plt.subplots(figsize=(7.4, 3.9))
    sources = list(dict.fromkeys(source for by_source in points.values() for source in by_source))
    for (attack, by_source), mark in zip(points.items(), "osD^", strict=False):
        for source, (before, after) in by_source.items():
            axis.plot(100 * before, 100 * after, mark, color=color(source), mec="black", mew=0.6, ms=8, zorder=3)
        axis.plot([], [], mark, color="white", mec="black", label=f"attack: {attack}")
    for source in sources:
        axis.plot([], [], "o", color=color(source), label=source)
    percent_axis(axis)
    axis.set_xscale("symlog", linthresh=1, linscale=0.8)
    ticks = (0, 0.5, 1, 2, 5, 10, 20, 50, 100)
    axis.set_xticks(ticks, list(map(str, ticks)))
    axis.set_xlim(-0.1, 130)
    axis.set_ylim(-0.3, 150)
    axis.minorticks_off()
    axis.set(xlabel="mean ASR of the source's triggers before the repair (%)", ylabel="ASR left by the repair (%)")
    axis.set_title(title, fontsize=12, loc="left")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right center", fontsize=9)
    return figure


def repair_rounds(
    series: dict[str, list[dict]], clear_below: float, clean_model_asr: Sequence[float], title: str = ""
) -> Figure:
    """Return, after every repair round, the ASR of the attacker's trigger and what each residual check measured.

    The axis is logarithmic; values below 0.3% are drawn there.

    Args:
        series: title -> one record per round with `asr` and the keys of `CHECKS`, all in [0, 1].
        clear_below: the threshold of an all-clear.
        clean_model_asr: of each title.
        title: what the figure shows, as a sentence.
    """
    lines = {
        "asr": ("attacker's trigger", COLORS["attacked"], "o-"),
        "earlier": (CHECKS["earlier"], COLORS["MESA"], "v--"),
        "sampled": (CHECKS["sampled"], COLORS["ideal"], "^--"),
        "searched": (CHECKS["searched"], COLORS["clean model"], "s--"),
    }
    most = max(len(records) for records in series.values())
    figure, axes = panels(len(series), len(series), 3.0, 3.5, sharey=True)
    for axis, clean_rate, (name_of_series, records) in zip(axes, clean_model_asr, series.items(), strict=True):
        numbers = range(1, len(records) + 1)
        for name, (label, shade, style) in lines.items():
            axis.plot(numbers, [max(100 * r[name], 0.3) for r in records], style, color=shade, label=label, ms=5)
        axis.axhline(100 * clear_below, color="0.3", ls=":", lw=1.5, label="threshold of an all-clear")
        axis.axhline(100 * clean_rate, color=COLORS["attacked"], ls=":", lw=1.5, label="clean-model ASR")
        axis.set_yscale("log")
        axis.set(xlabel="round", xlim=(0.7, most + 0.3), ylim=(0.25, 130), xticks=range(1, most + 1))
        axis.set_yticks([1, 3, 10, 30, 100], ["1", "3", "10", "30", "100"])
        axis.minorticks_off()
        axis.set_title(name_of_series, fontsize=10)
    axes[0].set_ylabel("attack success rate (%)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9)
    if title:
        figure.suptitle(title, fontsize=12)
    return figure


def asr_by_task(names: Sequence[str], rates: dict[str, Sequence[float]]) -> Figure:
    """Return the ASR (%) of every task of a sweep, one column each: before the repair and after each of them.

    Args:
        names: of the tasks.
        rates: row of the results table -> one percentage per task.
    """
    figure, axis = plt.subplots(figsize=(max(6, 2.5 + 0.32 * len(names)), 4.2))
    marks = "osv^<>DPX*"
    for number, (name, values) in enumerate(rates.items()):
        mark = marks[number % len(marks)]
        axis.plot(range(len(names)), values, mark, color=color(name, "black"), label=name, ms=5, alpha=0.8, ls="none")
    axis.set_yscale("symlog", linthresh=1)
    axis.set(ylabel="attack success rate (%)", ylim=(0, 130), xlim=(-0.7, len(names) - 0.3))
    axis.set_yticks([0, 0.5, 1, 2, 5, 10, 20, 50, 100], ["0", "0.5", "1", "2", "5", "10", "20", "50", "100"])
    axis.set_xticks(range(len(names)), [name.rpartition("-")[0] or name for name in names], rotation=90, fontsize=8)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right center", fontsize=8)
    return figure


def asr_by_trigger(table: pd.DataFrame, rows: Sequence[str] = ("beta 0.9", "MESA", "ideal", "clean model")) -> Figure:
    """Return the poster's figure: ASR (%) after the repair, one trigger a column, sorted by the single inversion.

    The band goes from the best to the worst single inversion. Linear below 5%, logarithmic above.

    Args:
        table: of `paper.asr_by_trigger`.
        rows: its columns that are drawn, keys of `TRIGGER_ROWS`.
    """
    x = np.arange(len(table))
    figure, axis = plt.subplots(figsize=(min(13, max(6, 2 + 0.4 * len(table))), 4))
    shade = COLORS["single inversion"]
    axis.fill_between(
        x, table["single inversion, best"], table["single inversion, worst"], color=shade, alpha=0.3, step="mid", lw=0,
        label="single inversion, best to worst",
    )  # fmt: skip
    axis.step(x, table["single inversion"], where="mid", color=shade, label="single inversion, mean")
    for name in rows:
        mark, shade, label = TRIGGER_ROWS[name]
        axis.plot(x, table[name], mark, color=shade, label=label, ms=6, mew=2 if mark in "_|" else 0, alpha=0.9)
    percent_axis(axis)
    axis.set_xticks(x, [str(name).removeprefix("bw:") for name in table.index], rotation=90, fontsize=9)
    top = max(6.0, 1.2 * float(np.nanmax(table[["single inversion, worst", *rows]].to_numpy())))
    axis.set(xlabel="trigger", ylabel="ASR after the repair (%)", ylim=(0, top), xlim=(-0.6, len(x) - 0.4))
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right center", fontsize=9)
    return figure


def means_with_intervals(
    table: pd.DataFrame, *, xlabel: str, title: str, line: tuple[float, str] | None = None, symlog: bool = False
) -> Figure:
    """Return one row per line of a table: its mean with the 95% CI, and where there are any, worst and paper's mean.

    Args:
        table: columns `mean`, `95% CI, low`, `95% CI, high`; `worst` and `paper, mean` where they are to be drawn.
        xlabel: quantity and unit.
        title: what the figure shows, as a sentence.
        line: a value that all rows are compared with, and its label.
        symlog: whether the axis is linear below 5 and logarithmic above; for percentages.
    """
    figure, axis = plt.subplots(figsize=(6, 1.5 + 0.28 * len(table)))
    for y, (name, row) in enumerate(table.iterrows()):
        low, high = row["95% CI, low"], row["95% CI, high"]
        if np.isfinite(low):
            axis.plot([low, high], [y, y], color=color(str(name)), lw=3, alpha=0.7)
        axis.plot(row["mean"], y, "o", color=color(str(name)), mec="black", mew=0.5, ms=7, label="mean, 95% CI")
        for column, mark, label in (("worst", "|", "worst run"), ("paper, mean", "*", "the paper, mean")):
            if np.isfinite(row.get(column, np.nan)):
                axis.plot(row[column], y, mark, color="black", ms=10, mew=1.5 if mark == "|" else 0, label=label)
    if line:
        axis.axvline(line[0], color="0.3", ls=":", lw=1.5, label=line[1])
    if symlog:
        axis.set_xscale("symlog", linthresh=5, linscale=1.5)
        axis.set_xticks(PERCENT_TICKS, list(map(str, PERCENT_TICKS)))
        axis.set_xlim(0, 130)
        axis.minorticks_off()
    axis.set_yticks(range(len(table)), list(map(str, table.index)))
    axis.set(xlabel=xlabel, ylim=(len(table) - 0.4, -0.6))
    axis.set_title(title, fontsize=11, loc="left")
    handles, labels = axis.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(unique.values(), unique.keys(), loc="outside lower center", ncols=4, fontsize=8)
    return figure
