"""The controls of every repair: fine-tuning alone, random triggers, inverted triggers, the true trigger.

They differ from MESA's repair in nothing but what is stamped on the images.
"""

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from mesa_lib import device as devices
from mesa_lib import inversion, retrain, success
from mesa_lib.defenses import restarted_inversion
from mesa_lib.defenses.base import DefenderView, Knowledge, Repairer, RepairResult, StampingRepair
from mesa_lib.retrain import ImageTransform

#: an inverted trigger succeeds if its ASR on clean images of other classes is at least this
SUCCEEDS = 0.5
TRIGGER_KNOWLEDGE = Knowledge("weights", target=True, rule=True, size=True)


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
    knowledge: Knowledge = field(default=TRIGGER_KNOWLEDGE, init=False)

    def invert(self, view: DefenderView) -> Tensor:
        """Return the inverted trigger (3, h, w); one view's model is inverted once for each `repeat`."""

        def invert() -> Tensor:
            return inversion.invert_trigger(
                view.model, view.clean.images, view.target, size=view.size, precision=view.precision,
                seed=devices.derive_seed(view.seed, "inversion", self.repeat),
            )  # fmt: skip

        return view.once(self, invert)

    def transforms(self, view: DefenderView) -> tuple[list[ImageTransform], dict]:
        """Return the stamping of the inverted trigger, and its ASR on the clean images."""
        trigger = self.invert(view)
        (rate,) = success.asr_of_triggers(
            view.model, view.clean.images, view.clean.labels, trigger[None], view.target, images_per_trigger=256,
            seed=devices.derive_seed(view.seed, "judged inversion"), precision=view.precision,
        ).tolist()  # fmt: skip
        return [retrain.stamping(retrain.constant(trigger))], {"inverted": rate} | _failure(rate)


@dataclass
class RestartedInversion(StampingRepair):
    """The fair baseline: many inversions by Adam from random starts (`restarted_inversion`).

    Attributes:
        restarts: number of starts.
        keep: `best` stamps the trigger with the highest ASR on held-out images; `all` one of all that succeed for each
            image, a poor man's distribution.
    """

    restarts: int = 32
    keep: Literal["best", "all"] = "best"
    knowledge: Knowledge = field(default=TRIGGER_KNOWLEDGE, init=False)

    def invert(self, view: DefenderView) -> tuple[Tensor, Tensor]:
        """Return the triggers (restarts, 3, h, w), best first, and their ASR; once for one view's model."""

        def invert() -> tuple[Tensor, Tensor]:
            return restarted_inversion.invert_triggers(
                view.model, view.clean.images, view.clean.labels, view.target, restarts=self.restarts, size=view.size,
                seed=devices.derive_seed(view.seed, "inversion with restarts"), precision=view.precision,
            )  # fmt: skip

        return view.once(f"RestartedInversion.invert {self.restarts}", invert)

    def transforms(self, view: DefenderView) -> tuple[list[ImageTransform], dict]:
        """Return the stamping of the triggers that are kept; the best ASR, and how many succeed."""
        triggers, rates = self.invert(view)
        succeed = int((rates >= SUCCEEDS).sum())
        kept = triggers[: max(1, succeed)] if self.keep == "all" else triggers[:1]
        about = {"inverted": float(rates[0]), "restarts": self.restarts, "succeed": succeed}
        return [retrain.stamping(retrain.choice(kept))], about | _failure(about["inverted"])


def _failure(rate: float) -> dict:
    """Return `failed`, a text, if an inverted trigger has so low an ASR."""
    if rate >= SUCCEEDS:
        return {}
    return {"failed": f"no inverted trigger succeeds: the best has an ASR of {rate:.0%} on clean images"}


@dataclass
class IdealRepair(StampingRepair):
    """Retraining with the attacker's own transform of the images, which no defender has: the bound of all repairs."""

    transform: ImageTransform
    knowledge: Knowledge = field(default=Knowledge("weights"), init=False)

    def transforms(self, view: DefenderView) -> tuple[list[ImageTransform], dict]:
        """Return the attacker's transform."""
        return [self.transform], {}
