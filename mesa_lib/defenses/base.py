"""The interface of every kind of defense, and what a defender may know.

    Detector    view -> Verdict           is a class backdoored, and which?
    Repairer    view -> RepairResult      the model without the backdoor
    Filter      view, images -> scores    which inputs carry a trigger? Fitted on clean images only
    Reformer    images -> images          changes inputs so that a trigger does not survive

Each method declares what it needs (`knowledge`) and receives a `DefenderView` with exactly that (`defenses.view`).
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from pydantic import BaseModel
from scipy.stats import median_abs_deviation
from torch import Tensor, nn

from mesa_lib import retrain
from mesa_lib.defenses.view import DefenderView, FrozenClassifier, Knowledge, SearchCache, UndeclaredAccess
from mesa_lib.retrain import ImageTransform

__all__ = [
    "DefenderView",
    "Detector",
    "Filter",
    "FrozenClassifier",
    "Knowledge",
    "Reformer",
    "RepairResult",
    "Repairer",
    "SearchCache",
    "StampingRepair",
    "UndeclaredAccess",
    "Verdict",
    "anomaly_index",
    "describe_method",
    "threshold",
]


# --- detectors -------------------------------------------------------------------------------------------


@dataclass
class Verdict:
    """The result of a detector.

    Attributes:
        scores: one number per class, higher is more suspicious.
        index: how far each class is from the others, in the method's own unit (often the anomaly index).
        above: the threshold; a class that exceeds it is flagged.
        on: whether the threshold applies to `scores` or to `index`.
        about: numbers worth keeping.
    """

    scores: list[float]
    index: list[float]
    above: float
    on: Literal["scores", "index"]
    about: dict = field(default_factory=dict)

    @property
    def flagged(self) -> list[int]:
        """The classes that the method takes for targets of a backdoor."""
        return [k for k, value in enumerate(getattr(self, self.on)) if value > self.above]

    @property
    def backdoored(self) -> bool:
        """Whether any class is flagged."""
        return bool(self.flagged)

    @property
    def suspect(self) -> int:
        """The class with the highest score, flagged or not."""
        return int(np.argmax(self.scores))

    def as_dict(self) -> dict:
        """Return everything, with the flagged classes, as plain values."""
        return {**asdict(self), "flagged": self.flagged}


class Detector(Protocol):
    """A method that says which classes are targets of a backdoor."""

    knowledge: Knowledge

    def detect(self, view: DefenderView) -> Verdict:
        """Return the verdict on the view's model."""
        ...


# --- repairs ---------------------------------------------------------------------------------------------


@dataclass
class RepairResult:
    """A repaired model, the history of its training (`training.train`), and numbers worth keeping about it."""

    model: nn.Module
    history: list[dict] = field(default_factory=list)
    about: dict = field(default_factory=dict)


class Repairer(Protocol):
    """A method that returns the model without its backdoor."""

    knowledge: Knowledge

    def repair(self, view: DefenderView) -> RepairResult:
        """Return the repaired copy of the view's model."""
        ...


class StampingRepair(Repairer):
    """The repair of MESA and of its controls: retrain with triggers stamped, under the true labels.

    Subclasses differ in nothing but `transforms`: which triggers are stamped. Pipeline, benchmark and scan all repair
    through this class.
    """

    def transforms(self, view: DefenderView) -> tuple[list[ImageTransform], dict]:
        """Return what is stamped (one transform is drawn for each image), and numbers worth keeping.

        Without any transform the model is returned as it is. A text `failed` says that no trigger was found that
        succeeds.
        """
        raise NotImplementedError

    def repair(self, view: DefenderView) -> RepairResult:
        """Return the view's model after retraining."""
        transforms, about = self.transforms(view)
        if not transforms:
            return RepairResult(view.model, [], about)
        transform = transforms[0] if len(transforms) == 1 else retrain.one_of(transforms)
        return RepairResult(view.model, view.retrain(view.model, transform), about)


# --- inputs ----------------------------------------------------------------------------------------------


class Filter(Protocol):
    """A score per image, higher is more suspicious; `fit` sees clean images only."""

    knowledge: Knowledge

    def fit(self, view: DefenderView) -> "Filter":
        """Prepare on the view's clean images and return the filter."""
        ...

    def score(self, images: Tensor) -> Tensor:
        """Return scores (N,) of images (N, 3, H, W), uint8 or in [0, 1]."""
        ...


class Reformer(Protocol):
    """A change of images (N, 3, H, W) in [0, 1] that a trigger should not survive."""

    def __call__(self, images: Tensor) -> Tensor: ...


# --- what methods share ----------------------------------------------------------------------------------

#: the largest value of an anomaly index
MAX_INDEX = 1000.0


def anomaly_index(values: Tensor | np.ndarray | list, side: str = "both") -> np.ndarray:
    """Return |value - median| / (1.4826 * median absolute deviation), the outlier measure of Neural Cleanse.

    Args:
        values: one number per class.
        side: `low` sets the index of values above the median to 0, `high` of those below.

    Returns:
        One index per class, at most `MAX_INDEX` (the deviation is 0 where most values are equal).
    """
    values = np.asarray(values, float)
    middle = np.median(values)
    deviation = np.abs(values - middle)
    spread = 1.4826 * median_abs_deviation(values)
    with np.errstate(divide="ignore", invalid="ignore"):
        index = np.where(deviation == 0, 0.0, np.minimum(deviation / spread, MAX_INDEX))
    if side == "low":
        index = np.where(values > middle, 0.0, index)
    if side == "high":
        index = np.where(values < middle, 0.0, index)
    return index


def threshold(clean_scores: Tensor, false_positive_rate: float) -> float:
    """Return the score above which an input is flagged: the quantile of clean scores (N,) for this rate in (0, 1)."""
    if not 0 < false_positive_rate < 1:
        raise ValueError(f"false_positive_rate = {false_positive_rate}: expected a number strictly between 0 and 1")
    ordered = torch.as_tensor(clean_scores).sort().values
    keep = int(np.ceil((1 - false_positive_rate) * len(ordered) - 1e-9))  # 0.95 * 100 is slightly above 95
    return float(ordered[min(max(keep, 1), len(ordered)) - 1])


def describe_method(method: Any) -> Any:
    """Return all settings of a method (a dataclass, nested ones and `Settings` included) as plain values, for keys."""
    if isinstance(method, BaseModel):
        return method.model_dump()
    if is_dataclass(method):
        return {f.name: describe_method(getattr(method, f.name)) for f in fields(method)}
    if isinstance(method, dict):
        return {str(name): describe_method(value) for name, value in method.items()}
    if isinstance(method, list | tuple):
        return [describe_method(value) for value in method]
    if isinstance(method, Callable):
        raise TypeError(f"method = {method!r}: a function has no settings; expected plain values")
    return method
