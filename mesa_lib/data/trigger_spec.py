"""Triggers by name: `bw:170` (black-white pattern 170), `color:3` (seeded random colors), `file:PATH`."""

import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mesa_lib.data.decoding import decode
from mesa_lib.store import paths
from mesa_lib.store.sanitize import sanitize
from mesa_lib.triggers import color, pattern

#: kinds of NumPy types that are numbers: booleans, whole numbers, floating point
NUMBERS = "buif"


def parse_trigger(spec: str) -> Tensor:
    """Return the trigger (3, h, w) in [0, 1] that `bw:170`, `color:3` or `file:path.png` names.

    Raises:
        ValueError: if the name has another form, its number is out of range, or the file holds no trigger.
    """
    kind, _, value = spec.partition(":")
    if kind == "file" and value:
        return load_trigger(value)
    if kind not in ("bw", "color") or not value.isdecimal():
        raise ValueError(f"trigger = {spec!r}: expected bw:NUMBER, color:NUMBER or file:PATH")
    return pattern(int(value)) if kind == "bw" else color(int(value))


def load_trigger(path: str | Path) -> Tensor:
    """Return the trigger (3, h, w) in [0, 1] that a file holds.

    Args:
        path: an image file, read as every image is (transparent parts on white, 8 bits a channel); or a `.npy` array
            (3, h, w) or (h, w, 3), of type uint8 or with values in [0, 1]; one that could be either, such as (3, 3, 3),
            is read as (3, h, w), as this project writes triggers. Arrays with Python objects are refused.

    Raises:
        ValueError: if the file cannot be read, or its array has another shape, type or range.
    """
    path = paths.find(path)
    name = f"trigger = 'file:{sanitize(path.name)}'"
    array = _read_array(path, name)
    _check_array(array, name)
    trigger = torch.from_numpy(array.astype(np.float32))
    if path.suffix != ".npy" or array.shape[0] != 3:
        trigger = trigger.permute(2, 0, 1)
    return (trigger / 255 if array.dtype == np.uint8 else trigger).contiguous()


def _read_array(path: Path, name: str) -> np.ndarray:
    try:
        if path.suffix != ".npy":
            return np.asarray(decode(path)[0])
        array = np.load(path, allow_pickle=False)
    except (OSError, EOFError, ValueError, MemoryError, zipfile.BadZipFile) as error:
        raise ValueError(f"{name}: expected an image or a .npy array; {error}") from error
    if not isinstance(array, np.ndarray):
        array.close()
        raise ValueError(f"{name}: expected one .npy array; the file is an archive of several (.npz)")
    return array


def _check_array(array: np.ndarray, name: str) -> None:
    """Raise ValueError, with one message per rule, if the array is no trigger."""
    if array.ndim != 3 or 3 not in (array.shape[0], array.shape[2]):
        raise ValueError(f"{name}: shape {array.shape}, expected (3, h, w) or (h, w, 3)")
    if array.size == 0:
        raise ValueError(f"{name}: shape {array.shape}, expected one pixel or more")
    if array.dtype.kind not in NUMBERS:
        raise ValueError(f"{name}: values of type {array.dtype}, expected numbers")
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: values that are NaN or infinite, expected uint8, or numbers in [0, 1]")
    if array.dtype != np.uint8 and (array.min() < 0 or array.max() > 1):
        span = f"values of type {array.dtype} from {array.min():g} to {array.max():g}"
        raise ValueError(f"{name}: {span}, expected uint8, or numbers in [0, 1]; divide by 255 if white is 255")
