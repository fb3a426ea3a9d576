"""What tests and notebooks share: one store of trained models, kept until the sources change, and the order of files.

Tests and notebooks run in one pytest session (`make test`). Each file is one group on one worker, the longest first, so
that no long file is left for one core at the end.
"""

import hashlib
import os
import shutil
import time
from pathlib import Path

import pytest

from mesa_lib.device import keep_memory

ROOT = Path(__file__).parent
STORES = ROOT / ".test-store"
#: seconds after which a store of other sources is removed: until then another session may still use it
OLD = 24 * 3600
#: groups that take longest, in this order; all others follow as they are collected
LONGEST = ("10_scan_a_model", "one_victim", "08_detecting", "07_other_defenses", "06_other_attacks", "04_defending")


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


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Keep the items of a file together, unless they name a group of their own, and put the longest groups first."""

    def group(item) -> str:
        marker = item.get_closest_marker("xdist_group")
        return (marker.args[0] if marker.args else marker.kwargs["name"]) if marker else item.path.stem

    def rank(item) -> int:
        return next((i for i, name in enumerate(LONGEST) if name == group(item)), len(LONGEST))

    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
    items.sort(key=rank)  # stable: the order within a file stays
