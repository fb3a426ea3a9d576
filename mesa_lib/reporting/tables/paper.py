"""The paper's tables and figures with ours beside them, from the published runs in results/*.json alone."""

import json
from collections.abc import Iterable

import numpy as np
import pandas as pd
import torch
from scipy.stats import bootstrap

from mesa_lib.experiments import results
from mesa_lib.store import paths

#: the authors' poster (NeurIPS 2019): ASR in % on the original trigger after the repair, mean and worst (of `attacked`
#: the lowest) of the 51 black-white patterns; CIFAR-10, ResNet-18, attack by fine-tuning
PAPER = {
    "cifar10": {
        "attacked": (98.7, 92.4),
        "point baseline": (10.5, 51.4),
        "beta 0.5": (4.2, 9.0),
        "beta 0.8": (3.6, 9.1),
        "beta 0.9": (3.4, 5.9),
        "MESA": (3.6, 8.2),
        "ideal": (2.4, 3.7),
    }
}
#: the same of ten color triggers: mean only
PAPER_COLOR = {
    "cifar10": {"beta 0.9": 2.04, "beta 0.8": 1.93, "beta 0.5": 1.77, "MESA": 1.91, "point baseline": 22.75},
    "cifar100": {"beta 0.9": 1.42, "beta 0.8": 1.41, "beta 0.5": 1.56, "MESA": 1.14, "point baseline": 27.41},
}
#: the rows of our tables, in the order in which they are read; MESA is the mixture of its levels
ROWS = ("clean, never attacked", "attacked", "fine-tune only", "random uniform", "random binary", "random mixed",
        "point baseline", "beta 0.5", "beta 0.8", "beta 0.9", "MESA", "MESA rounds", "ideal",
        "clean, repaired")  # fmt: skip


def load_runs(name: str) -> list[dict]:
    """The published runs of a sweep, results/NAME.json; none if it was not published yet."""
    file = paths.root() / "results" / f"{name}.json"
    return json.loads(file.read_text())["runs"] if file.is_file() else []


def rates(run: dict, model: str, measure: str = "asr") -> list[float]:
    """A rate of one run in per cent, one number a repeat; a level of MESA is a model of its own."""
    if model in run.get("levels", {}):
        return [100 * run["levels"][model][measure]["rate"]]
    start = "point " if model == "point baseline" else None
    return [
        100 * row[measure]["rate"]
        for row in run["rows"]
        if row["model"] == model or (start and row["model"].startswith(start))
    ]


def interval(values: Iterable[float], seed: int = 0) -> tuple[float, float]:
    """95 % of a mean over runs (percentile bootstrap, 10,000 draws, seeded); (nan, nan) of fewer than three."""
    values = np.asarray(list(values), float)
    if len(values) < 3:
        return float("nan"), float("nan")
    found = bootstrap((values,), np.mean, n_resamples=9999, method="percentile", rng=np.random.default_rng(seed))
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def table(of_sweep: list[dict], published: dict[str, tuple | float] | None = None) -> pd.DataFrame:
    """ASR in per cent over the runs of a sweep: mean with its interval over triggers, worst, and the paper's beside.

    The repeats of the point baseline are averaged within a trigger before the interval is taken, so that it counts
    triggers; its worst is the worst of all repeats. `MESA rounds` stands there only where a run had a second round.
    """
    published = published or {}
    lines = {}
    for name in ROWS:
        repeats = [rates(run, name) for run in of_sweep]
        if not any(repeats) or (name == "MESA rounds" and all(len(r.get("rounds", [0])) == 1 for r in of_sweep)):
            continue
        means = [float(np.mean(own)) for own in repeats if own]
        low, high = interval(means)
        every = [value for own in repeats for value in own]
        known = published.get(name, ())
        known = known if isinstance(known, tuple) else (known,)
        lines[name] = {
            "mean": np.mean(means),
            "95 % low": low,
            "95 % high": high,
            "worst": min(every) if name == "attacked" else max(every),
            "paper, mean": known[0] if known else np.nan,
            "paper, worst": known[1] if len(known) > 1 else np.nan,
        }
    return pd.DataFrame(lines).T


