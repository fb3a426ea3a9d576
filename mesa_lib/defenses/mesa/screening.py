"""Screening: which classes respond to patches? All classes at once, at little cost, before any is modeled in full.

MESA's screening models a trigger distribution for every class at once, at one level and for a few steps. The score of a
class is the ASR of its samples on images that the generator never saw. A defender who does not know the trigger size
tries several; one who does not know whether the backdoor has a fixed location also models patches at the most promising
location of each class.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from mesa_lib import device as devices
from mesa_lib import staircase, success
from mesa_lib.data.splits import Split
from mesa_lib.defenses.base import DefenderView, Detector, Knowledge, Verdict, anomaly_index
from mesa_lib.defenses.mesa.location_search import find_locations
from mesa_lib.distribution import TriggerDistribution
from mesa_lib.models.inference import batch_size_for
from mesa_lib.settings import Settings

Size = tuple[int, int]
#: what a defender tries who does not know the trigger size
SQUARES: tuple[Size, ...] = ((2, 2), (3, 3), (4, 4), (5, 5))
#: with the hinge on F itself, for which the thresholds of the detectors were fixed
SCREENING = Settings(betas=(0.9,), steps=60, triggers_per_step=16, hinge_scale="probability")


@dataclass(frozen=True)
class PatchSpec:
    """How a trigger may be stamped: a patch of this height and width, at random locations or at a fixed one."""

    size: Size
    fixed_location: bool = False

    def __str__(self) -> str:
        return f"{self.size[0]}x{self.size[1]}" + " at a fixed location" * self.fixed_location


@dataclass
class ScreeningResult:
    """The rates and locations of a screening.

    Attributes:
        rates: for each spec, the ASR of each class's samples, in [0, 1]; 0 for a class that was not screened.
        locations: for each spec with a fixed location, where each class's patches are stamped (classes, 2); None for
            the others.
    """

    rates: dict[PatchSpec, list[float]]
    locations: dict[PatchSpec, Tensor | None]

    @property
    def highest(self) -> list[float]:
        """The highest rate of each class over all specs."""
        return [max(rates) for rates in zip(*self.rates.values(), strict=True)]

    def location(self, spec: PatchSpec, label: int) -> Tensor | None:
        """Return the location (2,) of a class's patches; None: random locations."""
        locations = self.locations[spec]
        return None if locations is None else locations[label]


class SearchObserver:
    """Wraps each step of a detector's search and does nothing but run it; subclasses add progress and storage.

    `number` counts the steps of one kind from 0, of `total`.
    """

    def screened(
        self, spec: PatchSpec, number: int, total: int, run: Callable[..., tuple[list[float], Tensor | None]]
    ) -> tuple[list[float], Tensor | None] | None:
        """Return the rates and locations of one spec, as `run` does; None leaves the spec out.

        `run(labels)` screens these classes only.
        """
        return run()

    def suspects(self, suspects: dict[int, list[PatchSpec]]) -> None:
        """Take note of the classes and specs that will be modeled in full."""

    def modeled(
        self,
        label: int,
        spec: PatchSpec,
        location: Tensor | None,
        number: int,
        total: int,
        run: Callable[[], tuple[TriggerDistribution, float]],
    ) -> tuple[TriggerDistribution, float]:
        """Return the distribution of one class and spec and the ASR of its samples, as `run` does."""
        return run()


