"""The README's figure: what each repair leaves of the plain and of the covered backdoor."""

import numpy as np
from matplotlib.figure import Figure

from mesa_lib.reporting.plots.style import color, panels, spread

TICKS = (0, 1, 2, 5, 10, 20, 50, 100)


def before_and_after(attacks: dict[str, dict[str, dict]], names: dict[str, str], title: str) -> Figure:
    """Return one panel per attack: the ASR of the original trigger on each model, with its 95% CI and every seed.

    The axis is linear below 1% and logarithmic above. Diamonds are means, gray dots single seeds.

    Args:
        attacks: title -> row of the results -> `mean`, `low`, `high` and `values` (one per seed), all in percent.
        names: row of the results -> its label; the first is the clean model.
        title: the figure's message, one sentence.
    """
    figure, axes = panels(len(attacks), len(attacks), 4.6, 3.7, sharey=True, layout="constrained")
    for axis, (attack, rows) in zip(axes, attacks.items(), strict=True):
        for y, model in enumerate(names):
            rate, shade = rows[model], color(model)
            values = rate["values"]
            axis.scatter(values, y + spread(len(values), 0.2), s=9, color="0.45", linewidth=0)
            errors = [[max(0.0, rate["mean"] - rate["low"])], [max(0.0, rate["high"] - rate["mean"])]]
            axis.errorbar(rate["mean"], y, xerr=errors, fmt="D", color="0.15", mfc=shade, capsize=3, ms=7)
            text = f"{rate['mean']:.1f}%"
            axis.annotate(text, (rate["mean"], y), xytext=(0, 8), textcoords="offset points", ha="center", fontsize=9)
        axis.axvline(rows[next(iter(names))]["mean"], color="black", ls=":", lw=1, label="mean clean-model ASR")
        axis.set_xscale("symlog", linthresh=1, linscale=0.6)
        axis.set_xticks(TICKS, list(map(str, TICKS)))
        axis.minorticks_off()
        axis.set(xlim=(-0.15, 150), title=attack, xlabel="ASR of the attacker's trigger (%)")
        axis.set_yticks(np.arange(len(names)), list(names.values()))
    axes[0].set_ylim(len(names) - 0.5, -0.7)
    axes[0].legend(fontsize=9, loc="lower right")
    figure.suptitle(title, fontsize=11, fontweight="bold")
    return figure
