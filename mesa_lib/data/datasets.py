"""Data sets, each as three pairs of tensors: training, modeling and evaluation images with labels.

The attacker has the training images. The defender has the *modeling* images and never sees the *evaluation*
images, which only `metrics` reads. The two are the test images, split once by `split_seed`.

`digits` comes with scikit-learn and needs no network; `cifar10` and `cifar100` are looked for on the disk before
anything is downloaded; `folder` is any tree of class folders.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mesa_lib import store
from mesa_lib.store import paths
from mesa_lib.progress import progress_bar

NAMES = ("digits", "cifar10", "cifar100", "folder")
ENDINGS = {".webp", ".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
MODELING_SHARE = 0.8  # of the test images, as in the paper


@dataclass(frozen=True)
class Split:
    """images uint8 (N, 3, H, W) and labels int64 (N,)."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index) -> "Split":
        return Split(self.images[index], self.labels[index])

    def to(self, device) -> "Split":
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Dataset:
    """Three disjoint splits, the class names, and the channel mean and std of the training images in [0, 1]."""

    name: str
    train: Split
    modeling: Split
    evaluation: Split
    classes: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    fingerprint: str  # of images, labels and split: part of every key in the store

    @property
    def image_size(self) -> tuple[int, int]:
        return tuple(self.train.images.shape[-2:])


def load(name: str, data_dir: str = "", split_seed: int = 0, image_size: int = 32) -> Dataset:
    """The data set `name`, split; ValueError or FileNotFoundError in one clear message if it cannot be had.

    `data_dir` is the folder that holds the files (default: `MESA_DATA`, else `data/` in the repository); for
    `folder` it is the tree itself. `image_size` is the side to which `digits` and `folder` images are resized.
    """
    if name not in NAMES:
        raise ValueError(f"dataset = {name!r}: expected one of {', '.join(NAMES)}")
    if name.startswith("cifar") and image_size != 32:
        raise ValueError(f"image_size = {image_size}: {name} images are 32x32; only digits and folder resize")
    if name == "digits":
        train, test, classes = digits(split_seed, image_size)
        share = 597 / 997
    else:
        if name == "folder":
            train, test, classes = folder(paths.data_folder(data_dir), image_size, split_seed)
        else:
            train, test, classes = cifar(name, paths.data_folder(data_dir))
        share = MODELING_SHARE
    modeling, evaluation = split(test, share, split_seed, len(classes))
    mean, std = channel_statistics(train.images)
    mark = fingerprint(train, modeling, evaluation)
    return Dataset(name, train, modeling, evaluation, classes, mean, std, mark)


def split(test: Split, share: float, seed: int, classes: int) -> tuple[Split, Split]:
    """Test images -> (modeling, evaluation), disjoint, the same for the same seed."""
    order = torch.from_numpy(np.random.RandomState(seed).permutation(len(test)))
    cut = round(share * len(test))
    parts = order[:cut], order[cut:]
    for name, part in zip(("modeling", "evaluation"), parts, strict=True):
        present = len(test.labels[part].unique())
        if present < classes:
            raise ValueError(
                f"too few images: {len(test)} test images leave {len(part)} for {name}, in {present} of "
                f"{classes} classes; expected at least one of every class (some ten test images a class)"
            )
    assert not set(parts[0].tolist()) & set(parts[1].tolist())
    return test[parts[0]], test[parts[1]]


def channel_statistics(images: Tensor) -> tuple[tuple, tuple]:
    """Mean and standard deviation of each channel over all pixels, in [0, 1]."""
    first = second = torch.zeros(3, dtype=torch.float64)
    for batch in images.split(5000):
        batch = batch.float() / 255
        first = first + batch.sum((0, 2, 3)).double()
        second = second + batch.square().sum((0, 2, 3)).double()
    n = images.numel() / 3
    std = (second / n - (first / n) ** 2).clamp(min=1e-8).sqrt()
    return tuple(round(v, 4) for v in (first / n).tolist()), tuple(round(v, 4) for v in std.tolist())


def fingerprint(*splits: Split) -> str:
    """A hash of all images and labels: results never outlive the data they were made from."""
    digest = hashlib.sha256()
    for part in splits:
        digest.update(str(tuple(part.images.shape)).encode())
        digest.update(part.images.contiguous().numpy())
        digest.update(part.labels.numpy())
    return digest.hexdigest()[:16]


# --- digits ----------------------------------------------------------------------------------------------


