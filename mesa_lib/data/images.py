"""The one reader of image files from outside: a folder with one folder for each class -> images and labels.

`mesa run` (through `data.folder`) and `mesa scan` read class folders with it. Files that cannot be read are left out
and named, if they are few. Everything that had to be changed (size, transparency, depth) is counted and noted. Input
that would make every result worthless ends in one message. Sizes are read from the files' headers first, and no more
than one picture is ever held at its full size.
"""

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mesa_lib.data.class_folders import ImageFiles, check, list_image_files
from mesa_lib.data.decoding import decode, image_size, resize
from mesa_lib.data.splits import Split
from mesa_lib.progress import progress_bar
from mesa_lib.store import paths
from mesa_lib.store.sanitize import sanitize, sanitize_list

#: sides of images in pixels, lowest and highest
SIDES = (8, 1024)
#: part of the files that may be unreadable
MAX_UNREADABLE = 0.1
#: bytes of all images together at their final size
MAX_BYTES = 4 * 2**30
#: a scan needs so many images of each class and in all; below `FEW`, a note says that there are few
MIN_PER_CLASS, MIN_IMAGES, FEW = 4, 12, 200


@dataclass(frozen=True)
class Images:
    """Images with labels, the names of the classes in the order of the labels, and notes: sentences for people."""

    split: Split
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        """A hash of images and labels."""
        digest = hashlib.sha256(self.split.images.contiguous().numpy())
        digest.update(self.split.labels.numpy())
        return digest.hexdigest()[:16]


def read_images(where: str | Path, size: int | None = None, classes: tuple[str, ...] | None = None) -> Images:
    """Return the clean images for a scan: `read_class_folder` with the numbers of images that a scan needs."""
    images = read_class_folder(where, size, classes, min_per_class=MIN_PER_CLASS, min_images=MIN_IMAGES)
    if len(images.split) >= FEW:
        return images
    few = f"These are few: with fewer than {FEW} images verdicts are less sure."
    return Images(images.split, images.classes, (images.notes[0], few, *images.notes[1:]))


def read_class_folder(
    where: str | Path,
    size: int | None = None,
    classes: tuple[str, ...] | None = None,
    *,
    min_per_class: int = 1,
    min_images: int = 2,
) -> Images:
    """Return all images below `<where>/<class>/`, resized to size x size.

    Args:
        where: the folder that holds a folder for each class.
        size: side in pixels; None: that of most images, if those are square.
        classes: the folders' names in the order of the labels (of a model's outputs); None: in the order of their
            numbers if all names are whole numbers, else sorted as text. (torchvision's ImageFolder sorts numbers as
            text, too: 0, 1, 10, 2.)
        min_per_class: images that every class has to have.
        min_images: images that there have to be in all.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if its images cannot be used.
    """
    if size is not None:
        check_size(size)
    files = list_image_files(paths.find(where), classes)
    images = read_image_files(files, size, min_per_class=min_per_class, min_images=min_images)
    return Images(images.split, images.classes, (*images.notes, *files.notes))


def check_size(size: int) -> None:
    """Raise ValueError if no image may have this side in pixels."""
    if not SIDES[0] <= size <= SIDES[1]:
        raise ValueError(f"image_size = {size}: expected a side of {SIDES[0]} to {SIDES[1]} pixels")


# --- images ---------------------------------------------------------------------------------------------


def read_image_files(files: ImageFiles, size: int | None, *, min_per_class: int, min_images: int) -> Images:
    """Return the images of these files, and notes on them; arguments and errors as in `read_class_folder`."""
    where, unreadable = files.where, []
    readable, sizes = _read_headers(files, unreadable)
    size = size or common_size(sizes, where)
    amount = f"{len(readable)} images of {size}x{size}"
    check(len(readable) * 3 * size**2 <= MAX_BYTES, where, amount, "at most 4 GB of them")
    split, changes = _decode_all(files, readable, size, unreadable)
    counts = np.bincount(split.labels, minlength=len(files.classes))
    short = [f"{files.classes[k]} ({counts[k]})" for k in np.flatnonzero(counts < min_per_class)]
    least = f"at least {min_per_class} in every class"
    check(not short, where, f"too few images in {sanitize_list(short, 5)}", least)
    check(len(split) >= min_images, where, f"{len(split)} images", f"at least {min_images} in all")
    done = [f"{count} images {change}" for change, count in changes.items()]
    differ = any(not torch.equal(image, split.images[0]) for image in split.images)
    equal = f"all {len(split)} images have equal pixels" + (f" ({'; '.join(done)})" if done else "")
    check(differ, where, equal, "images that differ")
    spread = f"{counts.min()} to {counts.max()} each"
    notes = [f"{len(split)} images in {len(files.classes)} classes ({spread}), {size}x{size}."]
    if unreadable:
        left_out = sanitize_list([name for name, _ in unreadable], 5)
        notes.append(f"{len(unreadable)} files could not be read and were left out: {left_out}.")
    notes += [f"{text}." for text in done]
    return Images(split, files.classes, tuple(notes))


def common_size(sizes: Counter[tuple[int, int]], where: Path) -> int:
    """Return the side of most pictures.

    Raises:
        ValueError: if most are not square, or too small or too large for a model.
    """
    (width, height), _ = (sizes or Counter({(0, 0): 1})).most_common(1)[0]
    if width != height or not SIDES[0] <= width <= SIDES[1]:
        raise ValueError(
            f"{sanitize(paths.display_path(where))}: most images are {width}x{height}; name the side of the model's "
            f"input with image_size ({SIDES[0]} to {SIDES[1]})"
        )
    return width


def _read_headers(files: ImageFiles, unreadable: list) -> tuple[list[tuple[Path, int]], Counter[tuple[int, int]]]:
    """Return the files that have an image's header, and how often each (width, height) occurs."""
    readable, sizes = [], Counter()
    for file, label in files.files:
        try:
            sizes[image_size(file, files.name(file))] += 1
            readable.append((file, label))
        except ValueError as error:
            unreadable.append((files.name(file), error))
    _check_unreadable(unreadable, files)
    return readable, sizes


def _decode_all(files: ImageFiles, readable: list, size: int, unreadable: list) -> tuple[Split, Counter[str]]:
    """Return all images with their labels, and how often each change was needed."""
    images, labels, changes = torch.empty(len(readable), 3, size, size, dtype=torch.uint8), [], Counter()
    for file, label in progress_bar(readable, "reading images"):
        try:
            images[len(labels)], changed = read_image(file, size, files.name(file))
        except ValueError as error:
            unreadable.append((files.name(file), error))
            continue
        labels.append(label)
        changes.update(changed)
    _check_unreadable(unreadable, files)
    return Split(images[: len(labels)], torch.tensor(labels)), changes


def read_image(file: Path, size: int, name: str | None = None) -> tuple[Tensor, list[str]]:
    """Return one image as uint8 (3, size, size), and what was changed about it; see `decoding.decode`."""
    picture, changes = decode(file, name)
    if picture.size != (size, size):
        changes.append(f"had another size and were resized to {size}x{size}")
    if picture.width != picture.height:
        changes.append("were not square: their sides were made equal, nothing was cut off")
    return torch.from_numpy(np.array(resize(picture, size))).permute(2, 0, 1), changes


def _check_unreadable(unreadable: list[tuple[str, ValueError]], files: ImageFiles) -> None:
    if len(unreadable) > MAX_UNREADABLE * len(files.files):
        problem = f"{len(unreadable)} of {len(files.files)} images cannot be read, the first is {unreadable[0][1]}"
        check(False, files.where, problem, "whole image files")
