"""How often a scan is right, from the recorded scans of `benchmarks/scans.py`: tables of docs/scan.md."""

from collections.abc import Sequence

import torch

from mesa_lib.evaluation.intervals import proportion
from mesa_lib.reporting.tables import zoo

#: data set -> its name in the table
NAMES = {
    "digits": "digits",
    "cifar10": "CIFAR-10, networks of half the width",
    "resnet": "ResNet-18 at 64×64, four digits",
}
HEAD = (
    "data",
    "ASR of the attack, lowest",
    "attacked, detected",
    "clean, flagged",
    "ASR after the repair: mean, worst",
    "after random patches instead",
    "after fine-tuning",
    "accuracy that the repair costs",
    "that fine-tuning costs",
)


def markdown(runs: Sequence[dict]) -> str:
    """Return the table, a row for each data set.

    Args:
        runs: recorded scans (`scan.false_positives.load_scans`).
    """
    lines = [f"| {' | '.join(HEAD)} |", "|---" * len(HEAD) + "|"]
    for dataset, name in NAMES.items():
        if group := [run for run in runs if run["dataset"] == dataset]:
            lines.append(f"| {' | '.join([name, *_cells(group)])} |")
    return "\n".join(lines)


#: name of a result file -> the table that docs/scan.md has of it
TABLES = {"scans": lambda content: markdown(content["runs"]), "zoo-digits": zoo.short}


def _cells(runs: Sequence[dict]) -> list[str]:
    """Return the cells of one data set."""
    attacked, clean = ([run for run in runs if bool(run["planted"]) == planted] for planted in (True, False))
    detected = [run["scan"]["flagged"] == run["planted"] for run in attacked]
    repaired = [run["after"] for run in attacked if "after" in run]
    compared = [run for run in attacked if "controls" in run]
    cost = [_cost(run, run["after"]) for run in attacked if "after" in run]
    tuned = [_cost(run, run["controls"]["fine-tuning"]) for run in compared]
    return [
        f"{100 * min(run['before']['asr']['rate'] for run in attacked):.0f}%",
        _count(detected),
        _count([bool(run["scan"]["flagged"]) for run in clean]),
        _mean_and_worst([model["asr"]["rate"] for model in repaired]),
        _by_location(compared, "random mixed"),
        _mean_and_worst([run["controls"]["fine-tuning"]["asr"]["rate"] for run in compared]),
        _points(cost),
        _points(tuned),
    ]


def _by_location(runs: Sequence[dict], control: str) -> str:
    """Return what a control leaves of backdoors at random locations and at fixed ones."""
    parts = {}
    for run in runs:
        where = "random location" if run["attack"] == "patch" else "fixed location"
        parts.setdefault(where, []).append(run["controls"][control]["asr"]["rate"])
    return "; ".join(f"{where} {_mean_and_worst(rates)}" for where, rates in parts.items()) or "none was made"


def _cost(run: dict, model: dict) -> float:
    """Return how much clean accuracy a repair costs, in points."""
    return 100 * (run["before"]["clean_accuracy"]["rate"] - model["clean_accuracy"]["rate"])


def _count(flags: Sequence[bool]) -> str:
    measured = proportion(torch.tensor(flags))
    return f"{sum(flags)} of {len(flags)} ({100 * measured['low']:.0f} to {100 * measured['high']:.0f}%)"


def _mean_and_worst(rates: Sequence[float]) -> str:
    return f"{100 * sum(rates) / len(rates):.1f}%, {100 * max(rates):.1f}%" if rates else "none was made"


def _points(values: Sequence[float]) -> str:
    return f"{min(values):+.1f} to {max(values):+.1f} points" if values else "none was made"
