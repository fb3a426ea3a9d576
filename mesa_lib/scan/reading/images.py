"""Clean images from outside: a folder with one folder for each class.

Files that cannot be read are left out and named, if they are few; everything that had to be changed (size,
transparency, depth) is counted and said. What would make a verdict worthless ends in one message. Sizes are read from
the files' headers first, so that no more than one picture is ever held at its full size.
"""

import hashlib
import os
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mesa_lib import device as devices
from mesa_lib.data import ENDINGS, Split
from mesa_lib.progress import progress_bar
from mesa_lib.store import paths
from mesa_lib.store.sanitize import sanitize, sanitize_list

#: of each class at least so many images, so many in all, and of all files at most this part unreadable
FEWEST, LEAST, UNREADABLE = 4, 12, 0.1
#: of the images this part is kept for the accuracy of a repaired model
KEPT = 0.2
#: fewer images than this are said to be few
FEW = 200
#: pixels that an image may have: a small file can hold a huge one
PIXELS = 50_000_000
#: side of the model's inputs
SIDES = (8, 1024)
#: bytes of all images together at that size
BYTES = 4 * 2**30
#: files in a folder, and folders in each other
FILES, DEPTH = 200_000, 20
#: the mark of cameras: 1 is upright
EXIF_ORIENTATION = 0x0112
#: decoders that a file may choose; others (PostScript) start programs
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")


@dataclass(frozen=True)
class Images:
    """split: images uint8 (N, 3, S, S) and labels; classes: names in the model's order; notes: sentences for people."""

    split: Split
    classes: tuple[str, ...]
    notes: tuple[str, ...] = field(default=())

    @property
    def fingerprint(self) -> str:
        mark = hashlib.sha256(self.split.images.contiguous().numpy())
        mark.update(self.split.labels.numpy())
        return mark.hexdigest()[:16]


def read(where: str | Path, size: int | None = None, classes: tuple[str, ...] | None = None) -> Images:
    """All images below `<where>/<class>/`, resized to size x size.

    size: None, that of most images, if those are square. classes: the folders' names in the order of the model's
    outputs; None: sorted as text, as torchvision's ImageFolder does. FileNotFoundError or ValueError in one message
    """
    if size is not None and not SIDES[0] <= size <= SIDES[1]:
        raise ValueError(f"image_size = {size}: expected a side of {SIDES[0]} to {SIDES[1]} pixels")
    where = paths.find(where)
    if not where.is_dir():
        raise FileNotFoundError(
            f"images = '{sanitize(paths.display_path(where))}': no such folder; expected one with a folder for each class"
        )
    names = class_names(where, classes)
    others: Counter[str] = Counter()
    files = [(file, k) for k, name in enumerate(names) for file in pictures(where / name, others)]
    ignored = ", ".join(f"{count} {sanitize(ending) or 'without'}" for ending, count in others.most_common(3))
    _check(bool(files), where, f"no images{f' (endings that are not read: {ignored})' * bool(ignored)}",
           f"files that end in {', '.join(sorted(ENDINGS))}")  # fmt: skip
    unreadable, whole, sizes = [], [], Counter()
    for file, k in files:
        try:
            sizes[_size(file)] += 1
            whole.append((file, k))
        except ValueError as error:
            unreadable.append((file, error))
    _few(unreadable, len(files), where)
    size = size or common_size(sizes, where)
    _check(len(whole) * 3 * size**2 <= BYTES, where, f"{len(whole)} images of {size}x{size}", "at most 4 GB of them")
    images, labels, odd = torch.empty(len(whole), 3, size, size, dtype=torch.uint8), [], Counter()
    for file, k in progress_bar(whole, "reading images"):
        try:
            image, changed = decode(file)
        except ValueError as error:
            unreadable.append((file, error))
            continue
        if image.size != (size, size):
            changed.append(f"had another size and were resized to {size}x{size}")
        if image.width != image.height:
            changed.append("were not square: their sides were made equal, nothing was cut off")
        images[len(labels)] = torch.from_numpy(np.array(fitted(image, size))).permute(2, 0, 1)
        labels.append(k)
        odd.update(changed)
    _few(unreadable, len(files), where)
    counts = np.bincount(labels, minlength=len(names))
    short = [f"{names[k]} ({counts[k]})" for k in np.flatnonzero(counts < FEWEST)]
    _check(not short, where, f"too few images in {sanitize_list(short, 5)}", f"at least {FEWEST} in every class")
    _check(len(labels) >= LEAST, where, f"{len(labels)} images", f"at least {LEAST} in all")
    notes = [f"{len(labels)} images in {len(names)} classes ({counts.min()} to {counts.max()} each), {size}x{size}."]
    if len(labels) < FEW:
        notes.append(f"These are few: with fewer than {FEW} images verdicts are less sure.")
    if unreadable:
        left = sanitize_list([file.name for file, _ in unreadable], 5)
        notes.append(f"{len(unreadable)} files could not be read and were left out: {left}.")
    if ignored:
        notes.append(f"Files with other endings were left out: {ignored}.")
    notes += [f"{count} images {what}." for what, count in odd.items()]
    return Images(Split(images[: len(labels)], torch.tensor(labels)), tuple(names), tuple(notes))


def _check(holds: bool, where: Path, found: str, expected: str) -> None:
    if not holds:
        raise ValueError(f"{sanitize(paths.display_path(where))}: {found}; expected {expected}")


def _few(unreadable: list, files: int, where: Path) -> None:
    if unreadable and len(unreadable) > UNREADABLE * files:
        said = f"{len(unreadable)} of {files} images cannot be read, the first is {unreadable[0][1]}"
        _check(False, where, said, "whole image files")


