"""Repairs by MESA: retrain on samples of the modeled distributions."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from torch import nn

from mesa_lib import retrain, staircase
from mesa_lib.defenses.base import DefenderView, Knowledge, Repairer, RepairResult
from mesa_lib.defenses.mesa.detector import MESA, any_location, any_size
from mesa_lib.settings import Settings


def retrained(given: DefenderView, changes: Iterable) -> nn.Module:
    """The model after the defender's retraining, with triggers stamped by these changes of images, drawn evenly."""
    change = retrain.one_of(list(changes))
    given.train(given.model, given.clean, retrain.on_fraction(change, given.rate))
    return given.model


@dataclass
class MESARepair(Repairer):
    """Target and size known, as in the paper: model the staircase for the target class, retrain on its samples.

    The settings are those of the digits on every data set, all steps, without the early stop.
    """

    settings: Settings = Settings()
    knows: Knowledge = field(default=Knowledge("weights", target=True, rule=True, size=True), init=False)

    def repair(self, given: DefenderView) -> RepairResult:
        settings = replace(self.settings, trigger_size=given.size, seed=given.seed)
        fitted = staircase.fit(
            given.model, given.clean.images, given.clean.labels, given.target, settings, precision=given.precision
        )
        return RepairResult(retrained(given, [retrain.stamping(fitted.sample)]))


@dataclass
class MESADetected(Repairer):
    """Detect, then retrain on samples of every flagged class and rule whose model fires; unchanged if there is none."""

    detector: MESA = field(default_factory=MESA)
    knows: Knowledge = field(init=False)

    def __post_init__(self):
        self.knows = Knowledge("weights", rule=True, size=self.detector.knows.size)

    def repair(self, given: DefenderView) -> RepairResult:
        found = self.detector.search(given.restricted(self.detector.knows))
        fires = {
            (k, rule): retrain.stamping(fitted.sample, found.screened.location(rule, k))
            for k, models in found.models.items()
            for rule, fitted in models.items()
            if found.rates[k][rule] > self.detector.above
        }
        about = {"flagged": sorted({k for k, _ in fires}), "rules": sorted({str(rule) for _, rule in fires})}
        left = set(self.detector.judge(found).flagged) - {k for k, _ in fires}
        about["flagged and not repaired"] = sorted(left)  # more classes than are modeled
        return RepairResult(retrained(given, fires.values()) if fires else given.model, about)


def any_size_detected() -> MESADetected:
    """The same for a defender who does not know the trigger's size."""
    return MESADetected(any_size())


def any_location_detected() -> MESADetected:
    """The same for a defender who does not know whether the backdoor answers anywhere or at one place."""
    return MESADetected(any_location())
