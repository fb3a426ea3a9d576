"""The search of a scan, step by step: each step is stored, and the time left is told."""

import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from mesa_lib import store
from mesa_lib.defenses.base import describe_method
from mesa_lib.defenses.mesa.screening import PatchSpec, SearchObserver
from mesa_lib.distribution import TriggerDistribution
from mesa_lib.scan.detector import ScanDetector
from mesa_lib.scan.progress import Progress, modeling_passes, screening_passes
from mesa_lib.settings import Settings

Modeled = tuple[TriggerDistribution, float]


class ScanObserver(SearchObserver):
    """Loads each step from the store or keeps it there, and says how far the search is."""

    def __init__(
        self,
        detector: ScanDetector,
        classes: tuple[str, ...],
        image_size: tuple[int, int],
        key: dict,
        progress: Progress,
        repair_passes: Callable[[int], float],
        device: torch.device | str = "cpu",
        deadline: float | None = None,
    ):
        """Prepare.

        Args:
            detector: whose search is observed.
            classes: their names, as people are told.
            image_size: height and width of the images.
            key: everything that a step's result depends on beside the step itself.
            progress: measures the steps and says what is told.
            repair_passes: number of distributions -> passes of the repair that follows (0: none was asked for).
            device: of the model, for what the store says about the machine.
            deadline: on the clock of `time.monotonic`: classes and specs whose screening would end later are skipped
                (`fit_budget`, `screened`); None: none is.
        """
        self.deadline, self.skipped, self.labels = deadline, [], list(range(len(classes)))
        self.detector, self.classes, self.key, self.progress = detector, classes, key, progress
        self.repair_passes, self.device = repair_passes, device
        screening = detector.screening
        self.passes_of = partial(screening_passes, screening, image_size=image_size)
        self.passes = {spec: self.passes_of(spec, len(classes)) for spec in screening.specs()}

    def fit_budget(self, order: Sequence[int]) -> None:
        """Leave out classes for which the time does not suffice, if there is a deadline.

        Time is kept for one suspect; one class is always screened.

        Args:
            order: all classes, those first that should rather be screened.
        """
        if self.deadline is None:
            return
        reserve = self.detector.max_specs * modeling_passes(self.detector.settings)
        left = self.deadline - time.monotonic()

        def fits(count: int) -> bool:
            passes = sum(self.passes_of(spec, count) for spec in self.passes)
            return self.progress.seconds_of(passes + reserve) <= left

        count = max((k for k in range(1, len(order) + 1) if fits(k)), default=1)
        if count < len(order):
            self.labels = sorted(order[:count])
            self.passes = {spec: self.passes_of(spec, count) for spec in self.passes}
            names = ", ".join(self.classes[label] for label in order[:count])
            self.progress.say(
                f"{count} of {len(order)} classes fit the budget, those with the largest margins: {names}"
            )

    def screened(
        self, spec: PatchSpec, number: int, total: int, run: Callable[..., tuple[list[float], Tensor | None]]
    ) -> tuple[list[float], Tensor | None] | None:
        """Return the rates and locations of one spec; None if there is no time left for it (never for the first)."""
        if number and self.deadline and time.monotonic() + self.progress.seconds_of(self.passes[spec]) > self.deadline:
            self.skipped.append(spec)
            self.progress.say(f"[{number + 1}/{total}] patches of {spec} are skipped: they do not fit the budget")
            return None
        suspect = self.detector.max_specs * modeling_passes(self.detector.settings)
        suspect += self.repair_passes(self.detector.max_specs)
        after = sum(list(self.passes.values())[number + 1 :]) + suspect
        left = self.progress.left(self.passes[spec] + after, " if one class is suspect")
        all_classes = len(self.labels) == len(self.classes)
        which = "all classes" if all_classes else f"{len(self.labels)} classes"
        self.progress.say(f"[{number + 1}/{total}] {which}, patches of {spec}{left}")

        def make() -> tuple[dict, dict]:
            rates, locations = run() if all_classes else run(self.labels)
            return {}, {"rates": rates, "locations": None if locations is None else locations.tolist()}

        config = self.key | {"spec": str(spec), "screening": describe_method(self.detector.screening)}
        config |= {} if all_classes else {"classes": self.labels}
        artifact = self.progress.run(
            self.passes[spec], lambda: store.train_or_load("scan-screened", config, make, self.device), after
        )
        locations = artifact.result["locations"]
        return artifact.result["rates"], None if locations is None else torch.tensor(locations)

    def suspects(self, suspects: dict[int, list[PatchSpec]]) -> None:
        """Name the classes that will be modeled in full."""
        self.progress.say(f"suspects: {', '.join(self.classes[label] for label in suspects) or 'none'}")

    def modeled(
        self, label: int, spec: PatchSpec, location: Tensor | None, number: int, total: int, run: Callable[[], Modeled]
    ) -> Modeled:
        """Return the distribution of one class and spec and the ASR of its samples."""
        later = (total - number - 1) * modeling_passes(self.detector.settings) + self.repair_passes(total)
        step = f"[{number + 1}/{total}] the distribution of"
        return self.model(step, label, spec, location, self.detector.settings, later, run)

    def model(
        self,
        step: str,
        label: int,
        spec: PatchSpec,
        location: Tensor | None,
        settings: Settings,
        after: float,
        run: Callable[[], Modeled],
    ) -> Modeled:
        """Return the distribution of one class and spec for these settings, from the store or from `run`.

        Args:
            step: begins the line that is said.
            label, spec, location: what is modeled.
            settings: of the modeling.
            after: passes of all later steps.
            run: models it -> the distribution and the ASR of its samples.
        """
        passes = modeling_passes(settings)
        left = self.progress.left(passes + after)
        self.progress.say(f"{step} {self.classes[label]}, patches of {spec}{left}")

        def make() -> tuple[dict, dict]:
            distribution, rate = run()
            return distribution.tensors(), {"rate": rate, "summary": distribution.summary()}

        config = self.key | {"spec": str(spec), "class": label, "settings": settings.model_dump()}
        config["location"] = None if location is None else location.tolist()
        artifact = self.progress.run(
            passes, lambda: store.train_or_load("scan-modeled", config, make, self.device), after
        )
        restored = (artifact.tensors, artifact.result["summary"], (3, *spec.size), settings)
        return TriggerDistribution.restore(*restored), artifact.result["rate"]
