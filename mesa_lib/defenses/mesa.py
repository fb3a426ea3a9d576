"""MESA as a defence of its own: which class is backdoored (the paper's first step), and the repair.

Screening models a trigger distribution for every class at once, at one level and for a few steps; a class whose samples
fire often on images that the generator never saw is a suspect. The full staircase is modelled for suspects only.
"""

import copy
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from .. import device as devices
from .. import metrics, retrain, staircase, triggers
from ..classifiers import frozen
from ..staircase import Settings, TriggerDistribution
from .base import Detector, Given, Knowledge, Repairer, Verdict, anomaly_index


@dataclass
class RandomTriggers(Detector):
    """The plainest rival: mean ASR per class of random patches of extreme colours. Forward passes only.

    above: provisional, not yet fixed on clean models
    """

    triggers: int = 300
    images_per_trigger: int = 8
    law: str = "binary"
    above: float = 0.4
    knows: Knowledge = field(default=Knowledge("outputs", images=500, size=True), init=False)

    def detect(self, given: Given) -> Verdict:
        rng = devices.rng(given.seed)
        drawn = triggers.random(self.triggers, self.law, rng, given.size)
        index = torch.randint(len(given.clean), (self.triggers * self.images_per_trigger,), generator=rng)
        images, labels = given.clean.images[index.to(given.clean.images.device)].cpu(), given.clean.labels.cpu()[index]
        stamped = triggers.stamp_random(images.float() / 255, drawn.repeat_interleave(self.images_per_trigger, 0), rng)
        answers = given.outputs(stamped).argmax(1)
        scores = [float((answers[labels != k] == k).float().mean()) for k in range(given.classes)]
        flagged = [k for k, score in enumerate(scores) if score > self.above]
        return Verdict(scores, anomaly_index(scores, "high").tolist(), flagged)


@dataclass
class Screening(Detector):
    """Score: the mean ASR of a class's samples on images of other classes that its generator never saw.

    above: provisional, not yet fixed on clean models
    """

    settings: Settings = Settings(betas=(0.9,), steps=60, batch=16)
    above: float = 0.8
    knows: Knowledge = field(default=Knowledge("gradients", images=2000, size=True), init=False)

    def levels(self, given: Given) -> tuple[list[staircase.Level], list[float]]:
        """A short model of every class, and how often its samples fire on held-out images."""
        s = replace(self.settings, trigger_size=given.size, seed=given.seed)
        model = frozen(given.model, given.precision)
        half = len(given.clean) // 2
        images, labels = given.clean.images.to(given.device), given.clean.labels.to(given.device)
        seen, kept = slice(0, half), slice(half, None)
        every = range(given.classes)
        together = staircase.success_of_each(model, images[seen], labels[seen], every, s, given.precision)
        beta = s.betas[0]
        seeds = [given.seed + 31 * k for k in every]
        levels = staircase.fit_levels(together, (3, *given.size), [beta] * len(every), s, given.device, seeds)
        rates = []
        for k, level in enumerate(levels):
            one = TriggerDistribution([level], [1.0], s)
            drawn = one.sample(100, devices.rng(given.seed + 5, given.device)).cpu()
            rate = metrics.asr_of_samples(
                given.model, images[kept], labels[kept], drawn, k, images_per_trigger=8, precision=given.precision
            )
            rates.append(float(rate.mean()))
        return levels, rates

    def detect(self, given: Given) -> Verdict:
        _, scores = self.levels(given)
        flagged = [k for k, score in enumerate(scores) if score > self.above]
        return Verdict(scores, anomaly_index(scores, "high").tolist(), flagged)


@dataclass
class MESARepair(Repairer):
    """Model the staircase for the target class, retrain on its samples."""

    settings: Settings = Settings()
    rate: float = 0.2
    knows: Knowledge = field(default=Knowledge("weights", target=True, size=True), init=False)

    def repair(self, given: Given) -> nn.Module:
        settings = replace(self.settings, trigger_size=given.size, seed=given.seed)
        model = copy.deepcopy(given.model)
        fitted = staircase.fit(
            given.model, given.clean.images, given.clean.labels, given.target, settings, precision=given.precision
        )
        given.train(model, given.clean, retrain.stamping(fitted.sample, self.rate))
        return model
