"""The detector of a scan: MESA with class, size and location unknown, and a limit for each way of stamping.

The more freedom a patch has, the more images of a clean model it makes misclassified. So every spec has its own limit:
halfway between 1 and the highest rate of any class of a clean model. The clean models were the ten on digits of the
sweep `bench-thresholds` and the two on CIFAR-10 of `bench-thresholds-cifar10`; the latter two set all limits.
"""

from dataclasses import dataclass, field

from mesa_lib.defenses.base import DefenderView
from mesa_lib.defenses.mesa.detector import MESA
from mesa_lib.defenses.mesa.screening import LocationScreening, PatchSpec, ScreeningResult
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
    return (rate - limit(spec, side)) / (1 - limit(spec, side))


@dataclass
class ScanScreening(LocationScreening):
    """Every size at random locations, and the smaller ones at a fixed location as well.

    Attributes:
        largest_fixed: the largest side of patches with a fixed location.
        side: of the images.
    """

    largest_fixed: int = LARGEST_FIXED
    side: int = REFERENCE_SIDE

    def specs(self, view: DefenderView | None = None) -> list[PatchSpec]:
        """Return the specs that are tried."""
        specs = super().specs(view)
        return [spec for spec in specs if not spec.fixed_location or fits(spec, self.side, self.largest_fixed)]


@dataclass
class ScanDetector(MESA):
    """MESA's detector with margins as scores.

    Of a suspect, the best spec with random locations and the best one with a fixed location are modeled, and the next
    best: for the verdict the highest level of the staircase alone, for a repair all levels.

    Attributes:
        repair_modeling: settings of the modeling for a repair.
        side: of the images.
    """

    screening: ScanScreening = field(default_factory=ScanScreening)
    settings: Settings = Settings(betas=(0.9,), hinge_scale="probability")
    max_specs: int = 3
    above: float = 0.0
    repair_modeling: Settings = Settings()
    side: int = REFERENCE_SIDE

    def suspects(self, screening: ScreeningResult) -> dict[int, list[PatchSpec]]:
        """Return the classes that are modeled in full, the highest first, each with its specs."""
        suspects = {}
        for label in super().suspects(screening):
            specs = self.responding(screening, label)
            best = [next((s for s in specs if s.fixed_location == fixed), None) for fixed in (False, True)]
            chosen = [spec for spec in best if spec]
            suspects[label] = (chosen + [spec for spec in specs if spec not in chosen])[: self.max_specs]
        return suspects

    def score(self, spec: PatchSpec, rate: float) -> float:
        """Return the margin of a rate."""
        return margin(spec, rate, self.side)
