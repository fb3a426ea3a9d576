"""Clean images from outside: a folder with one folder a class.

Files that cannot be read are left out and named, if they are few; everything that had to be changed (size,
transparency, depth) is counted and said. What would make a verdict worthless ends in one message.
"""

import hashlib
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from .. import paths
from ..data import ENDINGS, Split
from ..progress import bar

#: of each class at least so many images, and of all files at most this part unreadable
FEWEST, UNREADABLE = 4, 0.1
#: fewer images than this are said to be few
FEW = 200
#: pixels that an image may have: a small file can hold a huge one
PIXELS = 50_000_000


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
    where = paths.find(where)
    if not where.is_dir():
        raise FileNotFoundError(f"images = {paths.show(where)!r}: no such folder; expected one with a folder a class")
    names = tuple(sorted(d.name for d in where.iterdir() if d.is_dir() and not d.name.startswith(".")))
    if classes is not None and (set(classes) != set(names) or len(classes) != len(names)):
        odd = sorted(set(classes) ^ set(names)) or "a name twice"
        raise ValueError(f"classes = {', '.join(classes)[:200]}: expected the folders' names; differs in {odd}")
    names = classes or names
    if len(names) < 2:
        raise ValueError(f"{paths.show(where)}: {len(names)} class folders; expected two or more")
    files = [(file, k) for k, name in enumerate(names) for file in sorted((where / name).rglob("*"))]
    files = [(file, k) for file, k in files if file.suffix.lower() in ENDINGS and file.is_file()]
    read_, odd = [], Counter()
    unreadable = []
    for file, k in bar(files, "reading images"):
        try:
            image, changed = decode(file)
        except ValueError as error:
            unreadable.append((file, error))
            continue
        read_.append((image, k))
        odd.update(changed)
    if unreadable and len(unreadable) > UNREADABLE * len(files):
        raise ValueError(
            f"{paths.show(where)}: {len(unreadable)} of {len(files)} images cannot be read, the first is "
            f"{unreadable[0][1]}; expected whole image files"
        )
    counts = np.bincount([k for _, k in read_], minlength=len(names))
    if counts.min() < FEWEST:
        short = [f"{names[k]} ({counts[k]})" for k in np.flatnonzero(counts < FEWEST)[:5]]
        raise ValueError(
            f"{paths.show(where)}: too few images in {', '.join(short)}; expected at least {FEWEST} in every class"
        )
    size = size or common_size([image for image, _ in read_], where)
    resized = sum(image.size != (size, size) for image, _ in read_)
    arrays = [np.array(fitted(image, size)) for image, _ in read_]
    images = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()
    notes = [f"{len(images)} images in {len(names)} classes ({counts.min()} to {counts.max()} each), {size}x{size}."]
    if len(images) < FEW:
        notes.append(f"These are few: with fewer than {FEW} images verdicts are less sure.")
    if unreadable:
        left = ", ".join(file.name for file, _ in unreadable[:5])
        notes.append(f"{len(unreadable)} files could not be read and were left out: {left}.")
    if resized:
        notes.append(f"{resized} images had another size and were resized to {size}x{size}.")
    notes += [f"{count} images {what}." for what, count in odd.items()]
    return Images(Split(images, torch.tensor([k for _, k in read_])), tuple(names), tuple(notes))


def decode(file: Path) -> tuple[Image.Image, list[str]]:
    """One file as an RGB picture, and what had to be done for that; ValueError if it is no whole image."""
    changed = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of broken metadata; what is too large is refused below
            with Image.open(file) as image:
                if image.width * image.height > PIXELS:
                    raise ValueError(f"{image.width}x{image.height} pixels, expected at most {PIXELS:,}")
                image.load()
                if getattr(image, "is_animated", False):
                    changed.append("were animations, of which the first frame was taken")
                if image.mode[:1] in "IF":  # 16 bits or more, grey
                    grey = np.asarray(image, np.float64)
                    top = 65535 if image.mode.startswith("I") else max(1.0, grey.max())
                    changed.append("had more than 8 bits a channel and were reduced to 8")
                    return Image.fromarray((255 * (grey / top).clip(0, 1)).astype(np.uint8)).convert("RGB"), changed
                if "A" in image.getbands() or "transparency" in image.info:
                    full = image.convert("RGBA")
                    if full.getchannel("A").getextrema()[0] < 255:
                        changed.append("were transparent in part and were put on white")
                        full = Image.alpha_composite(Image.new("RGBA", full.size, "white"), full)
                    return full.convert("RGB"), changed
                return image.convert("RGB"), changed
    except (OSError, ValueError, SyntaxError, EOFError, ArithmeticError, IndexError, TypeError, KeyError) as error:
        raise ValueError(f"{file.name}: {str(error).replace(str(file.parent), '...')[:150]}") from error
    except Exception as error:  # decoders of odd formats raise what they like: a picture is no reason to stop
        raise ValueError(f"{file.name}: {type(error).__name__}") from error


def common_size(pictures: list[Image.Image], where: Path) -> int:
    """The side of most pictures; ValueError if most are not square."""
    (width, height), _ = Counter(picture.size for picture in pictures).most_common(1)[0]
    if width != height:
        raise ValueError(
            f"{paths.show(where)}: most images are {width}x{height}; name the side of the model's input with image_size"
        )
    return width


def fitted(picture: Image.Image, size: int) -> Image.Image:
    """The same, size x size."""
    return picture if picture.size == (size, size) else picture.resize((size, size), Image.Resampling.BILINEAR)
