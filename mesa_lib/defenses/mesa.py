"""MESA as a defence of its own: which class is backdoored (the paper's first step), and the repair.

Screening models a trigger distribution for every class at once, at one level and for a few steps; a class whose samples
fire often on images that the generator never saw is a suspect. The full staircase is modelled for suspects only, and a
suspect whose samples fire on nearly all unseen images is flagged. Where the trigger's size is not known, it tries some.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from .. import device as devices
from .. import metrics, point, retrain, staircase, triggers
from ..data import Split
from ..staircase import Settings, TriggerDistribution
from .base import Detector, Given, Knowledge, Repair, Repairer, Verdict, anomaly_index

Size = tuple[int, int]
#: what a defender tries who does not know the trigger's size
SQUARES: tuple[Size, ...] = ((2, 2), (3, 3), (4, 4), (5, 5))


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
    """The defender's images: those that the generators see, and those on which their samples are judged."""
    half = len(given.clean) // 2
    return given.clean[:half], given.clean[half:]


def success_on(kept: Split, fitted: TriggerDistribution, label: int, given: Given) -> float:
    """Mean ASR of 100 samples towards a class, on images of other classes."""
    drawn = fitted.sample(100, devices.rng(given.seed + 5, given.device)).cpu()
    rates = metrics.asr_of_samples(
        given.model, kept.images, kept.labels, drawn, label, images_per_trigger=8, precision=given.precision
    )
    return float(rates.mean())


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

    def rates(self, given: Given) -> dict[Size, list[float]]:
        """size -> how often each class's samples fire on held-out images."""
        return {size: self._at(given, size) for size in self.sizes or (given.size,)}

    def _at(self, given: Given, size: Size) -> list[float]:
        """All classes at once: their triggers share every pass through the model."""
        s = replace(self.settings, trigger_size=size, seed=given.seed)
        seen, kept = halves(given)
        every = range(given.classes)
        together = staircase.success_of_each(
            given.model, seen.images.to(given.device), seen.labels.to(given.device), every, s, given.precision
        )  # fmt: skip
        seeds = [given.seed + 31 * k for k in every]
        levels = staircase.fit_levels(together, (3, *size), [s.betas[0]] * len(every), s, given.device, seeds)
        short = [TriggerDistribution([level], [1.0], s) for level in levels]
        return [success_on(kept, fitted, k, given) for k, fitted in enumerate(short)]

    def detect(self, given: Given) -> Verdict:
        rates = self.rates(given)
        scores = highest(rates)
        index = anomaly_index(scores, "high").tolist()
        return Verdict(scores, index, self.above, "scores", {"rates": by_size(rates)})


def highest(rates: dict[Size, list[float]]) -> list[float]:
    """Of every class the highest of all sizes."""
    return [max(of_class) for of_class in zip(*rates.values(), strict=True)]


def by_size(found: dict[Size, object]) -> dict[str, object]:
    """The same with sizes as text, `3x3`, as results are kept."""
    return {f"{height}x{width}": value for (height, width), value in found.items()}


@dataclass
class Searched:
    """What MESA's detector found.

    screened: the screening's rates, by size, of every class; models: the full distributions of each suspect, by size;
    rates: the mean ASR of the samples of their highest level on held-out images
    """

    screened: dict[Size, list[float]]
    models: dict[int, dict[Size, TriggerDistribution]]
    rates: dict[int, dict[Size, float]]


