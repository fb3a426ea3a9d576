"""Before any verdict: does the model classify the images at all? If not, the likeliest reason is named."""

import json
import shlex

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from mesa_lib.data.images import Images
from mesa_lib.data.splits import Split, channel_statistics
from mesa_lib.evaluation.intervals import proportion
from mesa_lib.models.inference import predict
from mesa_lib.models.networks import Normalize
from mesa_lib.scan.reading.wrapped import WrappedClassifier
from mesa_lib.store.sanitize import sanitize

#: another normalization has to raise the accuracy by this much before it is believed
BETTER = 0.05
NORMALIZATIONS = {
    "none: values in [0, 1]": ((0, 0, 0), (1, 1, 1)),
    "values in [-1, 1]": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "ImageNet's": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "CIFAR-10's": ((0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)),
    "none: values in [0, 255]": ((0, 0, 0), (1 / 255, 1 / 255, 1 / 255)),
}


class NoVerdict(ValueError):
    """The images do not fit the model, or not with this preprocessing: a verdict would mean nothing.

    Attributes:
        why: the reason, a sentence or more.
        accuracy: what was measured before (`check_accuracy`).
    """

    def __init__(self, why: str, accuracy: dict):
        super().__init__(f"no verdict: {why}")
        self.why, self.accuracy = why, accuracy


def check_accuracy(
    model: WrappedClassifier,
    images: Images,
    min_accuracy: float | None,
    precision: str,
    trust_preprocessing: bool = False,
) -> dict:
    """Return the accuracy on all images, or raise `NoVerdict` with the likeliest reason.

    Args:
        min_accuracy: the lowest accuracy for a verdict; None: two fifths of the way from the share of the largest class
            to 1.
        precision: see `device.autocast`.
        trust_preprocessing: accept normalization and order of the classes even if others give a much better accuracy.

    Returns:
        `evaluation.intervals.proportion`, with `recalls` of the classes, `mistaken` (for every class the fraction of
        other images that the model predicts as it, without any patch) and `min_accuracy`.

    Raises:
        NoVerdict: if the accuracy is too low, or if another normalization or order of the classes is much better.
    """
    split = images.split
    predicted = predict(model, split.images, precision)
    accuracy = proportion(predicted == split.labels)
    classes = range(len(images.classes))
    accuracy["recalls"] = [float((predicted[split.labels == k] == k).float().mean()) for k in classes]
    accuracy["mistaken"] = [float((predicted[split.labels != k] == k).float().mean()) for k in classes]
    if min_accuracy is None:
        largest = float(torch.bincount(split.labels).max()) / len(split)
        min_accuracy = largest + 0.4 * (1 - largest)
    rate, accuracy["min_accuracy"] = accuracy["rate"], min_accuracy
    reason = other_order(images, predicted, rate)
    reason = reason or other_normalization(model, split, max(min_accuracy, rate + BETTER), precision)
    too_low = rate < min_accuracy
    if too_low or (reason and not trust_preprocessing):
        expected = f" (expected at least {min_accuracy:.0%})" if too_low else ""
        question = (
            "Are these images of the kind and the size that it was trained on, and are mean and std its own? "
            "With --image-size 32 they are resized"
        )
        sure = " If that is as it should be: --trust-preprocessing (in Python, trust_preprocessing=True)."
        raise NoVerdict(
            f"the model classifies {rate:.1%} of the {len(split)} clean images correctly{expected}. "
            f"{reason or question}{sure if reason and not too_low else ''}",
            accuracy,
        )
    return accuracy


def other_normalization(model: WrappedClassifier, split: Split, wanted: float, precision: str) -> str:
    """Return a sentence if another mean and std, or order of channels, gives an accuracy above `wanted`, else ""."""

    def accuracy(images: Tensor) -> float:
        return float((predict(model, images, precision) == split.labels).float().mean())

    sentence, best = "", wanted
    inner = [part for part in model.network.modules() if isinstance(part, Normalize)]
    plain = not model.normalize.mean.any() and bool((model.normalize.std == 1).all())
    normalize = inner[0] if len(inner) == 1 and plain else model.normalize  # this project's networks have their own
    before = normalize.mean.clone(), normalize.std.clone()
    for name, (mean, std) in (NORMALIZATIONS | {"that of these images": channel_statistics(split.images)}).items():
        for buffer, values in ((normalize.mean, mean), (normalize.std, std)):
            buffer.copy_(torch.tensor(values).reshape(1, 3, 1, 1))
        rate = accuracy(split.images)
        if rate > best:
            given = {"mean": mean, "std": std}
            words = " ".join(f"--{o} {','.join(f'{v:.4g}' for v in values)}" for o, values in given.items())
            best = rate
            sentence = f"With another normalization ({name}: {words}) the accuracy is {rate:.1%}."
    normalize.mean.copy_(before[0]), normalize.std.copy_(before[1])
    rate = accuracy(split.images.flip(1))
    return f"With the channels in the order blue, green, red the accuracy is {rate:.1%}." if rate > best else sentence


def other_order(images: Images, predicted: Tensor, accuracy: float) -> str:
    """Return a sentence if the model has the classes in another order, else ""."""
    classes, labels = len(images.classes), images.split.labels
    counts = np.zeros((classes, classes))
    np.add.at(counts, (labels.numpy(), predicted.numpy()), 1)
    rows, columns = linear_sum_assignment(-counts)
    best = counts[rows, columns].sum() / len(labels)
    if best < max(accuracy + BETTER, 0.5):
        return ""
    order = [images.classes[row] for row in np.argsort(columns)]
    has_comma = any("," in name for name in order)
    names = sanitize(json.dumps(order), 10_000) if has_comma else ",".join(map(sanitize, order))
    return f"With its classes in another order the accuracy is {best:.1%}: --classes {shlex.quote(names)}"
