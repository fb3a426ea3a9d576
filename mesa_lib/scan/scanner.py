"""The scan: is the model accurate on the clean images, which classes respond to patches, what do those look like?

Each step is kept in the store by model, images and settings: a scan that is stopped continues where it was.
"""

import copy
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from mesa_lib import device as devices
from mesa_lib import store
from mesa_lib.data.images import Images
from mesa_lib.data.splits import Split
from mesa_lib.defenses.base import DefenderView, Knowledge, describe_method
from mesa_lib.defenses.mesa.detector import DetectionResult
from mesa_lib.defenses.mesa.screening import PatchSpec
from mesa_lib.models.inference import logits, predict
from mesa_lib.scan import accuracy, data_free
from mesa_lib.scan.accuracy import NoVerdict
from mesa_lib.scan.hold_out import hold_out
from mesa_lib.scan.observer import ScanObserver
from mesa_lib.scan.options import Options
from mesa_lib.scan.progress import Progress, check_passes, modeling_passes
from mesa_lib.scan.reading.prepare import prepare
from mesa_lib.scan.reading.wrapped import WrappedClassifier
from mesa_lib.scan.repair import RESIDUAL_SEARCH, Distributions, ScanRepair, repair_record, residual_record
from mesa_lib.scan.verdict import judge

#: the fewest images that the model has to classify correctly, of those on which the search runs
MIN_CORRECT = 8
#: what a report says of the repair until it is there
NOT_ENDED = "the repair had not ended when this was written"
#: images of a pass whose time is measured
TIMED = 128
#: samples of each distribution that are kept for the report
SAMPLES = 16


@dataclass
class Scan:
    """The result of a scan.

    Attributes:
        result: everything that is written to `scan.json`.
        samples: for each modeled class and spec, triggers (16, 3, h, w).
        locations: where they are stamped (2,); None: random locations.
        repaired: the model after the repair, if one was made.
        work: the images on which the search ran.
    """

    result: dict
    samples: dict[tuple[int, PatchSpec], Tensor] = field(default_factory=dict)
    locations: dict[tuple[int, PatchSpec], Tensor | None] = field(default_factory=dict)
    repaired: nn.Module | None = None
    work: Split | None = None


def scan(
    model: nn.Module, images: Images, options: Options | None = None, say: Callable[[str], None] = lambda text: None,
    found: Callable[[Scan], None] = lambda scan: None,
) -> Scan:  # fmt: skip
    """Return a verdict for every class of a third-party model.

    Args:
        model: images in [0, 1] -> logits or probabilities (`read_model`, or any module).
        images: the defender's clean images (`read_images`).
        options: None: the defaults.
        say: receives a line of text for every step, with the time left.
        found: receives the result without the repair, before that begins.

    Raises:
        NoVerdict: if the accuracy is too low.
        ValueError: if the model cannot be used at all.
    """
    return Scanner(model, images, options or Options(), say).run(found)


