"""What the sweeps of the benchmark found, as tables, from the published runs (results/bench-*.json) alone."""

from collections.abc import Callable, Iterable

import numpy as np
import pandas as pd
from scipy.stats import binomtest

#: rows that are no repairs
MODELS = ("clean, never attacked", "attacked")
#: repairs that no defense is: what every one of them has to be compared with
CONTROLS = ("fine-tuning", "random mixed", "ideal")
#: what those of them have that are no methods of a defender
GIVEN = {
    "random mixed": "weights, all clean images, stamping rule, trigger size",
    "ideal": "weights, all clean images, the attacker's own trigger",
}


def attack(run: dict) -> str:
    """The name of a run's attack; `none` of a clean model."""
    return run["attack"]


def each(runs: Iterable[dict]) -> dict[str, list[dict]]:
    """The runs by attack, clean models last."""
    names = dict.fromkeys(attack(run) for run in runs)
    ordered = [name for name in names if name != "none"] + ["none"] * ("none" in names)
    return {name: [run for run in runs if attack(run) == name] for name in ordered}


# --- detectors -------------------------------------------------------------------------------------------


def peak(verdict: dict) -> float:
    """The number of a verdict that its threshold is put to: the highest of all classes."""
    return max(verdict[verdict["on"]])


def first(verdict: dict) -> int | None:
    """The class with the highest score; None of several."""
    highest = np.flatnonzero(np.array(verdict["scores"]) == max(verdict["scores"]))
    return int(highest[0]) if len(highest) == 1 else None


def peaks(runs: list[dict]) -> dict[str, dict[str, list[float]]]:
    """Detector -> `clean`, `attacked` -> one number a model."""
    found: dict[str, dict[str, list[float]]] = {}
    for run in runs:
        group = "attacked" if run["planted"] else "clean"
        for name, verdict in run["detectors"].items():
            found.setdefault(name, {"clean": [], "attacked": []})[group].append(peak(verdict))
    return found


def hits(runs: list[dict]) -> dict[str, dict[str, list[bool]]]:
    """The same as `peaks`: whether that class was planted (of a clean model: True)."""
    found: dict[str, dict[str, list[bool]]] = {}
    for run in runs:
        group = "attacked" if run["planted"] else "clean"
        for name, verdict in run["detectors"].items():
            highest = int(np.argmax(verdict[verdict["on"]]))
            mine = found.setdefault(name, {"clean": [], "attacked": []})
            mine[group].append(not run["planted"] or highest in run["planted"])
    return found


def limits(runs: list[dict]) -> dict[str, float]:
    """The threshold of every detector."""
    return {name: verdict["above"] for name, verdict in runs[0]["detectors"].items()}


def raised(limit: float, highest: float, on: str) -> float:
    """A threshold for other data: its own, if no clean model of those data exceeds it.

    Else, for rates and cosines (`scores`), halfway from the highest of the clean models to 1; for an anomaly index the
    next half above the highest.
    """
    if highest <= limit:
        return limit
    return (highest + 1) / 2 if on == "scores" else float(np.floor(2 * highest + 1)) / 2


def with_limits_of(runs: list[dict], clean: list[dict]) -> list[dict]:
    """The runs judged anew, by thresholds `raised` where the clean models of the same data set ask for it.

    clean: runs of models that are not among the others, on the same data
    """
    found = []
    for run in runs:
        verdicts = {}
        for name, verdict in run["detectors"].items():
            highest = max(peak(one["detectors"][name]) for one in clean)
            above = raised(verdict["above"], highest, verdict["on"])
            flagged = [k for k, value in enumerate(verdict[verdict["on"]]) if value > above]
            verdicts[name] = verdict | {"above": above, "flagged": flagged}
        found.append(run | {"detectors": verdicts})
    return found


def share(found: Iterable[bool]) -> str:
    """`9 of 10 (55 to 100 %)`: with the exact interval of 95 % (Clopper, Pearson 1934)."""
    found = list(found)
    if not found:
        return ""
    known = binomtest(sum(found), len(found)).proportion_ci(0.95, "exact")
    return f"{sum(found)} of {len(found)} ({100 * known.low:.0f} to {100 * known.high:.0f} %)"


