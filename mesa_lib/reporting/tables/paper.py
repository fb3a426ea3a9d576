"""The paper's tables and figures with ours beside them, from the runs in results/*.json alone.

All functions take the runs of a sweep (`experiments.results.load_runs`). ASR is the attack success rate of the original
trigger.
"""

from collections.abc import Iterable

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mesa_lib.evaluation.intervals import bootstrap_interval
from mesa_lib.experiments.results import load_content, unpack_triggers

#: the authors' poster (NeurIPS 2019): ASR in % on the original trigger after the repair, mean and worst (of `attacked`
#: the lowest) of the 51 black-white patterns; CIFAR-10, ResNet-18, attack by fine-tuning
PAPER = {
    "cifar10": {
        "attacked": (98.7, 92.4),
        "single inversion": (10.5, 51.4),
        "beta 0.5": (4.2, 9.0),
        "beta 0.8": (3.6, 9.1),
        "beta 0.9": (3.4, 5.9),
        "MESA": (3.6, 8.2),
        "ideal": (2.4, 3.7),
    }
}
#: ASR in % of ten color triggers there: mean only
PAPER_COLOR = {
    "cifar10": {"beta 0.9": 2.04, "beta 0.8": 1.93, "beta 0.5": 1.77, "MESA": 1.91, "single inversion": 22.75},
    "cifar100": {"beta 0.9": 1.42, "beta 0.8": 1.41, "beta 0.5": 1.56, "MESA": 1.14, "single inversion": 27.41},
}
#: the rows of our tables, in the order in which they are read; MESA is the mixture of its levels
ROWS = ("clean model", "attacked", "fine-tuning", "random uniform", "random binary", "random mixed",
        "single inversion", "beta 0.5", "beta 0.8", "beta 0.9", "MESA", "MESA rounds", "ideal",
        "clean model, repaired")  # fmt: skip
#: the comparisons of `differences`: title -> measure, the model compared with, which change is the worst
COMPARISONS = {
    "ASR, against the clean model": ("asr", "clean model", max),
    "ASR, against the clean model, repaired": ("asr", "clean model, repaired", max),
    "ASR, against ideal": ("asr", "ideal", max),
    "ASR, against single inversion": ("asr", "single inversion", max),
    "ASR, against random binary": ("asr", "random binary", max),
    "ASR, against random mixed": ("asr", "random mixed", max),
    "clean accuracy": ("clean_accuracy", "attacked", min),
    "recall of the target class": ("target_recall", "attacked", min),
}


# --- rates -----------------------------------------------------------------------------------------------


def rates(run: dict, model: str, measure: str = "asr") -> list[float]:
    """Return a rate of one run in percent, one number per repeat.

    Args:
        model: a row of `ROWS`; `single inversion` stands for all its repeats, `beta 0.9` for one level of MESA.
        measure: `asr`, `clean_accuracy`, `target_recall` or `true_label_accuracy`.
    """
    if model in run.get("levels", {}):
        return [100 * run["levels"][model][measure]["rate"]]
    repeat = f"{model} " if model == "single inversion" else None
    return [
        100 * row[measure]["rate"]
        for row in run["rows"]
        if row["model"] == model or (repeat and row["model"].startswith(repeat))
    ]


def table(runs: list[dict], published: dict[str, tuple | float] | None = None) -> pd.DataFrame:
    """Return ASR in percent over the runs of a sweep: mean with its 95% CI, worst, and the paper's beside.

    Repeats of the single inversion are averaged within a run before the interval is taken, so that it counts triggers;
    the worst is that of all repeats. `MESA rounds` has a row only where a run had a second round.

    Args:
        published: `PAPER` or `PAPER_COLOR` of this data set.
    """
    published = published or {}
    one_round = all(len(run.get("rounds", [0])) == 1 for run in runs)
    lines = {}
    for name in ROWS:
        repeats = [values for run in runs if (values := rates(run, name))]
        if not repeats or (name == "MESA rounds" and one_round):
            continue
        means = [float(np.mean(values)) for values in repeats]
        low, high = bootstrap_interval(means)
        paper = published.get(name, ())
        paper = paper if isinstance(paper, tuple) else (paper,)
        lines[name] = {
            "mean": np.mean(means),
            "95% CI, low": low,
            "95% CI, high": high,
            "worst": (min if name == "attacked" else max)(value for values in repeats for value in values),
            "paper, mean": paper[0] if paper else np.nan,
            "paper, worst": paper[1] if len(paper) > 1 else np.nan,
        }
    return pd.DataFrame(lines).T