def differences(of_sweep: list[dict], model: str = "MESA") -> pd.DataFrame:
    """What `model` leaves and costs, run by run, in points: mean, interval, worst.

    ASR against the clean model's answer to the same trigger (floor), against the clean model after the same repair,
    against the ideal repair, the point baseline (mean of its repeats) and random triggers; clean accuracy and recall of
    the target class against the attacked model.
    """
    asked = {
        "ASR against the floor": ("asr", "clean, never attacked", max),
        "ASR against clean, repaired": ("asr", "clean, repaired", max),
        "ASR against the ideal": ("asr", "ideal", max),
        "ASR against the point": ("asr", "point baseline", max),
        "ASR against random binary": ("asr", "random binary", max),
        "ASR against random mixed": ("asr", "random mixed", max),
        "clean accuracy": ("clean_accuracy", "attacked", min),
        "recall of the target class": ("target_recall", "attacked", min),
    }
    lines = {}
    for name, (measure, other, worst) in asked.items():
        points = [np.mean(rates(r, model, measure)) - np.mean(rates(r, other, measure)) for r in of_sweep if rates(r, other)]
        if not points or other == model:
            continue
        low, high = interval(points)
        lines[name] = {"mean": np.mean(points), "95 % low": low, "95 % high": high, "worst": worst(points)}
    return pd.DataFrame(lines).T


def by_trigger(of_sweep: list[dict], models: Iterable[str] = ROWS) -> pd.DataFrame:
    """ASR in per cent, a line a trigger, the baseline's best and worst repeat beside its mean; sorted by that mean."""
    lines = {}
    for run in of_sweep:
        line = {name: float(np.mean(own)) for name in models if (own := rates(run, name))}
        if own := rates(run, "point baseline"):
            line |= {"point, best": min(own), "point, worst": max(own)}
        lines[run["trigger"]] = line
    found = pd.DataFrame(lines).T
    return found.sort_values("point baseline", kind="stable") if "point baseline" in found else found


def accuracy_cost(of_sweep: list[dict], models: Iterable[str] = ROWS) -> pd.DataFrame:
    """Clean accuracy and recall of the target class in per cent, and their changes against the attacked model.

    A line a model: means over runs (repeats of the point averaged within one), the worst change of a run or repeat.
    The clean model's repair is compared with the clean model.
    """
    measures = {"clean accuracy": "clean_accuracy", "recall": "target_recall"}
    lines = {}
    for name in models:
        line = {}
        for title, measure in measures.items():
            before = "clean, never attacked" if name == "clean, repaired" else "attacked"
            pairs = [(own, rates(run, before, measure)[0]) for run in of_sweep if (own := rates(run, name, measure))]
            if pairs:
                line[title] = np.mean([np.mean(own) for own, _ in pairs])
                line[f"{title}, change"] = np.mean([np.mean(own) - was for own, was in pairs])
                line[f"{title}, worst"] = min(one - was for own, was in pairs for one in own)
        if line:
            lines[name] = line
    return pd.DataFrame(lines).T


def repeats(of_sweep: list[dict]) -> pd.DataFrame:
    """The point baseline repeat by repeat, in per cent, a line a pattern: what each leaves, and how often it fires."""
    lines = {}
    for run in of_sweep:
        left, fires = rates(run, "point baseline"), [100 * found["rate"] for found in run["point_triggers_asr"]]
        lines[run["trigger"]] = {("left by", n): value for n, value in enumerate(left, 1)} | {
            ("fires", n): value for n, value in enumerate(fires, 1)
        }
    return pd.DataFrame(lines).T


def missed(of_sweep: list[dict], model: str = "MESA", above: float = 10.0) -> list[str]:
    """The triggers that still fire on more than `above` per cent of the images after the repair."""
    return [run["trigger"] for run in of_sweep if max(rates(run, model)) > above]


def costs(of_sweep: list[dict]) -> pd.Series:
    """Median seconds of each part of a run."""
    return pd.DataFrame([run["seconds"] for run in of_sweep]).median().round(0)


def panel(run: dict, points: bool = True) -> tuple[dict, dict]:
    """One panel of the t-SNE figure: the samples, and the single triggers that are marked among them.

    points: whether the reversed trigger is marked, or the original alone
    """
    saved_triggers = run["triggers"]
    original, samples, reversed_ = (results.unpack_triggers(saved_triggers[k], saved_triggers["shape"]) for k in ("original", "samples", "points"))
    marks = {"original": original[0]} | ({"point": reversed_[0]} if points else {})
    return {"samples of MESA": samples}, marks


def saved_triggers(run: dict, name: str) -> torch.Tensor:
    """The triggers that a run keeps, `original`, `samples` (of the mixture) or `points` -> (n, values) in [0, 1]."""
    return results.unpack_triggers(run["triggers"][name], run["triggers"]["shape"]).flatten(1)


