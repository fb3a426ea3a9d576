"""The one reader of image files from outside: a folder with one folder for each class -> images and labels.

`mesa run` (through `data.folder`) and `mesa scan` read class folders with it. Files that cannot be read are left out
and named, if they are few. Everything that had to be changed (size, transparency, depth) is counted and noted. Input
that would make every result worthless ends in one message. Sizes are read from the files' headers first, and no more
than one picture is ever held at its full size.
"""

import hashlib
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mesa_lib import store
from mesa_lib.data.decoding import ENDINGS, decode, image_size, resize
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
#: files in a class folder, and folders in each other
MAX_FILES, MAX_DEPTH = 200_000, 20
#: names of classes in a note
SHOWN_CLASSES = 12
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


@dataclass(frozen=True)
class ImageFiles:
    """The image files below the class folders of `where`, each with its label; none was opened yet."""

    where: Path
    classes: tuple[str, ...]
    files: tuple[tuple[Path, int], ...]
    notes: tuple[str, ...] = ()

    def name(self, file: Path) -> str:
        """Return what messages call the file: its path below the tree, with the class folder."""
        return file.relative_to(self.where).as_posix()

    def content_hash(self) -> str:
        """Return a hash of the classes, and of the relative path and the bytes of every file."""
        listing = hashlib.sha256(repr(self.classes).encode())
        for file, _ in self.files:
            try:
                content = store.digest(file)
            except OSError:
                content = "unreadable"
            listing.update(os.fsencode(self.name(file)) + f"\0{content}\n".encode())
        return listing.hexdigest()


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


# --- files ----------------------------------------------------------------------------------------------


def list_image_files(where: Path, classes: tuple[str, ...] | None = None) -> ImageFiles:
    """Return the image files below the class folders; arguments and errors as in `read_class_folder`."""
    if not where.is_dir():
        name = sanitize(paths.display_path(where))
        raise FileNotFoundError(f"images = '{name}': no such folder; expected one with a folder for each class")
    names = class_names(where, classes)
    for name in names:
        _check_class_folder(where, name)
    others: Counter[str] = Counter()
    files = tuple((file, k) for k, name in enumerate(names) for file in image_files(where / name, others))
    ignored = ", ".join(f"{count} {sanitize(ending) or 'without'}" for ending, count in others.most_common(3))
    unread = f" (endings that are not read: {ignored})" if ignored else ""
    _check(bool(files), where, f"no images{unread}", f"files that end in {', '.join(sorted(ENDINGS))}")
    counts = Counter(label for _, label in files)
    listed = [f"{k} = {name} ({counts[k]} files)" for k, name in enumerate(names)]
    notes = [f"Classes: {sanitize_list(listed, SHOWN_CLASSES)}."]
    notes += [f"Files with other endings were left out: {ignored}."] if ignored else []
    return ImageFiles(where, names, files, tuple(notes))


def class_names(where: Path, classes: tuple[str, ...] | None = None) -> tuple[str, ...]:
    """Return the names of the class folders, in the order of `classes`; hidden folders are left out.

    Raises:
        ValueError: if `classes` names others, a name is no text, or there are fewer than two.
    """
    names = tuple(sorted(d.name for d in where.iterdir() if d.is_dir() and not d.name.startswith(".")))
    if all(name.isascii() and name.isdecimal() for name in names):
        names = tuple(sorted(names, key=lambda name: (int(name), name)))
    for name in names:
        _check(not any("\ud800" <= c <= "\udfff" for c in name), where, f"folder '{sanitize(name)}'", "a name in UTF-8")
    if classes is not None and (set(classes) != set(names) or len(classes) != len(names)):
        differing = sanitize_list(sorted(set(classes) ^ set(names))) or "a name twice"
        raise ValueError(f"classes = {sanitize_list(classes, 10)}: expected the folders' names; differs in {differing}")
    _check(len(names) > 1, where, f"{len(names)} class folders", "two or more")
    return tuple(classes or names)


def _check_class_folder(where: Path, name: str) -> None:
    """Raise ValueError if this folder holds several folders and no image: then it is no class, but holds classes."""
    with os.scandir(where / name) as entries:
        visible = [entry for entry in entries if not entry.name.startswith(".")]
        folders = [entry.name for entry in visible if entry.is_dir(follow_symlinks=False)]
    images = any(Path(entry.name).suffix.lower() in ENDINGS for entry in visible if entry.name not in folders)
    held = f"the folder '{sanitize(name)}' holds folders ({sanitize_list(sorted(folders))}) and no images"
    _check(images or len(folders) < 2, where, held, "a folder for each class, or train/ and test/ with the same ones")


def image_files(folder: Path, others: Counter[str]) -> list[Path]:
    """Return all image files below the folder, in the order of their names.

    Links to folders are not followed and hidden files are left out. A link to nothing counts as a file, so that it is
    named among those that cannot be read.

    Args:
        folder: the folder of a class.
        others: counts the endings of everything else; changed in place.

    Raises:
        ValueError: if the folders are nested too deep, or the files too many.
    """
    files, folders = [], [(folder, 1)]
    while folders:
        location, depth = folders.pop()
        _check(depth <= MAX_DEPTH, folder, f"folders nested more than {MAX_DEPTH} deep", "images in class folders")
        with os.scandir(location) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                ending = Path(entry.name).suffix.lower()
                if entry.is_dir(follow_symlinks=False):
                    folders.append((Path(entry.path), depth + 1))
                elif ending not in ENDINGS:
                    others[ending] += 1
                elif os.path.isfile(entry.path) or not os.path.exists(entry.path):
                    files.append(Path(entry.path))
                else:  # a pipe, or a link to a folder
                    others[f"{ending} that are no files"] += 1
        _check(len(files) <= MAX_FILES, folder, f"more than {MAX_FILES:,} files", "some hundred images for each class")
    return sorted(files)


# --- images ---------------------------------------------------------------------------------------------


def read_image_files(files: ImageFiles, size: int | None, *, min_per_class: int, min_images: int) -> Images:
    """Return the images of these files, and notes on them; arguments and errors as in `read_class_folder`."""
    where, unreadable = files.where, []
    readable, sizes = _read_headers(files, unreadable)
    size = size or common_size(sizes, where)
    amount = f"{len(readable)} images of {size}x{size}"
    _check(len(readable) * 3 * size**2 <= MAX_BYTES, where, amount, "at most 4 GB of them")
    split, changes = _decode_all(files, readable, size, unreadable)
    counts = np.bincount(split.labels, minlength=len(files.classes))
    short = [f"{files.classes[k]} ({counts[k]})" for k in np.flatnonzero(counts < min_per_class)]
    least = f"at least {min_per_class} in every class"
    _check(not short, where, f"too few images in {sanitize_list(short, 5)}", least)
    _check(len(split) >= min_images, where, f"{len(split)} images", f"at least {min_images} in all")
    done = [f"{count} images {change}" for change, count in changes.items()]
    differ = any(not torch.equal(image, split.images[0]) for image in split.images)
    equal = f"all {len(split)} images have equal pixels" + (f" ({'; '.join(done)})" if done else "")
    _check(differ, where, equal, "images that differ")
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
        _check(False, files.where, problem, "whole image files")


def _check(holds: bool, where: Path, problem: str, expected: str) -> None:
    if not holds:
        raise ValueError(f"{sanitize(paths.display_path(where))}: {problem}; expected {expected}")
