"""Train or load: every artifact lies in a folder keyed by its full configuration.

    runs/<kind>/<key>/config.json           what was asked for: the key is its hash
                      result.json           numbers that came out, the same on every repeat
                      made.json             when, how long, on what machine; sizes and hashes of the other files
                      tensors.safetensors   weights (numbers only: nothing here can run code)

A folder is made under another name and renamed when whole, so what is found under its key is complete. A changed
parameter has another key: stale results are never loaded. Who makes an artifact holds a lock (`runs/.locks/`), which
the system takes back from a process that dies: what two processes want at the same moment is made once.
"""

import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mesa_lib import device as devices
from mesa_lib.store import paths
from mesa_lib.store.files import digest, sync
from mesa_lib.store.locks import lock

#: part of every key; raised when a change of the code changes what comes out
VERSION = 4
TENSORS = "tensors.safetensors"


@dataclass(frozen=True)
class Artifact:
    """What was made: tensors, numbers (`result`), and how (`made`: seconds, versions, device)."""

    path: Path
    config: dict
    tensors: dict[str, Tensor]
    result: dict
    made: dict
    loaded: bool  # False if it was made just now


def canonical(value) -> str:
    """JSON with sorted keys: the same text for the same configuration."""
    return json.dumps(value, sort_keys=True, allow_nan=False, ensure_ascii=False)


def config_key(config: dict) -> str:
    """The name of a configuration: 16 hexadecimal digits of its hash."""
    return hashlib.sha256(canonical({"version": VERSION} | config).encode()).hexdigest()[:16]


def artifact_folder(kind: str, config: dict) -> Path:
    return paths.runs() / kind / config_key(config)


#: seconds that the artifacts being made have spent on other artifacts, one number for each of them, the newest last
_elsewhere: list[float] = []


def train_or_load(kind: str, config: dict, make: Callable[[], tuple[dict[str, Tensor], dict]], device=None) -> Artifact:
    """Load the artifact of this configuration, or call `make` -> (tensors, result) and keep what it returns.

    If another process is making it, wait for that. `made["seconds"]` is the artifact's own time: what `make` spends on
    other artifacts is theirs.
    """
    found = load(kind, config)
    if found is not None:
        return found
    asked = time.perf_counter()
    try:
        with lock(f"{kind}-{config_key(config)}"):
            return load(kind, config) or _make(kind, config, make, device)
    finally:
        if _elsewhere:
            _elsewhere[-1] += time.perf_counter() - asked


def _make(kind: str, config: dict, make: Callable[[], tuple[dict[str, Tensor], dict]], device) -> Artifact:
    start = time.perf_counter()
    _elsewhere.append(0.0)
    try:
        tensors, result = make()
    finally:
        elsewhere = _elsewhere.pop()
    made = {
        "seconds": round(time.perf_counter() - start - elsewhere, 2),
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    made |= devices.describe(device if device is not None else torch.device("cpu"))
    return save(kind, config, tensors, result, made)


def save(kind: str, config: dict, tensors: dict[str, Tensor], result: dict, made: dict) -> Artifact:
    """Write an artifact whole or not at all; OSError in one line if the disk does not take it."""
    target = artifact_folder(kind, config)
    scratch = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for left in target.parent.glob(f".making-{target.name}-*"):  # by a process that died
            shutil.rmtree(left, ignore_errors=True)
        scratch = target.parent / f".making-{target.name}-{uuid.uuid4().hex}"
        scratch.mkdir()
        tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
        if tensors:
            save_file(tensors, scratch / TENSORS)
        (scratch / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True, allow_nan=False))
        (scratch / "result.json").write_text(json.dumps(result, indent=1, sort_keys=True, allow_nan=False))
        files = {f.name: [f.stat().st_size, digest(f)] for f in sorted(scratch.iterdir())}
        made = made | {"files": files}
        (scratch / "made.json").write_text(json.dumps(made, indent=1, sort_keys=True))
        for file in scratch.iterdir():
            sync(file)
        if target.exists():  # another process was quicker, or a damaged folder stands there
            shutil.rmtree(target)
        os.rename(scratch, target)
        sync(target.parent)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise OSError(
            getattr(error, "errno", None) or 5,
            f"cannot write {kind} to {paths.display_path(target)}: {reason}; nothing was kept. "
            "Free or unlock the folder, or name another with MESA_RUNS",
        ) from error
    finally:  # renamed away if all went well
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
    # what is returned is what a later load would return
    return Artifact(target, config, tensors, json.loads(json.dumps(result)), made, loaded=False)


def load(kind: str, config: dict) -> Artifact | None:
    """The artifact of this configuration, or None if there is none or it is damaged."""
    folder = artifact_folder(kind, config)
    try:
        made = json.loads((folder / "made.json").read_text())
        for name, (size, mark) in made["files"].items():
            if (folder / name).stat().st_size != size or digest(folder / name) != mark:
                return None
        if canonical(json.loads((folder / "config.json").read_text())) != canonical(config):
            return None
        result = json.loads((folder / "result.json").read_text())
        tensors = load_file(folder / TENSORS) if TENSORS in made["files"] else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError):
        return None
    return Artifact(folder, config, tensors, result, made, loaded=True)