def nearest_distance(triggers: torch.Tensor, cloud: torch.Tensor) -> torch.Tensor:
    """Euclidean distance of each trigger (n, values) to the nearest of a cloud (m, values) -> (n,)."""
    return torch.cdist(triggers, cloud).min(1).values


def distances(run: dict) -> dict[str, float]:
    """How far triggers lie from the nearest sample that is kept of the mixture: Euclidean, over all values in [0, 1].

    Of the samples themselves the median over all, each to the nearest other one; of the point the mean of its repeats.
    """
    samples = saved_triggers(run, "samples")
    among = torch.cdist(samples, samples).fill_diagonal_(float("inf")).min(1).values.median()
    return {
        "a sample (median)": float(among),
        "the point": float(nearest_distance(saved_triggers(run, "points"), samples).mean()),
        "the original": float(nearest_distance(saved_triggers(run, "original"), samples)),
    }


def nearest_cloud(of_sweep: list[dict]) -> pd.DataFrame:
    """Does the attacker's trigger lie nearer to its own cloud than chance has it? A line a run, distances as above.

    `other clouds nearer`: of the other runs' clouds; `random patterns`: 2,000 black-white ones, seeded.
    """
    cross_trigger_asr = [saved_triggers(run, "samples") for run in of_sweep]
    lines = {}
    for number, run in enumerate(of_sweep):
        height, width = run["triggers"]["shape"][-2:]
        drawn = np.random.default_rng(0).integers(0, 2, (2000, height * width))
        patterns = torch.from_numpy(drawn).float().repeat(1, run["triggers"]["shape"][0])
        original = saved_triggers(run, "original")
        own = float(nearest_distance(original, cross_trigger_asr[number]))
        others = [float(nearest_distance(original, cloud)) for n, cloud in enumerate(cross_trigger_asr) if n != number]
        chance = nearest_distance(patterns, cross_trigger_asr[number])
        lines[run["trigger"]] = {
            "to its own cloud": own,
            "to the nearest other": min(others, default=np.nan),
            "other clouds nearer": sum(other < own for other in others),
            "a random pattern (median)": float(chance.median()),
            "random patterns nearer (%)": 100 * float((chance < own).float().mean()),
        }
    return pd.DataFrame(lines).T


def cross_trigger_asr(name: str = "clouds") -> dict[str, pd.DataFrame]:
    """What `benchmarks/clouds.py` found: kind of trigger -> ASR in per cent, a line a model, a column a run."""
    file = paths.root() / "results" / f"{name}.json"
    if not file.is_file():
        return {}
    found = json.loads(file.read_text())
    return {
        kind: 100 * pd.DataFrame(rows, index=found["models"], columns=found["triggers"])
        for kind, rows in found["asr"].items()
    }


def samples_over_seeds(of_sweep: list[dict]) -> pd.DataFrame:
    """What the samples of a sweep over alpha and one level do: a line a level and alpha, mean and spread over seeds.

    ASR in per cent on the modeling images; information in nats, by a statistics network that is always the same; mean
    distance of two samples, root mean square per value. Of the samples that are kept, in per cent: variance along its
    first direction (PCA), and those within a Euclidean distance of 0.5 of the attacker's trigger.
    """

    def line(run: dict, s: dict) -> dict:
        samples = saved_triggers(run, "samples")
        variances = torch.linalg.svdvals(samples - samples.mean(0)).square()
        near = torch.cdist(samples, saved_triggers(run, "original")) < 0.5
        return {
            "ASR": 100 * s["asr"],
            "information": s["information"],
            "distance": s["distance"],
            "first direction": 100 * float(variances[0] / variances.sum()),
            "at the trigger": 100 * float(near.float().mean()),
        }

    rows = [
        {"beta": float(run["params"]["betas"]), "alpha": float(run["params"]["alpha"])} | line(run, s)
        for run in of_sweep
        for name, s in run["samples"].items()
        if name != "mixture"
    ]
    return pd.DataFrame(rows).groupby(["beta", "alpha"]).agg(["mean", "std"])


def machines(of_sweep: list[dict]) -> str:
    """Device, threads and versions of all runs in one line."""
    made = {(m["device_name"], m["threads"], m["torch"]) for m in (run["made"] for run in of_sweep)}
    return "; ".join(f"{name}, {threads} thread{'s' * (threads > 1)}, torch {t}" for name, threads, t in sorted(made))