def differences(runs: list[dict], model: str = "MESA") -> pd.DataFrame:
    """Return what `model` leaves and costs, run by run, in percentage points: mean, 95% CI, worst.

    One row per comparison (`COMPARISONS`): ASR against the other models on the same trigger (the single inversion by
    the mean of its repeats), clean accuracy and recall of the target class against the attacked model.
    """
    lines = {}
    for name, (measure, other, worst) in COMPARISONS.items():
        pairs = [(rates(run, model, measure), rates(run, other, measure)) for run in runs if rates(run, other)]
        if not pairs or other == model:
            continue
        points = [np.mean(after) - np.mean(before) for after, before in pairs]
        low, high = bootstrap_interval(points)
        lines[name] = {"mean": np.mean(points), "95% CI, low": low, "95% CI, high": high, "worst": worst(points)}
    return pd.DataFrame(lines).T


def asr_by_trigger(runs: list[dict], models: Iterable[str] = ROWS) -> pd.DataFrame:
    """Return ASR in percent, one row per trigger, sorted by the mean of the single inversion.

    Its best and worst repeat stand in columns of their own.
    """
    lines = {}
    for run in runs:
        line = {name: float(np.mean(values)) for name in models if (values := rates(run, name))}
        if repeats := rates(run, "single inversion"):
            line |= {"single inversion, best": min(repeats), "single inversion, worst": max(repeats)}
        lines[run["trigger"]] = line
    result = pd.DataFrame(lines).T
    return result.sort_values("single inversion", kind="stable") if "single inversion" in result else result


def accuracy_cost(runs: list[dict], models: Iterable[str] = ROWS) -> pd.DataFrame:
    """Return clean accuracy and recall of the target class in percent, and their changes against the attacked model.

    One row per model: means over runs (repeats averaged within one), and the worst change of a run or repeat. The
    repaired clean model is compared with the clean model.
    """
    measures = {"clean accuracy": "clean_accuracy", "recall": "target_recall"}
    lines = {}
    for name in models:
        line = {}
        for title, measure in measures.items():
            before = "clean model" if name == "clean model, repaired" else "attacked"
            pairs = [(values, rates(run, before, measure)[0]) for run in runs if (values := rates(run, name, measure))]
            if pairs:
                line[title] = np.mean([np.mean(values) for values, _ in pairs])
                line[f"{title}, change"] = np.mean([np.mean(values) - start for values, start in pairs])
                line[f"{title}, worst"] = min(value - start for values, start in pairs for value in values)
        if line:
            lines[name] = line
    return pd.DataFrame(lines).T


def inversion_repeats(runs: list[dict]) -> pd.DataFrame:
    """Return the single inversion repeat by repeat, in percent, one row per trigger.

    Columns (`after the repair`, n): ASR of the original trigger after the repair with the n-th inverted trigger;
    (`inverted trigger`, n): ASR of that trigger on the attacked model.
    """
    lines = {}
    for run in runs:
        measured = [100 * asr["rate"] for asr in run["inverted_triggers_asr"]]
        columns = {"after the repair": rates(run, "single inversion"), "inverted trigger": measured}
        lines[run["trigger"]] = {
            (name, n): value for name, values in columns.items() for n, value in enumerate(values, 1)
        }
    return pd.DataFrame(lines).T


def missed_triggers(runs: list[dict], model: str = "MESA", above: float = 10.0) -> list[str]:
    """Return the triggers whose ASR after the repair exceeds `above` percent."""
    return [run["trigger"] for run in runs if max(rates(run, model)) > above]


def median_seconds(runs: list[dict]) -> pd.Series:
    """Return the median seconds of each part of a run."""
    return pd.DataFrame([run["seconds"] for run in runs]).median().round(0)


def machines(runs: list[dict]) -> str:
    """Return device, threads and versions of all runs in one line."""
    made = {(m["device_name"], m["threads"], m["torch"]) for m in (run["made"] for run in runs)}
    return "; ".join(f"{name}, {threads} thread{'s' * (threads > 1)}, torch {t}" for name, threads, t in sorted(made))


# --- saved triggers --------------------------------------------------------------------------------------


def saved_triggers(run: dict, name: str) -> Tensor:
    """Return triggers that a run keeps (n, 3, h, w) in [0, 1]: `original`, `samples` (of the mixture) or `inverted`."""
    return unpack_triggers(run["triggers"][name], run["triggers"]["shape"])


