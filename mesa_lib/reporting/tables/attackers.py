"""What every repair leaves of several attackers' triggers, and the paired comparison of MESA with its rivals.

All functions take runs of a sweep (`experiments.results.load_runs`); rates are in percent.
"""

from collections.abc import Sequence

import pandas as pd

from mesa_lib.evaluation.intervals import t_interval
from mesa_lib.reporting.tables.paper import rates

#: the rows of `left`; `beta 0.9` is the highest level of MESA alone
ROWS = (
    "clean model", "attacked", "fine-tuning", "random uniform", "random binary", "random mixed", "single inversion",
    "best inversion", "all inversions", "beta 0.9, alpha 0", "beta 0.9", "MESA", "MESA rounds", "ideal",
)  # fmt: skip
#: the compared repairs: title -> what MESA offers, and what is set against it
COMPARISONS = {
    "MESA - best inversion": ("MESA", "best inversion"),
    "MESA - all inversions": ("MESA", "all inversions"),
    "beta 0.9 - the same level with alpha 0": ("beta 0.9", "beta 0.9, alpha 0"),
    "MESA - ideal": ("MESA", "ideal"),
}
#: the poison rate that is not told
USUAL_RATE = 0.1
#: ASR in % above which a repair has left the backdoor in
LEFT = 5.0
#: a difference of so many points is needed before one repair counts as better than another
MATTERS = 0.5


def attacker(run: dict) -> str:
    """Return who attacked this model, in words."""
    p = run["params"]
    if p["attack"] == "patch":
        return "as in the paper"
    words = ["cover: near misses" if p["cover"] == "near" else "cover: random patches"]
    if p["attack"] == "adaptive":
        words = ["cover: MESA's samples"]
    more = [spec for spec in p["more_triggers"].split(",") if spec.strip()]
    words += [f"{1 + len(more)} triggers"] if more else []
    words += [f"{100 * p['poison_rate']:.0f}% poison"] if p["poison_rate"] != USUAL_RATE else []
    return ", ".join(words)


def by_attacker(runs: Sequence[dict]) -> dict[str, list[dict]]:
    """Return attacker -> its runs, in the order of the runs."""
    groups: dict[str, list[dict]] = {}
    for run in runs:
        groups.setdefault(attacker(run), []).append(run)
    return groups


def rate(run: dict, model: str) -> float:
    """Return the ASR of the attacker's triggers on a model, in %; the mean over repeats."""
    repeats = rates(run, model)
    return sum(repeats) / len(repeats)


def left(runs: Sequence[dict], rows: Sequence[str] = ROWS) -> pd.DataFrame:
    """Return, for each repair and attacker, `mean (worst)` of the ASR, and on how many models it is above `LEFT`."""
    columns = {}
    for name, group in by_attacker(runs).items():
        values = {row: [rate(run, row) for run in group] for row in rows}
        lowest = {row: min if row == "attacked" else max for row in rows}
        columns[f"{name} ({len(group)})"] = {
            row: f"{sum(v) / len(v):.1f} ({lowest[row](v):.1f})" for row, v in values.items()
        }
    above = {row: sum(rate(run, row) > LEFT for run in runs) for row in rows}
    return pd.DataFrame(columns, index=list(rows)).assign(**{f"models above {LEFT:.0f}%": pd.Series(above)})


def differences(runs: Sequence[dict]) -> pd.DataFrame:
    """Return the paired differences of `COMPARISONS`, over all runs and for each attacker: mean and 95% CI (t)."""
    groups = {"all attackers": list(runs), **by_attacker(runs)}
    lines = {}
    for title, (one, other) in COMPARISONS.items():
        cells = {}
        for name, group in groups.items():
            values = [rate(run, one) - rate(run, other) for run in group]
            low, high = t_interval(values)
            cells[f"{name} ({len(group)})"] = f"{sum(values) / len(values):+.2f} ({low:+.2f} to {high:+.2f})"
        lines[title] = cells
    return pd.DataFrame(lines).T


def answer(runs: Sequence[dict], title: str) -> str:
    """Return what a comparison says by the rule that was fixed before the runs: better, not better, or undecided.

    MESA is better if the whole interval lies below -`MATTERS` points, not better if it lies above.
    """
    one, other = COMPARISONS[title]
    low, high = t_interval([rate(run, one) - rate(run, other) for run in runs])
    return "better" if high < -MATTERS else "not better" if low > -MATTERS else "undecided"


def difference_in_words(runs: Sequence[dict], title: str) -> str:
    """Return a paired difference over all runs with its unit and its 95% CI."""
    return differences(runs).iloc[:, 0][title].replace(" (", " points (95% CI ")


def answer_in_words(runs: Sequence[dict], title: str) -> str:
    """Return what a comparison answers, after *the question whether a distribution is needed is*."""
    words = {
        "undecided": "open",
        "better": "answered: yes, by more than half a point",
        "not better": "answered: no, not by half a point",
    }
    return words[answer(runs, title)]


def checks(runs: Sequence[dict]) -> pd.DataFrame:
    """Return, for each attacker, how often the first round of MESA missed, and what the residual check said.

    A round missed if the attacker's triggers keep an ASR above `LEFT`. `said so`: missed, and MESA's row says that it
    failed, or its check is not clear; `false alarms`: not missed, and the check is not clear; `false all-clear`: the
    row of the rounds says nothing, and the attacker's triggers keep more.
    """

    def says(run: dict, model: str) -> bool:
        return any(row["model"] == model and "failed" in row for row in run["rows"])

    lines = {}
    for name, group in {"all attackers": list(runs), **by_attacker(runs)}.items():
        missed = [run for run in group if rate(run, "MESA") > LEFT]
        alarm = [run for run in group if not run["rounds"][0]["clear"]]
        all_clear = [run for run in group if run["rounds"][-1]["clear"] and not says(run, "MESA rounds")]
        lines[name] = {
            "models": len(group),
            "missed by one round": len(missed),
            "said so": sum(run in alarm or says(run, "MESA") for run in missed),
            "false alarms": sum(run not in missed for run in alarm),
            "false all-clear": sum(rate(run, "MESA rounds") > LEFT for run in all_clear),
        }
    return pd.DataFrame(lines).T


def markdown(table: pd.DataFrame, corner: str) -> str:
    """Return a table of texts as Markdown, with a title for the first column."""
    heads = [corner, *map(str, table.columns)]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    lines += [
        f"| {' | '.join([str(name), *map(str, cells)])} |"
        for name, cells in zip(table.index, table.to_numpy(), strict=True)
    ]
    return "\n".join(lines)
