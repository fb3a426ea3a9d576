"""All defenses by name, with their settings on the bench, by kind.

The detectors' thresholds were fixed on the ten clean models of the sweep `bench-thresholds`, none of which is reported.
The published one stands where at most one of the ten exceeds it (DeepInspect); else it is above the highest of the ten
(Neural Cleanse, DL-TND, DF-TND). Rates of success (MESA, random triggers) stay far below theirs, round numbers that are
at least six times the highest. A test compares them with the published results. These are digits; on other data clean
models may exceed them, and `bench.tables.with_limits_of` raises them by clean models of those data.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict

from mesa_lib.defenses.base import Detector, Filter, Reformer, Repairer
from mesa_lib.defenses.controls import SingleInversion
from mesa_lib.defenses.deepinspect import DeepInspect
from mesa_lib.defenses.df_tnd import DFTND
from mesa_lib.defenses.dl_tnd import DLTND
from mesa_lib.defenses.fine_tuning import FineTuning
from mesa_lib.defenses.mesa.detector import MESA, any_location, any_size
from mesa_lib.defenses.mesa.repair import MESADetected, MESARepair, any_location_detected, any_size_detected
from mesa_lib.defenses.mesa.screening import Screening
from mesa_lib.defenses.neural_cleanse import NeuralCleanse, Unlearning
from mesa_lib.defenses.pruning import FinePruning, Pruning, careful_fine_pruning
from mesa_lib.defenses.random_triggers import RandomTriggers
from mesa_lib.defenses.squeezing import SQUEEZERS, FeatureSqueezing
from mesa_lib.defenses.strip import STRIP, adding

DETECTORS: dict[str, Callable[[], Detector]] = {
    "random triggers": RandomTriggers,
    "MESA screening": Screening,
    "MESA": MESA,
    "MESA, any size": any_size,
    "MESA, any place or one": any_location,
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
    "point": SingleInversion,
    "MESA": MESARepair,
    "MESA, target unknown": MESADetected,
    "MESA, target and size unknown": any_size_detected,
    "MESA, target and place unknown": any_location_detected,
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
