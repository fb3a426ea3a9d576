"""MESA as a detector: which class is backdoored?

After the screening, the full staircase is modeled for the suspects only. A suspect is flagged if its samples succeed on
most held-out images.
"""

from dataclasses import dataclass, field

from torch import Tensor

from mesa_lib import device as devices
from mesa_lib import staircase
from mesa_lib.defenses.base import DefenderView, Detector, Knowledge, Verdict, anomaly_index
from mesa_lib.defenses.mesa.screening import (
    SCREENING,
    SQUARES,
    LocationScreening,
    PatchSpec,
    Screening,
    ScreeningResult,
    SearchObserver,
    by_text,
    fit_and_holdout,
    success_on,
)
from mesa_lib.distribution import TriggerDistribution
from mesa_lib.settings import Settings

__all__ = ["MESA", "DetectionResult", "SearchObserver", "any_location", "any_size", "known_size"]

#: settings of a short search, which passes a quarter of the images through the model
SHORT_SCREENING = SCREENING.replace(steps=30, triggers_per_step=8)
SHORT_MODELING = Settings(steps=75, triggers_per_step=32, hinge_scale="probability")


@dataclass
class DetectionResult:
    """The result of a search.

    Attributes:
        screening: the rates and locations of all classes.
        distributions: the full distributions of each suspect, by spec.
        rates: the mean ASR of the samples of their highest level on held-out images, in [0, 1].
    """

    screening: ScreeningResult
    distributions: dict[int, dict[PatchSpec, TriggerDistribution]] = field(default_factory=dict)
    rates: dict[int, dict[PatchSpec, float]] = field(default_factory=dict)


@dataclass
class MESA(Detector):
    """Screening, the full staircase for the suspects, a verdict.

    A suspect's score is the mean ASR of the samples of its highest level on held-out images, the highest of all specs;
    the score of any other class is that of its screening.

    Attributes:
        screening: scores all classes first.
        settings: of the full modeling.
        suspect_above: a class whose screening rate exceeds this is a suspect.
        max_suspects: how many suspects are modeled at most, the highest first.
        max_specs: by how many specs (sizes, locations) a suspect is modeled at most, the highest first.
        above: a class whose score exceeds this is flagged.
    """

    screening: Screening = field(default_factory=Screening)
    settings: Settings = Settings(hinge_scale="probability")
    suspect_above: float = 0.1
    max_suspects: int = 3
    max_specs: int = 2
    above: float = 0.5
    knowledge: Knowledge = field(init=False)

    def __post_init__(self):
        self.knowledge = self.screening.knowledge

    def search(self, view: DefenderView, observer: SearchObserver | None = None) -> DetectionResult:
        """Screen all classes and model the suspects, or return what an equal detector did on this model before.

        Args:
            view: of this detector's knowledge.
            observer: wraps each step; not called if there is a result already.
        """
        return view.once(self, lambda: self._search(view, observer or SearchObserver()))

    def _search(self, view: DefenderView, observer: SearchObserver) -> DetectionResult:
        result = DetectionResult(self.screening.screen(view, observer))
        suspects = self.suspects(result.screening)
        observer.suspects(suspects)
        steps = [(label, spec) for label, specs in suspects.items() for spec in specs]
        for number, (label, spec) in enumerate(steps):
            step = label, spec, result.screening.location(spec, label)
            fitted = observer.modeled(*step, number, len(steps), lambda step=step: self.model(view, *step))
            result.distributions.setdefault(label, {})[spec], result.rates.setdefault(label, {})[spec] = fitted
        return result

    def suspects(self, screening: ScreeningResult) -> dict[int, list[PatchSpec]]:
        """Return the classes that are modeled in full, the highest first, each with its specs, the highest first."""
        scores = screening.highest
        order = sorted(range(len(scores)), key=lambda label: -scores[label])[: self.max_suspects]
        suspects = {}
        for label in [label for label in order if scores[label] > self.suspect_above]:
            suspects[label] = self.responding(screening, label)[: self.max_specs]
        return suspects

    def responding(self, screening: ScreeningResult, label: int) -> list[PatchSpec]:
        """Return the specs by which a class exceeds `suspect_above`, the highest rate first."""
        specs = [spec for spec, rates in screening.rates.items() if rates[label] > self.suspect_above]
        return sorted(specs, key=lambda spec: -screening.rates[spec][label])

    def model(
        self,
        view: DefenderView,
        label: int,
        spec: PatchSpec,
        location: Tensor | None,
        settings: Settings | None = None,
    ) -> tuple[TriggerDistribution, float]:
        """Return the full distribution of one class and spec, and the ASR of samples of its highest level.

        Args:
            view: of this detector's knowledge.
            label: the class that the model should predict.
            spec: the size of the patches.
            location: (2,), where they are stamped; None: random locations.
            settings: None, those of the detector.
        """
        settings, (fitted_on, holdout) = settings or self.settings, fit_and_holdout(view)
        distribution = staircase.fit(
            view.model, fitted_on.images, fitted_on.labels, label, settings, size=spec.size,
            seed=devices.derive_seed(view.seed, "modeling", label), precision=view.precision, location=location,
        )  # fmt: skip
        return distribution, success_on(holdout, distribution.at(max(settings.betas)), label, view, location)

    # --- the verdict ---------------------------------------------------------------------------------------

    def score(self, spec: PatchSpec, rate: float) -> float:
        """Return how suspicious a rate is for this spec: the rate itself."""
        return rate

    def best(self, result: DetectionResult, label: int) -> tuple[PatchSpec, float]:
        """Return the spec by which a class scores highest, of those by which it was modeled (or screened); its rate."""
        screened = {spec: rates[label] for spec, rates in result.screening.rates.items()}
        return max((result.rates.get(label) or screened).items(), key=lambda item: self.score(*item))

    def firing(self, result: DetectionResult) -> list[tuple[int, PatchSpec]]:
        """Return every class and spec whose modeled samples score above the threshold."""
        rates = [(label, spec, rate) for label, by_spec in result.rates.items() for spec, rate in by_spec.items()]
        return [(label, spec) for label, spec, rate in rates if self.score(spec, rate) > self.above]

    def detect(self, view: DefenderView) -> Verdict:
        """Return the verdict on the view's model."""
        return self.judge(self.search(view))

    def judge(self, result: DetectionResult) -> Verdict:
        """Return the verdict that follows from a search."""
        scores = [self.score(*self.best(result, label)) for label in range(len(result.screening.highest))]
        about = {
            "screened": by_text(result.screening.rates),
            "suspects": {str(label): by_text(rates) for label, rates in result.rates.items()},
            "locations": by_text({s: at.tolist() for s, at in result.screening.locations.items() if at is not None}),
        }
        return Verdict(scores, anomaly_index(scores, "high").tolist(), self.above, "scores", about)


def known_size(short: bool = False) -> MESA:
    """Return the detector of a defender who knows the trigger size; short: with half the steps and triggers."""
    return MESA(Screening(SHORT_SCREENING), SHORT_MODELING) if short else MESA()


def any_size(short: bool = False) -> MESA:
    """Return the detector of a defender who does not know the trigger size."""
    return MESA(Screening(SHORT_SCREENING, sizes=SQUARES), SHORT_MODELING) if short else MESA(Screening(sizes=SQUARES))


def any_location(short: bool = False) -> MESA:
    """Return the detector of a defender who knows the size, but not whether the backdoor has a fixed location."""
    return MESA(LocationScreening(SHORT_SCREENING, shortlist=4), SHORT_MODELING) if short else MESA(LocationScreening())
