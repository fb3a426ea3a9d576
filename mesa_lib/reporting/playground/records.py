"""Results of earlier runs that the sliders show: only values that were run, nothing in between."""

from dataclasses import dataclass

from torch import Tensor

from mesa_lib.experiments.results import load_content, load_runs, unpack_triggers

#: the sweep of alpha and beta, and the repairs of three CIFAR-10 models at several fractions of triggered images
ALPHA_BETA, REPAIR_RATES = "alpha-beta", "sweep"
#: of the repairs only those that differ in the fraction alone
FIXED = {"repair_lr": 0.05, "repair_epochs": 2}


@dataclass(frozen=True)
class SampleRecord:
    """What the samples of one alpha and one beta do, over the seeds of the sweep.

    Attributes:
        seeds: of the runs.
        asr: of each seed, the mean ASR of samples.
        distance: of each seed, how different two samples are (`triggers.diversity`).
        information: of each seed, the mutual information of sample and noise in nats.
        samples: of the first seed (n, 3, h, w).
    """

    seeds: tuple[int, ...]
    asr: tuple[float, ...]
    distance: tuple[float, ...]
    information: tuple[float, ...]
    samples: Tensor


def sample_records() -> dict[tuple[float, float], SampleRecord]:
    """Return what was measured for every (alpha, beta) of the sweep `ALPHA_BETA`."""
    grouped: dict[tuple[float, float], list[dict]] = {}
    for run in load_runs(ALPHA_BETA):
        key = (float(run["params"]["alpha"]), float(run["params"]["betas"]))
        grouped.setdefault(key, []).append(run)
    return {key: _sample_record(runs) for key, runs in sorted(grouped.items())}


def _sample_record(runs: list[dict]) -> SampleRecord:
    """Return the runs of one cell of the grid as one record."""
    runs = sorted(runs, key=lambda run: run["seed"])
    level = f"beta {runs[0]['params']['betas']}"
    measured = {name: tuple(run["samples"][level][name] for run in runs) for name in ("asr", "distance", "information")}
    shown = runs[0]["triggers"]
    samples = unpack_triggers(shown["samples"], shown["shape"])
    return SampleRecord(tuple(run["seed"] for run in runs), **measured, samples=samples)


@dataclass(frozen=True)
class RepairRecord:
    """One model of `REPAIR_RATES`: its trigger and target, and its rates before and after each repair.

    Attributes:
        model: a short description.
        before: ASR and clean accuracy of the attacked model.
        after: the two rates after the repair, by the fraction of triggered images; 0: no triggers, fine-tuning.
    """

    model: str
    before: tuple[float, float]
    after: dict[float, tuple[float, float]]


def repair_records() -> list[RepairRecord]:
    """Return the models of `REPAIR_RATES`, each with its repairs that differ in the fraction of triggered images."""
    grouped: dict[str, list[dict]] = {}
    for run in load_content(REPAIR_RATES).get("runs", []):
        grouped.setdefault(f"trigger {run['trigger']}, target class {run['target']}", []).append(run)
    return [_repair_record(model, runs) for model, runs in grouped.items()]


def _repair_record(model: str, runs: list[dict]) -> RepairRecord:
    """Return the runs of one model as one record."""
    (attacked,) = [run for run in runs if run["repair"] == "attacked"]
    after = {
        0.0 if run["repair"] == "fine-tuning" else float(run["repair_rate"]): (run["asr"], run["clean_accuracy"])
        for run in runs
        if all(run.get(name) == value for name, value in FIXED.items())
    }
    return RepairRecord(model, (attacked["asr"], attacked["clean_accuracy"]), dict(sorted(after.items())))


def repair_rates(records: list[RepairRecord]) -> list[float]:
    """Return the fractions of triggered images that were run for every model, in rising order."""
    return sorted(set.intersection(*(set(record.after) for record in records))) if records else []
