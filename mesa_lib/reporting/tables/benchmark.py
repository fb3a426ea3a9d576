"""Tables of the benchmark, attacks by defenses, from the runs in results/bench-*.json alone."""

from collections.abc import Callable, Iterable

import numpy as np
import pandas as pd

from mesa_lib.evaluation.intervals import clopper_pearson

#: rows that are no repairs
MODELS = ("clean model", "attacked")
#: repairs that are no defenses: what every one of them has to be compared with
CONTROLS = ("fine-tuning", "random mixed", "ideal")
#: the knowledge of those controls that are not a defender's method
CONTROL_KNOWLEDGE = {
    "random mixed": "weights, all clean images, stamping rule, trigger size",
    "ideal": "weights, all clean images, the attacker's own trigger",
}


def by_attack(runs: Iterable[dict]) -> dict[str, list[dict]]:
    """Return the runs by attack; clean models (`none`) last."""
    runs = list(runs)
    names = dict.fromkeys(run["attack"] for run in runs)
    ordered = [name for name in names if name != "none"] + ["none"] * ("none" in names)
    return {name: [run for run in runs if run["attack"] == name] for name in ordered}


# --- detectors -------------------------------------------------------------------------------------------


def peak_score(verdict: dict) -> float:
    """Return the number that the threshold of a verdict applies to: the highest of all classes."""
    return max(verdict[verdict["on"]])


def top_class(verdict: dict) -> int | None:
    """Return the class with the highest score; None if several share it."""
    highest = np.flatnonzero(np.array(verdict["scores"]) == max(verdict["scores"]))
    return int(highest[0]) if len(highest) == 1 else None


def _over_models(runs: list[dict], value: Callable[[dict, dict], float | bool]) -> dict[str, dict[str, list]]:
    """Return detector -> `clean`, `attacked` -> value(run, verdict), one per model."""
    result: dict[str, dict[str, list]] = {}
    for run in runs:
        group = "attacked" if run["planted"] else "clean"
        for name, verdict in run["detectors"].items():
            result.setdefault(name, {"clean": [], "attacked": []})[group].append(value(run, verdict))
    return result


def peak_scores(runs: list[dict]) -> dict[str, dict[str, list[float]]]:
    """Return detector -> `clean`, `attacked` -> the peak score of each model."""
    return _over_models(runs, lambda run, verdict: peak_score(verdict))


def peak_hits(runs: list[dict]) -> dict[str, dict[str, list[bool]]]:
    """Return, in the shape of `peak_scores`, whether the peak is at a planted class (True for clean models)."""
    return _over_models(
        runs, lambda run, verdict: not run["planted"] or int(np.argmax(verdict[verdict["on"]])) in run["planted"]
    )


def thresholds(runs: list[dict]) -> dict[str, float]:
    """Return the threshold of every detector."""
    return {name: verdict["above"] for name, verdict in runs[0]["detectors"].items()}


def raised_threshold(threshold: float, highest: float, on: str) -> float:
    """Return the threshold for another data set: unchanged, if no clean model of that data set exceeds it.

    Otherwise, for rates and cosines (`scores`), halfway from the highest of the clean models to 1; for an anomaly index
    the next half above the highest.
    """
    if highest <= threshold:
        return threshold
    return (highest + 1) / 2 if on == "scores" else float(np.floor(2 * highest + 1)) / 2


def with_raised_thresholds(runs: list[dict], clean: list[dict]) -> list[dict]:
    """Return the runs with new verdicts, by thresholds raised where clean models of the same data set exceed them.

    Args:
        clean: runs of clean models on the same data set that are not among `runs`.
    """
    result = []
    for run in runs:
        verdicts = {}
        for name, verdict in run["detectors"].items():
            highest = max(peak_score(model["detectors"][name]) for model in clean)
            above = raised_threshold(verdict["above"], highest, verdict["on"])
            flagged = [k for k, value in enumerate(verdict[verdict["on"]]) if value > above]
            verdicts[name] = verdict | {"above": above, "flagged": flagged}
        result.append(run | {"detectors": verdicts})
    return result


def count_text(hits: Iterable[bool]) -> str:
    """Return `9 of 10 (55–100%)`, with the exact 95% CI; empty without any trial."""
    hits = list(hits)
    if not hits:
        return ""
    low, high = clopper_pearson(sum(hits), len(hits))
    return f"{sum(hits)} of {len(hits)} ({100 * low:.0f}–{100 * high:.0f}%)"


def detection_table(runs: list[dict]) -> pd.DataFrame:
    """Return one row per detector, counts with their 95% CI.

    Columns: `detected`, attacked models with a planted class flagged; `ranked first`, with a planted class of the
    highest score, flagged or not (not counted where all classes are planted); `others flagged`, with a class flagged
    that was not planted; `false positives`, clean models with any class flagged; `knowledge`; `seconds`, the median.
    """
    attacked, clean = ([r for r in runs if bool(r["planted"]) == planted] for planted in (True, False))
    lines = {}
    for name, first in runs[0]["detectors"].items():
        verdicts = [(run["detectors"][name], set(run["planted"])) for run in attacked]
        not_all = [(v, planted) for v, planted in verdicts if len(planted) < len(v["scores"])]
        lines[name] = {
            "detected": count_text(bool(planted & set(v["flagged"])) for v, planted in verdicts),
            "ranked first": count_text(top_class(v) in planted for v, planted in not_all),
            "others flagged": count_text(bool(set(v["flagged"]) - planted) for v, planted in verdicts),
            "false positives": count_text(bool(run["detectors"][name]["flagged"]) for run in clean),
            "knowledge": first["knowledge"],
            "seconds": round(float(np.median([run["detectors"][name]["seconds"] for run in runs])), 1),
        }
    return pd.DataFrame(lines).T


