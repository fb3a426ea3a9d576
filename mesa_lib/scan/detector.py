"""The detector of a scan: MESA with class, size and location unknown, and a limit for each way of stamping.

The more freedom a patch has, the more images of a clean model it makes misclassified. So every spec has its own limit:
halfway between 1 and the highest rate of any class of a clean model. The clean models were the ten on digits of the
sweep `bench-thresholds` and the two on CIFAR-10 of `bench-thresholds-cifar10`; the latter two set all limits.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mesa_lib.defenses.base import DefenderView
from mesa_lib.defenses.mesa import inversion_search
from mesa_lib.defenses.mesa.detector import MESA, DetectionResult
from mesa_lib.defenses.mesa.inversion_search import Effort
from mesa_lib.defenses.mesa.screening import PatchSpec, Screening, ScreeningResult, fit_and_holdout
from mesa_lib.settings import Settings

#: the side of the images on which limits were fixed; sides of patches count in proportion to it
REFERENCE_SIDE = 32
#: the largest side of a patch with a fixed location: of larger ones, most images of clean models are misclassified
LARGEST_FIXED = 4
#: largest side -> limit of patches up to it at random locations (clean models: 5x5 up to 54%)
RANDOM_LOCATION_LIMITS = {5: 0.77}
#: largest side -> limit of patches up to it at a fixed location, which was searched (clean models: 3x3 up to 86%, 4x4
#: up to 97%)
FIXED_LOCATION_LIMITS = {3: 0.93, 4: 0.985}
#: of everything larger, which was not measured
STRICTEST_LIMIT = 0.985
#: distributions of a class with whose samples a model is repaired, at most
MOST_REPAIRED = 2


def fits(spec: PatchSpec, side: int, largest: int) -> bool:
    """Return whether a patch is at most of this side, in proportion to images of `REFERENCE_SIDE`.

    A patch whose side was rounded up to whole pixels still fits.
    """
    return max(spec.size) * REFERENCE_SIDE / side <= largest + REFERENCE_SIDE / side / 2


def limit(spec: PatchSpec, side: int = REFERENCE_SIDE) -> float:
    """Return the ASR of samples, on images of this side, above which a class is flagged."""
    limits = FIXED_LOCATION_LIMITS if spec.fixed_location else RANDOM_LOCATION_LIMITS
    return next((limits[largest] for largest in sorted(limits) if fits(spec, side, largest)), STRICTEST_LIMIT)


def highest_clean_rate(spec: PatchSpec, side: int = REFERENCE_SIDE) -> float:
    """Return the highest rate of any class of a clean model, from which the limit was set."""
    return 2 * limit(spec, side) - 1


def margin(spec: PatchSpec, rate: float, side: int = REFERENCE_SIDE) -> float:
    """Return how far a rate lies above its limit: 1 for a rate of 1, 0 at the limit, negative below."""
    rate = round(rate, 6)  # in float32, 0.985 is more than 0.985
    return (rate - limit(spec, side)) / (1 - limit(spec, side))


@dataclass
class ScanScreening(Screening):
    """Every size at random locations, and the smaller ones at a fixed location as well, for few classes each.

    A short search by inverted patches comes first (`inversion_search`). The classes on which these succeed most are
    modeled; of the others, the success of their inverted patches stands in for the rate.

    Attributes:
        effort, stride: of the search by inverted patches; the stride is that of the grid of locations.
        largest_fixed: the largest side of patches with a fixed location.
        side: of the images.
        most: how many classes are modeled for each spec.
        sure_above: further classes are modeled if inverted patches exceed this probability.
    """

    effort: Effort = Effort()
    stride: int = 2
    largest_fixed: int = LARGEST_FIXED
    side: int = REFERENCE_SIDE
    most: int = 2
    sure_above: float = 0.5

    def specs(self, view: DefenderView | None = None) -> list[PatchSpec]:
        """Return the specs that are tried."""
        specs = [PatchSpec(size, fixed) for size in self.sizes for fixed in (False, True)]
        return [spec for spec in specs if not spec.fixed_location or fits(spec, self.side, self.largest_fixed)]

    def screen_spec(
        self, view: DefenderView, spec: PatchSpec, labels: Sequence[int] | None = None, kept: Sequence[int] = ()
    ) -> tuple[list[float], Tensor | None]:
        """Return the rates of all classes for one spec, and the locations (classes, 2) of patches (None: random).

        Args:
            view: of this detector's knowledge.
            spec: how patches are stamped.
            labels: the classes that are screened, all others get a rate of 0; None: all.
            kept: classes among them that are modeled whatever inverted patches do.
        """
        labels = list(range(view.classes)) if labels is None else sorted(labels)
        clean, locations = fit_and_holdout(view)[0], None
        if spec.fixed_location:
            locations = torch.zeros(view.classes, 2, dtype=torch.long)
            search = inversion_search.at_best_locations
            locations[labels], reached = search(view, spec.size, clean, labels, self.effort, self.stride)
        else:
            reached = inversion_search.at_random_locations(view, spec.size, clean, labels, self.effort)
        rates = [0.0] * view.classes
        for label, value in zip(labels, reached.tolist(), strict=True):
            rates[label] = value
        highest = sorted(labels, key=lambda label: -rates[label])
        chosen = [label for rank, label in enumerate(highest) if rank < self.most or rates[label] > self.sure_above]
        chosen = sorted({*chosen, *(label for label in kept if label in labels)})
        modeled = self.modeled_rates(view, spec, chosen, locations)
        return [modeled[label] if label in chosen else rate for label, rate in enumerate(rates)], locations

    def passes(self, spec: PatchSpec, classes: int, image_size: tuple[int, int]) -> float:
        """Return the passes of so many classes for one spec, if inverted patches succeed on no more than `most`."""
        fixed = {"fixed_location": spec.fixed_location, "stride": self.stride}
        search = inversion_search.passes(image_size, spec.size, classes, self.effort, **fixed)
        s = self.settings
        return search + min(self.most + 1, classes) * s.steps * s.triggers_per_step * s.images_per_trigger


@dataclass
class ScanDetector(MESA):
    """MESA's detector with margins as scores.

    Of a suspect, the best spec with random locations and the best one with a fixed location are modeled, and smaller
    patches that do nearly as well: they show the trigger without what is around it. For the verdict this is the highest
    level of the staircase alone, for a repair all levels.

    Attributes:
        comparable: how much lower the rate of smaller patches may be.
        reach: a class is a suspect if its rate for some spec is at most this far below the limit. In the scans
            recorded so far, the full modeling raised no rate by more than 0.33.
        repair_modeling: settings of the modeling for a repair.
        side: of the images.
    """

    screening: ScanScreening = field(default_factory=ScanScreening)
    settings: Settings = Settings(betas=(0.9,), hinge_scale="probability")
    max_specs: int = 3
    above: float = 0.0
    reach: float = 0.45
    comparable: float = 0.1
    repair_modeling: Settings = Settings(triggers_per_step=32)
    side: int = REFERENCE_SIDE

    def suspects(self, screening: ScreeningResult) -> dict[int, list[PatchSpec]]:
        """Return the classes that are modeled in full, the highest first, each with its specs."""
        order = sorted(range(len(screening.highest)), key=lambda label: -screening.highest[label])
        responding = {label: specs for label in order if (specs := self.responding(screening, label))}
        return {
            label: self._chosen(specs, {spec: screening.rates[spec][label] for spec in specs})
            for label, specs in list(responding.items())[: self.max_suspects]
        }

    def _chosen(self, specs: list[PatchSpec], rates: dict[PatchSpec, float]) -> list[PatchSpec]:
        """Return the best spec of each kind, and before it the smallest that does nearly as well (`comparable`)."""
        chosen: list[PatchSpec] = []
        for fixed in (False, True):
            kind = [spec for spec in specs if spec.fixed_location == fixed]
            near = [spec for spec in kind if rates[spec] >= rates[kind[0]] - self.comparable]
            chosen += dict.fromkeys([*sorted(near, key=lambda spec: spec.size)[:1], *kind[:1]])
        return chosen[: self.max_specs]

    def responding(self, screening: ScreeningResult, label: int) -> list[PatchSpec]:
        """Return the specs by which a class is within reach of the limit, the highest rate first."""
        reached = {spec: rates[label] for spec, rates in screening.rates.items()}
        specs = [spec for spec, rate in reached.items() if rate > limit(spec, self.side) - self.reach]
        return sorted(specs, key=lambda spec: -reached[spec])

    def firing(self, result: DetectionResult) -> list[tuple[int, PatchSpec]]:
        """Return the classes whose modeled samples score above the threshold, each with at most two specs.

        Patches at random locations come first: they are at the fixed one, too.
        """
        specs: dict[int, list[PatchSpec]] = {}
        for label, spec in sorted(super().firing(result), key=lambda pair: pair[1].fixed_location):
            specs.setdefault(label, []).append(spec)
        return [(label, spec) for label, own in specs.items() for spec in own[:MOST_REPAIRED]]

    def score(self, spec: PatchSpec, rate: float) -> float:
        """Return the margin of a rate."""
        return margin(spec, rate, self.side)
