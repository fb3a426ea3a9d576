"""The repair that a scan offers, and what is reported about it."""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor, nn

from mesa_lib.data.splits import Split
from mesa_lib.defenses.base import DefenderView, Knowledge, StampingRepair
from mesa_lib.defenses.mesa import residual_check
from mesa_lib.defenses.mesa.repair import stamp_detected
from mesa_lib.defenses.mesa.screening import PatchSpec, ScreeningResult, fit_and_holdout, success_on
from mesa_lib.defenses.mesa.trigger_search import TriggerSearch
from mesa_lib.distribution import TriggerDistribution
from mesa_lib.evaluation.intervals import proportion
from mesa_lib.models.inference import predict
from mesa_lib.retrain import ImageTransform
from mesa_lib.scan.detector import highest_clean_rate, limit
from mesa_lib.settings import Settings

#: what a residual check of the repaired model searches with
RESIDUAL_SEARCH = TriggerSearch()
#: class and spec -> the distribution of its triggers
Distributions = dict[tuple[int, PatchSpec], TriggerDistribution]


@dataclass
class ScanRepair(StampingRepair):
    """Retrain on samples of every flagged class and spec, each stamped at its location.

    Attributes:
        distributions: whose samples are stamped.
        screening: tells their locations.
    """

    distributions: Distributions
    screening: ScreeningResult
    knowledge: Knowledge = field(default=Knowledge("weights", rule=True), init=False)

    def transforms(self, view: DefenderView) -> tuple[list[ImageTransform], dict]:
        """Return one transform for each class and spec."""
        return stamp_detected(self.distributions, self.screening), {}


def repair_record(
    view_of: Callable[[nn.Module], DefenderView],
    before: nn.Module,
    after: nn.Module,
    held_out: Split,
    distributions: Distributions,
    screening: ScreeningResult,
) -> dict:
    """Return what is reported about a repair.

    Args:
        view_of: a model -> the view in which its triggers were modeled.
        before, after: the model before and after the repair.
        held_out: images that the repair did not see, for the accuracy.
        distributions, screening: what was stamped, and where.

    Returns:
        `accuracy before` and `accuracy after` (`proportion`), and `sample ASR before` and `sample ASR after`: of each
        distribution, the ASR of samples of its highest level on images that its generator did not see.
    """

    def sample_asr(model: nn.Module) -> list[float]:
        view = view_of(model)
        judged = fit_and_holdout(view)[1]
        return [
            success_on(judged, distribution.at(max(distribution.betas)), label, view, screening.location(spec, label))
            for (label, spec), distribution in distributions.items()
        ]

    def accuracy(model: nn.Module) -> dict:
        predicted: Tensor = predict(model, held_out.images, view_of(model).precision)
        return proportion(predicted == held_out.labels)

    return {
        "accuracy before": accuracy(before),
        "accuracy after": accuracy(after),
        "images for the accuracy": len(held_out),
        "sample ASR before": sample_asr(before),
        "sample ASR after": sample_asr(after),
    }


def residual_record(
    view: DefenderView, model: nn.Module, distributions: Distributions, screening: ScreeningResult, settings: Settings,
    side: int,
) -> list[dict]:  # fmt: skip
    """Return what a residual check of the repaired model finds, for each class and spec that was stamped.

    Args:
        view: its images are used.
        model: after the repair.
        distributions, screening: what was stamped, and where.
        settings: of the modeling.
        side: of the images, as the limits count it.

    Returns:
        Of each class and spec `searched` and `sampled` (`ResidualCheck`), `clear`: whether both are below the limit of
        the verdict, that `limit`, and the highest rate of a clean model from which it was set (`clean models`).
    """
    records = []
    for number, ((label, spec), _) in enumerate(distributions.items()):
        residual, _ = residual_check.check(
            view, model, settings, RESIDUAL_SEARCH, target=label, size=spec.size,
            location=screening.location(spec, label), number=number,
        )  # fmt: skip
        limits = {"limit": limit(spec, side), "clean models": highest_clean_rate(spec, side)}
        records.append(residual.record(limits["limit"]) | limits)
    return records