class Scanner:
    """One scan, step by step."""

    def __init__(self, model: nn.Module, images: Images, options: Options, say: Callable[[str], None]):
        """Prepare the model and divide the images; arguments as in `scan`."""
        self.images, self.options, self.say = images, options, say
        self.started, self.progress = time.monotonic(), Progress(say)
        self.device = devices.pick_device(options.device)
        self.model: WrappedClassifier = prepare(
            model, images.split.images, len(images.classes), trained=options.repair
        ).to(self.device)
        self.held_out, self.work = hold_out(images.split, options.seed)
        self.detector = options.detector(images.split.images.shape[-1])
        self.key = {"model": self.identity(), "images": images.fingerprint, "searched": len(self.correct)}
        self.key |= {"seed": options.seed, "precision": options.precision}
        self.observer = ScanObserver(
            self.detector, images.classes, tuple(images.split.images.shape[-2:]), self.key, self.progress,
            self.repair_passes, self.device, None if options.budget is None else self.started + 60 * options.budget,
        )  # fmt: skip

    def identity(self) -> dict:
        """Return what the model is, for keys: its weights and, as any code can stand behind them, its outputs."""
        rng = devices.rng(devices.derive_seed(0, "identity of a model"))
        noise = torch.rand(256, *self.images.split.images.shape[1:], generator=rng)
        outputs = [logits(self.model, x).mul(100).round().long() for x in (self.work.images[:256], noise)]
        key = store.tensors_key({"outputs": torch.cat(outputs)})
        return {"weights": store.tensors_key(self.model.state_dict()), "network": str(self.model), "outputs": key}

    @cached_property
    def correct(self) -> Split:
        """The images of the search: those that the model classifies correctly without any patch."""
        predicted = predict(self.model, self.work.images, self.options.precision)
        return self.work[predicted == self.work.labels]

    def settings(self) -> dict:
        """Return the detector's settings, and on which images it works: scans with equal ones can be compared."""
        return describe_method(self.detector) | {"images": "classified correctly"}

    def view(self, knowledge: Knowledge, images: Split | None = None, model: nn.Module | None = None) -> DefenderView:
        """Return the view of a method.

        Args:
            knowledge: what the method declares.
            images: None: all that are not held out for the accuracy.
            model: None: the scanned one.
        """
        o = self.options
        return DefenderView(
            knowledge, model or self.model, images or self.work, len(self.images.classes), seed=o.seed,
            precision=o.precision, repair=o.repair_settings(),
        )  # fmt: skip

    def repair_passes(self, distributions: int) -> float:
        """Return the passes of a repair with so many distributions; 0 if none was asked for."""
        if not self.options.repair:
            return 0
        modeling = self.detector.repair_modeling
        each = modeling_passes(modeling) + check_passes(modeling, RESIDUAL_SEARCH)
        return distributions * each + self.options.repair_epochs * len(self.work)

    # --- the steps -----------------------------------------------------------------------------------------

    def run(self, found: Callable[[Scan], None] = lambda scan: None) -> Scan:
        """Return the scan's result; see `scan`."""
        result: dict = {"classes": list(self.images.classes), "images": list(self.images.notes) + self.model.notes}
        result["accuracy"] = self.accuracy()
        self.say(f"accuracy on the clean images: {result['accuracy']['rate']:.1%}")
        self.check_searchable(result["accuracy"])
        self._pass()  # the first pass also prepares memory and kernels
        self.progress.run(4 * TIMED, lambda: [self._pass() for _ in range(4)])
        result["data-free"] = margins = self.margins()
        if ratios := margins.get("ratios"):
            self.observer.fit_budget(sorted(range(len(ratios)), key=lambda label: -ratios[label]))
        detected = self.search()
        left_out = self.observer.labels, [str(spec) for spec in self.observer.skipped]
        result |= judge(self.detector, detected, self.images.classes, self.settings(), margins, *left_out)
        rng = devices.rng(devices.derive_seed(self.options.seed, "samples of the report"))
        samples = {
            (label, spec): distribution.at(max(distribution.betas)).sample(SAMPLES, rng).cpu()
            for label, distributions in detected.distributions.items()
            for spec, distribution in distributions.items()
        }
        locations = {(label, spec): detected.screening.location(spec, label) for label, spec in samples}
        scanned = Scan(result, samples, locations, work=self.work)
        result |= {"options": asdict(self.options), "settings": self.settings(), "made": self.made()}
        if self.options.repair:
            result["repair"] = {"done": False, "why": NOT_ENDED}
            found(scanned)
            scanned.repaired, result["repair"] = self.repair(detected)
        return Scan(result | {"made": self.made()}, samples, locations, scanned.repaired, self.work)

    def made(self) -> dict:
        """Return the seconds so far, and the machine."""
        return {"seconds": round(time.monotonic() - self.started, 1), **devices.describe(self.device)}

    def accuracy(self) -> dict:
        """Return the accuracy on all images and of each class; NoVerdict, with a reason, if it is too low."""
        o = self.options
        return accuracy.check_accuracy(self.model, self.images, o.min_accuracy, o.precision, o.trust_preprocessing)

    def check_searchable(self, measured: dict) -> None:
        """Raise NoVerdict if too few images are classified correctly, ValueError if a patch is larger than they are."""
        if len(self.correct) < MIN_CORRECT or int((self.correct.labels.bincount() > 1).sum()) < 2:
            raise NoVerdict(
                f"the model classifies {len(self.correct)} of {len(self.work)} images correctly, expected "
                f"{MIN_CORRECT} or more, of two classes at least; a misclassification of the others is not caused by a "
                "patch",
                measured,
            )
        for size in self.detector.screening.sizes:
            if max(size) > min(self.images.split.images.shape[-2:]):
                raise ValueError(f"sizes = {size}: a patch larger than the images; expected at most their side")

    def margins(self) -> dict:
        """Return what the network says without any image (`data_free.examine`); `why` it says nothing instead."""
        classes, side = len(self.images.classes), self.images.split.images.shape[-2:]
        if why := data_free.why_not(classes):
            return {"why": why}
        method = data_free.maximum_margin(classes, side[0] * side[1])
        passes = classes * method.starts * method.steps
        self.say(f"the largest margin of every class, which needs no images{self.progress.left(passes)}")
        config = self.key | {"method": describe_method(method)}

        def make() -> tuple[dict, dict]:
            return {}, data_free.examine(self.view, method)

        run = partial(store.train_or_load, "scan-margins", config, make, self.device)
        return self.progress.run(passes, run).result

    def search(self) -> DetectionResult:
        """Screen all classes by every spec and model the suspects."""
        return self.detector.search(self.view(self.detector.knowledge, self.correct), self.observer)

    def _pass(self) -> None:
        """Send some images through the model and back, to know how long the search will take."""
        x = self.work.images[torch.arange(TIMED) % len(self.work)].to(self.device).float().div(255).requires_grad_()
        with devices.autocast(self.device, self.options.precision):
            self.model(x).float().square().sum().backward()
        self.model.zero_grad()

    # --- the repair ----------------------------------------------------------------------------------------

    def repair(self, detected: DetectionResult) -> tuple[nn.Module | None, dict]:
        """Return the model retrained on samples of every class and spec above its limit (None if there is none).

        Returns:
            The repaired model, and what is reported about the repair.
        """
        firing = self.detector.firing(detected)
        names = {label: self.images.classes[label] for label, _ in firing}
        flagged = {self.images.classes[label] for label in self.detector.judge(detected).flagged}
        left = sorted(flagged - set(names.values()))  # where more classes are flagged than are modeled
        if not firing:
            why = f"none of {', '.join(left)} was modeled" if left else "nothing was flagged"
            return None, {"done": False, "why": why}
        distributions = self._all_levels(detected, firing)
        passes = self.repair_passes(0)
        checks = len(distributions) * check_passes(self.detector.repair_modeling, RESIDUAL_SEARCH)
        left_words = self.progress.left(passes + checks)
        self.say(f"repair: {self.options.repair_epochs} epochs on {len(self.work)} images{left_words}")
        method = ScanRepair(distributions, detected.screening)
        model = self.progress.run(passes, partial(self._retrained, method))
        record = {"done": True, "samples": [f"{names[label]}, {spec}" for label, spec in firing]}
        record["flagged and not repaired"] = left
        view_of = partial(self.view, self.detector.knowledge, self.correct)
        measured = repair_record(view_of, self.model, model, self.held_out, distributions, detected.screening)
        return model, record | measured | {"residual checks": self._residual_checks(model, distributions, detected)}

    def _residual_checks(self, model: nn.Module, distributions: Distributions, detected: DetectionResult) -> list[dict]:
        """Return the residual checks of the repaired model (`residual_record`)."""
        modeling, screening = self.detector.repair_modeling, detected.screening
        passes = len(distributions) * check_passes(modeling, RESIDUAL_SEARCH)
        self.say(f"residual check of the repaired model{self.progress.left(passes)}")
        stamped = [[label, str(spec)] for label, spec in distributions]
        config = self.key | {"repaired": store.tensors_key(model.state_dict()), "stamped": stamped}
        config |= {"modeling": modeling.model_dump(), "search": describe_method(RESIDUAL_SEARCH)}

        def make() -> tuple[dict, dict]:
            view = self.view(self.detector.knowledge, self.correct, model)
            checks = residual_record(view, model, distributions, screening, modeling, self.detector.side)
            return {}, {"checks": checks}

        checked = self.progress.run(passes, lambda: store.train_or_load("scan-checked", config, make, self.device))
        return checked.result["checks"]

    def _all_levels(self, detected: DetectionResult, firing: list[tuple[int, PatchSpec]]) -> Distributions:
        """Return the distributions of these classes and specs, modeled at all levels."""
        view, settings = self.view(self.detector.knowledge, self.correct), self.detector.repair_modeling
        distributions: Distributions = {}
        for number, (label, spec) in enumerate(firing):
            location = detected.screening.location(spec, label)
            run = partial(self.detector.model, view, label, spec, location, settings)
            after = self.repair_passes(len(firing) - number - 1)
            step = f"[{number + 1}/{len(firing)}] for the repair, all levels of the distribution of"
            distributions[label, spec], _ = self.observer.model(step, label, spec, location, settings, after, run)
        return distributions

    def _retrained(self, method: ScanRepair) -> nn.Module:
        """Return a copy of the model after the repair, in eval mode."""
        where = {pair: method.screening.location(pair[1], pair[0]) for pair in method.distributions}
        stamped = [f"{label}, {spec}, {None if at is None else at.tolist()}" for (label, spec), at in where.items()]
        config = self.key | {"stamped": stamped, "detector": self.settings(), "options": asdict(self.options)}

        def make() -> tuple[dict, dict]:
            return method.repair(self.view(method.knowledge)).model.state_dict(), {}

        weights = store.train_or_load("scan-repaired", config, make, self.device).tensors
        model = copy.deepcopy(self.model)
        model.load_state_dict(weights)
        return model.eval()
