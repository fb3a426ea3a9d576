"""What the figures share: theme, colors, axes, and the two layouts for several panels."""

from collections.abc import Iterable

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

#: the color of each model and repair, the same in all figures (seaborn's `colorblind` palette)
COLORS = {
    "clean model": "#0173b2",
    "attacked": "#d55e00",
    "MESA": "#029e73",
    "ideal": "#cc78bc",
    "single inversion": "#de8f05",
    "best inversion": "#b45f06",
    "all inversions": "#f6b26b",
    "fine-tuning": "#ca9161",
    "random uniform": "#fbafe4",
    "random binary": "#949494",
    "random mixed": "#ece133",
    "clean model, repaired": "#56b4e9",
}
#: rows without a color of their own, such as one level of the staircase
OTHER = "#ca9161"
#: tick labels of an axis that is linear near zero and logarithmic above
PERCENT_TICKS = (0, 1, 2, 3, 4, 5, 10, 20, 50, 100)


def theme() -> None:
    """Set seaborn's style and a resolution that keeps a notebook small; called once, in the first cell."""
    sns.set_theme(style="whitegrid", context="notebook", palette="colorblind")
    plt.rcParams.update({"figure.dpi": 72, "savefig.dpi": 72, "figure.constrained_layout.use": True})


def color(name: str, default: str = OTHER) -> str:
    """Return the color of a row of a results table: its own, or that of the longest name that it begins with.

    `single inversion 2` has the color of `single inversion`, `MESA rounds` that of `MESA`.
    """
    return next((COLORS[key] for key in sorted(COLORS, key=len, reverse=True) if name.startswith(key)), default)


def panels(number: int, columns: int, width: float, height: float, **options) -> tuple[Figure, list[Axes]]:
    """Return a figure with `number` panels, at most `columns` in a row, and their axes; spare axes are not drawn.

    Args:
        width, height: of one panel, in inches.
        options: of `plt.subplots`.
    """
    columns = min(columns, number)
    rows = -(-number // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(width * columns, height * rows), squeeze=False, **options)
    for axis in axes.flat[number:]:
        axis.axis("off")
    return figure, list(axes.flat[:number])


def spread(number: int, width: float = 0.15) -> np.ndarray:
    """Return horizontal offsets (number,) within +-width that keep dots of one group apart."""
    return np.linspace(-width, width, number) if number > 1 else np.zeros(number)


def percent_axis(axis: Axes, threshold: float = 5, scale: float = 1.5) -> None:
    """Make the y axis of percentages linear below `threshold`, which takes up `scale` decades, logarithmic above."""
    axis.set_yscale("symlog", linthresh=threshold, linscale=scale)
    axis.set_yticks(PERCENT_TICKS, list(map(str, PERCENT_TICKS)))
    axis.minorticks_off()


def picture(image: Tensor) -> np.ndarray:
    """Return an image (3, h, w), uint8 or in [0, 1], as matplotlib shows it: (h, w, 3)."""
    image = image.float() / 255 if image.dtype == torch.uint8 else image
    return image.detach().cpu().clamp(0, 1).permute(1, 2, 0).numpy()


def percent_across(axis: Axes) -> None:
    """Give an axis of percentages from left to right: linear below 5, logarithmic above."""
    axis.set_xscale("symlog", linthresh=5, linscale=1.5)
    axis.set_xticks(PERCENT_TICKS, list(map(str, PERCENT_TICKS)))
    axis.set_xlim(-0.3, 130)


def named_rows(axis: Axes, names: Iterable[str], xlabel: str, title: str) -> None:
    """Give each row of dots its name, the first on top, with a thin line between two rows."""
    names = list(names)
    for y in range(len(names) - 1):
        axis.axhline(y + 0.5, color="0.85", linewidth=0.8)
    axis.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.5, -0.5), xlabel=xlabel)
    axis.set_title(title, fontsize=12, loc="left")
    axis.grid(axis="y", visible=False)
