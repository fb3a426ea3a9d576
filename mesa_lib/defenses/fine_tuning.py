"""Fine-tuning: go on training on clean images, in the hope that the backdoor is forgotten. The first control."""

from dataclasses import dataclass, field

from .base import Given, Knowledge, Repair, Repairer


@dataclass
class FineTuning(Repairer):
    """Retrains as this defender does, without any trigger."""

    knows: Knowledge = field(default=Knowledge("weights"), init=False)

    def repair(self, given: Given) -> Repair:
        given.train(given.model, given.clean)
        return Repair(given.model)