@dataclass
class MESA(Detector):
    """Screening, the full staircase for the suspects, a verdict.

    Suspects are the classes whose screening exceeds `suspect`, at most the `most` highest; where several sizes were
    tried, they are modelled at those at which they did, at most the `sizes` highest. A suspect's score is the mean ASR
    of the samples of its highest level on held-out images (of all sizes the highest), any other class's that of its
    screening.
    """

    screening: Screening = field(default_factory=Screening)
    settings: Settings = Settings()
    suspect: float = 0.1
    most: int = 3
    sizes: int = 2
    above: float = 0.5
    knows: Knowledge = field(init=False)

    def __post_init__(self):
        self.knows = self.screening.knows

    def search(self, given: Given) -> Searched:
        screened = self.screening.rates(given)
        scores = highest(screened)
        order = sorted(range(given.classes), key=lambda k: -scores[k])
        found = Searched(screened, {}, {})
        seen, kept = halves(given)
        for k in [k for k in order[: self.most] if scores[k] > self.suspect]:
            found.models[k], found.rates[k] = {}, {}
            firing = [size for size, rates in screened.items() if rates[k] > self.suspect]
            for size in sorted(firing, key=lambda size: -screened[size][k])[: self.sizes]:
                s = replace(self.settings, trigger_size=size, seed=given.seed)
                fitted = staircase.fit(given.model, seen.images, seen.labels, k, s, precision=given.precision)
                found.models[k][size] = fitted
                found.rates[k][size] = success_on(kept, fitted.at(max(s.betas)), k, given)
        return found

    def detect(self, given: Given) -> Verdict:
        return self.judge(self.search(given))

    def judge(self, found: Searched) -> Verdict:
        scores = highest(found.screened)
        for k, rates in found.rates.items():
            scores[k] = max(rates.values())
        about = {
            "screened": by_size(found.screened),
            "suspects": {str(k): by_size(rates) for k, rates in found.rates.items()},
        }
        return Verdict(scores, anomaly_index(scores, "high").tolist(), self.above, "scores", about)


def any_size() -> MESA:
    """The same for a defender who does not know the trigger's size."""
    return MESA(Screening(sizes=SQUARES))


# --- repairs ---------------------------------------------------------------------------------------------


def retrained(given: Given, sources: Iterable[retrain.Source]) -> nn.Module:
    """The model after the defender's retraining, with triggers of the sources, drawn evenly."""
    change = retrain.one_of([retrain.stamped(source) for source in sources])
    given.train(given.model, given.clean, retrain.applying(change, given.rate))
    return given.model


@dataclass
class MESARepair(Repairer):
    """Target and size known, as in the paper: model the staircase for the target class, retrain on its samples.

    The settings are those of the digits on every data set, all steps, without the early stop.
    """

    settings: Settings = Settings()
    knows: Knowledge = field(default=Knowledge("weights", target=True, rule=True, size=True), init=False)

    def repair(self, given: Given) -> Repair:
        settings = replace(self.settings, trigger_size=given.size, seed=given.seed)
        fitted = staircase.fit(
            given.model, given.clean.images, given.clean.labels, given.target, settings, precision=given.precision
        )
        return Repair(retrained(given, [fitted.sample]))


@dataclass
class MESADetected(Repairer):
    """Detect, then retrain on samples of every flagged class and size whose model fires; unchanged if there is none."""

    detector: MESA = field(default_factory=MESA)
    knows: Knowledge = field(init=False)

    def __post_init__(self):
        self.knows = Knowledge("weights", rule=True, size=self.detector.knows.size)

    def repair(self, given: Given) -> Repair:
        found = self.detector.search(given.narrowed(self.detector.knows))
        fires = {
            (k, size): fitted.sample
            for k, models in found.models.items()
            for size, fitted in models.items()
            if found.rates[k][size] > self.detector.above
        }
        about = {"flagged": sorted({k for k, _ in fires}), "sizes": sorted({size for _, size in fires})}
        return Repair(retrained(given, fires.values()) if fires else given.model, about)


def any_size_detected() -> MESADetected:
    """The same for a defender who does not know the trigger's size."""
    return MESADetected(any_size())


@dataclass
class PointRepair(Repairer):
    """The baseline: one trigger reversed by gradient descent on its pixels, and retraining with it."""

    knows: Knowledge = field(default=Knowledge("weights", target=True, rule=True, size=True), init=False)

    def repair(self, given: Given) -> Repair:
        found: Tensor = point.reverse(
            given.model, given.clean.images, given.target, seed=given.seed, size=given.size,
            precision=given.precision,
        )  # fmt: skip
        return Repair(retrained(given, [retrain.fixed(found)]))
