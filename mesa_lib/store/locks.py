"""Locks between processes that share a store; the system frees those of a process that ends."""

from collections.abc import Iterator
from contextlib import contextmanager

from filelock import FileLock, Timeout

from mesa_lib.store import paths


@contextmanager
def lock(name: str, wait: bool = True) -> Iterator[bool]:
    """Hold the lock `name` of this store: True, or False at once if another process has it and `wait` is not wanted.

    The system frees the lock of a process that ends, however it ends. OSError if the store cannot be written.
    """
    folder = paths.runs() / ".locks"
    lock = FileLock(folder / name, timeout=-1 if wait else 0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        yield False
        return
    except OSError as error:
        raise OSError(
            error.errno or 5,
            f"cannot write {name} to {paths.display_path(folder)}: {error.strerror or error}; nothing was begun. "
            "Free or unlock the folder, or name another with MESA_RUNS",
        ) from error
    try:
        yield True
    finally:
        lock.release()
