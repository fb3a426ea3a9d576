"""All defences by name, with their settings on the bench, by kind.

The detectors' thresholds were fixed on the ten clean models of the sweep `bench-thresholds`, none of which is reported.
The published one stands where at most one of the ten exceeds it (DeepInspect); else it is above the highest of the ten
(Neural Cleanse, DL-TND, DF-TND). Rates of success (MESA, random triggers) stay far below theirs, round numbers that are
at least six times the highest. A test compares them with the published results. These are digits; on other data clean
models may exceed them, and `bench.tables.with_limits_of` raises them by clean models of those data.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict

from .base import Detector, Filter, Reformer, Repairer
from .deepinspect import DeepInspect
from .df_tnd import DFTND
from .dl_tnd import DLTND
from .fine_tuning import FineTuning
from .mesa import (
    MESA,
    MESADetected,
    MESARepair,
    PointRepair,
    any_place,
    any_place_detected,
    any_size,
    any_size_detected,
)
from .neural_cleanse import NeuralCleanse, Unlearning
from .pruning import FinePruning, Pruning, careful_fine_pruning
from .screening import RandomTriggers, Screening
from .squeezing import SQUEEZERS, FeatureSqueezing
from .strip import STRIP, adding

DETECTORS: dict[str, Callable[[], Detector]] = {
    "random triggers": RandomTriggers,
    "MESA screening": Screening,
    "MESA": MESA,
    "MESA, any size": any_size,
    "MESA, any place or one": any_place,
    "Neural Cleanse": NeuralCleanse,
    "DeepInspect": DeepInspect,
    "DL-TND": DLTND,
    "DF-TND": DFTND,
}
REPAIRERS: dict[str, Callable[[], Repairer]] = {
    "fine-tuning": FineTuning,
    "pruning": Pruning,
    "Fine-Pruning, 4 points": careful_fine_pruning,
    "Fine-Pruning": FinePruning,
    "Neural Cleanse": Unlearning,
    "point": PointRepair,
    "MESA": MESARepair,
    "MESA, target unknown": MESADetected,
    "MESA, target and size unknown": any_size_detected,
    "MESA, target and place unknown": any_place_detected,
}
FILTERS: dict[str, Callable[[], Filter]] = {
    "STRIP, sums": adding,
    "STRIP": STRIP,
    "Feature Squeezing": FeatureSqueezing,
}
REFORMERS: dict[str, Reformer] = SQUEEZERS


def settings(kinds: Iterable[str]) -> dict[str, dict]:
    """All that the methods of some kinds (`detectors`, `repairers`, ...) are made of, thresholds included."""
    made = {
        "detectors": {name: method() for name, method in DETECTORS.items()},
        "repairers": {name: method() for name, method in REPAIRERS.items()},
        "filters": {name: method() for name, method in FILTERS.items()},
        "reformers": REFORMERS,
    }
    return {kind: {name: asdict(method) for name, method in made[kind].items()} for kind in kinds}
