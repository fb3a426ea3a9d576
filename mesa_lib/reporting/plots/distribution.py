"""Figures of modeled trigger distributions: samples, training curves, maps in two dimensions."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from torch import Tensor

from mesa_lib.reporting.plots.style import COLORS, picture

#: the marks of single triggers in a map: symbol, size, color
MARKS = {
    "original": ("*", 190, COLORS["attacked"]),
    "its inverse": ("*", 190, "white"),
    "single inversion": ("X", 80, COLORS["single inversion"]),
}
#: groups of triggers (n, 3, h, w) by name, and single triggers (3, h, w) by the name of their mark
Map = tuple[dict[str, Tensor], dict[str, Tensor]]


def gallery(
    images: Sequence[Tensor] | Tensor,
    titles: Sequence[str] = (),
    *,
    columns: int = 16,
    title: str = "",
    size: float = 0.7,
) -> Figure:
    """Return small pictures (3, h, w) in rows: triggers, or images with and without one.

    Args:
        images: uint8 or in [0, 1].
        titles: of the first pictures, in order.
        columns: pictures in a row.
        title: of the figure.
        size: of one picture, in inches.
    """
    rows = -(-len(images) // columns)
    height = size * (rows + 0.35 * -(-len(titles) // columns))  # rows with titles are higher
    figure, axes = plt.subplots(rows, columns, figsize=(size * columns, height + 0.4), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for i, (axis, image) in enumerate(zip(axes.flat, images, strict=False)):
        axis.imshow(picture(image), vmin=0, vmax=1, interpolation="nearest")
        height, width = image.shape[-2:]
        axis.add_patch(plt.Rectangle((-0.5, -0.5), width, height, fill=False, edgecolor="0.6", clip_on=False))
        if i < len(titles):
            axis.set_title(titles[i], fontsize=8, pad=2)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


# --- modeling --------------------------------------------------------------------------------------------


def mine_curves(runs: dict[float, tuple[float, list[float]]], exact: dict[float, float], title: str = "") -> Figure:
    """Return MINE's bound on correlated Gaussians during training, with the closed form as dashed lines.

    Args:
        runs: correlation -> (final estimate, bound in nats at every step).
        exact: correlation -> mutual information in nats.
    """
    figure, axis = plt.subplots(figsize=(7, 3.4))
    for (correlation, (_, history)), color in zip(runs.items(), sns.color_palette("colorblind"), strict=False):
        smooth = np.convolve(history, np.ones(50) / 50, mode="valid")
        axis.plot(smooth, color=color, label=f"correlation {correlation}")
        axis.axhline(exact[correlation], color=color, linestyle="--", linewidth=1)
    axis.set(xlabel="training step", ylabel="information (nats),\nmean of 50 steps")
    axis.plot([], [], color="0.3", linestyle="--", linewidth=1, label="closed form")
    axis.legend(loc="center right", bbox_to_anchor=(1, 0.64), fontsize=10)
    axis.set_title(title, fontsize=12, loc="left")
    return figure


def toy_staircase(
    density: Tensor, samples: dict[str, Tensor], title: str = "", sets: dict[str, float] | None = None
) -> Figure:
    """Return a density on [0, 1]^2, (n, n), beside samples (m, 2) from the generators of several levels.

    Args:
        sets: name of some samples -> level beta; a line is drawn around the set where the density reaches it.
    """
    names = ["density F", *samples]
    figure, axes = plt.subplots(1, len(names), figsize=(2.7 * len(names), 2.9), sharex=True, sharey=True)
    for axis, name in zip(axes, names, strict=True):
        axis.imshow(density.T.numpy(), origin="lower", extent=(0, 1, 0, 1), cmap="Greys", vmin=0, vmax=1.3)
        axis.grid(False)
        if name in samples:
            x = samples[name].numpy()
            axis.scatter(x[:, 0], x[:, 1], s=5, color=COLORS["MESA"], alpha=0.6, linewidths=0)
        if sets and name in sets:
            corners = np.linspace(0, 1, len(density))
            axis.contour(corners, corners, density.T.numpy(), [sets[name]], colors=COLORS["attacked"], linewidths=1.2)
        axis.set(xlim=(0, 1), ylim=(0, 1), title=name, xticks=[0, 1], yticks=[0, 1])
    if title:
        figure.suptitle(title, fontsize=12)
    return figure


def modeling_curves(levels: Sequence, title: str = "") -> Figure:
    """Return F, information and diversity over the steps of each level (`distribution.Level`)."""
    quantities = {"F": "mean success F", "information": "information (nats)", "distance": "distance between samples"}
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.1))
    for level, color in zip(levels, sns.color_palette("colorblind"), strict=False):
        steps = [h["step"] for h in level.history]
        for axis, value in zip(axes, quantities, strict=True):
            axis.plot(steps, [h[value] for h in level.history], color=color, label=f"$\\beta$ = {level.beta}")
        axes[0].axhline(level.beta, color=color, linestyle="--", linewidth=1.5, zorder=1)
    for axis, label in zip(axes, quantities.values(), strict=True):
        axis.set(xlabel="step", ylabel=label)
    axes[0].legend(fontsize=10)
    if title:
        figure.suptitle(title, fontsize=12)
    return figure


def success_ecdf(rates: dict[str, Tensor], title: str = "") -> Figure:
    """Return the share of samples whose ASR is at most x: name -> ASR of each trigger (n,) in [0, 1].

    The axes end a little beyond the values, so that the jumps at 0% and at 100% are seen.
    """
    figure, axis = plt.subplots(figsize=(7, 3.3))
    for (name, values), color in zip(rates.items(), sns.color_palette("colorblind"), strict=False):
        axis.ecdf(100 * values.numpy(), label=name, color=color, linestyle="--" if name == "mixture" else "-")
    axis.set(xlabel="ASR of a sample (%)", ylabel="share of samples\nat or below", xlim=(-2, 103), ylim=(0, 1.03))
    axis.set_title(title, fontsize=12, loc="left")
    axis.legend(loc="upper left", fontsize=10)
    return figure


# --- maps ------------------------------------------------------------------------------------------------


def embed(triggers: Tensor, method: str, seed: int = 0) -> np.ndarray:
    """Return points (n, 2) for triggers (n, 3, h, w), by `pca` or `t-sne` (scikit-learn)."""
    flat = triggers.flatten(1).cpu().double().numpy()
    if method == "pca":
        return PCA(2, random_state=seed).fit_transform(flat)
    if method == "t-sne":
        return TSNE(2, perplexity=30, init="pca", random_state=seed).fit_transform(flat)
    raise ValueError(f"method = {method!r}: expected pca or t-sne")


def distribution_map(groups: dict[str, Tensor], marks: dict[str, Tensor], *, method: str, title: str = "") -> Figure:
    """Return groups of triggers (n, 3, h, w) in the plane, embedded together, with single triggers marked.

    Args:
        groups: name -> triggers, one color each.
        marks: a name of `MARKS` -> one trigger (3, h, w).
        method: `pca` or `t-sne`, see `embed`.
    """
    figure, axis = plt.subplots(figsize=(7.2, 4.2))
    one = {"": (groups, marks)}
    _draw_map(axis, _embed_maps(one, method)[0], groups, marks, title or method)
    if method == "pca":
        _label_components(axis, one)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right center", fontsize=10)
    return figure


def distribution_maps(
    maps: dict[str, Map], *, method: str, shared: bool = False, seed: int = 0, title: str = ""
) -> Figure:
    """Return several maps in one row: title -> (groups, marks), as in `distribution_map`.

    Args:
        shared: one embedding and one scale for all panels; otherwise each panel has its own.
        seed: of the embedding.
        title: what the figure shows, as a sentence.
    """
    points = (
        _embed_maps(maps, method, seed) if shared else [_embed_maps({"": m}, method, seed)[0] for m in maps.values()]
    )
    height = 4.2
    if shared:  # with equal scales a flat map needs no high panel
        across, up = np.ptp(np.concatenate(points), 0)
        height = min(height, height * up / across + 1.2)
    size = (4.2 * len(maps), height)
    figure, axes = plt.subplots(1, len(maps), figsize=size, squeeze=False, sharex=shared, sharey=shared)
    for axis, embedded, (name, (groups, marks)) in zip(axes[0], points, maps.items(), strict=True):
        _draw_map(axis, embedded, groups, marks, name)
        if shared:
            axis.set_aspect("equal")
        if shared and method == "pca":
            _label_components(axis, maps)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=10)
    if title:
        figure.suptitle(title, fontsize=12)
    return figure


def _embed_maps(maps: dict[str, Map], method: str, seed: int = 0) -> list[np.ndarray]:
    """Embed all triggers of all maps together -> the points of each map: its groups, then its marks."""
    triggers = _triggers(maps)
    points = embed(torch.cat(triggers), method, seed)
    return np.split(points, np.cumsum([len(part) for part in triggers])[:-1])


def _triggers(maps: dict[str, Map]) -> list[Tensor]:
    """Return the triggers of each map: its groups, then its marks."""
    return [torch.cat([*groups.values(), *[m[None] for m in marks.values()]]).cpu() for groups, marks in maps.values()]


def _label_components(axis: Axes, maps: dict[str, Map]) -> None:
    """Label the axes of a PCA with the share of the variance that each explains, at equal scales."""
    flat = torch.cat(_triggers(maps)).flatten(1).double().numpy()
    first, second = PCA(2, random_state=0).fit(flat).explained_variance_ratio_
    axis.set_aspect("equal")
    axis.set_xlabel(f"component 1 ({first:.0%} of the variance)", fontsize=10)
    axis.set_ylabel(f"component 2 ({second:.0%})", fontsize=10)


def _draw_map(axis: Axes, points: np.ndarray, groups: dict[str, Tensor], marks: dict[str, Tensor], title: str) -> None:
    start = 0
    for name, group in groups.items():
        part = points[start : start + len(group)]
        shade = COLORS["MESA"] if name == "samples" else None
        axis.scatter(part[:, 0], part[:, 1], s=10, alpha=0.6, label=name, linewidths=0, color=shade)
        start += len(group)
    for name, point in zip(marks, points[start:], strict=True):
        symbol, size, color = MARKS[name]
        axis.scatter(*point, s=size, marker=symbol, color=color, edgecolor="black", label=name, zorder=5)
    axis.set(xticks=[], yticks=[], title=title)


# --- parameters ------------------------------------------------------------------------------------------


def parameter_sweep(
    values: Sequence,
    results: dict[str, dict[str, Sequence[float]]],
    xlabel: str,
    errors: dict[str, dict[str, Sequence[float]]] | None = None,
    *,
    numeric: bool = False,
    low: float = 0,
) -> Figure:
    """Return one small panel per quantity over the values of a swept parameter.

    Args:
        values: of the parameter.
        results: quantity -> curve -> one number per value.
        xlabel: name of the parameter.
        errors: error bars, in the shape of `results`.
        numeric: place the values at their distances; otherwise they are categories.
        low: where the axis of each quantity begins.
    """
    x = list(values) if numeric else [str(v) for v in values]
    figure, axes = plt.subplots(1, len(results), figsize=(3.5 * len(results), 2.8), squeeze=False)
    for axis, (quantity, curves) in zip(axes[0], results.items(), strict=True):
        for label, numbers in curves.items():
            bars = None if errors is None else list(errors[quantity][label])
            axis.errorbar(x, list(numbers), bars, fmt="o:", capsize=2, label=label)
        axis.set(xlabel=xlabel, ylabel=quantity)
        highest = max(max(numbers) for numbers in curves.values())
        axis.set_ylim(low, highest + 0.08 * (highest - low))
    axes[0][0].legend(fontsize=9)
    return figure
