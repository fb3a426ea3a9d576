"""Figures of attacks: what a trigger changes in an image, and how often it works."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from torch import Tensor

from mesa_lib.reporting.plots.style import COLORS, PERCENT_TICKS, picture, spread


def trigger_pictures(clean: Tensor, triggered: dict[str, Tensor], title: str = "") -> Figure:
    """Return one image under several triggers, one a column: above the image, below what the trigger changes.

    Args:
        clean: (3, H, W) in [0, 1].
        triggered: attack -> (3, H, W) in [0, 1].
        title: what the figure shows, as a sentence.
    """
    figure, axes = plt.subplots(2, len(triggered) + 1, figsize=(1.35 * (len(triggered) + 1), 3.2), squeeze=False)
    for column, (name, image) in zip(axes.T, {"clean": clean, **triggered}.items(), strict=True):
        for axis, shown in zip(column, (image, 0.5 + (image - clean) / 2), strict=True):
            axis.imshow(picture(shown), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
        column[0].set_title(name, fontsize=10)
    axes[0, 0].set_ylabel("image", fontsize=10)
    axes[1, 0].set_ylabel("change", fontsize=10)
    if title:
        figure.suptitle(title, fontsize=12)
    return figure


def attack_rates(rates: dict[str, dict[str, dict]], title: str) -> Figure:
    """Return the ASR of each attack's trigger on several models with its 95% CI, one row an attack.

    Args:
        rates: attack -> model (a key of `COLORS`) -> rate with its interval (`intervals.proportion`).
        title: what the figure shows, as a sentence.
    """
    figure, axis = plt.subplots(figsize=(7.6, 1.5 + 0.34 * len(rates)))
    models: Sequence[str] = list(next(iter(rates.values())))
    for model, mark, shift in zip(models, "oDs^", spread(len(models), 0.16), strict=False):
        for y, row in enumerate(rates.values()):
            low, value, high = (100 * row[model][key] for key in ("low", "rate", "high"))
            axis.plot([low, high], [y + shift] * 2, color=COLORS[model], linewidth=3, alpha=0.5)
            label = model if y == 0 else None
            axis.plot(value, y + shift, mark, color=COLORS[model], markersize=6, label=label, clip_on=False)
    for y in range(len(rates) - 1):
        axis.axhline(y + 0.5, color="0.85", linewidth=0.8)
    axis.set_xscale("symlog", linthresh=5, linscale=1.5)
    axis.set_xticks(PERCENT_TICKS, list(map(str, PERCENT_TICKS)))
    axis.set_xlim(-0.3, 115)
    axis.minorticks_off()
    axis.set(yticks=range(len(rates)), yticklabels=list(rates), ylim=(len(rates) - 0.5, -0.5))
    axis.set_xlabel("ASR (%), with 95% CI")
    axis.set_title(title, fontsize=12, loc="left")
    axis.grid(axis="y", visible=False)
    figure.legend(loc="outside lower center", ncols=len(models), fontsize=9)
    return figure
