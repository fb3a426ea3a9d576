"""Turn a pickle of weights into a safetensors file, without running what it holds."""

import json
import os
import subprocess
import sys
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mesa_lib.store import paths, unpickling
from mesa_lib.store.checkpoints import from_here, kind_of_other_file
from mesa_lib.store.sanitize import sanitize, sanitize_list

#: seconds that the reading may take
LIMIT = 600


@dataclass(frozen=True)
class Converted:
    """What was taken from a pickle.

    Attributes:
        file: the safetensors file.
        taken: the key of the dict of tensors, such as `net`; empty: the file itself is one.
        tensors: their number.
        copied: names of tensors that shared memory with another one, as tied weights do; each has its own now.
        left: what lay beside them and is not in the new file.
    """

    file: Path
    taken: str
    tensors: int
    copied: list[str]
    left: list[str]

    def text(self) -> str:
        """Return what was done, for people."""
        where = f" under '{sanitize(self.taken)}'" if self.taken else ""
        lines = [f"{from_here(self.file)}: {self.tensors} tensors{where}"]
        if self.copied:
            lines.append(f"copied, since they shared memory with others: {sanitize_list(self.copied)}")
        if self.left:
            lines.append(f"left out: {sanitize_list(self.left, 8)}")
        return "\n".join(lines)


def convert(file: str | Path, out: str | Path | None = None, key: str = "") -> Converted:
    """Write the weights of a pickle (`torch.save`) to a safetensors file.

    PyTorch's weights-only loader reads the pickle, in a process of its own and without network where the system allows
    it. Files that hold more than tensors and plain values are refused.

    Args:
        file: plain weights, or a dict that holds them: `{"net": ...}`, `{"state_dict": ...}` and the like.
        out: the new file; None: beside the old one, with the ending `.safetensors`. Existing files are kept.
        key: the dict to take, such as `ema.model`; empty: the only one, or the one with a usual name.

    Raises:
        ValueError: says why the file cannot be converted.
    """
    if not str(file):
        raise ValueError("checkpoint = '': expected the name of a file")
    file = paths.find(file)
    name = f"checkpoint = '{sanitize(file.name)}'"
    out = file.with_suffix(".safetensors") if out is None else Path(out)
    _check_file(file, name)
    if out.exists():
        raise ValueError(f"out = {from_here(out)}: exists already; expected a new file")
    if not out.parent.is_dir():
        raise ValueError(f"out = {from_here(out)}: its folder does not exist; expected a file in a folder")
    scratch = out.with_name(f".{out.name}-{uuid.uuid4().hex}")
    try:
        answer = _ask(file, scratch, key, name)
        if answer.get("writing"):
            reason = sanitize(answer["error"])
            raise ValueError(f"out = {from_here(out)}: {reason}; expected a file in a folder that can be written")
        if "error" in answer:
            raise ValueError(f"{name}: {_reason(answer)}")
        os.replace(scratch, out)
    finally:
        with suppress(OSError):
            scratch.unlink(missing_ok=True)
    return Converted(out, **answer)


def _check_file(file: Path, name: str) -> None:
    """Raise ValueError if there is no such file, or if it is of another kind."""
    try:
        if file.exists() and not file.is_file():
            raise ValueError(f"{name}: is no file; expected a file of weights")
        other = kind_of_other_file(file)
        with open(file, "rb") as stream:
            safe = stream.read(9)[8:] == b"{"
    except OSError as error:
        raise ValueError(f"{name}: {error.strerror}; expected a file of weights") from error
    if safe:
        raise ValueError(f"{name} is a safetensors file already; nothing to convert")
    if other:
        raise ValueError(f"{name} is {other}; expected weights that torch.save wrote")


def _ask(file: Path, out: Path, key: str, name: str) -> dict:
    """Return the answer of the process that reads the file."""
    command = [sys.executable, "-I", unpickling.__file__, str(file.absolute()), str(out.absolute()), key]
    environment = {k: v for k, v in os.environ.items() if k in ("PATH", "TMPDIR", "SYSTEMROOT", "LD_LIBRARY_PATH")}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=LIMIT, env=environment, stdin=subprocess.DEVNULL
        )
        return json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"{name}: not read within {LIMIT} s; expected a file of weights") from error
    except (IndexError, ValueError) as error:
        reason = sanitize((done.stderr.splitlines() or ["its reader ended without a word"])[-1])
        raise ValueError(f"{name}: {reason}; expected a file of weights") from error


def _reason(answer: dict) -> str:
    """Return why a file was refused, with what to do about it."""
    text = sanitize(answer["error"], 200)
    if answer.get("found"):
        return f"{text}: {sanitize_list(answer['found'], 8)}; choose one with --key"
    if answer.get("code"):
        return f"{text}; where the model was made, save its weights alone: torch.save(model.state_dict(), 'weights.pt')"
    return text if "expected" in text else f"{text}; expected weights that torch.save wrote"
