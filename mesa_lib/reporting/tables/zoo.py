"""How often the stages of a scan are right, counted on the models of `benchmarks/zoo.py`.

One half of the models, `limits`, gives the p-values; the other half is only counted. All functions take its runs.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mesa_lib.evaluation import detection
from mesa_lib.reporting.tables import attackers
from mesa_lib.scan import p_values
from mesa_lib.scan.p_values import highest

#: the row of a scan's stages together, and that of its verdict by the limits of each stage
TOGETHER, BY_LIMITS = "a scan: one p-value of margin and search", "a scan: its verdict, by its limits"


def complete(runs: Sequence[dict]) -> list[str]:
    """Return the stages that every run has."""
    return [name for name in runs[0]["stages"] if all(name in run["stages"] for run in runs)] if runs else []


def judged(runs: Sequence[dict]) -> tuple[list[dict], dict[str, np.ndarray]]:
    """Return the counted runs, and for each stage, and for those of a scan together, their p-values."""
    stages = complete(runs)
    known = highest([run for run in runs if run["half"] == "limits" and not run["attacked"]], stages)
    planted = [run for run in runs if not run["attacked"] or run["asr"] >= p_values.PLANTED]
    counted = [run for run in planted if run["half"] == "counted"]
    scores = highest(counted, stages)
    p = {name: detection.p_values(known[:, i], scores[:, i]) for i, name in enumerate(stages)}
    chosen = [i for i, name in enumerate(stages) if name in p_values.STAGES]
    if len(chosen) > 1:
        p[TOGETHER] = detection.combined(known[:, chosen], scores[:, chosen])
    return counted, p


def flags(runs: Sequence[dict]) -> tuple[list[dict], dict[str, np.ndarray]]:
    """Return the counted runs, and for each stage, and for a scan, which of them are flagged."""
    counted, p = judged(runs)
    flagged = {name: values <= p_values.LEVEL for name, values in p.items()}
    if TOGETHER in p:
        flagged[BY_LIMITS] = np.array([p_values.flagged_by_limits(run) for run in counted], bool)
    return counted, flagged


def rates(runs: Sequence[dict]) -> pd.DataFrame:
    """Return, for each stage, how many attacked and clean models of the counted half are flagged, with 95% CIs.

    `target first` counts attacked models whose highest class is the planted one.
    """
    (counted, flagged), p = flags(runs), judged(runs)[1]
    attacked = np.array([run["attacked"] for run in counted], bool)
    lines = {}
    for name, hits in flagged.items():
        line = {"attacked, flagged": _count(hits[attacked]), "clean, flagged": _count(hits[~attacked])}
        if name in p:
            scores = -p[name] if name == TOGETHER else highest(counted, [name])[:, 0]
            line["AUC"] = f"{detection.roc(scores[~attacked], scores[attacked])['auc']:.3f}"
        if name not in (TOGETHER, BY_LIMITS):
            found = [run["stages"][name] for run in counted]
            first = [int(np.argmax(f["scores"])) == run["target"] for f, run in zip(found, counted, strict=True)
                     if run["attacked"]]  # fmt: skip
            line |= {"target first": _count(first), "seconds": f"{np.median([f['seconds'] for f in found]):.0f}"}
        lines[name] = line
    return pd.DataFrame(lines).T.fillna("")


def by_attack(runs: Sequence[dict]) -> pd.DataFrame:
    """Return, for each stage and attack, how many models of the counted half are flagged."""
    counted, flagged = flags(runs)
    names = np.array([run["attack"] if run["attacked"] else "clean" for run in counted])
    lines = {
        stage: {f"{name} ({(names == name).sum()})": int(hits[names == name].sum()) for name in dict.fromkeys(names)}
        for stage, hits in flagged.items()
    }  # fmt: skip
    return pd.DataFrame(lines).T


def by_network(runs: Sequence[dict]) -> pd.DataFrame:
    """Return how many clean models of each network, of both halves, the limits of a scan flag, with 95% CIs."""
    scanned = [run for run in runs if not run["attacked"] and set(p_values.STAGES) <= set(run["stages"])]
    lines = {}
    for network in sorted({run["network"] for run in scanned}):
        hits = [p_values.flagged_by_limits(run) for run in scanned if run["network"] == network]
        lines[network] = {"clean, flagged by the limits": _count(hits)}
    return pd.DataFrame(lines).T


def markdown(content: dict) -> str:
    """Return all tables, and how many models there are, as Markdown."""
    runs, made = content["runs"], content["made"]
    counted, _ = judged(runs)
    left_out = sum(run["half"] == "counted" for run in runs) - len(counted)
    parts = [
        attackers.markdown(rates(runs), f"p at most {p_values.LEVEL:g}"),
        attackers.markdown(by_attack(runs), "models flagged"),
        attackers.markdown(by_network(runs), "network"),
        f"{_clean(runs, 'limits')} clean models give the p-values. {len(counted)} others are counted, "
        f"{_clean(runs, 'counted')} of them clean; {left_out or 'no'} attacked more {'is' if left_out == 1 else 'are'} "
        f"left out because the ASR is below {p_values.PLANTED:.0%}. {made['device_name']}, torch {made['torch']}.",
    ]
    return "\n\n".join(parts)


def short(content: dict) -> str:
    """Return the table of stages, and that of networks, as Markdown."""
    runs = content["runs"]
    tables = {f"p at most {p_values.LEVEL:g}": rates(runs), "network": by_network(runs)}
    return "\n\n".join(attackers.markdown(table, corner) for corner, table in tables.items())


def _clean(runs: Sequence[dict], half: str) -> int:
    return sum(run["half"] == half and not run["attacked"] for run in runs)


def _count(hits: Sequence[bool]) -> str:
    part = p_values.count(hits)
    return f"{part['flagged']} of {part['of']} ({100 * part['low']:.0f}–{100 * part['high']:.0f}%)"
