"""The repair that a scan offers: what it stamps, and what is told about it."""

from types import SimpleNamespace

from torch import Tensor, nn

from ..data import Split
from ..defenses.base import Given
from ..defenses.mesa import Searched
from ..defenses.screening import Rule, halves, success_on
from ..inference import predict
from ..metrics import proportion
from ..staircase import TriggerDistribution
from .detector import ByRule, margin

#: class and rule of what fires
Firing = tuple[int, Rule]


def firing(detector: ByRule, found: Searched) -> list[Firing]:
    """Every class and rule whose modelled samples turn more images than their limit."""
    return [
        (k, rule)
        for k, models in found.models.items()
        for rule in models
        if margin(rule, found.rates[k][rule], detector.side) > detector.above
    ]


def told(
    given: Given,
    before: nn.Module,
    after: nn.Module,
    kept: Split,
    models: dict[Firing, TriggerDistribution],
    where: dict[Firing, Tensor | None],
) -> dict:
    """What is written about a repair: accuracy on images that it did not see, and how often the samples that it stamped
    fire on images that their generators did not see, of the model before and after it."""
    judged = halves(given)[1]

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
