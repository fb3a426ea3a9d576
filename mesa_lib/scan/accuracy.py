"""Before any verdict: does the model know the images? If not, why, as far as that can be found out."""

import json

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from mesa_lib.data import Split, channel_statistics
from mesa_lib.evaluation.intervals import proportion
from mesa_lib.models.inference import predict
from mesa_lib.models.networks import Normalize
from mesa_lib.scan.reading.images import Images
from mesa_lib.scan.reading.model import WrappedClassifier
from mesa_lib.store.sanitize import sanitize

#: another normalization has to be better by this much before it is believed
BETTER = 0.05
NORMALISATIONS = {
    "none: values in [0, 1]": ((0, 0, 0), (1, 1, 1)),
    "values in [-1, 1]": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "ImageNet's": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "CIFAR-10's": ((0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)),
    "none: values in [0, 255]": ((0, 0, 0), (1 / 255, 1 / 255, 1 / 255)),
}


class NoVerdict(ValueError):
    """The images do not fit the model, or not as they were handed on: whatever was found would mean nothing.

    accuracy: what was measured before that was known
    """

    def __init__(self, why: str, accuracy: dict):
        super().__init__(f"no verdict: {why}")
        self.why, self.accuracy = why, accuracy


def check(model: WrappedClassifier, images: Images, min_accuracy: float | None, precision: str, trust_preprocessing: bool = False) -> dict:
    """The accuracy on all images (`proportion`), with `recalls` of the classes and the `lowest` that was asked for.

    `mistaken`: of every class the fraction of other images that is taken for it, without any patch.

    lowest: None, two fifths of the way from the share of the largest class to 1. NoVerdict if the accuracy is below, or
    if another normalization or another order of the classes is much better and they are not to be taken `as_told`
    """
    split = images.split
    answers = predict(model, split.images, precision)
    found = proportion(answers == split.labels)
    found["recalls"] = [float((answers[split.labels == k] == k).float().mean()) for k in range(len(images.classes))]
    found["mistaken"] = [float((answers[split.labels != k] == k).float().mean()) for k in range(len(images.classes))]
    share = float(torch.bincount(split.labels).max()) / len(split)
    found["lowest"] = min_accuracy = share + 0.4 * (1 - share) if min_accuracy is None else min_accuracy
    reason = other_order(images, answers, found["rate"])
    reason = reason or other_normalization(model, split, max(min_accuracy, found["rate"] + BETTER), precision)
    if found["rate"] < min_accuracy or (reason and not trust_preprocessing):
        raise NoVerdict(
            f"the model is right on {found['rate']:.1%} of the {len(split)} clean images"
            f"{f' (expected at least {min_accuracy:.0%})' if found['rate'] < lowest else ''}. "
            + (reason or "Are these images of the kind that it was trained on, and are mean and std its own?")
            + (" If that is as it should be: as_told." if reason and found["rate"] >= min_accuracy else ""),
            found,
        )
    return found


def other_normalization(model: WrappedClassifier, split: Split, wanted: float, precision: str) -> str:
    """What to say if another mean and std, or another order of channels, give a better accuracy than `wanted`."""

    def rate(images: Tensor) -> float:
        return float((predict(model, images, precision) == split.labels).float().mean())

    best = "", wanted
    inner = [part for part in model.network.modules() if isinstance(part, Normalize)]
    plain = not model.normalize.mean.any() and bool((model.normalize.std == 1).all())
    normalize = inner[0] if len(inner) == 1 and plain else model.normalize  # networks of this project have their own
    own = normalize.mean.clone(), normalize.std.clone()
    tried = NORMALISATIONS | {"that of these images": channel_statistics(split.images)}
    for name, (mean, std) in tried.items():
        for part, values in ((normalize.mean, mean), (normalize.std, std)):
            part.copy_(torch.tensor(values).reshape(1, 3, 1, 1))
        found = rate(split.images)
        if found > best[1]:
            words = " and ".join(",".join(f"{v:.4g}" for v in values) for values in (mean, std))
            best = f"With another normalization ({name}; mean and std {words}) it is right on {found:.1%}.", found
    normalize.mean.copy_(own[0]), normalize.std.copy_(own[1])
    found = rate(split.images.flip(1))
    if found > best[1]:
        best = f"With the channels in the order blue, green, red it is right on {found:.1%}.", found
    return best[0]


def other_order(images: Images, answers: Tensor, rate: float) -> str:
    """What to say if the classes are the model's in another order."""
    k, labels = len(images.classes), images.split.labels
    counts = np.zeros((k, k))
    np.add.at(counts, (labels.numpy(), answers.numpy()), 1)
    rows, columns = linear_sum_assignment(-counts)
    best = counts[rows, columns].sum() / len(labels)
    if best < max(rate + BETTER, 0.5):
        return ""
    order = [images.classes[row] for row in np.argsort(columns)]
    names = sanitize(json.dumps(order), 10_000) if any("," in name for name in order) else ",".join(map(sanitize, order))
    return f"With its classes in another order it is right on {best:.1%}: classes = {names}"
