"""All defenses by name, by kind, with their settings in the benchmark.

The detectors' thresholds were fixed on the ten clean models of the sweep `bench-thresholds`, none of which is reported.
A published threshold is kept where at most one of the ten exceeds it (DeepInspect); else it is set above the highest of
the ten (Neural Cleanse, DL-TND, DF-TND). Thresholds on success rates (MESA, random triggers) are round numbers, at
least six times the highest of the ten. A test compares them with the published results. These models classify digits.
Clean models of other data may exceed the thresholds; `reporting.tables.benchmark` raises them by clean models of those
data.
"""

from collections.abc import Callable, Iterable
from functools import partial

from mesa_lib.defenses.adversarial_pruning import AdversarialPruning
from mesa_lib.defenses.attention_distillation import AttentionDistillation
from mesa_lib.defenses.base import Detector, Filter, Reformer, Repairer, describe_method
from mesa_lib.defenses.controls import FineTuning, RandomTriggersRepair, RestartedInversion, SingleInversion
from mesa_lib.defenses.deepinspect import DeepInspect
from mesa_lib.defenses.df_tnd import DFTND
from mesa_lib.defenses.dl_tnd import DLTND
from mesa_lib.defenses.implicit_hypergradient import ImplicitUnlearning
from mesa_lib.defenses.last_layer import LastLayer
from mesa_lib.defenses.lipschitz_pruning import LipschitzPruning
from mesa_lib.defenses.maximum_margin import MaximumMargin
from mesa_lib.defenses.mesa.detector import MESA, SHORT_SCREENING, any_location, any_size, known_size
from mesa_lib.defenses.mesa.repair import MESADetected, MESARepair, any_location_detected, any_size_detected
from mesa_lib.defenses.mesa.repair_rounds import RepairRounds
from mesa_lib.defenses.mesa.screening import Screening
from mesa_lib.defenses.neural_cleanse import NeuralCleanse, Unlearning
from mesa_lib.defenses.pruning import FinePruning, Pruning, careful_fine_pruning
from mesa_lib.defenses.random_triggers import RandomTriggers
from mesa_lib.defenses.sharpness import SharpnessAwareFineTuning
from mesa_lib.defenses.squeezing import SQUEEZERS, FeatureSqueezing
from mesa_lib.defenses.strip import STRIP, adding

DETECTORS: dict[str, Callable[[], Detector]] = {
    "random triggers": RandomTriggers,
    "MESA screening": Screening,
    "MESA": MESA,
    "MESA, size unknown": any_size,
    "MESA, location unknown": any_location,
    "Neural Cleanse": NeuralCleanse,
    "DeepInspect": DeepInspect,
    "DL-TND": DLTND,
    "DF-TND": DFTND,
    "MM-BD": MaximumMargin,
    "last layer": LastLayer,
}
REPAIRERS: dict[str, Callable[[], Repairer]] = {
    "fine-tuning": FineTuning,
    "random uniform": partial(RandomTriggersRepair, "uniform"),
    "random binary": partial(RandomTriggersRepair, "binary"),
    "random mixed": partial(RandomTriggersRepair, "mixed"),
    "single inversion": SingleInversion,
    "best inversion": RestartedInversion,
    "all inversions": partial(RestartedInversion, keep="all"),
    "MESA": MESARepair,
    "MESA rounds": RepairRounds,
    "pruning": Pruning,
    "Fine-Pruning, 4 points": careful_fine_pruning,
    "Fine-Pruning": FinePruning,
    "Neural Cleanse": Unlearning,
    "MESA, target unknown": MESADetected,
    "MESA, target and size unknown": any_size_detected,
    "MESA, target and location unknown": any_location_detected,
    "CLP": LipschitzPruning,
    "ANP": AdversarialPruning,
    "I-BAU": ImplicitUnlearning,
    "FT-SAM": SharpnessAwareFineTuning,
    "NAD": AttentionDistillation,
}
#: detectors and repairs that joined after the benchmark's sweeps had been run. The benchmark has them as kinds of their
#: own, `recent-detectors` and `recent-repairers`, so that what was published of the other kinds stays complete
RECENT = ("MM-BD", "last layer", "CLP", "ANP", "I-BAU", "FT-SAM", "NAD")
FILTERS: dict[str, Callable[[], Filter]] = {
    "STRIP, sums": adding,
    "STRIP": STRIP,
    "Feature Squeezing": FeatureSqueezing,
}
REFORMERS: dict[str, Reformer] = SQUEEZERS

#: what stands for MESA's detectors, and for the repairs that start from them, where searches are short
SHORT = {
    Screening: partial(Screening, SHORT_SCREENING),
    MESA: partial(known_size, True),
    any_size: partial(any_size, True),
    any_location: partial(any_location, True),
    MESADetected: lambda: MESADetected(known_size(short=True)),
    any_size_detected: partial(any_size_detected, True),
    any_location_detected: partial(any_location_detected, True),
}


def detectors(search: str = "full") -> dict[str, Callable[[], Detector]]:
    """Return all detectors by name; search: `full`, or `short` for MESA's with half the steps and triggers."""
    return {name: SHORT.get(build, build) if search == "short" else build for name, build in DETECTORS.items()}


def repairers(search: str = "full") -> dict[str, Callable[[], Repairer]]:
    """Return all repairs by name; search: as in `detectors`, of those that detect first."""
    return {name: SHORT.get(build, build) if search == "short" else build for name, build in REPAIRERS.items()}


def of_kind(kind: str, search: str = "full") -> tuple[str, dict[str, Callable]]:
    """Return the group (`detectors`, `repairers` or `filters`) and the methods by name of one kind of the benchmark.

    Args:
        kind: a group, or `recent-detectors` or `recent-repairers`; the former leave out those in `RECENT`.
        search: as in `detectors`.
    """
    group = kind.removeprefix("recent-")
    methods = {"detectors": detectors(search), "repairers": repairers(search), "filters": FILTERS}[group]
    return group, {name: build for name, build in methods.items() if (name in RECENT) == (kind != group)}


def method_settings(kinds: Iterable[str], search: str = "full") -> dict[str, dict]:
    """Return the settings, thresholds included, of all methods of some kinds (`detectors`, `repairers`, ...)."""
    settings: dict[str, dict] = {}
    for kind in kinds:
        if kind == "reformers":
            settings[kind] = {name: describe_method(reformer) for name, reformer in REFORMERS.items()}
            continue
        group, methods = of_kind(kind, search)
        described = {name: describe_method(build()) for name, build in methods.items()}
        settings[group] = settings.get(group, {}) | described
    return settings
