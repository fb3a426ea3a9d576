"""Trees of class folders: `train/<class>/*` and `test/<class>/*`, or `<class>/*` alone."""

from pathlib import Path

import numpy as np
import torch

from mesa_lib import store
from mesa_lib.data.class_folders import ImageFiles, list_image_files
from mesa_lib.data.images import Images, check_size, read_image_files
from mesa_lib.data.splits import Split, TrainAndTest
from mesa_lib.store import paths
from mesa_lib.store.sanitize import sanitize, sanitize_list

#: names of the two parts of a tree, in any case; of several that are there the first is taken
TRAIN, TEST = ("train", "training"), ("test", "testing", "val", "valid", "validation")


def folder(where: Path, size: int, seed: int) -> TrainAndTest:
    """Return the images of a tree of class folders, resized to size x size where they differ.

    Args:
        where: holds `train/` and `test/` (or other names of `TRAIN` and `TEST`) with the same class folders, or class
            folders alone, which are then halved.
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
    parts, beside = find_parts(where)
    if len(parts) == 1:
        found = parts[0].name
        raise ValueError(f"{name}: {found}/ alone; expected both train/ and test/, or class folders alone")
    if not parts:
        images = read_or_load(list_image_files(where), size)
        order = torch.from_numpy(np.random.RandomState(seed).permutation(len(images.split)))
        half = len(order) // 2
        return TrainAndTest(images.split[order[:half]], images.split[order[half:]], images.classes, images.notes)
    files = [list_image_files(part) for part in parts]
    if files[0].classes != files[1].classes:
        differing = sorted(set(files[0].classes) ^ set(files[1].classes))
        shown, both = [sanitize(name) for name in differing[:5]], "/ and ".join(part.name for part in parts)
        raise ValueError(f"{name}: {both}/ differ in classes {shown}; expected the same class folders in both")
    train, test = (read_or_load(part, size) for part in files)
    read = zip(parts, (train, test), strict=True)
    notes = [f"{part.name}/: {note}" for part, images in read for note in images.notes]
    notes += [f"Folders beside these were left out: {sanitize_list(beside)}."] if beside else []
    return TrainAndTest(train.split, test.split, train.classes, tuple(notes))


def find_parts(where: Path) -> tuple[list[Path], list[str]]:
    """Return the folders of training and test images, those that are there, and the names of all other folders.

    A folder that holds images itself is a class, whatever its name.
    """
    folders = {d.name.lower(): d for d in sorted(where.iterdir()) if d.is_dir() and not d.name.startswith(".")}
    parts = []
    for names in (TRAIN, TEST):
        there = [
            folders[name] for name in names if name in folders and any(d.is_dir() for d in folders[name].iterdir())
        ]
        parts += there[:1]
    return parts, [d.name for d in folders.values() if d not in parts]


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
