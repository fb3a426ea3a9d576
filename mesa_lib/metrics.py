"""What is measured of a model: clean accuracy, attack success rate, recall of the target class, intervals.

The attack success rate (ASR) is the fraction of triggered images that the model gives to the target class,
counted over images whose true class is *another* one: an image of the target class proves nothing.
"""

import math

import torch
from torch import Tensor, nn

from . import device as devices
from .attacks import badnets
from .attacks.base import Backdoor
from .inference import BATCH, predict
from .triggers import stamp, stamp_random


def wilson(hits: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % Wilson score interval of a proportion of `hits` in `n` independent trials."""
    if n == 0:
        return 0.0, 1.0
    p, zz = hits / n, z * z
    centre, half = p + zz / (2 * n), z * math.sqrt(p * (1 - p) / n + zz / (4 * n * n))
    return max(0.0, (centre - half) / (1 + zz / n)), min(1.0, (centre + half) / (1 + zz / n))


def proportion(hits: Tensor) -> dict:
    """Rate, number of images and Wilson interval of hits, boolean (places, images): one answer per image.

    Several places of one image are no independent trials, so the interval counts images, not stampings.
    """
    hits = torch.atleast_2d(hits.float()).mean(0)  # per image
    n = len(hits)
    low, high = wilson(float(hits.sum()), n)
    return {"rate": float(hits.mean()) if n else math.nan, "images": n, "low": low, "high": high}


def clean_accuracy(model: nn.Module, images: Tensor, labels: Tensor, precision: str = "float32") -> dict:
    """Accuracy on images without any trigger, as `proportion`."""
    return proportion(predict(model, images, precision) == labels.cpu())


def recall(model: nn.Module, images: Tensor, labels: Tensor, target: int, precision: str = "float32") -> dict:
    """Accuracy on the clean images of one class: what a repair may take from the target class."""
    own = labels.cpu() == target
    return proportion(predict(model, images[own.to(images.device)], precision) == target)


def triggered(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    trigger: Tensor,
    target: int,
    *,
    places: int = 5,
    seed: int = 0,
    precision: str = "float32",
) -> dict:
    """`success` of a trigger (3, h, w) at a random place, all images to `target`: the paper's attack."""
    backdoor = badnets.backdoor(trigger.cpu(), target)
    return success(model, images, labels, backdoor, repeats=places, seed=seed, precision=precision)


def success(
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


def place_map(model: nn.Module, image: Tensor, trigger: Tensor, target: int, places: Tensor) -> Tensor:
    """Whether the backdoor fires at each place (P, 2) of one image, uint8 (3, H, W) -> boolean (P,)."""
    copies = (image.float() / 255).expand(len(places), *image.shape)
    return predict(model, stamp(copies, trigger, places)) == target


def asr_of_samples(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    samples: Tensor,
    target: int,
    *,
    images_per_trigger: int = 16,
    seed: int = 0,
    precision: str = "float32",
    place: Tensor | None = None,
) -> Tensor:
    """The ASR of each of n triggers (n, 3, h, w) on its own random draw of non-target images -> (n,).

    place: (row, column) at which all are stamped; None: at any
    """
    rng = devices.rng(seed)
    others = images[(labels != target).to(images.device)].cpu()
    index = torch.randint(len(others), (len(samples) * images_per_trigger,), generator=rng)
    repeated = samples.cpu().repeat_interleave(images_per_trigger, 0)
    hits = []
    for pick, trigger in zip(index.split(BATCH), repeated.split(BATCH), strict=True):
        x = others[pick].float() / 255
        x = stamp_random(x, trigger, rng) if place is None else stamp(x, trigger, place)
        hits.append(predict(model, x, precision) == target)
    return torch.cat(hits).reshape(len(samples), images_per_trigger).float().mean(1)


def diversity(samples: Tensor) -> dict:
    """How far triggers (n, ...) lie apart: mean pairwise distance per pixel value, and mean std per value.

    `distance` is the root mean square difference of two samples, averaged over pairs: 0 for identical
    triggers, about 0.41 for uniform noise, 0.71 for independent black-or-white values.
    """
    flat = samples.flatten(1).float().cpu()
    distance = torch.pdist(flat) / flat.shape[1] ** 0.5
    return {"distance": float(distance.mean()), "std": float(flat.std(0).mean())}


def mean_std(values) -> tuple[float, float]:
    """Mean and sample standard deviation over repeats (0 for a single one)."""
    t = torch.as_tensor(list(values), dtype=torch.float64)
    return float(t.mean()), float(t.std()) if len(t) > 1 else 0.0


def report(
    model: nn.Module,
    evaluation,
    trigger: Tensor | Backdoor,
    target: int,
    *,
    places: int = 5,
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
    return row | success(model, images, labels, backdoor, repeats=places, seed=seed, precision=precision)


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
