"""All defences by name, with their settings on the bench, by kind.

The detectors' thresholds were fixed on the ten clean models of the sweep `bench-thresholds`, none of which is reported.
The published one stands where at most one of the ten exceeds it (DeepInspect); else it is above the highest of the ten
(Neural Cleanse, DL-TND, DF-TND). Rates of success (MESA, random triggers) stay far below theirs, round numbers that are
at least six times the highest. A test compares them with the published results.
"""

from collections.abc import Callable

from .base import Detector, Filter, Reformer, Repairer
from .deepinspect import DeepInspect
from .df_tnd import DFTND
from .dl_tnd import DLTND
from .fine_tuning import FineTuning
from .mesa import MESA, MESADetected, MESARepair, PointRepair, RandomTriggers, Screening, any_size, any_size_detected
from .neural_cleanse import NeuralCleanse, Unlearning
from .pruning import FinePruning, Pruning, careful_fine_pruning
from .squeezing import SQUEEZERS, FeatureSqueezing
from .strip import STRIP, adding

DETECTORS: dict[str, Callable[[], Detector]] = {
    "random triggers": RandomTriggers,
    "MESA screening": Screening,
    "MESA": MESA,
    "MESA, any size": any_size,
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
}
FILTERS: dict[str, Callable[[], Filter]] = {
    "STRIP, sums": adding,
    "STRIP": STRIP,
    "Feature Squeezing": FeatureSqueezing,
}
REFORMERS: dict[str, Reformer] = SQUEEZERS