def detection(runs: list[dict]) -> pd.DataFrame:
    """A line a detector.

    found: attacked models of which a planted class is flagged; ranked first: of which a planted class has the highest
    score, flagged or not (not counted where all classes are planted); others flagged: of which a class is flagged that
    was not planted; false alarms: clean models of which any class is flagged; seconds: the median
    """
    attacked, clean = ([r for r in runs if bool(r["planted"]) == which] for which in (True, False))
    lines = {}
    for name in runs[0]["detectors"]:
        verdicts = [(run["detectors"][name], set(run["planted"])) for run in attacked]
        lines[name] = {
            "found": share(bool(planted & set(v["flagged"])) for v, planted in verdicts),
            "ranked first": share(first(v) in planted for v, planted in verdicts if len(planted) < len(v["scores"])),
            "others flagged": share(bool(set(v["flagged"]) - planted) for v, planted in verdicts),
            "false alarms": share(bool(run["detectors"][name]["flagged"]) for run in clean),
            "is given": runs[0]["detectors"][name]["knows"],
            "seconds": round(float(np.median([run["detectors"][name]["seconds"] for run in runs])), 1),
        }
    return pd.DataFrame(lines).T


def found(runs: list[dict]) -> pd.DataFrame:
    """Attacks down, detectors across: of how many models in per cent a planted class was flagged; `none`: any class."""
    lines = {}
    for name, own in each(runs).items():
        lines[name] = {
            detector: 100
            * np.mean([bool(set(r["detectors"][detector]["flagged"]) & set(r["planted"] or range(10**4))) for r in own])
            for detector in own[0]["detectors"]
        }
    return pd.DataFrame(lines).T


# --- repairs ---------------------------------------------------------------------------------------------


def repairs(runs: list[dict], measure: str = "asr", against: str = "", over: Callable = np.mean) -> pd.DataFrame:
    """Attacks down, repairs across: a rate in per cent, by default the mean over seeds.

    against: a row whose rate is subtracted, as `attacked`
    """
    lines = {}
    for name, own in each(runs).items():
        rows = [{row["model"]: 100 * row[measure]["rate"] for row in run["rows"]} for run in own]
        lines[name] = {
            model: over([r[model] - (r[against] if against else 0) for r in rows])
            for model in rows[0]
            if not (against and model in MODELS)
        }
    return pd.DataFrame(lines).T


def seconds(runs: list[dict]) -> pd.Series:
    """The median of what each repair took."""
    took = pd.DataFrame([{row["model"]: row["seconds"] for row in run["rows"]} for run in runs])
    return took.drop(columns=list(MODELS)).median().round(1)


def told(run: dict) -> dict[str, str]:
    """What each repair of a run is given."""
    return {row["model"]: row["knows"] or GIVEN[row["model"]] for row in run["rows"] if row["model"] not in MODELS}


def ordering(runs: list[dict], backdoored: Iterable[str]) -> pd.DataFrame:
    """Repairs by what they leave on average over these attacks: the worst run, the accuracy lost, what is given."""
    rates, lost = repairs(runs).loc[list(backdoored)], repairs(runs, "clean_accuracy", "attacked").loc[list(backdoored)]
    worst = repairs(runs, over=max).loc[list(backdoored)]
    most = repairs(runs, "clean_accuracy", "attacked", over=min).loc[list(backdoored)]
    repaired = [name for name in rates.columns if name not in MODELS]
    given = told(runs[0])
    table = pd.DataFrame(
        {
            "ASR, mean": rates[repaired].mean(),
            "ASR, worst run": worst[repaired].max(),
            "accuracy, mean change": lost[repaired].mean(),
            "accuracy, worst run": most[repaired].min(),
            "seconds": seconds(runs),
            "is given": pd.Series(given),
        }
    )
    return table.sort_values("ASR, mean")


# --- inputs ----------------------------------------------------------------------------------------------


def _of_filters(runs: list[dict], value: Callable[[dict], float | None]) -> pd.DataFrame:
    """Attacks down, filters across: the mean over the seeds of which there is a value, in per cent."""
    lines = {}
    for name, own in each([run for run in runs if run["planted"]]).items():
        known = {f: [value(run["filters"][f]) for run in own] for f in own[0]["filters"]}
        lines[name] = {f: 100 * np.mean([v for v in known[f] if v is not None] or np.nan) for f in known}
    return pd.DataFrame(lines).T


def filters(runs: list[dict], measure: str = "auroc of those that fire") -> pd.DataFrame:
    """Attacks down, filters across: the mean over the seeds of which any triggered image fires, in per cent."""
    return _of_filters(runs, lambda judged: judged.get(measure))


def caught(runs: list[dict], rate: float = 0.05) -> pd.DataFrame:
    """The same of the triggered images that fire which a filter flags; rate: of the clean images that it flags."""
    return _of_filters(runs, lambda judged: judged[f"at {rate:g}"].get("of those that fire"))


def reformers(runs: list[dict], measure: str = "asr") -> pd.DataFrame:
    """Attacks down, reformers across: a rate in per cent, the mean over seeds."""
    lines = {}
    for name, own in each(runs).items():
        lines[name] = {
            reformer: 100 * np.mean([run["reformers"][reformer][measure]["rate"] for run in own])
            for reformer in own[0]["reformers"]
        }
    return pd.DataFrame(lines).T
