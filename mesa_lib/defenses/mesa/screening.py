"""Screening: which classes answer to patches? All at once, at little cost, before any is modeled in full.

Random patches ask with forward passes alone. MESA's screening models a trigger distribution for every class at once, at
one level and for a few steps; a class's score is how often its patches fire on images that the generator never saw.
Where the trigger's size is not known it tries some; where the backdoor may answer at one place only, it also models
patches at the likeliest place of every class.
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from mesa_lib import device as devices
from mesa_lib import staircase, success, triggers
from mesa_lib.data import Split
from mesa_lib.defenses.base import DefenderView, Detector, Knowledge, Verdict, anomaly_index
from mesa_lib.defenses.mesa.location_search import find_locations
from mesa_lib.distribution import TriggerDistribution
from mesa_lib.models.inference import batch_size_for
from mesa_lib.settings import Settings

Size = tuple[int, int]
#: what a defender tries who does not know the trigger's size
SQUARES: tuple[Size, ...] = ((2, 2), (3, 3), (4, 4), (5, 5))


@dataclass(frozen=True)
class PatchSpec:
    """How a trigger may be stamped: a patch of this height and width, at any place, or always at one."""

    size: Size
    fixed_location: bool = False

    def __str__(self) -> str:
        return f"{self.size[0]}x{self.size[1]}" + " at one place" * self.fixed_location


def fit_and_holdout(given: DefenderView) -> tuple[Split, Split]:
    """The defender's images: those that the generators see, and those on which their samples are judged.

    ValueError if one of them would be of a single class: nothing could be turned into that
    """
    half = len(given.clean) // 2
    parts = given.clean[:half], given.clean[half:]
    if min(len(part.labels.unique()) for part in parts) < 2:
        raise ValueError(f"{len(given.clean)} clean images: each half has to hold two classes or more")
    return parts


def success_on(
    kept: Split, fitted: TriggerDistribution, label: int, given: DefenderView, location: Tensor | None = None
) -> float:
    """Mean ASR of 100 samples toward a class, on images of other classes, at any place or at this one."""
    drawn = fitted.sample(100, devices.rng(given.seed + 5, given.device)).cpu()
    rates = success.asr_of_triggers(
        given.model, kept.images, kept.labels, drawn, label, images_per_trigger=8, precision=given.precision,
        location=location,
    )  # fmt: skip
    return float(rates.mean())


@dataclass
class ScreeningResult:
    """What a screening found: of every rule, how often each class's samples fire, and where they were stamped.

    places: (classes, 2) of a rule with one place, None of any other
    """

    rates: dict[PatchSpec, list[float]]
    locations: dict[PatchSpec, Tensor | None]

    @property
    def highest(self) -> list[float]:
        """Of every class the highest rate of all rules."""
        return [max(of_class) for of_class in zip(*self.rates.values(), strict=True)]

    def location(self, rule: PatchSpec, label: int) -> Tensor | None:
        return None if self.locations[rule] is None else self.locations[rule][label]


@dataclass
class Screening(Detector):
    """Score: the mean ASR of a class's samples on images of other classes that its generator never saw.

    sizes: None, the trigger's own, which is then among what the method knows; else those that are tried, and the
    highest ASR of all sizes is the score
    """

    settings: Settings = Settings(betas=(0.9,), steps=60, batch=16)
    above: float = 0.5
    sizes: tuple[Size, ...] | None = None
    knows: Knowledge = field(init=False)

    def __post_init__(self):
        self.knows = Knowledge("gradients", images=2000, rule=True, size=self.sizes is None)

    def rules(self, given: DefenderView) -> list[PatchSpec]:
        return [PatchSpec(size) for size in self.sizes or (given.size,)]

    def screen(self, given: DefenderView) -> ScreeningResult:
        """How often each class's samples fire on held-out images, for every rule."""
        parts = {rule: self.by(given, rule) for rule in self.rules(given)}
        return ScreeningResult({rule: own[0] for rule, own in parts.items()}, {rule: own[1] for rule, own in parts.items()})

    def by(self, given: DefenderView, rule: PatchSpec) -> tuple[list[float], Tensor | None]:
        """The rates of all classes by one rule, and the places at which patches were stamped (None: any)."""
        locations = self.locations(given, rule) if rule.fixed_location else None
        return self._rates(given, rule, locations), locations

    def locations(self, given: DefenderView, rule: PatchSpec) -> Tensor:
        """Of each class the place at which its patches are stamped -> (classes, 2)."""
        raise NotImplementedError("a screening at any place looks for none")

    def _rates(self, given: DefenderView, rule: PatchSpec, locations: Tensor | None) -> list[float]:
        """All classes at once, or of large images some: their triggers share every pass through the model."""
        s = self.settings
        one_class = (s.batch * s.images_per_trigger, 3, *given.image_size)
        groups = torch.arange(given.classes).split(batch_size_for(one_class, given.classes))
        return [rate for own in groups for rate in self._rates_of(given, rule, own.tolist(), locations)]

    def _rates_of(self, given: DefenderView, rule: PatchSpec, every: list[int], locations: Tensor | None) -> list[float]:
        s = replace(self.settings, trigger_size=rule.size, seed=given.seed)
        seen, kept = fit_and_holdout(given)
        locations = None if locations is None else locations[every]
        together = success.success_function(
            given.model, seen.images.to(given.device), seen.labels.to(given.device), every, s, given.precision, locations
        )  # fmt: skip
        seeds = [given.seed + 31 * k for k in every]
        levels = staircase.fit_levels(together, (3, *rule.size), [s.betas[0]] * len(every), s, given.device, seeds)
        short = [TriggerDistribution([level], [1.0], s) for level in levels]
        at = [None] * len(every) if locations is None else list(locations)
        return [success_on(kept, fitted, k, given, location) for k, fitted, location in zip(every, short, at, strict=True)]

    def detect(self, given: DefenderView) -> Verdict:
        found = self.screen(given)
        scores = found.highest
        index = anomaly_index(scores, "high").tolist()
        return Verdict(scores, index, self.above, "scores", {"rates": by_text(found.rates)})


@dataclass
class LocationScreening(Screening):
    """The same, and again with the patches of each class at the place where patches do most.

    One place is enough also for a backdoor that answers anywhere. stride, each, shortlist: of the search for the places
    (`places.likeliest`), which has the images that the generators see
    """

    stride: int = 2
    each: int = 40
    shortlist: int = 12

    def rules(self, given: DefenderView) -> list[PatchSpec]:
        return [PatchSpec(rule.size, one) for rule in super().rules(given) for one in (False, True)]

    def locations(self, given: DefenderView, rule: PatchSpec) -> Tensor:
        return find_locations(given, rule.size, self.stride, self.each, self.shortlist, clean=fit_and_holdout(given)[0])


def by_text(found: dict[PatchSpec, object]) -> dict[str, object]:
    """The same with rules as text, as results are kept."""
    return {str(rule): value for rule, value in found.items()}