def fit_and_holdout(view: DefenderView) -> tuple[Split, Split]:
    """Return two halves of the clean images: those that generators see, and those that their samples are judged on.

    Raises:
        ValueError: if a half has images of a single class, which leaves no images of other classes for that class.
    """
    n = len(view.clean)
    parts = view.clean[: n // 2], view.clean[n // 2 :]
    if min(len(part.labels.unique()) for part in parts) < 2:
        raise ValueError(f"clean images = {n}: expected two classes or more in each half; use more images")
    return parts


def success_on(
    holdout: Split, distribution: TriggerDistribution, label: int, view: DefenderView, location: Tensor | None = None
) -> float:
    """Return the mean ASR of 100 samples, in [0, 1], on images of other classes.

    Args:
        holdout: images that the generators never saw.
        distribution: whose samples are judged.
        label: the class that the model should predict.
        view: its model, seed, device and precision are used.
        location: (2,), where the samples are stamped; None: random locations.
    """
    samples = distribution.sample(100, devices.rng(devices.derive_seed(view.seed, "judged samples"), view.device)).cpu()
    rates = success.asr_of_triggers(
        view.model, holdout.images, holdout.labels, samples, label, images_per_trigger=8,
        seed=devices.derive_seed(view.seed, "judged images"), precision=view.precision, location=location,
    )  # fmt: skip
    return float(rates.mean())


@dataclass
class Screening(Detector):
    """Scores each class by the mean ASR of its samples on images of other classes that its generator never saw.

    Attributes:
        settings: of the modeling; only the highest level is modeled.
        above: a class whose rate exceeds this is flagged.
        sizes: the sizes that are tried, of which the highest rate counts; None: the trigger size, which is then part
            of the method's knowledge.
    """

    settings: Settings = SCREENING
    above: float = 0.5
    sizes: tuple[Size, ...] | None = None
    knowledge: Knowledge = field(init=False)

    def __post_init__(self):
        self.knowledge = Knowledge("gradients", images=2000, rule=True, size=self.sizes is None)

    def specs(self, view: DefenderView) -> list[PatchSpec]:
        """Return the specs that are tried."""
        return [PatchSpec(size) for size in self.sizes or (view.size,)]

    def screen(self, view: DefenderView, observer: SearchObserver | None = None) -> ScreeningResult:
        """Return the rates of all classes for every spec."""
        observer, specs, result = observer or SearchObserver(), self.specs(view), ScreeningResult({}, {})
        for number, spec in enumerate(specs):
            parts = observer.screened(spec, number, len(specs), partial(self.screen_spec, view, spec))
            if parts is not None:
                result.rates[spec], result.locations[spec] = parts
        return result

    def screen_spec(
        self, view: DefenderView, spec: PatchSpec, labels: Sequence[int] | None = None
    ) -> tuple[list[float], Tensor | None]:
        """Return the rates of all classes for one spec, and the locations (classes, 2) of patches (None: random).

        Args:
            view: of this detector's knowledge.
            spec: how patches are stamped.
            labels: the classes that are screened, all others get a rate of 0; None: all.
        """
        labels = list(range(view.classes)) if labels is None else sorted(labels)
        locations = None
        if spec.fixed_location:
            locations = torch.zeros(view.classes, 2, dtype=torch.long)
            locations[labels] = self.locations(view, spec, labels)
        return self.modeled_rates(view, spec, labels, locations), locations

    def modeled_rates(
        self, view: DefenderView, spec: PatchSpec, labels: Sequence[int], locations: Tensor | None
    ) -> list[float]:
        """Return the rates of these classes, and 0 for all others.

        Args:
            view: of this detector's knowledge.
            spec: how patches are stamped.
            labels: the classes that are modeled.
            locations: (classes, 2), where their patches are stamped; None: random locations.
        """
        # of large images, only some classes share each pass through the model
        per_class = (self.settings.triggers_per_step * self.settings.images_per_trigger, 3, *view.image_size)
        rates = [0.0] * view.classes
        for group in torch.tensor(labels).split(batch_size_for(per_class, view.classes)):
            for label, rate in zip(group.tolist(), self._rates(view, spec, group.tolist(), locations), strict=True):
                rates[label] = rate
        return rates

    def locations(self, view: DefenderView, spec: PatchSpec, labels: Sequence[int]) -> Tensor:
        """Return where the patches of each of these classes are stamped -> (len(labels), 2)."""
        raise NotImplementedError("Screening has random locations only; use LocationScreening")

    def _rates(self, view: DefenderView, spec: PatchSpec, labels: list[int], locations: Tensor | None) -> list[float]:
        """Return the rates of these classes, whose triggers share every pass through the model."""
        s, (fitted_on, holdout) = self.settings, fit_and_holdout(view)
        locations = None if locations is None else locations[labels]
        F = success.success_function(
            view.model, fitted_on.images.to(view.device), fitted_on.labels.to(view.device), labels, s,
            size=spec.size, precision=view.precision, locations=locations,
        )  # fmt: skip
        seeds = [devices.derive_seed(view.seed, "screening", k) for k in labels]
        betas = [max(s.betas)] * len(labels)
        levels = staircase.fit_levels(F, (3, *spec.size), betas, s, seeds=seeds, device=view.device)
        where = [None] * len(labels) if locations is None else list(locations)
        return [
            success_on(holdout, TriggerDistribution([level], [1.0], s), k, view, location)
            for level, k, location in zip(levels, labels, where, strict=True)
        ]

    def detect(self, view: DefenderView) -> Verdict:
        """Return the verdict on the view's model."""
        result = self.screen(view)
        index = anomaly_index(result.highest, "high").tolist()
        return Verdict(result.highest, index, self.above, "scores", {"rates": by_text(result.rates)})


@dataclass
class LocationScreening(Screening):
    """A screening with random locations, and with the patches of each class at the location where they do most.

    A single location also suffices for a backdoor that responds to patches anywhere.

    Attributes:
        stride, patches_per_location, shortlist: of `location_search.find_locations`, which uses the images that the
            generators see.
    """

    stride: int = 2
    patches_per_location: int = 40
    shortlist: int = 12

    def specs(self, view: DefenderView) -> list[PatchSpec]:
        """Return every size with random locations and with a fixed one."""
        return [PatchSpec(spec.size, fixed) for spec in super().specs(view) for fixed in (False, True)]

    def locations(self, view: DefenderView, spec: PatchSpec, labels: Sequence[int]) -> Tensor:
        """Return the most promising location of each of these classes -> (len(labels), 2)."""
        search = (self.stride, self.patches_per_location, self.shortlist)
        return find_locations(view, spec.size, *search, clean=fit_and_holdout(view)[0], labels=labels)


def by_text(values: dict[PatchSpec, object]) -> dict[str, object]:
    """Return the dictionary with specs as text, as results are stored."""
    return {str(spec): value for spec, value in values.items()}
