"""The repair that a scan offers: what it stamps, and what is told about it."""

from types import SimpleNamespace

from torch import Tensor, nn

from mesa_lib.data import Split
from mesa_lib.defenses.base import DefenderView
from mesa_lib.defenses.mesa.detector import DetectionResult
from mesa_lib.defenses.mesa.screening import PatchSpec, fit_and_holdout, success_on
from mesa_lib.distribution import TriggerDistribution
from mesa_lib.evaluation.intervals import proportion
from mesa_lib.models.inference import predict
from mesa_lib.scan.detector import ScanDetector, margin

#: class and rule of what fires
Firing = tuple[int, PatchSpec]


def firing(detector: ScanDetector, found: DetectionResult) -> list[Firing]:
    """Every class and rule whose modeled samples turn more images than their limit."""
    return [
        (k, rule)
        for k, models in found.models.items()
        for rule in models
        if margin(rule, found.rates[k][rule], detector.side) > detector.above
    ]


def told(
    given: DefenderView,
    before: nn.Module,
    after: nn.Module,
    kept: Split,
    models: dict[Firing, TriggerDistribution],
    where: dict[Firing, Tensor | None],
) -> dict:
    """What is written about a repair: accuracy on images that it did not see, and how often the samples that it stamped
    fire on images that their generators did not see, of the model before and after it."""
    judged = fit_and_holdout(given)[1]

    def still(model: nn.Module) -> list[float]:
        other = SimpleNamespace(model=model, seed=given.seed, device=given.device, precision=given.precision)
        return [
            success_on(judged, fitted.at(max(fitted.betas)), k, other, where[k, rule])
            for (k, rule), fitted in models.items()
        ]

    def accuracy(model: nn.Module) -> dict:
        return proportion(predict(model, kept.images, given.precision) == kept.labels)

    return {
        "accuracy before": accuracy(before),
        "accuracy after": accuracy(after),
        "images for the accuracy": len(kept),
        "samples fire before": still(before),
        "samples fire after": still(after),
    }
