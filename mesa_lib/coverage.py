"""No false all-clear: model, repair, look again, until a look finds nothing (ours; the paper has one round).

A round may miss the part of the distribution where the attacker's trigger lies. The defender cannot see that trigger,
but can look again: with simple random triggers (forward passes only) and with a generator that starts afresh on the
repaired model. What a look finds is modelled in the next round; the repair stamps samples of all rounds so far.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor, nn

from . import device as devices
from . import metrics, staircase, triggers
from .retrain import Source
from .staircase import Settings, TriggerDistribution

#: (model, triggers to stamp, number of the round) -> the model after a repair
Repair = Callable[[nn.Module, Source, int], nn.Module]


@dataclass(frozen=True)
class Look:
    """What a defender finds on a model: rates of success over images of other classes, in [0, 1]."""

    screened: float  # the best of the simple random triggers, measured again on other images
    sampled: float  # mean over the samples of a fresh generator
    earlier: float  # mean over samples of all rounds so far (0 before the first)

    @property
    def found(self) -> float:
        return max(self.screened, self.sampled, self.earlier)


@torch.no_grad()
def screen(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    target: int,
    *,
    size: tuple[int, int] = (3, 3),
    how_many: int = 2048,
    images_per_trigger: int = 8,
    keep: int = 32,
    seed: int = 0,
    precision: str = "float32",
) -> tuple[Tensor, Tensor]:
    """Try random triggers of simple families, forward passes only.

    The `keep` best (keep, 3, h, w), and their success (keep,) on images drawn anew: the first measurement, by which
    they were chosen, flatters them.
    """
    drawn = triggers.random(how_many, "simple", devices.rng(seed), size)
    options = {"precision": precision}
    first = metrics.asr_of_samples(
        model, images, labels, drawn, target, images_per_trigger=images_per_trigger, seed=seed, **options
    )
    best = drawn[first.topk(keep).indices]
    again = metrics.asr_of_samples(
        model, images, labels, best, target, images_per_trigger=8 * images_per_trigger, seed=seed + 1, **options
    )
    return best, again


def around(found: Tensor, spread: float = 0.1) -> Source:
    """Triggers near those of `found` (k, 3, h, w): one of them with Gaussian noise on its pixels, clipped to [0, 1]."""

    def sample(n: int, rng: torch.Generator) -> Tensor:
        chosen = found.to(rng.device)[torch.randint(len(found), (n,), generator=rng, device=rng.device)]
        return (chosen + spread * torch.randn(chosen.shape, generator=rng, device=rng.device)).clamp(0, 1)

    return sample


def mixed(sources: Sequence[Source]) -> Source:
    """Triggers of several sources, each with equal weight."""

    def sample(n: int, rng: torch.Generator) -> Tensor:
        which = torch.randint(len(sources), (n,), generator=rng, device=rng.device)
        drawn = torch.stack([source(n, rng) for source in sources])
        return drawn[which, torch.arange(n, device=rng.device)]

    return sample


def repair_until_clear(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    target: int,
    settings: Settings,
    repair: Repair,
    *,
    most: int = 4,
    clear_below: float = 0.1,
    first: TriggerDistribution | None = None,
    precision: str = "auto",
) -> tuple[nn.Module, list[TriggerDistribution], list[dict]]:
    """Rounds of modelling and repair until a look at the repaired model finds nothing, `most` rounds at most.

    images uint8 (N, 3, H, W) and labels (N,) are the defender's. The model is all clear when neither the best simple
    trigger, nor samples of a fresh generator, nor samples of earlier rounds succeed on more than `clear_below` of the
    images (on clean CIFAR-10 models the best of 2,048 simple triggers reaches 2 to 8 %: results/coverage.json). A fresh
    generator has the highest level only and the hinge on log F; the next round stamps its samples, those of all rounds
    before, and the simple triggers that were found to work. `first` is the distribution of the first round, where it is
    known already. Returns the repaired model, the distributions of all rounds, and a record a round: the look, `clear`.
    """
    distributions: list[TriggerDistribution] = []
    screened: list[Source] = []
    records: list[dict] = []
    options = {"precision": precision}
    fitted = first or staircase.fit(model, images, labels, target, settings, **options)
    for number in range(most):
        distributions.append(fitted)
        sources = [distribution.sample for distribution in distributions] + screened
        model = repair(model, mixed(sources), number)
        afresh = replace(settings, seed=settings.seed + 7919 * (number + 1), scale="log", betas=(max(settings.betas),))
        fitted = staircase.fit(model, images, labels, target, afresh, **options)
        rng = devices.rng(afresh.seed, next(model.parameters()).device)
        sampled, earlier = (
            metrics.asr_of_samples(
                model, images, labels, source(128, rng).cpu(), target, images_per_trigger=8, seed=number, **options
            ).mean()
            for source in (fitted.sample, mixed(sources))
        )
        simple, rates = screen(model, images, labels, target, size=settings.trigger_size, seed=afresh.seed, **options)
        look = Look(float(rates.max()), float(sampled), float(earlier))
        records.append(asdict(look) | {"round": number + 1, "clear": look.found < clear_below})
        if records[-1]["clear"]:
            break
        if look.screened >= clear_below:
            screened.append(around(simple[rates >= clear_below]))
    return model, distributions, records
