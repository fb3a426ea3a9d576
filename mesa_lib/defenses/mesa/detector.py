"""MESA as a defense of its own: which class is backdoored (the paper's first step), and the repair.

After the screening the full staircase is modeled for suspects only, and a suspect whose samples fire on most unseen
images is flagged.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from mesa_lib import inversion, retrain, staircase
from mesa_lib.defenses.base import DefenderView, Detector, Knowledge, Repairer, RepairResult, Verdict, anomaly_index
from mesa_lib.defenses.mesa.screening import (
    SQUARES,
    LocationScreening,
    PatchSpec,
    Screening,
    ScreeningResult,
    by_text,
    fit_and_holdout,
    success_on,
)
from mesa_lib.distribution import TriggerDistribution
from mesa_lib.settings import Settings


@dataclass
class DetectionResult:
    """What MESA's detector found.

    screened: the screening; models: the full distributions of each suspect, by rule; rates: the mean ASR of the samples
    of their highest level on held-out images
    """

    screened: ScreeningResult
    models: dict[int, dict[PatchSpec, TriggerDistribution]]
    rates: dict[int, dict[PatchSpec, float]]


@dataclass
class MESA(Detector):
    """Screening, the full staircase for the suspects, a verdict.

    Suspects are the classes whose screening exceeds `suspect`, at most the `most` highest; where several rules (sizes,
    places) were tried, they are modeled by those by which they did, at most the `sizes` highest. A suspect's score is
    the mean ASR of the samples of its highest level on held-out images (of all rules the highest), any other class's
    that of its screening.
    """

    screening: Screening = field(default_factory=Screening)
    settings: Settings = Settings()
    suspect: float = 0.1
    most: int = 3
    sizes: int = 2
    above: float = 0.5
    knows: Knowledge = field(init=False)

    def __post_init__(self):
        self.knows = self.screening.knows

    def search(self, given: DefenderView) -> DetectionResult:
        return given.once(self, lambda: self._search(given))

    def _search(self, given: DefenderView) -> DetectionResult:
        screened = self.screening.screen(given)
        found = DetectionResult(screened, {}, {})
        for k, rules in self.suspects(screened).items():
            modeled = {rule: self.model(given, k, rule, screened.location(rule, k)) for rule in rules}
            found.models[k] = {rule: own[0] for rule, own in modeled.items()}
            found.rates[k] = {rule: own[1] for rule, own in modeled.items()}
        return found

    def suspects(self, screened: ScreeningResult) -> dict[int, list[PatchSpec]]:
        """The classes that are modeled in full, the highest first, and by which rules."""
        scores = screened.highest
        order = sorted(range(len(scores)), key=lambda k: -scores[k])
        found = {}
        for k in [k for k in order[: self.most] if scores[k] > self.suspect]:
            firing = [rule for rule, rates in screened.rates.items() if rates[k] > self.suspect]
            found[k] = sorted(firing, key=lambda rule: -screened.rates[rule][k])[: self.sizes]
        return found

    def model(self, given: DefenderView, label: int, rule: PatchSpec, location: Tensor | None) -> tuple[TriggerDistribution, float]:
        """The full distribution of one class by one rule, and how often samples of its highest level fire."""
        seen, kept = fit_and_holdout(given)
        s = replace(self.settings, trigger_size=rule.size, seed=given.seed)
        fitted = staircase.fit(given.model, seen.images, seen.labels, label, s, precision=given.precision, location=location)
        return fitted, success_on(kept, fitted.at(max(s.betas)), label, given, location)

    def detect(self, given: DefenderView) -> Verdict:
        return self.judge(self.search(given))

    def judge(self, found: DetectionResult) -> Verdict:
        scores = found.screened.highest
        for k, rates in found.rates.items():
            scores[k] = max(rates.values())
        about = {
            "screened": by_text(found.screened.rates),
            "suspects": {str(k): by_text(rates) for k, rates in found.rates.items()},
        }
        about["places"] = {str(rule): at.tolist() for rule, at in found.screened.locations.items() if at is not None}
        return Verdict(scores, anomaly_index(scores, "high").tolist(), self.above, "scores", about)


def any_size() -> MESA:
    """The same for a defender who does not know the trigger's size."""
    return MESA(Screening(sizes=SQUARES))


def any_location() -> MESA:
    """The same for a defender who knows the size, and not whether the backdoor answers anywhere or at one place."""
    return MESA(LocationScreening())
