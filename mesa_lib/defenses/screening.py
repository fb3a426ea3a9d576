"""Screening: which classes answer to patches? All at once, at little cost, before any is modelled in full.

Random patches ask with forward passes alone. MESA's screening models a trigger distribution for every class at once, at
one level and for a few steps; a class's score is how often its patches fire on images that the generator never saw.
Where the trigger's size is not known it tries some; where the backdoor may answer at one place only, it also models
patches at the likeliest place of every class.
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from .. import device as devices
from .. import metrics, staircase, triggers
from ..data import Split
from ..inference import at_once
from ..staircase import Settings, TriggerDistribution
from .base import Detector, Given, Knowledge, Verdict, anomaly_index
from .places import likeliest

Size = tuple[int, int]
#: what a defender tries who does not know the trigger's size
SQUARES: tuple[Size, ...] = ((2, 2), (3, 3), (4, 4), (5, 5))


@dataclass(frozen=True)
class Rule:
    """How a trigger may be stamped: a patch of this height and width, at any place, or always at one."""

    size: Size
    one_place: bool = False

    def __str__(self) -> str:
        return f"{self.size[0]}x{self.size[1]}" + " at one place" * self.one_place


@dataclass
class RandomTriggers(Detector):
    """The plainest rival: mean ASR per class of random patches of extreme colours. Forward passes only."""

    triggers: int = 300
    images_per_trigger: int = 8
    law: str = "binary"
    above: float = 0.2
    knows: Knowledge = field(default=Knowledge("outputs", images=500, rule=True, size=True), init=False)

    def detect(self, given: Given) -> Verdict:
        rng = devices.rng(given.seed)
        drawn = triggers.random(self.triggers, self.law, rng, given.size)
        index = torch.randint(len(given.clean), (self.triggers * self.images_per_trigger,), generator=rng)
        images, labels = given.clean.images[index.to(given.clean.images.device)].cpu(), given.clean.labels.cpu()[index]
        stamped = triggers.stamp_random(images.float() / 255, drawn.repeat_interleave(self.images_per_trigger, 0), rng)
        answers = given.outputs(stamped).argmax(1)
        scores = [float((answers[labels != k] == k).float().mean()) for k in range(given.classes)]
        return Verdict(scores, anomaly_index(scores, "high").tolist(), self.above, "scores")


def halves(given: Given) -> tuple[Split, Split]:
    """The defender's images: those that the generators see, and those on which their samples are judged.

    ValueError if one of them would be of a single class: nothing could be turned into that
    """
    half = len(given.clean) // 2
    parts = given.clean[:half], given.clean[half:]
    if min(len(part.labels.unique()) for part in parts) < 2:
        raise ValueError(f"{len(given.clean)} clean images: each half has to hold two classes or more")
    return parts


def success_on(
    kept: Split, fitted: TriggerDistribution, label: int, given: Given, place: Tensor | None = None
) -> float:
    """Mean ASR of 100 samples towards a class, on images of other classes, at any place or at this one."""
    drawn = fitted.sample(100, devices.rng(given.seed + 5, given.device)).cpu()
    rates = metrics.asr_of_samples(
        given.model, kept.images, kept.labels, drawn, label, images_per_trigger=8, precision=given.precision,
        place=place,
    )  # fmt: skip
    return float(rates.mean())


@dataclass
class Screened:
    """What a screening found: of every rule, how often each class's samples fire, and where they were stamped.

    places: (classes, 2) of a rule with one place, None of any other
    """

    rates: dict[Rule, list[float]]
    places: dict[Rule, Tensor | None]

    @property
    def highest(self) -> list[float]:
        """Of every class the highest rate of all rules."""
        return [max(of_class) for of_class in zip(*self.rates.values(), strict=True)]

    def place(self, rule: Rule, label: int) -> Tensor | None:
        return None if self.places[rule] is None else self.places[rule][label]


@dataclass
class Screening(Detector):
    """Score: the mean ASR of a class's samples on images of other classes that its generator never saw.

    sizes: None, the trigger's own, which is then among what the method knows; else those that are tried, and the
    highest ASR of all sizes is the score
    """

    settings: Settings = Settings(betas=(0.9,), steps=60, batch=16)
    above: float = 0.5
    sizes: tuple[Size, ...] | None = None
    knows: Knowledge = field(init=False)

    def __post_init__(self):
        self.knows = Knowledge("gradients", images=2000, rule=True, size=self.sizes is None)

    def rules(self, given: Given) -> list[Rule]:
        return [Rule(size) for size in self.sizes or (given.size,)]

    def screen(self, given: Given) -> Screened:
        """How often each class's samples fire on held-out images, for every rule."""
        parts = {rule: self.by(given, rule) for rule in self.rules(given)}
        return Screened({rule: own[0] for rule, own in parts.items()}, {rule: own[1] for rule, own in parts.items()})

    def by(self, given: Given, rule: Rule) -> tuple[list[float], Tensor | None]:
        """The rates of all classes by one rule, and the places at which patches were stamped (None: any)."""
        places = self.places(given, rule) if rule.one_place else None
        return self._rates(given, rule, places), places

    def places(self, given: Given, rule: Rule) -> Tensor:
        """Of each class the place at which its patches are stamped -> (classes, 2)."""
        raise NotImplementedError("a screening at any place looks for none")

    def _rates(self, given: Given, rule: Rule, places: Tensor | None) -> list[float]:
        """All classes at once, or of large images some: their triggers share every pass through the model."""
        s = self.settings
        one_class = (s.batch * s.images_per_trigger, 3, *given.image_size)
        groups = torch.arange(given.classes).split(at_once(one_class, given.classes))
        return [rate for own in groups for rate in self._rates_of(given, rule, own.tolist(), places)]

    def _rates_of(self, given: Given, rule: Rule, every: list[int], places: Tensor | None) -> list[float]:
        s = replace(self.settings, trigger_size=rule.size, seed=given.seed)
        seen, kept = halves(given)
        places = None if places is None else places[every]
        together = staircase.success_of_each(
            given.model, seen.images.to(given.device), seen.labels.to(given.device), every, s, given.precision, places
        )  # fmt: skip
        seeds = [given.seed + 31 * k for k in every]
        levels = staircase.fit_levels(together, (3, *rule.size), [s.betas[0]] * len(every), s, given.device, seeds)
        short = [TriggerDistribution([level], [1.0], s) for level in levels]
        at = [None] * len(every) if places is None else list(places)
        return [success_on(kept, fitted, k, given, place) for k, fitted, place in zip(every, short, at, strict=True)]

    def detect(self, given: Given) -> Verdict:
        found = self.screen(given)
        scores = found.highest
        index = anomaly_index(scores, "high").tolist()
        return Verdict(scores, index, self.above, "scores", {"rates": in_words(found.rates)})


@dataclass
class ScreeningPlaces(Screening):
    """The same, and again with the patches of each class at the place where patches do most.

    One place is enough also for a backdoor that answers anywhere. stride, each, shortlist: of the search for the places
    (`places.likeliest`), which has the images that the generators see
    """

    stride: int = 2
    each: int = 40
    shortlist: int = 12

    def rules(self, given: Given) -> list[Rule]:
        return [Rule(rule.size, one) for rule in super().rules(given) for one in (False, True)]

    def places(self, given: Given, rule: Rule) -> Tensor:
        return likeliest(given, rule.size, self.stride, self.each, self.shortlist, clean=halves(given)[0])


def in_words(found: dict[Rule, object]) -> dict[str, object]:
    """The same with rules as text, as results are kept."""
    return {str(rule): value for rule, value in found.items()}
