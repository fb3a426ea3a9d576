"""One image file from outside -> one RGB picture, with limits on what a file may make this process do.

Only decoders of common formats may run, an image may have only so many pixels, and whatever a decoder raises becomes
one ValueError that names the file. What had to be changed about an image is returned with it.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from mesa_lib.store.sanitize import sanitize

#: endings of the files that are read as images
ENDINGS = {".webp", ".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
#: decoders that a file may choose; others (PostScript) start programs
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
#: pixels that an image may have: a small file can hold a huge one
MAX_PIXELS = 50_000_000
#: the EXIF tag of cameras for the orientation: 1 is upright
EXIF_ORIENTATION = 0x0112

DEPTH_NOTE = "had more than 8 bits a channel and were reduced to 8"
#: what decoders raise about files that they cannot read
DECODER_ERRORS = (
    *(OSError, ValueError, SyntaxError, EOFError, ArithmeticError, IndexError, TypeError, KeyError),
    Image.DecompressionBombError,
)


def decode(file: Path, name: str | None = None) -> tuple[Image.Image, list[str]]:
    """Return the file's picture in RGB, and what had to be changed about it.

    Transparent parts are put on white. Gray values of more than 8 bits are scaled to 8. Of an animation, the first
    frame is taken. An orientation that a camera noted (EXIF) is not applied.

    Args:
        file: the image file.
        name: what messages call it; default: the name of the file.

    Returns:
        the picture; the changes, each as the end of a sentence ("were transparent in part and were put on white").

    Raises:
        ValueError: if it is no whole image of a known format.
    """
    with _errors_as_value_error(file, name):
        return _decode(file)


def image_size(file: Path, name: str | None = None) -> tuple[int, int]:
    """Return width and height in pixels from the file's header, without decoding it.

    Raises:
        ValueError: if the file is no image of a known format.
    """
    with _errors_as_value_error(file, name), _open(file) as image:
        return image.size


def resize(picture: Image.Image, size: int) -> Image.Image:
    """Return the picture as size x size, resized bilinearly if it has another size."""
    return picture if picture.size == (size, size) else picture.resize((size, size), Image.Resampling.BILINEAR)


@contextmanager
def _errors_as_value_error(file: Path, name: str | None) -> Iterator[None]:
    """Turn whatever is raised about a file into one ValueError that names it."""
    name = sanitize(name or file.name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of broken metadata; what is too large is refused
            yield
    except DECODER_ERRORS as error:
        reason = str(error).replace(str(file.parent), "...")
        raise ValueError(f"{name}: {sanitize(reason, 150)}") from error
    except Exception as error:  # decoders of odd formats raise what they like; one picture is no reason to stop
        raise ValueError(f"{name}: {type(error).__name__}") from error


def _open(file: Path) -> Image.Image:
    image = Image.open(file, formats=FORMATS)
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise ValueError(f"{image.width}x{image.height} pixels, expected at most {MAX_PIXELS:,}")
    return image


def _decode(file: Path) -> tuple[Image.Image, list[str]]:
    changes = []
    with _open(file) as image:
        if any(";16" in repr(tile) for tile in image.tile) and image.mode[:1] not in "IF":
            changes.append(DEPTH_NOTE)  # color: Pillow itself reduces it
        image.load()
        if image.getexif().get(EXIF_ORIENTATION, 1) != 1:
            changes.append("say that they should be turned (EXIF), which was not done")
        if getattr(image, "is_animated", False):
            changes.append("were animations, of which the first frame was taken")
        if image.mode[:1] in "IF":
            changes.append(DEPTH_NOTE)
            return _deep_gray_to_rgb(image), changes
        if "A" in image.getbands() or "transparency" in image.info:
            full = image.convert("RGBA")
            if full.getchannel("A").getextrema()[0] < 255:
                changes.append("were transparent in part and were put on white")
                full = Image.alpha_composite(Image.new("RGBA", full.size, "white"), full)
            return full.convert("RGB"), changes
        if image.mode not in ("RGB", "L", "P", "1"):
            changes.append(f"had the colors {image.mode} and were converted to RGB")
        return image.convert("RGB"), changes


def _deep_gray_to_rgb(image: Image.Image) -> Image.Image:
    """Return a gray image of whole numbers of 16 bits, or of numbers in [0, 1], as RGB of 8 bits."""
    gray = np.asarray(image, np.float64)
    top = 1.0 if image.mode == "F" else 65535.0
    if not np.isfinite(gray).all() or gray.min() < 0 or gray.max() > top:
        raise ValueError(f"values from {gray.min():g} to {gray.max():g}; expected 0 to {top:g}")
    return Image.fromarray((255 * gray / top).round().astype(np.uint8)).convert("RGB")
