"""Trees of class folders: `train/<class>/*` and `test/<class>/*`, or `<class>/*` alone."""

from pathlib import Path

import numpy as np
import torch

from mesa_lib import store
from mesa_lib.data.images import ImageFiles, Images, check_size, list_image_files, read_image_files
from mesa_lib.data.splits import Split, TrainAndTest
from mesa_lib.store import paths
from mesa_lib.store.sanitize import sanitize

PARTS = ("train", "test")


def folder(where: Path, size: int, seed: int) -> TrainAndTest:
    """Return the images of a tree of class folders, resized to size x size where they differ.

    Args:
        where: holds `train/` and `test/` with the same class folders, or class folders alone, which are then halved.
        size: side in pixels.
        seed: decides the halves.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if the tree has another layout, or its images cannot be used.
    """
    check_size(size)
    name = f"data_dir = '{sanitize(paths.display_path(where))}'"
    if not where.is_dir():
        raise FileNotFoundError(f"{name}: no such folder; expected train/<class>/ and test/<class>/")
    present = [(where / part).is_dir() for part in PARTS]
    if any(present) and not all(present):
        raise ValueError(f"{name}: expected both train/ and test/, or class folders alone")
    if not any(present):
        images = read_or_load(list_image_files(where), size)
        order = torch.from_numpy(np.random.RandomState(seed).permutation(len(images.split)))
        half = len(order) // 2
        return TrainAndTest(images.split[order[:half]], images.split[order[half:]], images.classes, images.notes)
    files = [list_image_files(where / part) for part in PARTS]
    if files[0].classes != files[1].classes:
        differing = sorted(set(files[0].classes) ^ set(files[1].classes))
        shown = [sanitize(name) for name in differing[:5]]
        raise ValueError(f"{name}: train/ and test/ differ in classes {shown}; expected the same class folders in both")
    train, test = (read_or_load(part, size) for part in files)
    notes = [f"{part}/: {note}" for part, images in zip(PARTS, (train, test), strict=True) for note in images.notes]
    return TrainAndTest(train.split, test.split, train.classes, tuple(notes))


def read_or_load(files: ImageFiles, size: int) -> Images:
    """Return the decoded images of these files: from the store if files of this content were decoded before.

    The notes on them are stored as well, so that a second run still shows them.
    """

    def decode() -> tuple[dict, dict]:
        images = read_image_files(files, size, min_per_class=1, min_images=2)
        tensors = {"images": images.split.images, "labels": images.split.labels}
        return tensors, {"images": len(images.split), "notes": list(images.notes)}

    artifact = store.train_or_load("images", {"tree": files.content_hash(), "size": size}, decode)
    split = Split(artifact.tensors["images"], artifact.tensors["labels"])
    return Images(split, files.classes, (*artifact.result["notes"], *files.notes))
