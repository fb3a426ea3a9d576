"""How often clean models are flagged: counted on the published scans of clean models, in `results/`."""

import json

import torch

from mesa_lib.evaluation.intervals import proportion
from mesa_lib.store import paths

#: published scans of models of which it is known what was planted
PUBLISHED = "scans.json"


def clean_scores(settings: dict) -> dict[str, list[list[float]]]:
    """Data set -> of every clean model among the published scans with these settings the scores of its classes."""
    file = paths.root() / "results" / PUBLISHED
    found: dict[str, list[list[float]]] = {}
    for run in json.loads(file.read_text())["runs"] if file.is_file() else []:
        if not run["planted"] and run["scan"]["settings"] == settings:
            found.setdefault(run["dataset"], []).append([line["score"] for line in run["scan"]["verdicts"]])
    return found


def false_positives(scores: dict[str, list[list[float]]], above: float) -> dict[str, dict]:
    """Data set -> the share of its clean models of which a class scores higher, with its interval."""
    return {name: proportion(torch.tensor([max(own) > above for own in models])) for name, models in scores.items()}
