"""Train or load: every artifact lies in a folder keyed by its full configuration.

    runs/<kind>/<key>/config.json           the configuration: the key is its hash
                      result.json           numbers, equal in every repeat
                      made.json             when, how long, on what machine; sizes and hashes of the other files
                      tensors.safetensors   weights (numbers only: nothing here can run code)

A folder is written under a temporary name and renamed when complete, so a folder with a key as its name is complete. A
changed parameter has another key: stale results are never loaded. A process that makes an artifact has its lock
(`runs/.locks/`), which the system frees if the process dies: of two processes that want one artifact, one makes it.
"""

import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mesa_lib import device as devices
from mesa_lib.store import paths
from mesa_lib.store.files import digest, sync
from mesa_lib.store.locks import lock

#: part of every key; to be raised with every change of the code that changes results
VERSION = 6
TENSORS = "tensors.safetensors"


@dataclass(frozen=True)
class Artifact:
    """A stored result.

    Attributes:
        path: its folder.
        config: the configuration, from which the key is computed.
        tensors: weights by name.
        result: numbers, as JSON holds them.
        made: seconds, date, versions, device, and size and hash of each file.
        loaded: whether it was read from disk; False if it was made by this call.
    """

    path: Path
    config: dict
    tensors: dict[str, Tensor]
    result: dict
    made: dict
    loaded: bool


#: what `train_or_load` calls to make an artifact: () -> (tensors, result)
Maker = Callable[[], tuple[dict[str, Tensor], dict]]


def canonical(value) -> str:
    """Return a value as JSON with sorted keys: equal configurations give equal texts."""
    return json.dumps(value, sort_keys=True, allow_nan=False, ensure_ascii=False)


def config_key(config: dict) -> str:
    """Return the key of a configuration: 16 hexadecimal digits of its hash."""
    return hashlib.sha256(canonical({"version": VERSION} | config).encode()).hexdigest()[:16]


def artifact_folder(kind: str, config: dict) -> Path:
    """Return the folder of an artifact, whether it exists or not."""
    return paths.runs() / kind / config_key(config)


# --- make once, load afterward ---------------------------------------------------------------------------


class Stopwatch:
    """Measures the seconds that each artifact takes, without those of the artifacts that are made or loaded inside it.

    Calls of `train_or_load` nest: the maker of an attacked model loads the clean one. Each running measurement has an
    entry in `nested_seconds`, innermost last: the seconds that its nested calls took.
    """

    def __init__(self):
        self.nested_seconds: list[float] = []

    @contextmanager
    def nested_call(self) -> Iterator[None]:
        """Charge the seconds of this context to itself: the enclosing measurement, if any, leaves them out."""
        start = time.perf_counter()
        try:
            yield
        finally:
            if self.nested_seconds:
                self.nested_seconds[-1] += time.perf_counter() - start

    def measure(self, make: Maker) -> tuple[dict[str, Tensor], dict, float]:
        """Call `make`; return its tensors, its result and its own seconds."""
        start = time.perf_counter()
        self.nested_seconds.append(0.0)
        try:
            tensors, result = make()
        finally:
            nested = self.nested_seconds.pop()
        return tensors, result, time.perf_counter() - start - nested


_stopwatch = Stopwatch()  # one for the process, since nested calls do not know each other


def train_or_load(kind: str, config: dict, make: Maker, device: torch.device | None = None) -> Artifact:
    """Load the artifact of this configuration, or make and save it.

    If another process is making it, wait for that process.

    Args:
        kind: the folder in `runs/`.
        config: everything that the result depends on, as JSON can hold it.
        make: () -> (tensors, result). `made["seconds"]` of the artifact leaves out the time for artifacts that it asks
            `train_or_load` for.
        device: where `make` computes, for `made`; None: the CPU.
    """
    if (artifact := load(kind, config)) is not None:
        return artifact
    with _stopwatch.nested_call(), lock(f"{kind}-{config_key(config)}"):
        return load(kind, config) or _make(kind, config, make, device)


def _make(kind: str, config: dict, make: Maker, device: torch.device | None) -> Artifact:
    tensors, result, seconds = _stopwatch.measure(make)
    made = {"seconds": round(seconds, 2), "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    made |= devices.describe(device if device is not None else torch.device("cpu"))
    return save(kind, config, tensors, result, made)


# --- on disk ---------------------------------------------------------------------------------------------


def save(kind: str, config: dict, tensors: dict[str, Tensor], result: dict, made: dict) -> Artifact:
    """Write an artifact completely or not at all, and return it as a later `load` would.

    Raises:
        OSError: one line, if the disk refuses; nothing is left behind.
    """
    target = artifact_folder(kind, config)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    scratch = target.parent / f".making-{target.name}-{uuid.uuid4().hex}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for abandoned in target.parent.glob(f".making-{target.name}-*"):  # by a process that died
            shutil.rmtree(abandoned, ignore_errors=True)
        made = _write_folder(scratch, config, tensors, result, made)
        if target.exists():  # another process was quicker, or the folder is damaged
            shutil.rmtree(target)
        os.rename(scratch, target)
        sync(target.parent)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise OSError(
            getattr(error, "errno", None) or 5,
            f"cannot write {kind} to {paths.display_path(target)}: {reason}; nothing was saved. "
            "Free or unlock the folder, or name another with MESA_RUNS",
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)  # it was renamed if all went well
    return Artifact(target, config, tensors, json.loads(json.dumps(result)), made, loaded=False)


def _write_folder(folder: Path, config: dict, tensors: dict[str, Tensor], result: dict, made: dict) -> dict:
    """Write the files of an artifact and wait for the disk; return `made` with their sizes and hashes."""
    folder.mkdir()
    if tensors:
        save_file(tensors, folder / TENSORS)
    (folder / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True, allow_nan=False))
    (folder / "result.json").write_text(json.dumps(result, indent=1, sort_keys=True, allow_nan=False))
    made = made | {"files": {file.name: [file.stat().st_size, digest(file)] for file in sorted(folder.iterdir())}}
    (folder / "made.json").write_text(json.dumps(made, indent=1, sort_keys=True))
    for file in folder.iterdir():
        sync(file)
    return made


def load(kind: str, config: dict) -> Artifact | None:
    """Return the artifact of this configuration; None if there is none or it is damaged."""
    folder = artifact_folder(kind, config)
    try:
        made = json.loads((folder / "made.json").read_text())
        for name, (size, sha) in made["files"].items():
            if (folder / name).stat().st_size != size or digest(folder / name) != sha:
                return None
        if canonical(json.loads((folder / "config.json").read_text())) != canonical(config):
            return None
        result = json.loads((folder / "result.json").read_text())
        tensors = load_file(folder / TENSORS) if TENSORS in made["files"] else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError):
        return None
    return Artifact(folder, config, tensors, result, made, loaded=True)
