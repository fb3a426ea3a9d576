"""Detection by random triggers alone: the simplest rival of MESA."""

from dataclasses import dataclass, field

import torch

from mesa_lib import device as devices
from mesa_lib import triggers
from mesa_lib.defenses.base import DefenderView, Detector, Knowledge, Verdict, anomaly_index


@dataclass
class RandomTriggers(Detector):
    """The plainest rival: mean ASR per class of random patches of extreme colors. Forward passes only."""

    triggers: int = 300
    images_per_trigger: int = 8
    family: str = "binary"
    above: float = 0.2
    knows: Knowledge = field(default=Knowledge("outputs", images=500, rule=True, size=True), init=False)

    def detect(self, given: DefenderView) -> Verdict:
        rng = devices.rng(given.seed)
        drawn = triggers.random_triggers(self.triggers, self.family, rng, given.size)
        index = torch.randint(len(given.clean), (self.triggers * self.images_per_trigger,), generator=rng)
        images, labels = given.clean.images[index.to(given.clean.images.device)].cpu(), given.clean.labels.cpu()[index]
        stamped = triggers.stamp_random(images.float() / 255, drawn.repeat_interleave(self.images_per_trigger, 0), rng)
        answers = given.outputs(stamped).argmax(1)
        scores = [float((answers[labels != k] == k).float().mean()) for k in range(given.classes)]
        return Verdict(scores, anomaly_index(scores, "high").tolist(), self.above, "scores")
