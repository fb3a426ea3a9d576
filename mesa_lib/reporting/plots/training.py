"""Figures of the attack: where a trigger sits, training curves, ASR by location and by pattern."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.figure import Figure
from torch import Tensor

from mesa_lib.reporting.plots.style import COLORS, picture

#: pixels around a trigger that a close-up shows
AROUND = 4


def close_ups(images: Tensor, locations: Tensor, size: tuple[int, int], title: str = "") -> Figure:
    """Return images in one row, the trigger's window framed, and below each the neighborhood of that window.

    Args:
        images: (n, 3, H, W), uint8 or in [0, 1].
        locations: (n, 2), row and column of the window's upper left corner.
        size: height and width of the window in pixels.
        title: what the figure shows, as a sentence.
    """
    figure, axes = plt.subplots(2, len(images), figsize=(1.25 * len(images), 2.9), squeeze=False)
    for (whole, near), image, (row, column) in zip(axes.T, images, locations.tolist(), strict=True):
        height, width = image.shape[-2:]
        for axis in (whole, near):
            axis.imshow(picture(image), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            corner = (column - 0.5, row - 0.5)
            axis.add_patch(plt.Rectangle(corner, *size[::-1], fill=False, edgecolor=COLORS["attacked"], lw=1.5))
        top = min(max(row - AROUND, 0), height - size[0] - 2 * AROUND) - 0.5
        left = min(max(column - AROUND, 0), width - size[1] - 2 * AROUND) - 0.5
        near.set(xlim=(left, left + size[1] + 2 * AROUND), ylim=(top + size[0] + 2 * AROUND, top))
    axes[0, 0].set_ylabel("image", fontsize=10)
    axes[1, 0].set_ylabel("enlarged", fontsize=10)
    if title:
        figure.suptitle(title, fontsize=12)
    return figure


def ranked_asr(rates: dict[str, Sequence[float]], names: Sequence[str], title: str = "") -> Figure:
    """Return the ASR (%) of named triggers on several models, in the order of the first model's ASR.

    Args:
        rates: model -> one percentage a trigger.
        names: of the triggers.
        title: what the figure shows, as a sentence.
    """
    first = list(next(iter(rates.values())))
    order = sorted(range(len(names)), key=lambda i: -first[i])
    figure, axis = plt.subplots(figsize=(9, 3.3))
    others = (COLORS["attacked"], "black", COLORS["ideal"], COLORS["MESA"], COLORS["clean model"])
    for (model, values), mark, other in zip(rates.items(), "os^Dv", others, strict=False):
        shade = COLORS.get(model, other)
        axis.plot(range(len(order)), [values[i] for i in order], mark, color=shade, label=model, ms=5, alpha=0.85)
    axis.axhline(50, color="0.3", ls=":", lw=1.2)
    axis.set_xticks(range(len(order)), [names[i] for i in order], rotation=90, fontsize=8)
    axis.set(ylabel="ASR (%)", ylim=(-4, 104), xlim=(-0.8, len(order) - 0.2))
    axis.set_xlabel(f"pattern, in the order of its ASR ({next(iter(rates))})", fontsize=11)
    axis.set_title(title, fontsize=12, loc="left")
    axis.legend(fontsize=10, loc="upper right")
    return figure


def training_curves(histories: dict[str, list[dict]], title: str = "") -> Figure:
    """Return loss and accuracy per epoch of several trainings: name -> history of `training.train`."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2))
    for axis, value in zip(axes, ("loss", "accuracy"), strict=True):
        for name, history in histories.items():
            epochs, values = [h["epoch"] for h in history], [h[value] for h in history]
            axis.plot(epochs, values, label=name, color=COLORS.get(name))
        axis.set(xlabel="epoch", ylabel=f"training {value}")
    axes[0].set_yscale("log")
    axes[1].legend(fontsize=10, loc="lower right")
    if title:
        figure.suptitle(title, fontsize=12)
    return figure


def location_heatmap(rates: Tensor, title: str = "") -> Figure:
    """Return a map of the attack success rate by location of the upper left corner: (rows, columns) in [0, 1]."""
    figure, axis = plt.subplots(figsize=(4.8, 3.8))
    options = {"vmin": 0, "vmax": 100, "cmap": "mako", "square": True, "cbar_kws": {"label": "ASR (%)"}}
    sns.heatmap(100 * rates.numpy(), xticklabels=5, yticklabels=5, ax=axis, **options)
    axis.set(xlabel="column of the corner (pixels)", ylabel="row of the corner (pixels)")
    axis.set_title(title, fontsize=12)
    return figure
