"""Figures of scans of third-party models."""

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from mesa_lib.reporting.plots.style import COLORS


def screening_rates(classes: pd.DataFrame, thresholds: dict[str, float], title: str = "") -> Figure:
    """Return how many images are misclassified as each class, one way of stamping a panel, with its threshold.

    Args:
        classes: one row per class of a model, with its `data`, its kind (`class`; three kinds at most), and a column
            of percentages for each way of stamping.
        thresholds: way of stamping -> threshold in percent.
        title: what the figure shows, as a sentence.
    """
    palette = (COLORS["attacked"], "gray", COLORS["clean model"])
    kinds = dict(zip(classes["class"].unique(), palette, strict=False))
    figure, axes = plt.subplots(1, len(thresholds), figsize=(3.4 * len(thresholds), 3.6), sharey=True)
    for axis, (column, threshold) in zip(axes, thresholds.items(), strict=True):
        sns.stripplot(
            classes, x=column, y="data", hue="class", dodge=True, palette=kinds, alpha=0.6, size=4, jitter=0.2, ax=axis
        )
        axis.axvline(threshold, color="black", linewidth=1.5, label="limit")
        axis.set(xlabel="images misclassified (%)", ylabel="", xlim=(-4, 104))
        axis.set_title(column, fontsize=11)
        handles = axis.get_legend_handles_labels()
        axis.get_legend().remove()
    figure.legend(*handles, loc="outside lower center", ncols=len(kinds) + 1, fontsize=9)
    if title:
        figure.suptitle(title, fontsize=12)
    return figure
