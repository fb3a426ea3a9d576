"""Fine-tuning: go on training on clean images, in the hope that the backdoor is forgotten. The first control."""

from dataclasses import dataclass, field

from mesa_lib.defenses.base import DefenderView, Knowledge, Repairer, RepairResult


@dataclass
class FineTuning(Repairer):
    """Retrains as this defender does, without any trigger."""

    knows: Knowledge = field(default=Knowledge("weights"), init=False)

    def repair(self, given: DefenderView) -> RepairResult:
        given.train(given.model, given.clean)
        return RepairResult(given.model)
