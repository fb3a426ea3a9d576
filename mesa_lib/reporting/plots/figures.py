"""The figures, one function each. Every function returns a matplotlib figure and changes none of its inputs."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import torch
from matplotlib.figure import Figure
from torch import Tensor

#: one color a thing, in all notebooks
COLORS = {"clean": "#4c72b0", "attacked": "#c44e52", "MESA": "#55a868", "ideal": "#8172b3", "point": "#dd8452"}


def theme() -> None:
    """seaborn's look and a resolution that keeps a notebook small; called once, in the first cell."""
    sns.set_theme(style="whitegrid", context="notebook", palette="deep")
    plt.rcParams.update({"figure.dpi": 72, "savefig.dpi": 72, "figure.constrained_layout.use": True})


def _picture(image: Tensor) -> np.ndarray:
    image = image.float() / 255 if image.dtype == torch.uint8 else image
    return image.detach().cpu().clamp(0, 1).permute(1, 2, 0).numpy()


def gallery(
    images: Sequence[Tensor] | Tensor, titles: Sequence[str] = (), *, columns: int = 16, title: str = "", size=0.7
) -> Figure:
    """Small pictures (3, h, w) in rows: triggers, or images with and without one."""
    rows = -(-len(images) // columns)
    height = size * (rows + 0.35 * -(-len(titles) // columns))  # rows with titles are higher
    figure, axes = plt.subplots(rows, columns, figsize=(size * columns, height + 0.4), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for i, (axis, image) in enumerate(zip(axes.flat, images, strict=False)):
        axis.imshow(_picture(image), vmin=0, vmax=1, interpolation="nearest")
        height, width = image.shape[-2:]
        axis.add_patch(plt.Rectangle((-0.5, -0.5), width, height, fill=False, edgecolor="0.6", clip_on=False))
        if i < len(titles):
            axis.set_title(titles[i], fontsize=8, pad=2)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def training_curves(histories: dict[str, list[dict]]) -> Figure:
    """Loss and accuracy per epoch of several trainings: name -> history of `training.train`."""
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
    """How often the backdoor fires at each place of the upper left corner: rates (rows, columns) in [0, 1]."""
    figure, axis = plt.subplots(figsize=(4.4, 3.6))
    sns.heatmap(rates.numpy(), vmin=0, vmax=1, cmap="rocket", square=True, xticklabels=5, yticklabels=5, ax=axis)
    axis.set(xlabel="column", ylabel="row", title=title)
    return figure


def mine_curves(runs: dict[float, tuple[float, list[float]]], exact: dict[float, float]) -> Figure:
    """MINE on correlated Gaussians: the bound, a mean over 50 steps, and the closed form as dashed lines."""
    figure, axis = plt.subplots(figsize=(7, 3.4))
    for (correlation, (_, history)), color in zip(runs.items(), sns.color_palette("deep"), strict=False):
        smooth = np.convolve(history, np.ones(50) / 50, mode="valid")
        axis.plot(smooth, color=color, label=f"correlation {correlation}")
        axis.axhline(exact[correlation], color=color, linestyle="--", linewidth=1)
    axis.set(xlabel="training step", ylabel="information (nats), mean of 50 steps")
    axis.legend(loc="center right", bbox_to_anchor=(1, 0.62))
    return figure


def toy_staircase(density: Tensor, samples: dict[str, Tensor]) -> Figure:
    """A 2-D density on [0, 1]^2, (n, n), and samples (m, 2) of generators at several levels."""
    names = ["the density F", *samples]
    figure, axes = plt.subplots(1, len(names), figsize=(2.7 * len(names), 2.9), sharex=True, sharey=True)
    for axis, name in zip(axes, names, strict=True):
        axis.imshow(density.T.numpy(), origin="lower", extent=(0, 1, 0, 1), cmap="Greys", vmin=0, vmax=1.3)
        axis.grid(False)
        if name in samples:
            x = samples[name].numpy()
            axis.scatter(x[:, 0], x[:, 1], s=5, color=COLORS["MESA"], alpha=0.6, linewidths=0)
        axis.set(xlim=(0, 1), ylim=(0, 1), title=name, xticks=[0, 1], yticks=[0, 1])
    return figure


def modeling_curves(levels: Sequence) -> Figure:
    """F, information and diversity over the steps of each level (`staircase.Level`)."""
    panels = {"F": "mean success F", "information": "information (nats)", "distance": "distance between samples"}
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.1))
    for axis, (value, name) in zip(axes, panels.items(), strict=True):
        for level in levels:
            steps = [h["step"] for h in level.history]
            axis.plot(steps, [h[value] for h in level.history], label=f"$\\beta$ = {level.beta}")
        axis.set(xlabel="step", ylabel=name)
    for level, color in zip(levels, sns.color_palette("deep"), strict=False):
        axes[0].axhline(level.beta, color=color, linestyle="--", linewidth=1.5, zorder=1)
    axes[0].legend()
    return figure


def success_histogram(rates: dict[str, Tensor]) -> Figure:
    """How the ASR of single samples is spread: name -> ASR of each trigger (n,)."""
    figure, axis = plt.subplots(figsize=(7, 3))
    bins = np.linspace(0, 1, 18)
    weights = [np.full(len(r), 1 / len(r)) for r in rates.values()]
    axis.hist([r.numpy() for r in rates.values()], bins, weights=weights, label=list(rates))
    axis.set(xlabel="attack success rate of a sample", ylabel="share of samples")
    axis.legend(loc="upper left")
    return figure


def embed(triggers: Tensor, method: str, seed: int = 0) -> np.ndarray:
    """Triggers (n, 3, h, w) -> points (n, 2) by `pca` or `t-sne` (scikit-learn)."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    flat = triggers.flatten(1).cpu().double().numpy()
    if method == "pca":
        return PCA(2, random_state=seed).fit_transform(flat)
    if method == "t-sne":
        return TSNE(2, perplexity=30, init="pca", random_state=seed).fit_transform(flat)
    raise ValueError(f"method = {method!r}: expected pca or t-sne")


#: the marks of single triggers in a map: symbol, size, color
MARKS = {
    "original": ("*", 190, COLORS["attacked"]),
    "its inverse": ("*", 190, "white"),
    "point": ("X", 80, COLORS["point"]),
}
Map = tuple[dict[str, Tensor], dict[str, Tensor]]


def distribution_map(groups: dict[str, Tensor], marks: dict[str, Tensor], *, method: str, title: str = "") -> Figure:
    """Groups of triggers (n, 3, h, w) in the plane, all embedded together, with single triggers marked (`MARKS`)."""
    figure, axis = plt.subplots(figsize=(5.6, 4.4))
    _draw_map(axis, _embedded({"": (groups, marks)}, method)[0], groups, marks, title or method)
    if method == "pca":
        axis.set_aspect("equal")
    axis.legend(fontsize=8, loc="best")
    return figure


def side_by_side(maps: dict[str, Map], *, method: str, shared: bool = False, seed: int = 0) -> Figure:
    """Several maps in one row: title -> (groups, marks). `shared`: one embedding, one scale for all panels."""
    each = _embedded(maps, method, seed) if shared else [_embedded({"": m}, method, seed)[0] for m in maps.values()]
    height = 4.2
    if shared:  # with equal scales a flat map needs no high panel
        across, up = np.ptp(np.concatenate(each), 0)
        height = min(height, height * up / across + 0.9)
    figure, axes = plt.subplots(
        1, len(maps), figsize=(4.2 * len(maps), height), squeeze=False, sharex=shared, sharey=shared
    )
    for axis, points, (title, (groups, marks)) in zip(axes[0], each, maps.items(), strict=True):
        _draw_map(axis, points, groups, marks, title)
        if shared:
            axis.set_aspect("equal")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=10)
    return figure


def _embedded(maps: dict[str, Map], method: str, seed: int = 0) -> list[np.ndarray]:
    """One embedding of all triggers of all maps -> the points of each map: its groups, then its marks."""
    whole = [torch.cat([*groups.values(), *[m[None] for m in marks.values()]]).cpu() for groups, marks in maps.values()]
    points = embed(torch.cat(whole), method, seed)
    return np.split(points, np.cumsum([len(w) for w in whole])[:-1])


def _draw_map(axis, points: np.ndarray, groups: dict[str, Tensor], marks: dict[str, Tensor], title: str) -> None:
    start = 0
    for name, group in groups.items():
        part = points[start : start + len(group)]
        axis.scatter(part[:, 0], part[:, 1], s=10, alpha=0.6, label=name, linewidths=0)
        start += len(group)
    for name, point in zip(marks, points[start:], strict=True):
        symbol, size, color = MARKS[name]
        axis.scatter(*point, s=size, marker=symbol, color=color, edgecolor="black", label=name, zorder=5)
    axis.set(xticks=[], yticks=[], title=title)


def controls(rows: list[dict]) -> Figure:
    """ASR of the original trigger after each repair, with 95 % intervals; the dotted line is the clean model's."""
    names = [row["model"] for row in rows]
    rates = np.array([row["asr"]["rate"] for row in rows])
    low, high = (np.array([row["asr"][side] for row in rows]) for side in ("low", "high"))
    palette = [COLORS.get(name.split()[0].strip(","), "#937860") for name in names]
    figure, axis = plt.subplots(figsize=(8, 0.36 * len(rows) + 1))
    errors = np.abs(np.stack([rates - low, high - rates]))
    axis.barh(names, 100 * rates, xerr=100 * errors, color=palette, error_kw={"linewidth": 1})
    for location, (rate, end) in enumerate(zip(rates, high, strict=True)):
        axis.text(100 * end + 1, location, f"{100 * rate:.1f}", va="center", fontsize=9)
    floor = next(rate for name, rate in zip(names, rates, strict=True) if name.startswith("clean"))
    axis.axvline(100 * floor, color="black", linestyle=":", linewidth=1, label="floor: never attacked")
    axis.invert_yaxis()
    axis.set(xlabel="attack success rate of the original trigger (%), interval of 95 %", xlim=(0, 112))
    axis.legend(fontsize=9, loc="lower right")
    return figure


def sweep(
    values: Sequence,
    results: dict[str, dict[str, Sequence[float]]],
    xlabel: str,
    spread: dict | None = None,
    *,
    numeric: bool = False,
    low: float = 0,
) -> Figure:
    """One small panel a quantity over the values of a swept parameter: quantity -> curve -> numbers.

    spread: the same shape, drawn as error bars; numeric: values at their distances, not as categories; low: where the
    axis of the quantity begins
    """
    at = list(values) if numeric else [str(v) for v in values]
    figure, axes = plt.subplots(1, len(results), figsize=(3.5 * len(results), 2.8), squeeze=False)
    for axis, (name, curves) in zip(axes[0], results.items(), strict=True):
        for label, numbers in curves.items():
            bars = None if spread is None else list(spread[name][label])
            axis.errorbar(at, list(numbers), bars, fmt="o:", capsize=2, label=label)
        axis.set(xlabel=xlabel, ylabel=name)
        highest = max(max(numbers) for numbers in curves.values())
        axis.set_ylim(low, highest + 0.08 * (highest - low))
    axes[0][0].legend(fontsize=9)
    return figure


#: the means of a look (`coverage.Look`), as figures and tables name them
LOOKS = {"earlier": "samples so far", "sampled": "fresh generator", "searched": "search"}


def rounds(series: dict[str, list[dict]], clear_below: float, floors: Sequence[float]) -> Figure:
    """After every round: the ASR of the attacker's trigger, and what the defender's look found by each of its means.

    title -> one record a round with `asr` and the keys of `LOOKS`, all in [0, 1]; the clean model's ASR of each title.
    The axis is logarithmic; what is below 0.3 % is drawn there.
    """
    lines = {
        "asr": ("attacker's trigger", COLORS["attacked"], "o-"),
        "earlier": (LOOKS["earlier"], COLORS["MESA"], "v--"),
        "sampled": (LOOKS["sampled"], COLORS["ideal"], "^--"),
        "searched": (LOOKS["searched"], COLORS["clean"], "s--"),
    }
    most = max(len(records) for records in series.values())
    figure, axes = plt.subplots(1, len(series), figsize=(3.0 * len(series), 3.4), sharey=True, squeeze=False)
    for axis, floor, (title, records) in zip(axes.flat, floors, series.items(), strict=True):
        numbers = range(1, len(records) + 1)
        for name, (label, color, style) in lines.items():
            axis.plot(numbers, [max(100 * r[name], 0.3) for r in records], style, color=color, label=label, ms=5)
        axis.axhline(100 * clear_below, color="0.3", linestyle=":", linewidth=1.5, label="limit of an all-clear")
        axis.axhline(100 * floor, color=COLORS["attacked"], linestyle=":", linewidth=1.5, label="clean model's floor")
        axis.set_yscale("log")
        axis.set(xlabel="round", xlim=(0.7, most + 0.3), ylim=(0.25, 130), xticks=range(1, most + 1))
        axis.set_yticks([1, 3, 10, 30, 100], ["1", "3", "10", "30", "100"])
        axis.minorticks_off()
        axis.set_title(title, fontsize=11)
    axes[0, 0].set_ylabel("success rate (%)")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=9)
    return figure


def per_task(names: Sequence[str], rates: dict[str, Sequence[float]]) -> Figure:
    """ASR (%) of every task, a column each: before the repair, and after it by every kind of trigger."""
    figure, axis = plt.subplots(figsize=(max(6, 2.5 + 0.32 * len(names)), 4.2))
    marks = "osv^<>DPX*"
    own = {"floor": COLORS["clean"], "fine-tune only": "#937860", "random uniform": "#da8bc3"}
    own |= {"random binary": "#8c8c8c", "random mixed": "#ccb974", "clean, repaired": "#64b5cd"}
    for number, (name, values) in enumerate(rates.items()):
        color = own.get(name) or COLORS.get(name, "black")
        mark = marks[number % len(marks)]
        axis.plot(range(len(names)), values, mark, color=color, label=name, ms=5, alpha=0.8, ls="none")
    axis.set_yscale("symlog", linthresh=1)
    axis.set(ylabel="attack success rate (%)", ylim=(0, 130), xlim=(-0.7, len(names) - 0.3))
    axis.set_yticks([0, 0.5, 1, 2, 5, 10, 20, 50, 100], ["0", "0.5", "1", "2", "5", "10", "20", "50", "100"])
    axis.set_xticks(range(len(names)), [name.rpartition("-")[0] or name for name in names], rotation=90, fontsize=8)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right center", fontsize=8)
    return figure


def by_trigger(table, lines: Sequence[str] = ("beta 0.9", "MESA", "ideal", "clean, never attacked")) -> Figure:
    """The poster's figure: ASR (%) after the repair, a trigger a column, sorted by the point baseline, with its band.

    table: `paper.by_trigger`; the band goes from the best to the worst of the baseline's repeats. Linear below 5 %,
    logarithmic above.
    """
    styles = {
        "beta 0.9": ("v", "#937860", "MESA, beta 0.9"),
        "MESA": ("o", COLORS["MESA"], "MESA, mixture"),
        "ideal": ("s", COLORS["ideal"], "ideal"),
        "clean, never attacked": ("_", COLORS["clean"], "floor: never attacked"),
        "clean, repaired": ("|", "0.4", "clean model, same repair"),
    }
    x = np.arange(len(table))
    figure, axis = plt.subplots(figsize=(min(13, max(6, 2 + 0.4 * len(table))), 4))
    axis.fill_between(
        x, table["point, best"], table["point, worst"], color=COLORS["point"], alpha=0.3, step="mid", lw=0,
        label="point, best to worst",
    )  # fmt: skip
    axis.step(x, table["point baseline"], where="mid", color=COLORS["point"], label="point, mean")
    for name in lines:
        mark, color, label = styles[name]
        axis.plot(x, table[name], mark, color=color, label=label, ms=6, mew=2 if mark in "_|" else 0, alpha=0.9)
    axis.set_yscale("symlog", linthresh=5, linscale=1.5)
    axis.set_yticks([0, 1, 2, 3, 4, 5, 10, 20, 50, 100], ["0", "1", "2", "3", "4", "5", "10", "20", "50", "100"])
    axis.set_xticks(x, [str(name).removeprefix("bw:") for name in table.index], rotation=90, fontsize=9)
    top = max(6.0, 1.2 * float(np.nanmax(table[["point, worst", *lines]].to_numpy())))
    axis.set(xlabel="trigger", ylabel="ASR after the repair (%)", ylim=(0, top), xlim=(-0.6, len(x) - 0.4))
    axis.minorticks_off()
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right center", fontsize=9)
    return figure


def beside_the_paper(ours: dict[str, dict[str, Sequence[float]]], theirs: dict[str, dict[str, float]]) -> Figure:
    """ASR (%) after the repair, a panel a data set: each of our triggers a dot, our mean and the paper's as marks.

    title -> model -> one number a trigger; title -> model -> the paper's mean
    """
    figure, axes = plt.subplots(1, len(ours), figsize=(4.6 * len(ours), 3.6), squeeze=False, sharey=True)
    for axis, (title, models) in zip(axes.flat, ours.items(), strict=True):
        for location, (name, values) in enumerate(models.items()):
            color = COLORS.get(name.split()[0].strip(","), COLORS["MESA"])
            spread = np.linspace(-0.15, 0.15, len(values)) if len(values) > 1 else [0]
            label = None if location else "ours, mean"
            axis.plot(location, np.mean(values), "_", color=color, ms=26, mew=2, alpha=0.6, label=label)
            label = None if location else "ours, a trigger"
            dots = {"ms": 5, "mec": "black", "mew": 0.5, "zorder": 3}
            axis.plot(location + np.array(spread), values, "o", color=color, label=label, **dots)
            known = theirs.get(title, {}).get(name)
            if known is not None:
                axis.plot(location, known, "*", color="black", ms=11, label="paper, mean" if not location else None)
        axis.set_yscale("symlog", linthresh=5, linscale=1.5)
        axis.set_yticks([0, 1, 2, 3, 4, 5, 10, 20, 50, 100], ["0", "1", "2", "3", "4", "5", "10", "20", "50", "100"])
        axis.minorticks_off()
        axis.set_xticks(range(len(models)), list(models), rotation=30, ha="right", fontsize=9)
        axis.set(title=title, ylim=(0, 60))
    axes[0, 0].set_ylabel("ASR after the repair (%),\nlogarithmic above 5 %")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), fontsize=9, loc="outside lower center", ncols=3)
    return figure