def class_names(where: Path, classes: tuple[str, ...] | None) -> tuple[str, ...]:
    """The folders' names, in the order that was asked for; ValueError if they are others, or no text."""
    names = tuple(sorted(d.name for d in where.iterdir() if d.is_dir() and not d.name.startswith(".")))
    for name in names:
        _check(not any("\ud800" <= c <= "\udfff" for c in name), where, f"folder '{sanitize(name)}'", "a name in UTF-8")
    if classes is not None and (set(classes) != set(names) or len(classes) != len(names)):
        odd = sanitize_list(sorted(set(classes) ^ set(names))) or "a name twice"
        raise ValueError(f"classes = {sanitize_list(classes, 10)}: expected the folders' names; differs in {odd}")
    _check(len(names) > 1, where, f"{len(names)} class folders", "two or more")
    return classes or names


def pictures(folder: Path, others: Counter[str]) -> list[Path]:
    """All image files below, in the order of their names; links to folders are not followed, hidden files left out.

    others: counts the endings of the files that are no images
    """
    found, todo = [], [(folder, 1)]
    while todo:
        location, depth = todo.pop()
        _check(depth <= DEPTH, folder, f"folders nested more than {DEPTH} deep", "images in class folders")
        with os.scandir(location) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    todo.append((Path(entry.path), depth + 1))
                elif entry.is_file() and Path(entry.name).suffix.lower() in ENDINGS:
                    found.append(Path(entry.path))
                else:
                    others[Path(entry.name).suffix.lower()] += 1
        _check(len(found) <= FILES, folder, f"more than {FILES:,} files", "some hundred images for each class")
    return sorted(found)


def _opened(file: Path) -> Image.Image:
    image = Image.open(file, formats=FORMATS)
    if image.width * image.height > PIXELS:
        image.close()
        raise ValueError(f"{image.width}x{image.height} pixels, expected at most {PIXELS:,}")
    return image


def _size(file: Path) -> tuple[int, int]:
    """Width and height as the file's header has them; ValueError if it is no image."""
    return _told(file, lambda: _opened(file).size)


def _told(file: Path, read):
    """What `read()` returns; whatever it raises as one ValueError that names the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of broken metadata; what is too large is refused
            return read()
    except (OSError, ValueError, SyntaxError, EOFError, ArithmeticError, IndexError, TypeError, KeyError) as error:
        said = str(error).replace(str(file.parent), "...")
        raise ValueError(f"{sanitize(file.name)}: {sanitize(said, 150)}") from error
    except Exception as error:  # decoders of odd formats raise what they like: a picture is no reason to stop
        raise ValueError(f"{sanitize(file.name)}: {type(error).__name__}") from error


def decode(file: Path) -> tuple[Image.Image, list[str]]:
    """One file as an RGB picture, and what had to be done for that; ValueError if it is no whole image."""
    return _told(file, lambda: _decoded(file))


def _decoded(file: Path) -> tuple[Image.Image, list[str]]:
    changed = []
    with _opened(file) as image:
        if any(";16" in repr(tile) for tile in image.tile) and image.mode[:1] not in "IF":
            changed.append("had more than 8 bits a channel and were reduced to 8")
        image.load()
        if image.getexif().get(EXIF_ORIENTATION, 1) != 1:
            changed.append("say that they should be turned (EXIF), which was not done")
        if getattr(image, "is_animated", False):
            changed.append("were animations, of which the first frame was taken")
        if image.mode[:1] in "IF":  # 16 bits or more, gray
            changed.append("had more than 8 bits a channel and were reduced to 8")
            return _deep(image), changed
        if "A" in image.getbands() or "transparency" in image.info:
            full = image.convert("RGBA")
            if full.getchannel("A").getextrema()[0] < 255:
                changed.append("were transparent in part and were put on white")
                full = Image.alpha_composite(Image.new("RGBA", full.size, "white"), full)
            return full.convert("RGB"), changed
        if image.mode not in ("RGB", "L", "P", "1"):
            changed.append(f"had the colors {image.mode} and were converted to RGB")
        return image.convert("RGB"), changed


def _deep(image: Image.Image) -> Image.Image:
    """Gray values of more than 8 bits: whole numbers of 16, or numbers in [0, 1]."""
    gray = np.asarray(image, np.float64)
    top = 1.0 if image.mode == "F" else 65535.0
    if not np.isfinite(gray).all() or gray.min() < 0 or gray.max() > top:
        raise ValueError(f"values from {gray.min():g} to {gray.max():g}; expected 0 to {top:g}")
    return Image.fromarray((255 * gray / top).round().astype(np.uint8)).convert("RGB")


def common_size(sizes: Counter, where: Path) -> int:
    """The side of most pictures; ValueError if most are not square, or too small or large for a model."""
    (width, height), _ = (sizes or Counter({(0, 0): 1})).most_common(1)[0]
    if width != height or not SIDES[0] <= width <= SIDES[1]:
        raise ValueError(
            f"{sanitize(paths.display_path(where))}: most images are {width}x{height}; name the side of the model's input with "
            f"image_size ({SIDES[0]} to {SIDES[1]})"
        )
    return width


def fitted(picture: Image.Image, size: int) -> Image.Image:
    """The same, size x size."""
    return picture if picture.size == (size, size) else picture.resize((size, size), Image.Resampling.BILINEAR)


def hold_out(split: Split, seed: int) -> tuple[Split, Split]:
    """A fifth of every class, at least one image, for the accuracy of a repaired model, and the rest."""
    order = torch.randperm(len(split), generator=devices.rng(seed + 13))
    kept = torch.zeros(len(split), dtype=torch.bool)
    for k in split.labels.unique():
        own = order[split.labels[order] == k]
        kept[own[: max(1, round(KEPT * len(own)))]] = True
    return split[order[kept[order]]], split[order[~kept[order]]]
