"""What tests and notebooks share: one store of trained models, kept until the sources change, and the order of files.

Tests and notebooks run in one pytest session (`make test`). Each file goes to one worker, the longest first, so that no
long file is left for one core at the end.
"""

import hashlib
import os
import re
import shutil
import time
from pathlib import Path

import pytest

from mesa_lib.device import keep_memory

ROOT = Path(__file__).parent
STORES = ROOT / ".test-store"
#: seconds after which a store of other sources is removed: until then another session may still use it
OLD = 24 * 3600
#: files that take longest, in this order; all others follow as they are collected
LONGEST = (
    "one_victim", "08_detecting", "10_scan_a_model", "06_other_attacks", "07_other_defenses", "04_defending",
    "03_visualizing", "test_assignments", "test_sweep_results", "test_scan", "test_runner", "test_pipeline",
)  # fmt: skip


def source_hash() -> str:
    """Return a hash of everything that decides what a trained model is: the library's sources."""
    digest = hashlib.sha256()
    for file in sorted((ROOT / "mesa_lib").rglob("*.py")):
        digest.update(file.relative_to(ROOT).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def pytest_configure(config):
    """Name the store of this session for all workers (`MESA_TEST_RUNS`); old stores of other sources are removed."""
    keep_memory()
    if "MESA_TEST_RUNS" in os.environ or hasattr(config, "workerinput"):
        return
    store = STORES / source_hash()
    for other in STORES.glob("*"):
        if other != store and time.time() - other.stat().st_mtime > OLD:
            shutil.rmtree(other, ignore_errors=True)
    os.environ["MESA_TEST_RUNS"] = str(store)


def pytest_collection_modifyitems(items):
    """Put the longest files first; the order within a file stays."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Give each worker whole files, so that it trains shared models once and a notebook's cells stay in one kernel.

    A problem set is a unit of its own: the four sets of one file are graded by all workers.
    """
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            problem_set = re.search(r"\[(ps\d)", nodeid)
            return f"{nodeid.split('::')[0]} {problem_set[1] if problem_set else ''}"

    return Scheduling(config, log) if config.getvalue("dist") == "loadfile" else None
