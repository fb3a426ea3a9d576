"""One way in for each kind of defence, and what a defender may know.

    Detector    given -> Verdict           is a class backdoored, and which?
    Repairer    given -> model             the model without it
    Filter      given, images -> scores    which inputs carry a trigger? Fitted on clean images only
    Reformer    images -> images           inputs that a trigger does not survive

Each method declares what it knows (`Knowledge`). What it is handed (`Given`) holds that and nothing else: asking for
more is an error, so no defence can see the true trigger, the attack or the evaluation images: they are never there.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from .. import device as devices
from ..data import Split
from ..inference import logits


@dataclass(frozen=True)
class Knowledge:
    """What a method has to be given.

    model: `outputs`, probabilities of images of its choice; `gradients`, the network as a fixed function that can be
    differentiated; `weights`, the network itself. images: the most clean labelled images that it uses, 0: none, None:
    all that the defender has. target, size: the attacker's target class, the height and width of the trigger
    """

    model: Literal["outputs", "gradients", "weights"]
    images: int | None = None
    target: bool = False
    size: bool = False

    def words(self) -> str:
        """As it stands in tables: `weights, 1000 images, target`."""
        images = "all clean images" if self.images is None else f"{self.images} clean images" if self.images else ""
        parts = [self.model, images, "target class" if self.target else "", "trigger size" if self.size else ""]
        return ", ".join(filter(None, parts))


class NotGiven(AttributeError):
    """A method asked for something that it did not declare."""


class Given:
    """What a defender hands to a method: as much as the method declares, and no more.

    `classes`, `image_size`, `seed`, `precision`, `device` are always there. `model` is a copy in eval mode, so that no
    method can change the model under test.
    """

    def __init__(
        self,
        knows: Knowledge,
        model: nn.Module,
        clean: Split,
        classes: int,
        *,
        target: int | None = None,
        size: tuple[int, int] | None = None,
        seed: int = 0,
        precision: str = "float32",
        train: Callable[..., list[dict]] | None = None,
    ):
        """clean: the defender's images (uint8) and labels; of a method that uses fewer a draw by `seed` is handed on.

        train(model, images, labels, edit, **changes): how this defender retrains models
        """
        self.knows, self.classes, self.seed, self.precision = knows, classes, seed, precision
        self.device = next(model.parameters()).device
        self.image_size = tuple(clean.images.shape[-2:])
        held = copy.deepcopy(model).eval()
        if knows.model == "gradients":
            held.requires_grad_(False)
        own: dict = {}
        if knows.model == "outputs":
            own["outputs"] = lambda images: probabilities(held, images, precision)
        else:
            own["model"] = held
            own["outputs"] = lambda images: probabilities(held, images, precision)
        if knows.images != 0:
            n = len(clean) if knows.images is None else min(knows.images, len(clean))
            index = torch.randperm(len(clean), generator=devices.rng(seed + 77))[:n]
            own["clean"] = clean[index.to(clean.images.device)]
        if knows.target:
            own["target"] = target
        if knows.size:
            own["size"] = size
        if knows.model == "weights" and train is not None:
            own["train"] = train
        self._own = own

    def __getattr__(self, name: str):
        own = self.__dict__.get("_own", {})
        if name in own:
            return own[name]
        raise NotGiven(f"{name}: not among what the method declares ({self.knows.words()})")


@torch.no_grad()
def probabilities(model: nn.Module, images: Tensor, precision: str = "float32") -> Tensor:
    """Softmax outputs (N, classes), float32 on the CPU, of images uint8 or in [0, 1], (N, 3, H, W)."""
    return logits(model, images, precision).softmax(1)


@dataclass
class Verdict:
    """What a detector says.

    scores: one number a class, higher is more suspect; index: how far each lies out among the classes, in the method's
    own unit (often the anomaly index); flagged: the classes that it holds for targets; about: numbers worth keeping
    """

    scores: list[float]
    index: list[float]
    flagged: list[int]
    about: dict = field(default_factory=dict)

    @property
    def backdoored(self) -> bool:
        return bool(self.flagged)

    @property
    def suspect(self) -> int:
        """The class that stands out most, flagged or not."""
        return int(np.argmax(self.scores))

    def as_dict(self) -> dict:
        return {"scores": self.scores, "index": self.index, "flagged": self.flagged, "about": self.about}


class Detector(Protocol):
    knows: Knowledge

    def detect(self, given: Given) -> Verdict: ...


class Repairer(Protocol):
    knows: Knowledge

    def repair(self, given: Given) -> nn.Module: ...


class Filter(Protocol):
    """A score per image, higher is more suspect; `fit` sees clean images only."""

    knows: Knowledge

    def fit(self, given: Given) -> "Filter": ...

    def score(self, images: Tensor) -> Tensor: ...


class Reformer(Protocol):
    def __call__(self, images: Tensor) -> Tensor: ...


#: what no anomaly index exceeds
MOST = 1000.0


def anomaly_index(values: Tensor | np.ndarray | list, side: str = "both") -> np.ndarray:
    """|value - median| / (1.4826 * median absolute deviation), the outlier measure of Neural Cleanse.

    The median of an even number of values is the mean of the middle two. `low`: values above the median count as 0;
    `high`: those below. At most `MOST`, as where most values are equal and the deviation is 0.
    """
    values = np.asarray(values, float)
    middle = np.median(values)
    spread = 1.4826 * np.median(np.abs(values - middle))
    off = np.abs(values - middle)
    with np.errstate(divide="ignore", invalid="ignore"):
        index = np.where(off == 0, 0.0, np.minimum(off / spread, MOST))
    if side == "low":
        index = np.where(values > middle, 0.0, index)
    if side == "high":
        index = np.where(values < middle, 0.0, index)
    return index


def threshold(clean_scores: Tensor, false_positive_rate: float) -> float:
    """The score above which an input is flagged, so that at most this fraction of clean images is: their quantile."""
    if not 0 < false_positive_rate < 1:
        raise ValueError(f"false_positive_rate = {false_positive_rate}: expected a number strictly between 0 and 1")
    ordered = torch.as_tensor(clean_scores).sort().values
    keep = int(np.ceil((1 - false_positive_rate) * len(ordered) - 1e-9))  # 0.95 * 100 is a little more than 95
    return float(ordered[min(max(keep, 1), len(ordered)) - 1])
