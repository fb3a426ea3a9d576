"""One progress bar for all loops: on the terminal, or, in a batch run, in a file that the runner displays."""

import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from tqdm import tqdm


def progress_bar(steps: Iterable, label: str, total: int | None = None) -> Iterator:
    """Iterate over `steps` and show the progress by tqdm.

    The bar appears on a terminal and in a notebook's front end, unless `MESA_BATCH` is set. With `MESA_PROGRESS=FILE`
    (set by the notebook runner) the line `label 3/10` is also written to that file twice a second.
    """
    total = total if total is not None else len(steps)  # type: ignore[arg-type]
    file = os.environ.get("MESA_PROGRESS")
    quiet = bool(os.environ.get("MESA_BATCH") or os.environ.get("PYTEST_CURRENT_TEST"))
    quiet = quiet or not (sys.stderr.isatty() or in_kernel())
    last = 0.0
    for done, step in enumerate(tqdm(steps, label, total=total, leave=False, disable=quiet)):
        if file and time.monotonic() - last > 0.5:
            last = time.monotonic()
            try:
                Path(file).write_text(f"{label} {done}/{total}")
            except OSError:
                file = None  # a display that cannot be written is no reason to stop
        yield step


def in_kernel() -> bool:
    """Return whether this process is a kernel of Jupyter, which a front end displays."""
    app = getattr(sys.modules.get("ipykernel.kernelapp"), "IPKernelApp", None)
    return app is not None and app.initialized()
