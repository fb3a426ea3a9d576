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

from . import device as devices
from . import metrics, staircase, triggers
from .classifiers import frozen
from .retrain import Source
from .staircase import Settings, TriggerDistribution

#: (model, triggers to stamp, number of the round) -> the model after a repair
Repair = Callable[[nn.Module, Source, int], nn.Module]
#: what a search starts from (`triggers.random`): families that do not draw black-white patterns as such
LAW = "mixed"


@dataclass(frozen=True)
class Look:
    """What a defender finds on a model: rates of success over images of other classes, in [0, 1]."""

    searched: float  # the best trigger of a search, measured again on other images
    sampled: float  # mean over the samples of a fresh generator
    earlier: float  # mean over samples of all rounds so far (0 before the first)

    @property
    def found(self) -> float:
        return max(self.searched, self.sampled, self.earlier)


@torch.no_grad()
def search(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    target: int,
    *,
    law: str = LAW,
    size: tuple[int, int] = (3, 3),
    first: int = 1024,
    generations: int = 12,
    parents: int = 32,
    children: int = 192,
    images_each: int = 16,
    keep: int = 16,
    seed: int = 0,
    precision: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Random triggers of a law (`triggers.random`), improved by selection and mutation; forward passes only.

    All triggers of a generation are stamped on the same images at the same places, and judged by the mean probability
    of the target class: what separates them is then the trigger and not the draw. Returns the `keep` best
    (keep, 3, h, w), best first, and their rates of success (keep,) on images drawn anew, since selection flatters.
    """
    device = next(model.parameters()).device
    rng, fixed = devices.rng(seed, device), frozen(model, precision)
    others = images.to(device)[(labels != target).to(device)]

    def judge(drawn: Tensor) -> Tensor:
        pick = torch.randint(len(others), (images_each,), generator=rng, device=device)
        places = triggers.random_places(images_each, others.shape[-2:], size, rng)
        x, scores = others[pick].float() / 255, []
        for some in drawn.split(64):
            n = len(some)
            stamped = triggers.stamp(x.repeat(n, 1, 1, 1), some.repeat_interleave(images_each, 0), places.repeat(n, 1))
            with devices.autocast(device, precision):
                logits = fixed(stamped.contiguous(memory_format=torch.channels_last))
            scores.append(logits.float().softmax(1)[:, target].reshape(n, images_each).mean(1))
        return torch.cat(scores)

    drawn = triggers.random(first, law, rng, size)
    scores, seen = judge(drawn), torch.ones(first, device=device)
    for _ in range(generations):
        best = scores.topk(min(parents, len(drawn))).indices
        drawn, scores, seen = drawn[best], scores[best], seen[best]
        young = mutated(drawn, children, rng)
        fresh = judge(torch.cat([drawn, young]))
        scores = (scores * seen + fresh[: len(best)]) / (seen + 1)  # what survives is judged again each time
        easier = scores.mean() - fresh[: len(best)].mean()  # these images may be harder than those before
        drawn, scores = torch.cat([drawn, young]), torch.cat([scores, fresh[len(best) :] + easier])
        seen = torch.cat([seen + 1, torch.ones(children, device=device)])
    found = drawn[scores.topk(keep).indices]
    rates = metrics.asr_of_samples(
        model, images, labels, found, target, images_per_trigger=256, seed=seed, precision=precision
    )
    order = rates.argsort(descending=True)
    return found[order], rates[order]


def rate_of_best(
    model: nn.Module, images: Tensor, labels: Tensor, target: int, found: Tensor, *, seed: int, precision: str = "auto"
) -> float:
    """Success of the first trigger of `found` on 1,000 images drawn anew: it was the best of several, by luck too."""
    (rate,) = metrics.asr_of_samples(
        model, images, labels, found[:1], target, images_per_trigger=1000, seed=seed, precision=precision
    )
    return float(rate)


def mutated(parents: Tensor, n: int, rng: torch.Generator) -> Tensor:
    """n children (n, 3, h, w) of triggers sorted best first; the better ones have more.

    Three in ten are crossed with another parent, pixel by pixel. Then one pixel gets a random colour, or one of the
    eight extreme ones, or that of another pixel; or all get a little noise.
    """
    options = {"generator": rng, "device": rng.device}
    ranks = torch.randint(len(parents), (n, 2), **options).amin(1)
    others = parents[torch.randint(len(parents), (n,), **options)]
    crossed = (torch.rand(n, 1, *parents.shape[-2:], **options) < 0.5) & (torch.rand(n, 1, 1, 1, **options) < 0.3)
    drawn = torch.where(crossed, others, parents[ranks]).flatten(2)  # (n, 3, h * w)
    each, (pixel, other) = torch.arange(n, device=rng.device), torch.randint(drawn.shape[2], (2, n), **options)
    colour = torch.rand(n, 3, **options)
    colours = torch.stack([colour, colour.round(), drawn[each, :, other]])
    noisy = (drawn + 0.15 * torch.randn(drawn.shape, **options)).clamp(0, 1)
    kind = torch.randint(4, (n,), **options)
    drawn[each, :, pixel] = colours[kind % 3, each]
    return torch.where((kind == 3)[:, None, None], noisy, drawn).reshape(n, *parents.shape[1:])


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
    clear_below: float = 0.05,
    first: TriggerDistribution | None = None,
    precision: str = "auto",
) -> tuple[nn.Module, list[TriggerDistribution], list[dict]]:
    """Rounds of modelling and repair until a look at the repaired model finds nothing, `most` rounds at most.

    images uint8 (N, 3, H, W) and labels (N,) are the defender's. The model is all clear when neither the best trigger
    of a search, nor samples of a fresh generator, nor samples of earlier rounds succeed on more than `clear_below` of
    the images. (A search finds something on models that were never attacked, too: results/coverage.json.) A fresh
    generator has the highest level only and the hinge on log F; the next round stamps its samples, those of all rounds
    before, and triggers near those that a search found. `first` is the distribution of the first round, where it is
    known already. Returns the repaired model, the distributions of all rounds, and a record a round: the look, `clear`,
    and `best`, the best trigger of the search (3 h w numbers).
    """
    distributions: list[TriggerDistribution] = []
    searched: list[Source] = []
    records: list[dict] = []
    options = {"precision": precision}
    fitted = first or staircase.fit(model, images, labels, target, settings, **options)
    for number in range(most):
        distributions.append(fitted)
        sources = [distribution.sample for distribution in distributions] + searched
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
        found, rates = search(model, images, labels, target, size=settings.trigger_size, seed=afresh.seed, **options)
        best = rate_of_best(model, images, labels, target, found, seed=number, **options)
        look = Look(best, float(sampled), float(earlier))
        records.append(asdict(look) | {"round": number + 1, "clear": look.found < clear_below})
        records[-1]["best"] = [round(value, 3) for value in found[0].flatten().tolist()]
        if records[-1]["clear"]:
            break
        if look.searched >= clear_below:
            searched.append(around(found[rates >= rates[0] / 2]))
    return model, distributions, records
