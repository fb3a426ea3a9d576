"""The controls of every repair: fine-tuning alone, random triggers, a single inverted trigger, the true trigger.

They differ from MESA's repair in nothing but what is stamped on the images.
"""

from dataclasses import dataclass, field

from torch import Tensor

from mesa_lib import device as devices
from mesa_lib import inversion, retrain
from mesa_lib.defenses.base import DefenderView, Knowledge, Repairer, RepairResult, StampingRepair
from mesa_lib.retrain import ImageTransform


@dataclass
class FineTuning(Repairer):
    """Retraining on clean images without any trigger, in the hope that the backdoor is forgotten."""

    knowledge: Knowledge = field(default=Knowledge("weights"), init=False)

    def repair(self, view: DefenderView) -> RepairResult:
        """Return the view's model after retraining."""
        return RepairResult(view.model, view.retrain(view.model))


@dataclass
class RandomTriggersRepair(StampingRepair):
    """Retraining with random triggers of one family (`triggers.random_triggers`), without any modeling."""

    family: str
    knowledge: Knowledge = field(default=Knowledge("weights", rule=True, size=True), init=False)

    def transforms(self, view: DefenderView) -> tuple[list[ImageTransform], dict]:
        """Return the stamping of random triggers."""
        return [retrain.stamping(retrain.random_source(self.family, view.size))], {}


@dataclass
class SingleInversion(StampingRepair):
    """The baseline: retraining with one trigger, inverted by gradient descent on its pixels (`inversion`).

    `repeat` counts independent inversions of the same model.
    """

    repeat: int = 0
    knowledge: Knowledge = field(default=Knowledge("weights", target=True, rule=True, size=True), init=False)

    def invert(self, view: DefenderView) -> Tensor:
        """Return the inverted trigger (3, h, w); one view's model is inverted once for each `repeat`."""

        def invert() -> Tensor:
            return inversion.invert_trigger(
                view.model, view.clean.images, view.target, size=view.size, precision=view.precision,
                seed=devices.derive_seed(view.seed, "inversion", self.repeat),
            )  # fmt: skip

        return view.once(self, invert)

    def transforms(self, view: DefenderView) -> tuple[list[ImageTransform], dict]:
        """Return the stamping of the inverted trigger."""
        return [retrain.stamping(retrain.constant(self.invert(view)))], {}


@dataclass
class IdealRepair(StampingRepair):
    """Retraining with the attacker's own transform of the images, which no defender has: the bound of all repairs."""

    transform: ImageTransform
    knowledge: Knowledge = field(default=Knowledge("weights"), init=False)

    def transforms(self, view: DefenderView) -> tuple[list[ImageTransform], dict]:
        """Return the attacker's transform."""
        return [self.transform], {}
