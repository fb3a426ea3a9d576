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
from mesa_lib.scan.detector import MOST_REPAIRED, ScanDetector
from mesa_lib.scan.progress import Progress, modeling_passes
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
        self.deadline, self.skipped = deadline, []
        self.order = self.labels = list(range(len(classes)))
        self.detector, self.classes, self.key, self.progress = detector, classes, key, progress
        self.repair_passes, self.device = repair_passes, device
        self.kept: list[int] = []
        self.passes_of = partial(detector.screening.passes, image_size=image_size)
        self.passes = {spec: self.passes_of(spec, len(classes)) for spec in detector.screening.specs()}

    def fit_budget(self, order: Sequence[int]) -> None:
        """Begin with the classes of this order, and leave out those for which time does not suffice by a deadline.

        The first class is modeled whatever inverted patches of it do.

        Time is kept for one modeling; one class is always screened. After the first spec, whose time is known then,
        further classes may be added (`screened`).

        Args:
            order: all classes, those first that should rather be screened.
        """
        self.order = list(order)
        self.kept = self.order[:1]
        if self.deadline is not None:
            self._choose(self._fitting(list(self.passes)))

    def _fitting(self, specs: list[PatchSpec], known: int = 0) -> int:
        """Return how many classes can be screened by these specs in the time left, one or more.

        Args:
            specs: the first of them is done already for `known` classes.
            known: number of classes.
        """
        left = self.deadline - time.monotonic()

        def fits(count: int) -> bool:
            passes = sum(self.passes_of(spec, count) for spec in specs) + modeling_passes(self.detector.settings)
            return self.progress.seconds_of(passes - (self.passes_of(specs[0], known) if known else 0)) <= left

        return max((k for k in range(1, len(self.order) + 1) if fits(k)), default=1)

    def _choose(self, count: int) -> None:
        """Take the first `count` classes of the order, and say which."""
        self.labels = sorted(self.order[:count])
        self.passes = {spec: self.passes_of(spec, count) for spec in self.passes}
        if count < len(self.order):
            names = ", ".join(self.classes[label] for label in self.order[:count])
            of = f"{count} of {len(self.order)}"
            self.progress.say(f"{of} classes fit the budget, those with the largest margins: {names}")

    def screened(
        self, spec: PatchSpec, number: int, total: int, run: Callable[..., tuple[list[float], Tensor | None]]
    ) -> tuple[list[float], Tensor | None] | None:
        """Return the rates and locations of one spec; None if there is no time left for it (never for the first)."""
        if number and self.deadline and time.monotonic() + self.progress.seconds_of(self.passes[spec]) > self.deadline:
            self.skipped.append(spec)
            self.progress.say(f"[{number + 1}/{total}] patches of {spec} are skipped: they do not fit the budget")
            return None
        self.progress.say(f"[{number + 1}/{total}] {self._which(self.labels)}, patches of {spec}{self._left(number)}")
        rates, locations = self._screened(spec, number, self.labels, run)
        if number or self.deadline is None or len(self.labels) == len(self.order):
            return rates, locations
        done = self.labels
        if (count := self._fitting(list(self.passes), known=len(done))) > len(done):
            self._choose(count)
            more = [label for label in self.labels if label not in done]
            self.progress.say(f"[{number + 1}/{total}] {self._which(more)} more, patches of {spec}")
            further, elsewhere = self._screened(spec, number, more, run)
            for label in more:
                rates[label] = further[label]
                if locations is not None:
                    locations[label] = elsewhere[label]
        return rates, locations

    def _which(self, labels: list[int]) -> str:
        if len(labels) == len(self.classes):
            return "all classes"
        return f"{len(labels)} class{'es' if len(labels) > 1 else ''}"

    def _after(self, number: int) -> float:
        """Return the passes of all that is not stored after the screening by this spec, if one class is suspect."""
        suspect = self.detector.max_specs * modeling_passes(self.detector.settings)
        suspect += self.repair_passes(MOST_REPAIRED)
        return sum(map(self._passes_left, list(self.passes)[number + 1 :])) + suspect

    def _left(self, number: int) -> str:
        passes = self._passes_left(list(self.passes)[number]) + self._after(number)
        return self.progress.left(passes, " if one class is suspect")

    def _passes_left(self, spec: PatchSpec) -> float:
        """Return the passes of the screening by a spec; 0 if an earlier scan, which was stopped, has stored it."""
        stored = store.artifact_folder("scan-screened", self._config(spec, self.labels)).is_dir()
        return 0 if stored else self.passes[spec]

    def _config(self, spec: PatchSpec, labels: list[int]) -> dict:
        """Return everything that the screening of some classes by a spec depends on."""
        config = self.key | {"spec": str(spec), "screening": describe_method(self.detector.screening)}
        return config | {"kept": self.kept} | ({} if len(labels) == len(self.classes) else {"classes": labels})

    def _screened(
        self, spec: PatchSpec, number: int, labels: list[int], run: Callable[..., tuple[list[float], Tensor | None]]
    ) -> tuple[list[float], Tensor | None]:
        """Return the rates and locations of one spec for some classes, from the store or from `run`."""

        def make() -> tuple[dict, dict]:
            rates, locations = run(labels, self.kept)
            return {}, {"rates": rates, "locations": None if locations is None else locations.tolist()}

        step = partial(store.train_or_load, "scan-screened", self._config(spec, labels), make, self.device)
        artifact = self.progress.run(self.passes_of(spec, len(labels)), step, self._after(number))
        locations = artifact.result["locations"]
        return list(artifact.result["rates"]), None if locations is None else torch.tensor(locations)

    def suspects(self, suspects: dict[int, list[PatchSpec]]) -> None:
        """Name the classes that will be modeled in full; of specs for which no time is left, only the first is."""
        each, limited = modeling_passes(self.detector.settings), self.deadline is not None
        while limited and max(map(len, suspects.values()), default=1) > 1:
            left = self.deadline - time.monotonic()
            if self.progress.seconds_of(each * sum(map(len, suspects.values()))) <= left:
                break
            max(suspects.values(), key=len).pop()
        self.progress.say(f"classes to model in full: {', '.join(self.classes[label] for label in suspects) or 'none'}")

    def modeled(
        self, label: int, spec: PatchSpec, location: Tensor | None, number: int, total: int, run: Callable[[], Modeled]
    ) -> Modeled:
        """Return the distribution of one class and spec and the ASR of its samples."""
        later = (total - number - 1) * modeling_passes(self.detector.settings) + self.repair_passes(
            min(MOST_REPAIRED, total)
        )
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
