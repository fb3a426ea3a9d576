"""What `pytest --nbval notebooks` needs beside nbval itself; everything that depends on nbval's internals is here.

The notebooks share the store of the tests (see the conftest.py above): trained models are kept until sources change.
"""

import os
import queue

import pytest
from nbval.kernel import RunningKernel
from nbval.plugin import IPyNbCell

from mesa_lib.experiments.kernels import KEEP_MEMORY

SANITIZE = {r"0x[0-9a-fA-F]+": "0xADDRESS"}

os.environ.update(KEEP_MEMORY | {"MESA_BATCH": "1"})  # as in `kernels.kernel_environment`
if "MESA_TEST_RUNS" in os.environ:
    os.environ["MESA_RUNS"] = os.environ["MESA_TEST_RUNS"]


def pytest_collection_modifyitems(items):
    for item in items:
        if isinstance(item, IPyNbCell) and "stderr" not in item.parent.skip_compare:
            item.parent.skip_compare += ("stderr",)  # warnings and progress
            item.parent.sanitize_patterns.update(SANITIZE)


def pytest_runtest_setup(item):
    """nbval compares nothing in a notebook that was never executed; here that is a failure."""
    if isinstance(item, IPyNbCell):
        code = [c for c in item.parent.nb.cells if c.cell_type == "code" and c.source.strip()]
        if any(c.execution_count is None for c in code):
            pytest.fail(f"{item.parent.name}: not executed; run `python -m mesa_lib refresh`", pytrace=False)


def await_reply(self, msg_id, timeout=None):
    """nbval's own waits out its timeout when a kernel dies (memory!); this one looks every second."""
    waited = 0.0
    while True:
        try:
            message = self.get_message(stream="shell", timeout=1)
        except queue.Empty:
            waited += 1
            if not self.is_alive():
                raise RuntimeError("the kernel died (killed, or out of memory)") from None
            if timeout is not None and waited >= timeout:
                raise
            continue
        if message["parent_header"].get("msg_id") == msg_id:
            if message["content"]["status"] == "aborted":
                raise RuntimeError("the kernel aborted the cell")
            return


RunningKernel.await_reply = await_reply