def detection_rates(runs: list[dict]) -> pd.DataFrame:
    """Return attacks by detectors: percent of the models with a planted class flagged; for `none`, any class."""

    def detected(run: dict, detector: str) -> bool:
        flagged = set(run["detectors"][detector]["flagged"])
        return bool(flagged & set(run["planted"]) if run["planted"] else flagged)

    return pd.DataFrame(
        {
            attack: {
                detector: 100 * np.mean([detected(run, detector) for run in group])
                for detector in group[0]["detectors"]
            }
            for attack, group in by_attack(runs).items()
        }
    ).T


# --- repairs ---------------------------------------------------------------------------------------------


def repair_rates(runs: list[dict], measure: str = "asr", against: str = "", over: Callable = np.mean) -> pd.DataFrame:
    """Return attacks by repairs: a rate in percent, by default the mean over seeds.

    Args:
        measure: a key of the rows, such as `clean_accuracy`.
        against: a row whose rate is subtracted, such as `attacked`; the result is then in percentage points.
        over: what joins the seeds.
    """
    lines = {}
    for attack, group in by_attack(runs).items():
        rows = [{row["model"]: 100 * row[measure]["rate"] for row in run["rows"]} for run in group]
        lines[attack] = {
            model: over([r[model] - (r[against] if against else 0) for r in rows])
            for model in rows[0]
            if not (against and model in MODELS)
        }
    return pd.DataFrame(lines).T


def repair_seconds(runs: list[dict]) -> pd.Series:
    """Return the median seconds of each repair."""
    seconds = pd.DataFrame([{row["model"]: row["seconds"] for row in run["rows"]} for run in runs])
    return seconds.drop(columns=list(MODELS)).median().round(1)


def repair_knowledge(run: dict) -> dict[str, str]:
    """Return the knowledge that each repair of a run needs."""
    repairs = [row for row in run["rows"] if row["model"] not in MODELS]
    return {row["model"]: row["knowledge"] or CONTROL_KNOWLEDGE[row["model"]] for row in repairs}


def repair_ranking(runs: list[dict], attacks: Iterable[str]) -> pd.DataFrame:
    """Return the repairs by the mean ASR that they leave over these attacks.

    Columns: mean ASR and that of the worst run, mean and worst change of clean accuracy, seconds, knowledge.
    """
    attacks = list(attacks)
    asr, worst = (repair_rates(runs, over=over).loc[attacks] for over in (np.mean, max))
    change, largest = (
        repair_rates(runs, "clean_accuracy", "attacked", over=over).loc[attacks] for over in (np.mean, min)
    )
    repairs = [name for name in asr.columns if name not in MODELS]
    ranking = pd.DataFrame(
        {
            "ASR, mean": asr[repairs].mean(),
            "ASR, worst run": worst[repairs].max(),
            "accuracy, mean change": change[repairs].mean(),
            "accuracy, worst run": largest[repairs].min(),
            "seconds": repair_seconds(runs),
            "knowledge": pd.Series(repair_knowledge(runs[0])),
        }
    )
    return ranking.sort_values("ASR, mean")


# --- inputs ----------------------------------------------------------------------------------------------


def _over_filters(runs: list[dict], value: Callable[[dict], float | None]) -> pd.DataFrame:
    """Return attacks by filters: the mean over the seeds that have a value, in percent."""
    lines = {}
    for attack, group in by_attack([run for run in runs if run["planted"]]).items():
        values = {name: [value(run["filters"][name]) for run in group] for name in group[0]["filters"]}
        lines[attack] = {name: 100 * np.mean([v for v in values[name] if v is not None] or np.nan) for name in values}
    return pd.DataFrame(lines).T


def filter_rates(runs: list[dict], measure: str = "auroc of those that fire") -> pd.DataFrame:
    """Return attacks by filters: a measure in percent, the mean over the seeds of which any triggered image works."""
    return _over_filters(runs, lambda result: result.get(measure))


def filter_tpr(runs: list[dict], false_positive_rate: float = 0.05) -> pd.DataFrame:
    """Return attacks by filters: percent flagged of the triggered images on which the attack works.

    Args:
        false_positive_rate: the fraction of clean images that a filter may flag.
    """
    return _over_filters(runs, lambda result: result[f"at {false_positive_rate:g}"].get("of those that fire"))


def reformer_rates(runs: list[dict], measure: str = "asr") -> pd.DataFrame:
    """Return attacks by reformers: a rate in percent, the mean over seeds."""
    return pd.DataFrame(
        {
            attack: {
                name: 100 * np.mean([run["reformers"][name][measure]["rate"] for run in group])
                for name in group[0]["reformers"]
            }
            for attack, group in by_attack(runs).items()
        }
    ).T
