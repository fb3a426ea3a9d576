"""MESA as a defence of its own: which class is backdoored (the paper's first step), and the repair.

After the screening the full staircase is modelled for suspects only, and a suspect whose samples fire on most unseen
images is flagged.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from .. import point, retrain, staircase
from ..staircase import Settings, TriggerDistribution
from .base import Detector, Given, Knowledge, Repair, Repairer, Verdict, anomaly_index
from .screening import SQUARES, Rule, Screened, Screening, ScreeningPlaces, halves, in_words, success_on


@dataclass
class Searched:
    """What MESA's detector found.

    screened: the screening; models: the full distributions of each suspect, by rule; rates: the mean ASR of the samples
    of their highest level on held-out images
    """

    screened: Screened
    models: dict[int, dict[Rule, TriggerDistribution]]
    rates: dict[int, dict[Rule, float]]


@dataclass
class MESA(Detector):
    """Screening, the full staircase for the suspects, a verdict.

    Suspects are the classes whose screening exceeds `suspect`, at most the `most` highest; where several rules (sizes,
    places) were tried, they are modelled by those by which they did, at most the `sizes` highest. A suspect's score is
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

    def search(self, given: Given) -> Searched:
        return given.once(self, lambda: self._search(given))

    def _search(self, given: Given) -> Searched:
        screened = self.screening.screen(given)
        found = Searched(screened, {}, {})
        for k, rules in self.suspects(screened).items():
            modelled = {rule: self.model(given, k, rule, screened.place(rule, k)) for rule in rules}
            found.models[k] = {rule: own[0] for rule, own in modelled.items()}
            found.rates[k] = {rule: own[1] for rule, own in modelled.items()}
        return found

    def suspects(self, screened: Screened) -> dict[int, list[Rule]]:
        """The classes that are modelled in full, the highest first, and by which rules."""
        scores = screened.highest
        order = sorted(range(len(scores)), key=lambda k: -scores[k])
        found = {}
        for k in [k for k in order[: self.most] if scores[k] > self.suspect]:
            firing = [rule for rule, rates in screened.rates.items() if rates[k] > self.suspect]
            found[k] = sorted(firing, key=lambda rule: -screened.rates[rule][k])[: self.sizes]
        return found

    def model(self, given: Given, label: int, rule: Rule, place: Tensor | None) -> tuple[TriggerDistribution, float]:
        """The full distribution of one class by one rule, and how often samples of its highest level fire."""
        seen, kept = halves(given)
        s = replace(self.settings, trigger_size=rule.size, seed=given.seed)
        fitted = staircase.fit(given.model, seen.images, seen.labels, label, s, precision=given.precision, place=place)
        return fitted, success_on(kept, fitted.at(max(s.betas)), label, given, place)

    def detect(self, given: Given) -> Verdict:
        return self.judge(self.search(given))

    def judge(self, found: Searched) -> Verdict:
        scores = found.screened.highest
        for k, rates in found.rates.items():
            scores[k] = max(rates.values())
        about = {
            "screened": in_words(found.screened.rates),
            "suspects": {str(k): in_words(rates) for k, rates in found.rates.items()},
        }
        about["places"] = {str(rule): at.tolist() for rule, at in found.screened.places.items() if at is not None}
        return Verdict(scores, anomaly_index(scores, "high").tolist(), self.above, "scores", about)


def any_size() -> MESA:
    """The same for a defender who does not know the trigger's size."""
    return MESA(Screening(sizes=SQUARES))


def any_place() -> MESA:
    """The same for a defender who knows the size, and not whether the backdoor answers anywhere or at one place."""
    return MESA(ScreeningPlaces())


# --- repairs ---------------------------------------------------------------------------------------------


def retrained(given: Given, changes: Iterable) -> nn.Module:
    """The model after the defender's retraining, with triggers stamped by these changes of images, drawn evenly."""
    change = retrain.one_of(list(changes))
    given.train(given.model, given.clean, retrain.applying(change, given.rate))
    return given.model


@dataclass
class MESARepair(Repairer):
    """Target and size known, as in the paper: model the staircase for the target class, retrain on its samples.

    The settings are those of the digits on every data set, all steps, without the early stop.
    """

    settings: Settings = Settings()
    knows: Knowledge = field(default=Knowledge("weights", target=True, rule=True, size=True), init=False)

    def repair(self, given: Given) -> Repair:
        settings = replace(self.settings, trigger_size=given.size, seed=given.seed)
        fitted = staircase.fit(
            given.model, given.clean.images, given.clean.labels, given.target, settings, precision=given.precision
        )
        return Repair(retrained(given, [retrain.stamped(fitted.sample)]))


@dataclass
class MESADetected(Repairer):
    """Detect, then retrain on samples of every flagged class and rule whose model fires; unchanged if there is none."""

    detector: MESA = field(default_factory=MESA)
    knows: Knowledge = field(init=False)

    def __post_init__(self):
        self.knows = Knowledge("weights", rule=True, size=self.detector.knows.size)

    def repair(self, given: Given) -> Repair:
        found = self.detector.search(given.narrowed(self.detector.knows))
        fires = {
            (k, rule): retrain.stamped(fitted.sample, found.screened.place(rule, k))
            for k, models in found.models.items()
            for rule, fitted in models.items()
            if found.rates[k][rule] > self.detector.above
        }
        about = {"flagged": sorted({k for k, _ in fires}), "rules": sorted({str(rule) for _, rule in fires})}
        left = set(self.detector.judge(found).flagged) - {k for k, _ in fires}
        about["flagged and not repaired"] = sorted(left)  # more classes than are modelled
        return Repair(retrained(given, fires.values()) if fires else given.model, about)


def any_size_detected() -> MESADetected:
    """The same for a defender who does not know the trigger's size."""
    return MESADetected(any_size())


def any_place_detected() -> MESADetected:
    """The same for a defender who does not know whether the backdoor answers anywhere or at one place."""
    return MESADetected(any_place())


@dataclass
class PointRepair(Repairer):
    """The baseline: one trigger reversed by gradient descent on its pixels, and retraining with it."""

    knows: Knowledge = field(default=Knowledge("weights", target=True, rule=True, size=True), init=False)

    def repair(self, given: Given) -> Repair:
        found: Tensor = point.reverse(
            given.model, given.clean.images, given.target, seed=given.seed, size=given.size,
            precision=given.precision,
        )  # fmt: skip
        return Repair(retrained(given, [retrain.stamped(retrain.fixed(found))]))
