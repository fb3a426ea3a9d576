"""No false all-clear: model, repair, look again, until a look finds nothing (ours; the paper has one round).

A round may miss the part of the distribution where the attacker's trigger lies. The defender cannot see that trigger,
but can look again: with a search that starts from random triggers and improves them (forward passes only), and with a
generator that starts afresh on the repaired model. What a look finds is stamped in the next round, with samples of all
rounds so far.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor, nn

from mesa_lib import device as devices
from mesa_lib import staircase, success, triggers
from mesa_lib.distribution import TriggerDistribution
from mesa_lib.models.frozen import frozen
from mesa_lib.retrain import TriggerSource
from mesa_lib.settings import Settings

#: (model, triggers to stamp, number of the round) -> the model after a repair
RepairStep = Callable[[nn.Module, TriggerSource, int], nn.Module]
#: what a search starts from (`triggers.random`): families that do not draw black-white patterns as such
FAMILY = "mixed"


@dataclass(frozen=True)
class ResidualCheck:
    """What a defender finds on a model: rates of success over images of other classes, in [0, 1]."""

    searched: float  # the best trigger of a search, measured again on other images
    sampled: float  # mean over the samples of a fresh generator
    earlier: float  # mean over samples of all rounds so far (0 before the first)

    @property
    def found(self) -> float:
        return max(self.searched, self.sampled, self.earlier)


def repair_until_clear(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    target: int,
    settings: Settings,
    repair: RepairStep,
    *,
    most: int = 4,
    clear_below: float = 0.05,
    first: TriggerDistribution | None = None,
    precision: str = "auto",
) -> tuple[nn.Module, list[TriggerDistribution], list[dict]]:
    """Rounds of modeling and repair until a look at the repaired model finds nothing, `most` rounds at most.

    images uint8 (N, 3, H, W) and labels (N,) are the defender's. The model is all clear when neither the best trigger
    of a search, nor samples of a fresh generator, nor samples of earlier rounds succeed on more than `clear_below` of
    the images. (A search finds something on models that were never attacked, too: results/coverage.json.) A fresh
    generator has the highest level only and the hinge on log F; the next round stamps its samples, those of all rounds
    before, and triggers near those that a search found. `first` is the distribution of the first round, where it is
    known already. Returns the repaired model, the distributions of all rounds, and a record a round: the look, `clear`,
    and `best`, the best trigger of the search (3 h w numbers).
    """
    distributions: list[TriggerDistribution] = []
    searched: list[TriggerSource] = []
    records: list[dict] = []
    options = {"precision": precision}
    fitted = first or staircase.fit(model, images, labels, target, settings, **options)
    for number in range(most):
        distributions.append(fitted)
        sources = [distribution.sample for distribution in distributions] + searched
        model = repair(model, mixture(sources), number)
        afresh = replace(settings, seed=settings.seed + 7919 * (number + 1), scale="log", betas=(max(settings.betas),))
        fitted = staircase.fit(model, images, labels, target, afresh, **options)
        rng = devices.rng(afresh.seed, next(model.parameters()).device)
        sampled, earlier = (
            success.asr_of_triggers(
                model, images, labels, source(128, rng).cpu(), target, images_per_trigger=8, seed=number, **options
            ).mean()
            for source in (fitted.sample, mixture(sources))
        )
        found, rates = search_triggers(model, images, labels, target, size=settings.trigger_size, seed=afresh.seed, **options)
        best = rate_of_best(model, images, labels, target, found, seed=number, **options)
        look = ResidualCheck(best, float(sampled), float(earlier))
        records.append(asdict(look) | {"round": number + 1, "clear": look.found < clear_below})
        records[-1]["best"] = [round(value, 3) for value in found[0].flatten().tolist()]
        if records[-1]["clear"]:
            break
        if look.searched >= clear_below:
            searched.append(jitter(found[rates >= rates[0] / 2]))
    return model, distributions, records
