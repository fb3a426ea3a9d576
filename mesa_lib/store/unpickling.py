"""Run alone, in a process of its own: `python -I unpickling.py FILE OUT KEY` reads a pickle of weights.

Only the weights-only loader of PyTorch reads the file: it builds tensors and plain containers, and refuses everything
else. Should it have a fault, this process has no network (where the system allows it), knows nothing of the project,
and ends after the file.

Prints one JSON object: `taken` (the key of the dict, empty: the file itself), `tensors`, `copied` (names that shared
memory), `left` (keys beside the dict), or `error`, with `found` where there are several dicts to choose from.
"""

import ctypes
import json
import re
import sys
import zipfile
from collections.abc import Iterator, Mapping

#: keys under which the weights usually lie, likeliest first
USUAL = ("state_dict", "model_state_dict", "model_state", "net_state_dict", "model", "net", "network", "weights")
#: dicts in dicts that are looked into
DEPTH = 4
#: how much larger than the file its content may be; PyTorch does not compress
EXPANSION = 4
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000


def without_network() -> None:
    """Move this process where there is no network; in vain on other systems than Linux."""
    try:
        ctypes.CDLL(None).unshare(CLONE_NEWUSER | CLONE_NEWNET)
    except (OSError, AttributeError):
        pass


def check_size(file: str) -> None:
    """Raise ValueError if a zip file holds far more than its size."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as parts:
            inside = sum(part.file_size for part in parts.infolist())
            packed = sum(part.compress_size for part in parts.infolist())
        if inside > EXPANSION * packed + 2**20:
            raise ValueError(f"{inside:,} bytes in {packed:,}: compressed, as no checkpoint of PyTorch is")


def load(file: str):
    """Return what the file holds: tensors, numbers, texts, and containers of these."""
    import argparse

    import numpy as np
    import torch

    makers = {"scalar": np.float64(0).__reduce__()[0], "_reconstruct": np.zeros(1).__reduce__()[0]}
    modules = ("numpy.core.multiarray", "numpy._core.multiarray")  # of older and newer versions
    allowed = [(make, f"{module}.{name}") for name, make in makers.items() for module in modules]
    allowed += [np.dtype, np.ndarray, *{type(np.dtype(kind)) for kind in "fdbBhHiIlLqQ?"}]
    allowed += [argparse.Namespace]  # of options, beside the weights
    with torch.serialization.safe_globals(allowed):
        return torch.load(file, map_location="cpu", weights_only=True)


def dicts_of_tensors(value, path: str = "", depth: int = 0) -> Iterator[tuple[str, Mapping]]:
    """Yield the dicts in which names lead to tensors, with their paths (`net`, `model.state_dict`)."""
    import torch

    if not isinstance(value, Mapping) or depth > DEPTH:
        return
    if any(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in value.items()):
        yield path, value
    for key, part in value.items():
        if isinstance(key, str):
            yield from dicts_of_tensors(part, f"{path}.{key}" if path else key, depth + 1)


def choose(found: dict[str, Mapping], key: str) -> str:
    """Return the path of the dict that holds the weights.

    Raises:
        LookupError: if there are several and none has a usual name, or if there is none of this key.
    """
    if key:
        if key not in found:
            raise LookupError(f"no weights under {key!r}")
        return key
    if len(found) == 1:
        return next(iter(found))
    for usual in USUAL:
        if usual in found:
            return usual
    most = max(found, key=lambda path: len(found[path]), default=None)
    if most == "":  # plain weights, with a dict of something else among them
        return most
    raise LookupError("several sets of weights" if found else "no dict of names and tensors")


def convert(file: str, out: str, key: str) -> dict:
    """Write the weights of a pickle to a safetensors file and return what was taken."""
    import torch
    from safetensors.torch import save_file

    check_size(file)
    content = load(file)
    found = dict(dicts_of_tensors(content))
    try:
        taken = choose(found, key)
    except LookupError as error:
        return {"error": str(error.args[0]), "found": list(found)}
    tensors, copied, seen, other = {}, [], set(), []
    for name, tensor in found[taken].items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            other.append(str(name))
            continue
        if tensor.layout != torch.strided or tensor.is_quantized:
            return {"error": f"{name} is a sparse or quantized tensor; expected plain numbers"}
        storage = tensor.untyped_storage().data_ptr()
        if storage in seen and tensor.numel():
            copied.append(name)
        seen.add(storage)
        tensors[name] = tensor.detach().clone(memory_format=torch.contiguous_format)
    try:
        save_file(tensors, out, metadata={"format": "pt"})
    except Exception as error:  # the folder may not be writable, the disk full
        return {"error": str(error), "writing": True}
    top = taken.split(".")[0]
    left = [str(k) for k in content if k != top] if taken else []
    return {"taken": taken, "tensors": len(tensors), "copied": copied, "left": left + other}


def main(file: str, out: str, key: str) -> dict:
    """Return what `convert` does, or why the file cannot be read."""
    without_network()
    try:
        return convert(file, out, key)
    except Exception as error:  # whatever a file from outside makes the loader do
        text = str(error)
        if "TorchScript" in text:
            return {"error": "a TorchScript archive, which holds code"}
        if isinstance(error, ValueError) and "compressed" in text:
            return {"error": text}
        unknown = re.search(r"GLOBAL ([\w.]+)|[Uu]nsupported (?:class|global) ([\w.]+)", text)
        if unknown:
            name = (unknown[1] or unknown[2]).strip(".")
            return {"error": f"more than tensors and plain values: it holds {name}, which is not read", "code": True}
        return {"error": "no whole file that torch.save wrote"}


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:4])))
