"""All defences by name, with their settings on the bench, by kind."""

from .base import Detector, Filter, Reformer, Repairer
from .deepinspect import DeepInspect
from .df_tnd import DFTND
from .dl_tnd import DLTND
from .fine_tuning import FineTuning
from .mesa import MESARepair, RandomTriggers, Screening
from .neural_cleanse import NeuralCleanse, Unlearning
from .pruning import FinePruning, Pruning
from .squeezing import SQUEEZERS, FeatureSqueezing
from .strip import STRIP

DETECTORS: dict[str, type[Detector]] = {
    "random triggers": RandomTriggers,
    "MESA screening": Screening,
    "Neural Cleanse": NeuralCleanse,
    "DeepInspect": DeepInspect,
    "DL-TND": DLTND,
    "DF-TND": DFTND,
}
REPAIRERS: dict[str, type[Repairer]] = {
    "fine-tuning": FineTuning,
    "pruning": Pruning,
    "Fine-Pruning": FinePruning,
    "Neural Cleanse": Unlearning,
    "MESA": MESARepair,
}
FILTERS: dict[str, type[Filter]] = {"STRIP": STRIP, "Feature Squeezing": FeatureSqueezing}
REFORMERS: dict[str, Reformer] = SQUEEZERS
