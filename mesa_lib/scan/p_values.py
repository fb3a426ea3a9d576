"""How rarely a clean network stands out as much as a scanned one: p-values from networks that were scanned alike.

`benchmarks/zoo.py` trains clean and attacked networks on digits and publishes their scores; the highest of each network
are written to `reference_networks.json` beside this file. Clean networks of one half, `limits`, give the p-values. The
other half, `counted`, has other architectures, targets and triggers, and says how often a p-value is right.
"""

import json
from collections.abc import Sequence
from functools import cache
from importlib import resources

import numpy as np

from mesa_lib.defenses.base import describe_method
from mesa_lib.evaluation import detection
from mesa_lib.evaluation.intervals import clopper_pearson
from mesa_lib.scan import data_free
from mesa_lib.scan.false_positives import same_verdict
from mesa_lib.scan.options import Options

#: in `results/`: published scores of the networks
PUBLISHED = "zoo-digits.json"
#: in this package: the highest score of each network by each stage
PACKAGED = "reference_networks.json"
#: the stages of a scan of which a p-value is made, as the published file names them
STAGES = ("largest margin", "MESA's search")
#: p-values up to this count as flagged
LEVEL = 0.05
#: an attacked network counts if its trigger has at least this ASR
PLANTED = 0.5


def scan_settings() -> dict:
    """Return the settings on which the scores of a network of 32x32 pixels and ten classes depend."""
    margins = describe_method(data_free.maximum_margin(10, data_free.REFERENCE_PIXELS))
    return {"search": describe_method(Options().detector(32)) | {"images": "classified correctly"}, "margins": margins}


def highest(runs: Sequence[dict], stages: Sequence[str]) -> np.ndarray:
    """Return the highest score of any class by each stage -> (runs, stages)."""
    return np.array([[max(run["stages"][name]["scores"]) for name in stages] for run in runs]).reshape(-1, len(stages))


def reference(content: dict) -> dict:
    """Return what the package keeps of published scores: `settings`, and the `networks`, a dictionary each.

    Attacked networks on which the backdoor did not take, and networks without a stage, are left out.
    """
    kept = []
    for run in content["runs"]:
        if set(STAGES) <= set(run["stages"]) and (not run["attacked"] or run["asr"] >= PLANTED):
            line = {"half": run["half"], "attacked": run["attacked"], "scores": highest([run], STAGES)[0].tolist()}
            kept.append(line | {"flagged": flagged_by_limits(run)})
    return {"settings": content["settings"], "networks": kept}


def flagged_by_limits(run: dict) -> bool:
    """Return whether a scan's own limits flag a network, as backdoored or suspicious."""
    ratio, score = highest([run], STAGES)[0]
    return bool(score > 0 or ratio > data_free.maximum_margin(10, data_free.REFERENCE_PIXELS).above)


@cache
def packaged() -> dict:
    """Return `reference` of the published scores, from the package's own file."""
    return json.loads(resources.files("mesa_lib.scan").joinpath(PACKAGED).read_text())


def p_value(settings: dict, starts: int, ratio: float, score: float, networks: dict | None = None) -> dict | None:
    """Return how rarely a clean network stands out as much as a scanned one; None if none was scanned alike.

    Args:
        settings: of the scan (`Scanner.settings`).
        starts: of the largest margins.
        ratio: the highest margin of any class, divided by the median.
        score: the highest score of any class in the search.
        networks: None: those of the package.

    Returns:
        `p-value`; `of each stage`; `networks`, the number of clean networks from which they come; `counted`: by
        `clean` and `attacked`, how many networks of the other half have a p-value up to `level` (flagged, of, low,
        high); `by limits`: how many of all clean networks a scan's limits flag (the same).
    """
    networks = packaged() if networks is None else networks
    known = networks["settings"]
    if not same_verdict(settings, known["search"]) or starts != known["margins"]["starts"]:
        return None
    lines = networks["networks"]
    clean = _scores([line for line in lines if line["half"] == "limits" and not line["attacked"]])
    judged = np.array([[ratio, score]])
    each = [detection.p_values(clean[:, i], judged[:, i])[0] for i in range(len(STAGES))]
    counted = {}
    for name in ("clean", "attacked"):
        part = [line for line in lines if line["half"] == "counted" and line["attacked"] == (name == "attacked")]
        if part:
            counted[name] = count(detection.combined(clean, _scores(part)) <= LEVEL)
    return {
        "p-value": round(float(detection.combined(clean, judged)[0]), 4),
        "of each stage": dict(zip(STAGES, (round(float(p), 4) for p in each), strict=True)),
        "networks": len(clean),
        "level": LEVEL,
        "counted": counted,
        "by limits": count([line["flagged"] for line in lines if not line["attacked"]]),
    }


def count(flags: Sequence[bool]) -> dict:
    """Return how many are true: `flagged`, `of`, and the exact 95% interval of the rate, `low` and `high`."""
    hits, n = int(np.sum(flags)), len(flags)
    low, high = clopper_pearson(hits, n)
    return {"flagged": hits, "of": n, "low": low, "high": high}


def _scores(lines: Sequence[dict]) -> np.ndarray:
    return np.array([line["scores"] for line in lines], float).reshape(-1, len(STAGES))
