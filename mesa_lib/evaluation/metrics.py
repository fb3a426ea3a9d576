"""What is measured of a model: clean accuracy, target recall, attack success rate, true-label accuracy.

The attack success rate (ASR) is the fraction of triggered images that the model classifies as the class that the
attacker wants. Images whose true class is that class are left out: they prove nothing.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mesa_lib import device as devices
from mesa_lib.attacks import badnets
from mesa_lib.attacks.base import Backdoor
from mesa_lib.data.splits import Split
from mesa_lib.evaluation.intervals import proportion
from mesa_lib.models.inference import BATCH, predict, to_float
from mesa_lib.triggers import stamp

if TYPE_CHECKING:
    import pandas as pd


def clean_accuracy(model: nn.Module, images: Tensor, labels: Tensor, precision: str = "float32") -> dict:
    """Return the accuracy on clean images (N, 3, H, W) with labels (N,), as `intervals.proportion`."""
    return proportion(predict(model, images, precision) == labels.cpu())


def target_recall(model: nn.Module, images: Tensor, labels: Tensor, target: int, precision: str = "float32") -> dict:
    """Return the accuracy on the clean images of the target class, which a repair may lower; as `proportion`."""
    chosen = labels.cpu() == target
    return proportion(predict(model, images[chosen.to(images.device)], precision) == target)


def asr_of_predictions(predictions: Tensor, labels: Tensor, target: int) -> float:
    """Return the ASR from the predicted classes (N,) of triggered images and their true labels (N,).

    Images of the target class are left out: that they are classified as it proves nothing.
    """
    others = labels != target
    return float((predictions[others] == target).float().mean())


def attack_success(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    backdoor: Backdoor,
    *,
    repeats: int = 5,
    seed: int = 0,
    precision: str = "float32",
) -> dict:
    """Return the ASR of a backdoor, and the accuracy of the triggered images with respect to their true labels.

    Args:
        model: the classifier.
        images, labels: uint8 (N, 3, H, W) and (N,); used are those of which the attacker wants another class.
        backdoor: what the trigger does to images, and which class the attacker wants.
        repeats: how often each image is triggered, at new random locations.
        seed: of the locations: equal seeds give every model equal triggered images.
        precision: see `device.autocast`.

    Returns:
        `asr` and `true_label_accuracy`, each as `intervals.proportion`.
    """
    device, rng = next(model.parameters()).device, devices.rng(seed)
    labels = labels.cpu()
    wanted = backdoor.goal(labels)
    others = (wanted >= 0) & (wanted != labels)
    images, labels, wanted = images[others.to(images.device)].cpu(), labels[others], wanted[others]
    predictions = torch.empty(repeats, len(images), dtype=torch.long)
    for repeat in range(repeats):
        for index in torch.arange(len(images)).split(BATCH):
            triggered = backdoor.apply(to_float(images[index]), rng).to(device)
            predictions[repeat, index] = predict(model, triggered, precision)
    return {"asr": proportion(predictions == wanted), "true_label_accuracy": proportion(predictions == labels)}


def patch_asr(
    model: nn.Module, images: Tensor, labels: Tensor, trigger: Tensor, target: int, *, repeats: int = 5, **options
) -> dict:
    """Return `attack_success` of a trigger (3, h, w) at random locations with one target class, as in the paper."""
    backdoor = badnets.backdoor(trigger.cpu(), target)
    return attack_success(model, images, labels, backdoor, repeats=repeats, **options)


def evaluate(
    model: nn.Module,
    evaluation: Split,
    trigger: Tensor | Backdoor,
    target: int,
    *,
    repeats: int = 5,
    seed: int = 0,
    precision: str = "float32",
) -> dict:
    """Return the row of the before/after table for one model, all on the evaluation images.

    Args:
        model: the classifier.
        evaluation: images that nobody but the evaluation uses.
        trigger: (3, h, w), stamped at random locations, or any backdoor.
        target: the attacker's target class.
        repeats, seed, precision: see `attack_success`.

    Returns:
        `clean_accuracy`, `target_recall`, `asr`, `true_label_accuracy`, each as `intervals.proportion`.
    """
    images, labels = evaluation.images, evaluation.labels
    backdoor = badnets.backdoor(trigger.cpu(), target) if isinstance(trigger, Tensor) else trigger
    return {
        "clean_accuracy": clean_accuracy(model, images, labels, precision),
        "target_recall": target_recall(model, images, labels, target, precision),
        **attack_success(model, images, labels, backdoor, repeats=repeats, seed=seed, precision=precision),
    }


def location_map(model: nn.Module, image: Tensor, trigger: Tensor, target: int, locations: Tensor) -> Tensor:
    """Return whether the model predicts the target with the trigger at each location (P, 2) of one image -> (P,).

    Args:
        model: the classifier.
        image: uint8 (3, H, W).
        trigger: (3, h, w) in [0, 1].
        target: the attacker's target class.
        locations: row and column of the upper left corner.
    """
    copies = to_float(image).expand(len(locations), *image.shape)
    return predict(model, stamp(copies, trigger, locations)) == target


def table(rows: list[dict]) -> "pd.DataFrame":
    """Return rows of `evaluate` as a table in percent; the ASR with its 95% CI; texts in a row become columns.

    `residual ASR` is the highest rate of a residual check, where there was one (`residual_asr`).
    """
    import pandas as pd  # here alone: nothing else that is measured needs it

    def line(row: dict) -> dict:
        texts = {name: value for name, value in row.items() if isinstance(value, str)}
        rates = {
            "clean accuracy": row["clean_accuracy"]["rate"],
            "target recall": row["target_recall"]["rate"],
            "ASR": row["asr"]["rate"],
            "ASR low": row["asr"]["low"],
            "ASR high": row["asr"]["high"],
            "true-label accuracy": row["true_label_accuracy"]["rate"],
        }
        rates |= {"residual ASR": row["residual_asr"]} if "residual_asr" in row else {}
        return texts | {name: 100 * rate for name, rate in rates.items()}

    return pd.DataFrame([line(row) for row in rows]).round(1)
