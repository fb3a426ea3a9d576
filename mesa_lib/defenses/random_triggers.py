"""Detection by random triggers alone: the simplest rival of MESA, with forward passes only."""

from dataclasses import dataclass, field

import torch

from mesa_lib import device as devices
from mesa_lib import triggers
from mesa_lib.defenses.base import DefenderView, Detector, Knowledge, Verdict, anomaly_index
from mesa_lib.models.inference import to_float


@dataclass
class RandomTriggers(Detector):
    """Score of a class: the mean ASR of random patches of extreme colors, over images of other classes."""

    triggers: int = 300
    images_per_trigger: int = 8
    family: str = "binary"
    above: float = 0.2
    knowledge: Knowledge = field(default=Knowledge("outputs", images=500, rule=True, size=True), init=False)

    def detect(self, view: DefenderView) -> Verdict:
        """Return the verdict on the view's model."""
        rng = devices.rng(view.seed)
        patches = triggers.random_triggers(self.triggers, self.family, rng, view.size)
        index = torch.randint(len(view.clean), (self.triggers * self.images_per_trigger,), generator=rng)
        images, labels = view.clean.images[index.to(view.clean.images.device)].cpu(), view.clean.labels.cpu()[index]
        stamped = triggers.stamp_random(to_float(images), patches.repeat_interleave(self.images_per_trigger, 0), rng)
        predicted = view.outputs(stamped).argmax(1)
        scores = [float((predicted[labels != k] == k).float().mean()) for k in range(view.classes)]
        return Verdict(scores, anomaly_index(scores, "high").tolist(), self.above, "scores")
