"""Splits: images and labels as two tensors, and how test images are divided."""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Split:
    """Images uint8 (N, 3, H, W) and their labels int64 (N,)."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index) -> "Split":
        return Split(self.images[index], self.labels[index])

    def to(self, device) -> "Split":
        """Return the split with both tensors on the device."""
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class TrainAndTest:
    """A data set as its source has it: training and test images, class names, and notes on what was changed."""

    train: Split
    test: Split
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Dataset:
    """Three disjoint splits, the class names, and the channel mean and std of the training images in [0, 1].

    The attacker has `train`. The defender has `modeling` and never sees `evaluation`, which only the metrics read.
    `fingerprint` is a hash of images, labels and split, and part of every key in the store. `notes` are sentences on
    files that were left out or changed when they were read.
    """

    name: str
    train: Split
    modeling: Split
    evaluation: Split
    classes: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    fingerprint: str
    notes: tuple[str, ...] = ()

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return tuple(self.train.images.shape[-2:])


def split(test: Split, share: float, seed: int, classes: int) -> tuple[Split, Split]:
    """Divide test images into (modeling, evaluation): disjoint, and fixed by the seed.

    Args:
        test: the images to divide.
        share: part of them for modeling, in [0, 1].
        seed: seed of the permutation.
        classes: number of classes, each of which has to be present in both parts.

    Raises:
        ValueError: if a part lacks a class.
    """
    order = torch.from_numpy(np.random.RandomState(seed).permutation(len(test)))
    cut = round(share * len(test))
    parts = order[:cut], order[cut:]
    for name, part in zip(("modeling", "evaluation"), parts, strict=True):
        present = len(test.labels[part].unique())
        if present < classes:
            raise ValueError(
                f"too few images: {len(test)} test images leave {len(part)} for {name}, in {present} of "
                f"{classes} classes; expected at least one of every class (some ten test images per class)"
            )
    return test[parts[0]], test[parts[1]]


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and the standard deviation of each channel over all pixels of uint8 images, in [0, 1]."""
    first = second = torch.zeros(3, dtype=torch.float64)
    for batch in images.split(5000):
        batch = batch.float() / 255
        first = first + batch.sum((0, 2, 3)).double()
        second = second + batch.square().sum((0, 2, 3)).double()
    n = images.numel() / 3
    std = (second / n - (first / n) ** 2).clamp(min=1e-8).sqrt()
    return tuple(round(v, 4) for v in (first / n).tolist()), tuple(round(v, 4) for v in std.tolist())


def fingerprint(*splits: Split) -> str:
    """Return a hash of all images and labels: a result never outlives the data that it was computed from."""
    digest = hashlib.sha256()
    for part in splits:
        digest.update(str(tuple(part.images.shape)).encode())
        digest.update(part.images.contiguous().numpy())
        digest.update(part.labels.numpy())
    return digest.hexdigest()[:16]
