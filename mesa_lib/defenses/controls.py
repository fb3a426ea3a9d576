"""The controls of every repair: fine-tuning alone, random triggers, a single inverted trigger."""

from dataclasses import dataclass, field

from torch import Tensor

from mesa_lib import inversion, retrain
from mesa_lib.defenses.base import DefenderView, Knowledge, Repairer, RepairResult


@dataclass
class SingleInversion(Repairer):
    """The baseline: one trigger reversed by gradient descent on its pixels, and retraining with it."""

    knows: Knowledge = field(default=Knowledge("weights", target=True, rule=True, size=True), init=False)

    def repair(self, given: DefenderView) -> RepairResult:
        found: Tensor = inversion.invert_trigger(
            given.model, given.clean.images, given.target, seed=given.seed, size=given.size,
            precision=given.precision,
        )  # fmt: skip
        return RepairResult(retrained(given, [retrain.stamping(retrain.constant(found))]))
