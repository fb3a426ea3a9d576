"""How often the stages of a scan are right, counted on the models of `benchmarks/zoo.py`.

One half of the models, `limits`, gives the p-values; the other half is only counted. All functions take its runs.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mesa_lib.evaluation import detection
from mesa_lib.evaluation.intervals import clopper_pearson

#: the row of all stages together
TOGETHER = "all stages, one p-value"
#: the stages of a scan; the others are rivals
SCAN = ("largest margin", "last layer", "random patches", "MESA's search")
#: p-values up to this flag a model
LEVEL = 0.05
#: an attacked model counts from this ASR on
PLANTED = 0.5


def complete(runs: Sequence[dict]) -> list[str]:
    """Return the stages that every run has."""
    return [name for name in runs[0]["stages"] if all(name in run["stages"] for run in runs)] if runs else []


def statistics(runs: Sequence[dict], stages: Sequence[str]) -> np.ndarray:
    """Return the highest score of any class by each stage -> (runs, stages)."""
    return np.array([[max(run["stages"][name]["scores"]) for name in stages] for run in runs]).reshape(-1, len(stages))


def judged(runs: Sequence[dict]) -> tuple[list[dict], dict[str, np.ndarray]]:
    """Return the counted runs, and for each stage, and for those of a scan together, their p-values."""
    stages = complete(runs)
    known = statistics([run for run in runs if run["half"] == "limits" and not run["attacked"]], stages)
    counted = [run for run in runs if run["half"] == "counted" and (not run["attacked"] or run["asr"] >= PLANTED)]
    scores = statistics(counted, stages)
    p = {name: detection.p_values(known[:, i], scores[:, i]) for i, name in enumerate(stages)}
    chosen = [i for i, name in enumerate(stages) if name in SCAN]
    if len(chosen) > 1:
        p[TOGETHER] = detection.combined(known[:, chosen], scores[:, chosen])
    return counted, p


def rates(runs: Sequence[dict]) -> pd.DataFrame:
    """Return, for each stage, how many attacked and clean models of the counted half are flagged, with 95% CIs.

    `target first` counts attacked models whose highest class is the planted one.
    """
    counted, p = judged(runs)
    attacked = np.array([run["attacked"] for run in counted], bool)
    lines = {}
    for name, values in p.items():
        line = {
            "attacked, flagged": _count(values[attacked] <= LEVEL),
            "clean, flagged": _count(values[~attacked] <= LEVEL),
            "AUC": f"{detection.roc(-values[~attacked], -values[attacked])['auc']:.3f}",
        }
        if name != TOGETHER:
            found = [run["stages"][name] for run in counted]
            first = [int(np.argmax(f["scores"])) == run["target"] for f, run in zip(found, counted, strict=True)
                     if run["attacked"]]  # fmt: skip
            line |= {"target first": _count(first), "seconds": f"{np.median([f['seconds'] for f in found]):.0f}"}
        lines[name] = line
    return pd.DataFrame(lines).T.fillna("")


def by_attack(runs: Sequence[dict]) -> pd.DataFrame:
    """Return, for each stage and attack, how many models of the counted half are flagged."""
    counted, p = judged(runs)
    names = np.array([run["attack"] if run["attacked"] else "clean" for run in counted])
    lines = {
        stage: {f"{name} ({(names == name).sum()})": int((values[names == name] <= LEVEL).sum())
                for name in dict.fromkeys(names)}
        for stage, values in p.items()
    }  # fmt: skip
    return pd.DataFrame(lines).T


def _count(flags: Sequence[bool]) -> str:
    hits, n = int(np.sum(flags)), len(flags)
    low, high = clopper_pearson(hits, n)
    return f"{hits} of {n} ({100 * low:.0f}–{100 * high:.0f}%)"
