"""What a defender may know: `Knowledge` declares it, `DefenderView` holds that and nothing else.

Asking for more is an error, and the true trigger, the attack and the evaluation images have no name by which they could
be asked for. (This prevents mistakes; code that reaches into private attributes finds whatever is there.)
"""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from mesa_lib import device as devices
from mesa_lib import retrain
from mesa_lib.data.splits import Split
from mesa_lib.models.frozen import frozen
from mesa_lib.models.inference import logits
from mesa_lib.retrain import ImageTransform
from mesa_lib.settings import RepairSettings

ACCESS = ("outputs", "gradients", "weights")


@dataclass(frozen=True)
class Knowledge:
    """What a method needs to know.

    Attributes:
        model: the access it needs: `outputs`, probabilities for images of its choice; `gradients`, the network as a
            fixed differentiable function; `weights`, the network itself.
        images: the largest number of clean labeled images that it uses; 0: none; None: all that the defender has.
        target: whether it needs the attacker's target class.
        rule: whether it assumes that the trigger is a patch that overwrites the image.
        size: whether it needs the height and width of the patch.
    """

    model: Literal["outputs", "gradients", "weights"]
    images: int | None = None
    target: bool = False
    rule: bool = False
    size: bool = False

    def text(self) -> str:
        """Return the declaration as tables show it: `weights, 1000 clean images, target class`."""
        images = "all clean images" if self.images is None else f"{self.images} clean images" if self.images else ""
        parts = [self.model, images, "target class" if self.target else ""]
        parts += ["stamping rule" if self.rule else "", "trigger size" if self.size else ""]
        return ", ".join(filter(None, parts))

    def covers(self, other: "Knowledge") -> bool:
        """Return whether a defender with this knowledge has everything that `other` declares."""
        images, wanted = (float("inf") if k.images is None else k.images for k in (self, other))
        facts = all(getattr(self, name) or not getattr(other, name) for name in ("target", "rule", "size"))
        return facts and wanted <= images and ACCESS.index(other.model) <= ACCESS.index(self.model)


class UndeclaredAccess(AttributeError):
    """A method asked for something that it did not declare."""


class FrozenClassifier(nn.Module):
    """A network as a function: images in [0, 1] -> logits, float32, with gradients to the images, and nothing else."""

    def __init__(self, model: nn.Module, precision: str):
        super().__init__()
        device = next(model.parameters()).device
        self.anchor = nn.Parameter(torch.zeros((), device=device), requires_grad=False)  # tells the device
        network = frozen(model, precision)

        def forward(x: Tensor) -> Tensor:
            with devices.autocast(x.device, precision):
                return network(x).float()

        self._forward = forward

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(x)


class SearchCache:
    """Searches on one model, so that a detector and a repair that begins with it search once.

    `saved` counts the seconds that repeated searches would have taken.
    """

    def __init__(self):
        self.saved, self._results = 0.0, {}

    def once(self, key: str, search: Callable[[], object]):
        """Return what `search` returns, or what it returned under this key before."""
        if key in self._results:
            result, seconds = self._results[key]
            self.saved += seconds
            return result
        start = time.monotonic()
        result = search()
        self._results[key] = result, time.monotonic() - start
        return result


class DefenderView:
    """What a defender gives to a method: as much as the method declares, and no more.

    Attributes:
        classes, image_size, seed, precision, device: always there.
        outputs: images -> probabilities (N, classes), float32 on the CPU; always there.
        model: with `gradients` a `FrozenClassifier`; with `weights` a copy of the network in eval mode.
        clean: the clean images (`Split`), unless `images` is 0.
        target, size: if declared.
        retrain: with `weights`, `retrain(model, transform)`; see below.
    """

    def __init__(
        self,
        knowledge: Knowledge,
        model: nn.Module,
        clean: Split,
        classes: int,
        *,
        target: int | None = None,
        size: tuple[int, int] | None = None,
        seed: int = 0,
        precision: str = "float32",
        repair: RepairSettings | None = None,
        cache: SearchCache | None = None,
    ):
        """Prepare the view.

        Args:
            knowledge: what the method declares; of the rest it gets nothing.
            model: the model under test; a method gets a copy.
            clean: the defender's images, uint8, and labels; a method that uses fewer gets a random subset.
            classes: number of classes.
            target, size: the attacker's target class; height and width of the patch.
            seed: the defender's; never the attacker's, from which a trigger may have been drawn.
            precision: see `device.autocast`.
            repair: how this defender retrains models; None: the defaults.
            cache: of earlier searches on the same model and images.
        """
        self.knowledge, self.classes, self.seed, self.precision = knowledge, classes, seed, precision
        self.device, self.image_size = next(model.parameters()).device, tuple(clean.images.shape[-2:])
        self._cache, self._repair = cache or SearchCache(), repair or RepairSettings()
        network = copy.deepcopy(model).eval() if knowledge.model == "weights" else FrozenClassifier(model, precision)
        declared: dict = {"outputs": lambda images: probabilities(network, images, precision)}
        if knowledge.model != "outputs":
            declared["model"] = network
        if knowledge.images != 0:
            n = len(clean) if knowledge.images is None else min(knowledge.images, len(clean))
            index = torch.randperm(len(clean), generator=devices.rng(devices.derive_seed(seed, "subset")))[:n]
            declared["clean"] = clean[index.to(clean.images.device)]
        if knowledge.target:
            declared["target"] = target
        if knowledge.size:
            declared["size"] = size
        if knowledge.model == "weights":
            declared["retrain"] = self._retrain
        self._declared = declared
        options = {"target": target, "size": size, "seed": seed, "precision": precision, "repair": repair}
        self._with = lambda less: DefenderView(less, model, clean, classes, **options, cache=self._cache)

    def _retrain(
        self, model: nn.Module, transform: ImageTransform | None = None, k: int = 0, label: str = "repair"
    ) -> list[dict]:
        """Retrain `model` in place on the clean images as this defender retrains -> the history.

        Args:
            model: usually `view.model`.
            transform: applied to a fraction of the images; None: fine-tuning alone.
            k: counts the retrainings of one repair; each has its own seed.
            label: of the progress bar.
        """
        return retrain.retrain(
            model, self.clean.images, self.clean.labels, transform, self._repair,
            seed=devices.derive_seed(self.seed, "retrain", k), precision=self.precision, label=label,
        )  # fmt: skip

    def once(self, method: object, search: Callable[[], object]):
        """Return what `search` returns, or what it returned to a method with equal settings and knowledge before."""
        return self._cache.once(f"{method!r} {self.knowledge!r}", search)

    def restricted(self, knowledge: Knowledge) -> "DefenderView":
        """Return the view for a method that is a part of this one; UndeclaredAccess if that declares more."""
        if not self.knowledge.covers(knowledge):
            raise UndeclaredAccess(f"{knowledge.text()}: more than what the method declares ({self.knowledge.text()})")
        return self._with(knowledge)

    def __getattr__(self, name: str):
        declared = self.__dict__.get("_declared", {})
        if name in declared:
            return declared[name]
        raise UndeclaredAccess(f"{name}: not among what the method declares ({self.knowledge.text()})")


@torch.no_grad()
def probabilities(model: nn.Module, images: Tensor, precision: str = "float32") -> Tensor:
    """Return softmax outputs (N, classes), float32 on the CPU, of images (N, 3, H, W), uint8 or in [0, 1]."""
    return logits(model, images, precision).softmax(1)