def digits(seed: int, size: int = 32) -> tuple[Split, Split, tuple[str, ...]]:
    """scikit-learn's 1,797 handwritten digits (real images, 8x8), enlarged: 800 to train, 997 to test."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    images = torch.from_numpy(raw.images).float()[:, None] / 16
    images = F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)
    images = (images * 255).round().to(torch.uint8).repeat(1, 3, 1, 1)
    order = torch.from_numpy(np.random.RandomState(seed + 1).permutation(len(images)))
    both = Split(images[order], torch.from_numpy(raw.target).long()[order])
    return both[:800], both[800:], tuple(str(d) for d in range(10))


# --- CIFAR -----------------------------------------------------------------------------------------------


def cifar(name: str, where: Path) -> tuple[Split, Split, tuple[str, ...]]:
    """CIFAR-10 or CIFAR-100, from the first of: class folders `<where>/<name>/train/...`, the official
    folder or archive in `<where>`, a download from `MESA_CIFAR10_URL` / `MESA_CIFAR100_URL` or the usual host.
    """
    if (where / name / "train").is_dir():
        return folder(where / name, 32, 0)
    from torchvision import datasets

    official = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    mirror = os.environ.get(f"MESA_{name.upper()}_URL")
    source = type(official.__name__, (official,), {"url": mirror}) if mirror else official
    try:
        where.mkdir(parents=True, exist_ok=True)
        parts = [source(str(where), train=train, download=True) for train in (True, False)]
    except Exception as error:
        raise FileNotFoundError(
            f"{name} is not in {paths.display_path(where)} and could not be downloaded ({type(error).__name__}).\n"
            f"Put {official.filename} (md5 {official.tgz_md5}), or class folders {name}/train and {name}/test, "
            f"into {paths.display_path(where)},\n"
            f"or name another folder with MESA_DATA or data_dir, or a mirror with MESA_{name.upper()}_URL."
        ) from error
    splits = [Split(torch.from_numpy(p.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(p.targets)) for p in parts]
    return *splits, tuple(parts[0].classes)


# --- class folders ---------------------------------------------------------------------------------------


def folder(where: Path, size: int, seed: int) -> tuple[Split, Split, tuple[str, ...]]:
    """A tree of class folders: `train/<class>/*` and `test/<class>/*`, or `<class>/*` alone, which is then
    halved by `seed`. Images are resized to size x size where they differ.
    """
    if not where.is_dir():
        raise FileNotFoundError(
            f"data_dir = {paths.display_path(where)!r}: no such folder; expected train/<class>/ and test/<class>/"
        )
    if (where / "train").is_dir() != (where / "test").is_dir():
        raise ValueError(f"data_dir = {paths.display_path(where)!r}: expected both train/ and test/, or class folders alone")
    if (where / "train").is_dir():
        train, classes = read_tree(where / "train", size)
        test, same = read_tree(where / "test", size)
        if classes != same:
            odd = sorted(set(classes) ^ set(same))
            raise ValueError(f"data_dir = {paths.display_path(where)!r}: train/ and test/ differ in classes {odd[:5]}")
        return train, test, classes
    both, classes = read_tree(where, size)
    order = torch.from_numpy(np.random.RandomState(seed).permutation(len(both)))
    return both[order[: len(both) // 2]], both[order[len(both) // 2 :]], classes


def read_tree(where: Path, size: int) -> tuple[Split, tuple[str, ...]]:
    """All images below `<where>/<class>/`, decoded once and kept in the store for the next time."""
    classes = tuple(sorted(d.name for d in where.iterdir() if d.is_dir() and not d.name.startswith(".")))
    files = [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted((where / name).rglob("*"))
        if path.suffix.lower() in ENDINGS
    ]
    counts = np.bincount([label for _, label in files], minlength=len(classes))
    if len(classes) < 2 or counts.min() == 0:
        empty = [name for name, count in zip(classes, counts, strict=True) if count == 0]
        raise ValueError(
            f"{paths.display_path(where)}: {len(files)} images in {len(classes)} class folders"
            f"{f', none in {empty[:5]}' if empty else ''}; expected two classes or more with images in each"
        )
    listing = hashlib.sha256()
    for path, _ in files:
        state = path.stat()
        listing.update(f"{path.relative_to(where).as_posix()} {state.st_size} {state.st_mtime_ns}\n".encode())
    key = {"tree": listing.hexdigest(), "size": size}

    def decode() -> tuple[dict, dict]:
        images = torch.empty(len(files), 3, size, size, dtype=torch.uint8)
        for i, (path, _) in enumerate(progress_bar(files, "reading images")):
            images[i] = read_image(path, size)
        return {"images": images}, {"images": len(files)}

    images = store.train_or_load("images", key, decode).tensors["images"]
    return Split(images, torch.tensor([label for _, label in files])), classes


def read_image(path: Path, size: int) -> Tensor:
    """One image file -> uint8 (3, size, size); ValueError names a file that is no image."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            image = image.convert("RGB")
            if image.size != (size, size):
                image = image.resize((size, size), Image.Resampling.BILINEAR)
            return torch.from_numpy(np.array(image)).permute(2, 0, 1)
    except (OSError, ValueError, SyntaxError) as error:
        raise ValueError(f"{paths.display_path(path)}: not a readable image ({error}); expected a whole file") from error