def map_panel(run: dict, inverted: bool = True) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return one panel of `plots.distribution_maps`: the samples, and the single triggers marked among them.

    Args:
        inverted: whether the first inverted trigger is marked, or the original alone.
    """
    marks = {"original": saved_triggers(run, "original")[0]}
    if inverted:
        marks["single inversion"] = saved_triggers(run, "inverted")[0]
    return {"samples of MESA": saved_triggers(run, "samples")}, marks


def nearest_distance(triggers: Tensor, cloud: Tensor) -> Tensor:
    """Return the Euclidean distance of each trigger (n, ...) to the nearest of a cloud (m, ...) -> (n,)."""
    return torch.cdist(triggers.flatten(1), cloud.flatten(1)).min(1).values


def distances_to_samples(run: dict) -> dict[str, float]:
    """Return how far triggers lie from the nearest saved sample: Euclidean, over all values in [0, 1].

    For the samples, the median distance to the nearest other one; for the single inversion, the mean of its repeats.
    """
    samples = saved_triggers(run, "samples")
    flat = samples.flatten(1)
    between = torch.cdist(flat, flat).fill_diagonal_(float("inf")).min(1).values
    return {
        "sample (median)": float(between.median()),
        "single inversion": float(nearest_distance(saved_triggers(run, "inverted"), samples).mean()),
        "original": float(nearest_distance(saved_triggers(run, "original"), samples)),
    }


def nearest_cloud(runs: list[dict]) -> pd.DataFrame:
    """Return whether the attacker's trigger lies nearer to its run's samples than chance would have it.

    One row per run, distances as in `distances_to_samples`. `other runs nearer` counts the other runs whose samples are
    nearer; the random patterns are 2,000 black-white ones, seeded.
    """
    clouds = [saved_triggers(run, "samples") for run in runs]
    lines = {}
    for number, run in enumerate(runs):
        channels, height, width = run["triggers"]["shape"]
        drawn = np.random.default_rng(0).integers(0, 2, (2000, height * width))
        patterns = torch.from_numpy(drawn).float().repeat(1, channels)
        to_clouds = [float(nearest_distance(saved_triggers(run, "original"), cloud)) for cloud in clouds]
        distance = to_clouds.pop(number)
        chance = nearest_distance(patterns, clouds[number])
        lines[run["trigger"]] = {
            "to its samples": distance,
            "to the nearest other run's": min(to_clouds, default=np.nan),
            "other runs nearer": sum(other < distance for other in to_clouds),
            "random pattern (median)": float(chance.median()),
            "random patterns nearer (%)": 100 * float((chance < distance).float().mean()),
        }
    return pd.DataFrame(lines).T


def cross_trigger_asr(name: str = "cross-trigger-asr") -> dict[str, pd.DataFrame]:
    """Return the results of `benchmarks/cross_trigger_asr.py`: kind of trigger -> ASR in percent, models by triggers.

    The kinds are those of `saved_triggers`; {} if the file is not there.
    """
    content = load_content(name)
    return {
        kind: 100 * pd.DataFrame(rows, index=content["models"], columns=content["triggers"])
        for kind, rows in content.get("asr", {}).items()
    }


def samples_over_seeds(runs: list[dict]) -> pd.DataFrame:
    """Return statistics of the samples of a sweep over alpha and one level: one row per level and alpha.

    Columns are mean and standard deviation over seeds of: ASR in percent on the modeling images; information in nats,
    always by the same statistics network; mean distance of two samples, root mean square per value. Of the saved
    samples, in percent: variance along the first principal direction, and samples within a Euclidean distance of 0.5
    of the attacker's trigger.
    """
    rows = [
        {"beta": float(run["params"]["betas"]), "alpha": float(run["params"]["alpha"])}
        | _sample_statistics(run, statistics)
        for run in runs
        for name, statistics in run["samples"].items()
        if name != "mixture"
    ]
    return pd.DataFrame(rows).groupby(["beta", "alpha"]).agg(["mean", "std"])


def _sample_statistics(run: dict, statistics: dict) -> dict[str, float]:
    samples = saved_triggers(run, "samples").flatten(1)
    variances = torch.linalg.svdvals(samples - samples.mean(0)).square()
    near = torch.cdist(samples, saved_triggers(run, "original").flatten(1)) < 0.5
    return {
        "ASR": 100 * statistics["asr"],
        "information": statistics["information"],
        "distance": statistics["distance"],
        "first direction": 100 * float(variances[0] / variances.sum()),
        "near the trigger": 100 * float(near.float().mean()),
    }
