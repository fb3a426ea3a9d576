"""Files that are written completely or not at all."""

import hashlib
import os
import uuid
from contextlib import suppress
from pathlib import Path

from mesa_lib.store import paths


def digest(file: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sync(file: Path) -> None:
    """Wait until the disk has stored a file, or a folder's list of files."""
    handle = os.open(file, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomic(file: Path, text: str) -> None:
    """Write a text file so that no reader ever sees half of it: under a temporary name, which is then renamed.

    Raises:
        OSError: one line, if the disk refuses; an earlier version of the file is then still there.
    """
    scratch = file.with_name(f".{file.name}-{uuid.uuid4().hex}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_text(text, encoding="utf-8")
        sync(scratch)
        os.replace(scratch, file)
        sync(file.parent)
    except OSError as error:
        raise OSError(
            error.errno or 5, f"cannot write {paths.display_path(file)}: {error.strerror or error}"
        ) from error
    finally:
        with suppress(OSError):
            scratch.unlink(missing_ok=True)
