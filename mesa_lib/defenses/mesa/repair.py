"""Repairs by MESA: retrain on samples of the modeled distributions."""

from dataclasses import dataclass, field

from torch import Tensor

from mesa_lib import device as devices
from mesa_lib import retrain, staircase
from mesa_lib.defenses.base import DefenderView, Knowledge, StampingRepair
from mesa_lib.defenses.controls import SUCCEEDS, RestartedInversion
from mesa_lib.defenses.mesa.detector import MESA, any_location, any_size
from mesa_lib.defenses.mesa.screening import PatchSpec, ScreeningResult
from mesa_lib.defenses.mesa.trigger_search import TriggerSearch, rate_of_best
from mesa_lib.distribution import TriggerDistribution
from mesa_lib.retrain import ImageTransform, TriggerSource
from mesa_lib.settings import Settings

#: what the paper's defender knows: weights, target class, stamping rule and trigger size
PAPER_KNOWLEDGE = Knowledge("weights", target=True, rule=True, size=True)


@dataclass
class MESARepair(StampingRepair):
    """The paper's repair, with target and size known: model the staircase for the target class, retrain on samples.

    Levels whose samples miss their beta on held-out images start again, around the best trigger that a trigger search
    finds, or inversions from many starts if the search finds nothing (only with the hinge on log F: the paper's
    modeling stays as published). Levels that miss all the same are left out, and `failed` says so in the result. If all
    of them do, the repair stamps what was found.

    Attributes:
        settings: of the modeling.
        beta: the level whose samples are stamped; None: the mixture of all levels.
        fitted: a distribution of the target class; None: it is modeled.
        search: the trigger search, where levels are missed.
        restarts: starts of the inversions, where the search finds nothing either.
    """

    settings: Settings = Settings()
    beta: float | None = None
    fitted: TriggerDistribution | None = field(default=None, repr=False)
    search: TriggerSearch = TriggerSearch()
    restarts: int = 32
    knowledge: Knowledge = field(default=PAPER_KNOWLEDGE, init=False)

    @property
    def starts_again(self) -> bool:
        """Whether levels that miss start again around what a search finds."""
        return self.settings.hinge_scale == "log"

    def model(self, view: DefenderView) -> TriggerDistribution:
        """Return the distribution of the target class, modeled once for a model and these settings."""

        def model() -> TriggerDistribution:
            distribution = self._fit(view, self.settings)
            if not (distribution.missed and self.starts_again):
                return distribution
            found, rates = self.found(view)
            if found is None:
                return distribution
            again = self._fit(view, self.settings.replace(betas=distribution.missed), start=found[0])
            for level in again.levels:
                level.started_around = max(rates, key=rates.get)
            return distribution.with_better(again.levels)

        return view.once(f"MESARepair.model {self.settings!r} {self.search!r} {self.restarts}", model)

    def _fit(self, view: DefenderView, settings: Settings, start: Tensor | None = None) -> TriggerDistribution:
        """Run Algorithm 1 for the target class; start: a trigger around which all generators start."""
        seed = devices.derive_seed(view.seed, "modeling" if start is None else "modeling again")
        images, labels, options = view.clean.images, view.clean.labels, {"size": view.size, "precision": view.precision}
        return staircase.fit(view.model, images, labels, view.target, settings, seed=seed, start=start, **options)

    def transforms(self, view: DefenderView) -> tuple[list[ImageTransform], dict]:
        """Return the transform that stamps what `source` gives."""
        source, about = self.source(view)
        return [retrain.stamping(source)], about

    def source(self, view: DefenderView) -> tuple[TriggerSource, dict]:
        """Return what is stamped: samples, or what a search finds; and which levels missed their beta."""
        distribution = self.fitted or self.model(view)
        if self.beta is not None:
            distribution = distribution.at(self.beta)
        missed = distribution.missed
        if not missed:
            return distribution.sample, {}
        said = ", ".join(f"{v.success:.0%} at beta {v.beta}" for v in distribution.levels if not v.reached)
        failed = f"samples miss their level on held-out images ({said})"
        if len(missed) < len(distribution.levels):
            return distribution.reached().sample, {"missed": missed, "failed": failed}
        found, rates = self.found(view)
        failed += "; " + ", ".join(f"{means} found {rate:.0%}" for means, rate in rates.items())
        failed += ": nothing that succeeds is known" if found is None else ", what was found is stamped"
        source = distribution.sample if found is None else retrain.jitter(found)
        return source, {"missed": missed, "failed": failed, "found": found is not None}

    def found(self, view: DefenderView) -> tuple[Tensor | None, dict[str, float]]:
        """Return `searched`, done once for a model."""
        return view.once(f"MESARepair.searched {self.search!r} {self.restarts}", lambda: self.searched(view))

    def searched(self, view: DefenderView) -> tuple[Tensor | None, dict[str, float]]:
        """Return triggers that a search or inversions find, None if none succeeds, and the best ASR of each.

        The triggers (k, 3, h, w) are sorted, best first: those of the search with at least half the ASR of its best, or
        all inverted ones that succeed. The rates are named by what found them.
        """
        clean, options = view.clean, {"precision": view.precision}
        triggers, rates = self.search.run(
            view.model, clean.images, clean.labels, view.target, size=view.size,
            seed=devices.derive_seed(view.seed, "search"), **options,
        )  # fmt: skip
        seed = devices.derive_seed(view.seed, "best trigger")
        best = rate_of_best(view.model, clean.images, clean.labels, view.target, triggers, seed=seed, **options)
        found = {"a trigger search": best}
        if best >= SUCCEEDS:
            return triggers[rates >= rates[0] / 2], found
        triggers, rates = RestartedInversion(self.restarts).invert(view)
        found[f"inversions from {self.restarts} starts"] = float(rates[0])
        return (triggers[rates >= SUCCEEDS] if rates[0] >= SUCCEEDS else None), found


def stamp_detected(
    distributions: dict[tuple[int, PatchSpec], TriggerDistribution], screening: ScreeningResult
) -> list[ImageTransform]:
    """Return, for each class and spec, the transform that stamps samples of its distribution at its location."""
    return [
        retrain.stamping(distribution.sample, screening.location(spec, label))
        for (label, spec), distribution in distributions.items()
    ]


@dataclass
class MESADetected(StampingRepair):
    """Detect, then retrain on samples of every flagged class and spec; the model is unchanged if none is flagged."""

    detector: MESA = field(default_factory=MESA)
    knowledge: Knowledge = field(init=False)

    def __post_init__(self):
        self.knowledge = Knowledge("weights", rule=True, size=self.detector.knowledge.size)

    def transforms(self, view: DefenderView) -> tuple[list[ImageTransform], dict]:
        """Return one transform for each flagged class and spec; which these are, and flagged classes without any."""
        result = self.detector.search(view.restricted(self.detector.knowledge))
        firing = {(label, spec): result.distributions[label][spec] for label, spec in self.detector.firing(result)}
        stamped = {label for label, _ in firing}
        left = set(self.detector.judge(result).flagged) - stamped  # where more classes are flagged than are modeled
        about = {"flagged": sorted(stamped), "specs": sorted({str(spec) for _, spec in firing})}
        return stamp_detected(firing, result.screening), about | {"flagged and not repaired": sorted(left)}


def any_size_detected(short: bool = False) -> MESADetected:
    """Return the repair of a defender who knows neither the target class nor the trigger size."""
    return MESADetected(any_size(short))


def any_location_detected(short: bool = False) -> MESADetected:
    """Return the repair of a defender who knows the size, but neither the target class nor the kind of location."""
    return MESADetected(any_location(short))
