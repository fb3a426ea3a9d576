"""How often clean models are flagged: counted on published scans of clean models, which the package carries.

`benchmarks/scans.py` scans models of which it is known what was planted and publishes `results/scans.json`; the scores
of the clean ones, by settings, are written to `clean_models.json` beside this file.
"""

import json
from functools import cache
from importlib import resources
from pathlib import Path

import torch

from mesa_lib.evaluation.intervals import proportion
from mesa_lib.scan.migration import migrate_scans
from mesa_lib.store import paths

#: in `results/`: published scans of models of which it is known what was planted
PUBLISHED = "scans.json"
#: in this package: the scores of the clean models among them
CLEAN_MODELS = "clean_models.json"


def load_scans(file: Path | None = None) -> list[dict]:
    """Return the published scans, a dictionary each, in the current format.

    Args:
        file: None, `results/scans.json` of the repository; no scans if it does not exist.
    """
    file = file or paths.root() / "results" / PUBLISHED
    return migrate_scans(json.loads(file.read_text()))["runs"] if file.is_file() else []


def clean_models(runs: list[dict]) -> list[dict]:
    """Return the scores of the clean models among some scans, grouped by the settings of the scan.

    Returns:
        For each settings: `settings`, and `scores`, data set -> for every clean model the scores of its classes.
    """
    groups: list[dict] = []
    for run in runs:
        if run["planted"]:
            continue
        settings = run["scan"]["settings"]
        group = next((group for group in groups if group["settings"] == settings), None)
        if group is None:
            groups.append(group := {"settings": settings, "scores": {}})
        group["scores"].setdefault(run["dataset"], []).append([line["score"] for line in run["scan"]["verdicts"]])
    return groups


@cache
def published_clean_models() -> list[dict]:
    """Return `clean_models` of the published scans, from the package's own file."""
    return json.loads(resources.files("mesa_lib.scan").joinpath(CLEAN_MODELS).read_text())


def clean_scores(settings: dict, groups: list[dict] | None = None) -> dict[str, list[list[float]]]:
    """Return data set -> for every clean model that was scanned with these settings the scores of its classes.

    Args:
        settings: of a scan (`Scanner.settings`).
        groups: None, those of the published scans.
    """
    groups = published_clean_models() if groups is None else groups
    return next((group["scores"] for group in groups if same_verdict(group["settings"], settings)), {})


def same_verdict(first: dict, second: dict) -> bool:
    """Return whether scans with these settings come to the same verdict: all count but the modeling for a repair."""
    one, other = ({name: value for name, value in s.items() if name != "repair_modeling"} for s in (first, second))
    return one == other


def false_positives(scores: dict[str, list[list[float]]], above: float) -> dict[str, dict]:
    """Return, by data set, the fraction of clean models with a class that scores above the threshold (`proportion`)."""
    return {
        name: proportion(torch.tensor([max(classes) > above for classes in models])) for name, models in scores.items()
    }
