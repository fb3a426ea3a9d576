"""The README's small table: what each repair leaves of two backdoors, with confidence intervals over seeds."""

from collections.abc import Sequence

from mesa_lib.evaluation import intervals
from mesa_lib.reporting.tables.paper import rates

#: the result file that the README's table and figure show
RESULT = "digits"
#: row of the results -> what the README calls it
ROWS = {
    "clean model": "clean model, never attacked",
    "attacked": "attacked model",
    "fine-tuning": "fine-tuning",
    "random mixed": "random patches (mixed)",
    "single inversion": "single inversion",
    "MESA": "MESA",
}
#: attack -> what the README calls it
ATTACKS = {"patch": "plain attack", "covered": "covered attack"}
#: what the README's figure shows
MESSAGE = "Fine-tuning leaves both backdoors; random mixed patches fail only on the covered one"


def measured(runs: Sequence[dict], model: str, measure: str = "asr") -> dict:
    """Return a rate over the seeds of one attack, in percent.

    Repeats of one run are averaged first, because they share the attacked model.

    Args:
        runs: the runs of one attack, one per seed.
        model: a row of the results.
        measure: `asr` or `clean_accuracy`.

    Returns:
        `values` (one per seed), `mean`, and `low`, `high`: the 95% bootstrap interval of the mean.
    """
    values = [intervals.mean_std(rates(run, model, measure))[0] for run in runs]
    low, high = intervals.bootstrap_interval(values)
    return {"values": values, "mean": intervals.mean_std(values)[0], "low": low, "high": high}


def by_attack(content: dict) -> dict[str, list[dict]]:
    """Return the runs of a published sweep by the title of their attack, in the order of `ATTACKS`."""
    grouped = {
        title: [run for run in content["runs"] if run["params"].get("attack", "patch") == attack]
        for attack, title in ATTACKS.items()
    }
    return {title: runs for title, runs in grouped.items() if runs}


def markdown(content: dict) -> str:
    """Return the README's table: one row per model; per attack, the ASR and the clean accuracy with 95% CIs."""
    attacks = by_attack(content)
    heads = ["model", *(f"ASR, {title}" for title in attacks), *(f"clean accuracy, {title}" for title in attacks)]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for model, name in ROWS.items():
        cells = [_cell(measured(runs, model, m)) for m in ("asr", "clean_accuracy") for runs in attacks.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(rate: dict) -> str:
    return f"{rate['mean']:.1f}% ({rate['low']:.1f}–{rate['high']:.1f})"
