"""Figures of the attack: training curves, and the success rate of a trigger by location."""

import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.figure import Figure
from torch import Tensor

from mesa_lib.reporting.plots.style import COLORS


def training_curves(histories: dict[str, list[dict]]) -> Figure:
    """Return loss and accuracy per epoch of several trainings: name -> history of `training.train`."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2))
    for axis, value in zip(axes, ("loss", "accuracy"), strict=True):
        for name, history in histories.items():
            epochs, values = [h["epoch"] for h in history], [h[value] for h in history]
            axis.plot(epochs, values, label=name, color=COLORS.get(name))
        axis.set(xlabel="epoch", ylabel=f"training {value}")
    axes[0].set_yscale("log")
    axes[1].legend()
    return figure


def location_heatmap(rates: Tensor, title: str = "") -> Figure:
    """Return a map of the attack success rate by location of the upper left corner: (rows, columns) in [0, 1]."""
    figure, axis = plt.subplots(figsize=(4.4, 3.6))
    sns.heatmap(rates.numpy(), vmin=0, vmax=1, cmap="mako", square=True, xticklabels=5, yticklabels=5, ax=axis)
    axis.set(xlabel="column", ylabel="row", title=title)
    return figure
