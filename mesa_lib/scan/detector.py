"""The detector of a scan: MESA where neither class nor size nor place is known, with a limit for each way of stamping.

The more a patch is free to choose, the more images of a clean model it turns. So every rule has a limit of its own:
halfway from the most that any class of a clean model showed to all images. The clean models were the ten on digits of
the sweep `bench-thresholds` and the two on CIFAR-10 of `bench-thresholds-cifar10`; these two set all limits.
"""

from dataclasses import dataclass, field

from mesa_lib.defenses.base import DefenderView, Verdict, anomaly_index
from mesa_lib.defenses.mesa.detector import MESA, DetectionResult
from mesa_lib.defenses.mesa.screening import LocationScreening, PatchSpec, Screening, ScreeningResult, by_text
from mesa_lib.settings import Settings

#: the side of the images on which limits were fixed; patches of other images count by their part of the side
USUAL = 32
#: the largest side of a patch that is also tried at one place: larger ones turn nearly all images of clean models
LARGEST_AT_ONE_PLACE = 4
#: largest side -> the limit of patches up to it that are stamped anywhere (clean models: 5x5 up to 54 %)
ANYWHERE = {5: 0.77}
#: the same for patches that have chosen a place (clean models: 3x3 up to 86 %, 4x4 up to 97 %)
AT_ONE_PLACE = {3: 0.93, 4: 0.985}
#: for everything larger, of which nothing is known
STRICTEST = 0.985


def usual(rule: PatchSpec, side: int) -> float:
    """The larger side of a patch, as if the images were of the usual side."""
    return max(rule.size) * USUAL / side


def within(rule: PatchSpec, side: int, largest: int) -> bool:
    """Whether a patch is one of this largest side, or was rounded to whole pixels from one."""
    return usual(rule, side) <= largest + USUAL / side / 2


def limit(rule: PatchSpec, side: int = USUAL) -> float:
    """The fraction of images, of this side, that samples have to turn if a class is to be flagged for them."""
    known = AT_ONE_PLACE if rule.fixed_location else ANYWHERE
    return next((known[own] for own in sorted(known) if within(rule, side, own)), STRICTEST)


def margin(rule: PatchSpec, rate: float, side: int = USUAL) -> float:
    """How far a rate lies above its limit: 1 where all images are turned, 0 at the limit, negative below."""
    return (rate - limit(rule, side)) / (1 - limit(rule, side))


@dataclass
class ScanScreening(LocationScreening):
    """Every size at any place, and the smaller ones at one place as well; side: of the images."""

    largest: int = LARGEST_AT_ONE_PLACE
    side: int = USUAL

    def rules(self, given: DefenderView) -> list[PatchSpec]:
        rules = super().rules(given)
        return [rule for rule in rules if not rule.fixed_location or within(rule, self.side, self.largest)]


@dataclass
class ScanDetector(MESA):
    """MESA's detector whose scores are margins: the highest of all rules by which a class was modeled (or screened).

    Of a suspect's rules the best of either kind, anywhere and at one place, is modeled, and the next best; for a
    verdict the highest level of the staircase alone, for a repair all of them (`of_repair`).
    """

    screening: Screening = field(default_factory=ScanScreening)
    settings: Settings = Settings(betas=(0.9,))
    of_repair: Settings = Settings()
    side: int = USUAL
    sizes: int = 3
    above: float = 0.0

    def suspects(self, screened: ScreeningResult) -> dict[int, list[PatchSpec]]:
        found = {}
        for k in super().suspects(screened):
            firing = [rule for rule, rates in screened.rates.items() if rates[k] > self.suspect]
            firing.sort(key=lambda rule: -screened.rates[rule][k])
            best = [next((r for r in firing if r.fixed_location == one), None) for one in (False, True)]
            chosen = [rule for rule in best if rule]
            found[k] = (chosen + [rule for rule in firing if rule not in chosen])[: self.sizes]
        return found

    def judge(self, found: DetectionResult) -> Verdict:
        scores = [margin(*self.best(found, k), self.side) for k in range(len(found.screened.highest))]
        about = {"screened": by_text(found.screened.rates)}
        return Verdict(scores, anomaly_index(scores, "high").tolist(), self.above, "scores", about)

    def best(self, found: DetectionResult, k: int) -> tuple[PatchSpec, float]:
        """The rule by which a class comes highest above its limit, or least below, and its rate there."""
        by = found.rates.get(k) or {rule: rates[k] for rule, rates in found.screened.rates.items()}
        return max(by.items(), key=lambda item: margin(*item, self.side))
