"""One way in for each kind of defense, and what a defender may know.

    Detector    given -> Verdict           is a class backdoored, and which?
    Repairer    given -> Repair            the model without it
    Filter      given, images -> scores    which inputs carry a trigger? Fitted on clean images only
    Reformer    images -> images           inputs that a trigger does not survive

Each method declares what it knows (`Knowledge`). What it is handed (`Given`) holds that and nothing else: asking for
more is an error, and the true trigger, the attack and the evaluation images have no name by which they could be asked
for. (This keeps a method from mistakes; code that reaches into private parts of objects finds whatever is there.)
"""

import copy
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from mesa_lib import device as devices
from mesa_lib.data import Split
from mesa_lib.models.frozen import frozen
from mesa_lib.models.inference import logits


@dataclass(frozen=True)
class Knowledge:
    """What a method has to be given.

    model: `outputs`, probabilities of images of its choice; `gradients`, the network as a fixed function that can be
    differentiated; `weights`, the network itself. images: the most clean labeled images that it uses, 0: none, None:
    all that the defender has. target: the attacker's target class. rule: that the trigger is a patch which covers what
    is under it, at any place (some methods: or at one that they look for); size: its height and width
    """

    model: Literal["outputs", "gradients", "weights"]
    images: int | None = None
    target: bool = False
    rule: bool = False
    size: bool = False

    def words(self) -> str:
        """As it stands in tables: `weights, 1000 images, target`."""
        images = "all clean images" if self.images is None else f"{self.images} clean images" if self.images else ""
        parts = [self.model, images, "target class" if self.target else ""]
        parts += ["stamping rule" if self.rule else "", "trigger size" if self.size else ""]
        return ", ".join(filter(None, parts))

    def covers(self, other: "Knowledge") -> bool:
        """Whether whoever has this has everything of the other."""
        levels = ("outputs", "gradients", "weights")
        images, wanted = (float("inf") if k.images is None else k.images for k in (self, other))
        told = all(getattr(self, name) or not getattr(other, name) for name in ("target", "rule", "size"))
        return told and wanted <= images and levels.index(other.model) <= levels.index(self.model)


class UndeclaredAccess(AttributeError):
    """A method asked for something that it did not declare."""


class FrozenClassifier(nn.Module):
    """A network as a function: images in [0, 1] -> logits, float32, with gradients to the images, and nothing else."""

    def __init__(self, model: nn.Module, precision: str):
        super().__init__()
        self.at = nn.Parameter(torch.zeros((), device=next(model.parameters()).device), requires_grad=False)
        network = frozen(model, precision)

        def answer(x: Tensor) -> Tensor:
            with devices.autocast(x.device, precision):
                return network(x).float()

        self._answer = answer

    def forward(self, x: Tensor) -> Tensor:
        return self._answer(x)


class SearchCache:
    """What was found out about one model, so that a detector and the repair that begins with it search once.

    saved: seconds that would have been spent again
    """

    def __init__(self):
        self.saved, self._known = 0.0, {}

    def once(self, key: str, find: Callable[[], object]):
        if key in self._known:
            found, seconds = self._known[key]
            self.saved += seconds
            return found
        start = time.monotonic()
        found = find()
        self._known[key] = found, time.monotonic() - start
        return found


class DefenderView:
    """What a defender hands to a method: as much as the method declares, and no more.

    `classes`, `image_size`, `seed`, `precision`, `device` are always there. `model` is a copy in eval mode, so that no
    method can change the model under test; whoever declares `gradients` gets it as a function (`Fixed`).
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
        rate: float = 0.2,
        train: Callable[..., list[dict]] | None = None,
        memory: "Memory | None" = None,
    ):
        """clean: the defender's images (uint8) and labels; of a method that uses fewer a draw by `seed` is handed on.

        seed: the defender's, which must not be the attacker's: a trigger may have been drawn from that
        train(model, images, edit): how this defender retrains models; rate: on how many of the images triggers are
        stamped then. memory: of what this defender found out about this model from these images before
        """
        self._memory = memory or SearchCache()
        self.knows, self.classes, self.seed, self.precision = knows, classes, seed, precision
        self.device = next(model.parameters()).device
        self.image_size = tuple(clean.images.shape[-2:])
        held = copy.deepcopy(model).eval() if knows.model == "weights" else FrozenClassifier(model, precision)
        own: dict = {"outputs": lambda images: probabilities(held, images, precision)}
        if knows.model != "outputs":
            own["model"] = held
        if knows.images != 0:
            n = len(clean) if knows.images is None else min(knows.images, len(clean))
            index = torch.randperm(len(clean), generator=devices.rng(seed + 77))[:n]
            own["clean"] = clean[index.to(clean.images.device)]
        if knows.target:
            own["target"] = target
        if knows.size:
            own["size"] = size
        if knows.model == "weights" and train is not None:
            own |= {"train": train, "rate": rate}
        self._own = own
        told = {"target": target, "size": size, "seed": seed, "precision": precision, "rate": rate, "train": train}
        told["memory"] = self._memory
        self._with = lambda less: DefenderView(less, model, clean, classes, **told)

    def once(self, method: object, find: Callable[[], object]):
        """What `find` returns, or what it returned to a method with the same settings and knowledge before."""
        return self._memory.once(f"{method!r} {self.knows!r}", find)

    def restricted(self, knows: Knowledge) -> "Given":
        """The same for a method that is part of this one, with what that declares: NotGiven if it is more."""
        if not self.knows.covers(knows):
            raise UndeclaredAccess(f"{knows.words()}: more than what the method declares ({self.knows.words()})")
        return self._with(knows)

    def __getattr__(self, name: str):
        own = self.__dict__.get("_own", {})
        if name in own:
            return own[name]
        raise UndeclaredAccess(f"{name}: not among what the method declares ({self.knows.words()})")


@torch.no_grad()
def probabilities(model: nn.Module, images: Tensor, precision: str = "float32") -> Tensor:
    """Softmax outputs (N, classes), float32 on the CPU, of images uint8 or in [0, 1], (N, 3, H, W)."""
    return logits(model, images, precision).softmax(1)


@dataclass
class Verdict:
    """What a detector says.

    scores: one number a class, higher is more suspect; index: how far each lies out among the classes, in the method's
    own unit (often the anomaly index); above, on: the threshold, and on which of the two; about: numbers worth keeping
    """

    scores: list[float]
    index: list[float]
    above: float
    on: Literal["scores", "index"]
    about: dict = field(default_factory=dict)

    @property
    def flagged(self) -> list[int]:
        """The classes that the method holds for targets."""
        return [k for k, value in enumerate(getattr(self, self.on)) if value > self.above]

    @property
    def backdoored(self) -> bool:
        return bool(self.flagged)

    @property
    def suspect(self) -> int:
        """The class that stands out most, flagged or not."""
        return int(np.argmax(self.scores))

    def as_dict(self) -> dict:
        return {**asdict(self), "flagged": self.flagged}


class Detector(Protocol):
    knows: Knowledge

    def detect(self, given: DefenderView) -> Verdict: ...


@dataclass
class RepairResult:
    """A repaired model, and numbers worth keeping about how it came about."""

    model: nn.Module
    about: dict = field(default_factory=dict)


class Repairer(Protocol):
    knows: Knowledge

    def repair(self, given: DefenderView) -> RepairResult: ...


class Filter(Protocol):
    """A score per image, higher is more suspect; `fit` sees clean images only."""

    knows: Knowledge

    def fit(self, given: DefenderView) -> "Filter": ...

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
