"""Locks between processes that share a store; the system frees the locks of a process that ends."""

from collections.abc import Iterator
from contextlib import contextmanager

from filelock import FileLock, Timeout

from mesa_lib.store import paths


@contextmanager
def lock(name: str, wait: bool = True) -> Iterator[bool]:
    """Acquire the lock `name` of this store for the context.

    Args:
        name: a file name in `runs/.locks/`.
        wait: wait until another process releases the lock.

    Yields:
        True; False if another process has the lock and `wait` is false.

    Raises:
        OSError: if the store cannot be written.
    """
    folder = paths.runs() / ".locks"
    file_lock = FileLock(folder / name, timeout=-1 if wait else 0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file_lock.acquire()
    except Timeout:
        yield False
        return
    except OSError as error:
        raise OSError(
            error.errno or 5,
            f"cannot write {name} to {paths.display_path(folder)}: {error.strerror or error}; nothing was started. "
            "Free or unlock the folder, or name another with MESA_RUNS",
        ) from error
    try:
        yield True
    finally:
        file_lock.release()
