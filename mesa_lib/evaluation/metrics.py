"""What is measured of a model: clean accuracy, attack success rate, recall of the target class, intervals.

The attack success rate (ASR) is the fraction of triggered images that the model gives to the target class,
counted over images whose true class is *another* one: an image of the target class proves nothing.
"""

import math

import torch
from torch import Tensor, nn

from mesa_lib import device as devices
from mesa_lib.attacks import badnets
from mesa_lib.attacks.base import Backdoor
from mesa_lib.evaluation.intervals import proportion
from mesa_lib.models.inference import BATCH, predict
from mesa_lib.triggers import stamp, stamp_random


def clean_accuracy(model: nn.Module, images: Tensor, labels: Tensor, precision: str = "float32") -> dict:
    """Accuracy on images without any trigger, as `proportion`."""
    return proportion(predict(model, images, precision) == labels.cpu())


def recall(model: nn.Module, images: Tensor, labels: Tensor, target: int, precision: str = "float32") -> dict:
    """Accuracy on the clean images of one class: what a repair may take from the target class."""
    own = labels.cpu() == target
    return proportion(predict(model, images[own.to(images.device)], precision) == target)


def patch_asr(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    trigger: Tensor,
    target: int,
    *,
    locations: int = 5,
    seed: int = 0,
    precision: str = "float32",
) -> dict:
    """`success` of a trigger (3, h, w) at a random place, all images to `target`: the paper's attack."""
    backdoor = badnets.backdoor(trigger.cpu(), target)
    return attack_success(model, images, labels, backdoor, repeats=locations, seed=seed, precision=precision)


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
    """ASR of a backdoor, and the accuracy of the same triggered images with respect to their true labels.

    Every image of which the attacker wants another class than its own is triggered `repeats` times (seeded, so every
    model meets the same places). Returns {"asr": proportion, "true_label_accuracy": proportion}.
    """
    device = next(model.parameters()).device
    rng = devices.rng(seed)
    labels = labels.cpu()
    wanted = backdoor.goal(labels)
    others = (wanted >= 0) & (wanted != labels)
    images, labels, wanted = images[others.to(images.device)].cpu(), labels[others], wanted[others]
    answers = []
    for _ in range(repeats):
        chunks = [
            predict(model, backdoor.apply(batch.float() / 255, rng).to(device), precision)
            for batch in images.split(BATCH)
        ]
        answers.append(torch.cat(chunks) if chunks else torch.empty(0, dtype=torch.long))
    answers = torch.stack(answers)  # (repeats, images)
    return {"asr": proportion(answers == wanted), "true_label_accuracy": proportion(answers == labels)}


def location_map(model: nn.Module, image: Tensor, trigger: Tensor, target: int, locations: Tensor) -> Tensor:
    """Whether the backdoor fires at each place (P, 2) of one image, uint8 (3, H, W) -> boolean (P,)."""
    copies = (image.float() / 255).expand(len(locations), *image.shape)
    return predict(model, stamp(copies, trigger, locations)) == target


def evaluate(
    model: nn.Module,
    evaluation,
    trigger: Tensor | Backdoor,
    target: int,
    *,
    locations: int = 5,
    seed: int = 0,
    precision: str = "float32",
) -> dict:
    """The row of the before/after table for one model, all on the evaluation images.

    `evaluation` has `.images` (uint8) and `.labels`; `trigger` (3, h, w) at a random place, or any backdoor. Keys:
    clean_accuracy, target_recall, asr, true_label_accuracy, each a `proportion`.
    """
    images, labels = evaluation.images, evaluation.labels
    backdoor = badnets.backdoor(trigger.cpu(), target) if isinstance(trigger, Tensor) else trigger
    row = {
        "clean_accuracy": clean_accuracy(model, images, labels, precision),
        "target_recall": recall(model, images, labels, target, precision),
    }
    return row | attack_success(model, images, labels, backdoor, repeats=locations, seed=seed, precision=precision)


def table(rows: list[dict]):
    """Rows of `report` as a pandas table in per cent: clean accuracy, recall of the target class, ASR with its
    95 % interval, accuracy of triggered images with respect to their true labels.
    """
    import pandas as pd

    def line(row: dict) -> dict:
        asr = row["asr"]
        texts = {name: value for name, value in row.items() if not isinstance(value, dict)}
        return texts | {
            "clean accuracy": 100 * row["clean_accuracy"]["rate"],
            "target recall": 100 * row["target_recall"]["rate"],
            "ASR": 100 * asr["rate"],
            "ASR low": 100 * asr["low"],
            "ASR high": 100 * asr["high"],
            "true-label accuracy": 100 * row["true_label_accuracy"]["rate"],
        }

    return pd.DataFrame([line(row) for row in rows]).round(1)
