"""Weights from outside: safetensors only; pickles are refused."""

import hashlib
import shlex
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mesa_lib.store import paths

#: names of tensors in files of version 0.1 -> present names
RENAMED = {"normalise.mean": "normalize.mean", "normalise.std": "normalize.std"}


def tensors_key(tensors: dict[str, Tensor]) -> str:
    """Return 16 hexadecimal digits of a hash of tensors by value: part of the key of what is computed from them."""
    sha = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        sha.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        flat = tensor.detach().cpu().contiguous().flatten()  # flat: sides of 1 may have any stride
        sha.update(flat.view(torch.uint8).numpy() if tensor.dim() else str(tensor.item()).encode())
    return sha.hexdigest()[:16]


#: how files begin that are often taken for weights -> what they are
OTHER_FILES = {
    b"version https://git-lfs": "a pointer of Git LFS and not the weights: fetch them with `git lfs pull`",
    b"<": "a page in HTML or XML and not the weights: the link of the download leads elsewhere",
}


def from_here(file: Path) -> str:
    """Return a path as a command in the current folder takes it: relative to it if the file lies inside."""
    file = file.absolute()
    return str(file.relative_to(Path.cwd())) if file.is_relative_to(Path.cwd()) else str(file)


def kind_of_other_file(file: Path) -> str:
    """Return what a file is that is often taken for weights, as messages go on after "is"; empty: of no known kind.

    Raises:
        OSError: if it cannot be read.
    """
    with open(file, "rb") as stream:
        start = stream.read(64)
    if start[8:9] == b"{":  # safetensors: eight bytes of length, which may look like anything, then JSON
        return ""
    known = next((what for begin, what in OTHER_FILES.items() if start.lstrip().startswith(begin)), "")
    return known or ("an ONNX model: scan it with --network onnx" if file.suffix == ".onnx" else "")


def refuse_pickle(file: Path) -> None:
    """Raise ValueError, with the reason and a way out, if the file is a pickle or of another known kind."""
    if other := kind_of_other_file(file):
        raise ValueError(f"checkpoint = {file.name!r} is {other}; expected a safetensors file")
    with open(file, "rb") as stream:
        start = stream.read(64)
    pickled = start[:2] == b"PK" or start[:1] == b"\x80"
    safe = start[8:9] == b"{"
    if (pickled and not safe) or file.suffix in {".pt", ".pth", ".pkl", ".pickle"}:
        command = f"python -m mesa_lib convert {shlex.quote(from_here(file))}"
        raise ValueError(
            f"checkpoint = {file.name!r} is a pickle: loading one runs whatever code it holds, so it is refused.\n"
            f"Turn it into a safetensors file, without running it: {command}"
        )


def load_checkpoint(file: str | Path, any_name: bool = False) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file from outside.

    Version 0.1 named the channel statistics `normalise.mean` and `normalise.std`; they get their present names.

    Args:
        file: path of the file, see `paths.find`.
        any_name: the caller has read the header: accept any file name, and return the tensors under the file's names.

    Raises:
        ValueError: if the file cannot be read, is a pickle, or is not a complete safetensors file.
    """
    file = paths.find(file)
    try:
        if not any_name:
            refuse_pickle(file)
    except OSError as error:
        raise ValueError(f"checkpoint = {file.name!r}: {error.strerror}; expected a safetensors file") from error
    try:
        tensors = load_file(file)
    except (SafetensorError, OSError, ValueError, OverflowError) as error:
        raise ValueError(f"checkpoint = {file.name!r}: {error}; expected a whole safetensors file") from error
    return tensors if any_name else {RENAMED.get(name, name): tensor for name, tensor in tensors.items()}
