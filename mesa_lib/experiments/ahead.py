"""Train the attack that is shown beside the first in a process of its own, while the notebooks work on the first.

What is then left to do for the last notebook's table of the first attack, it does as well.

The process does what the last notebook asks for, and the artifact store hands it over: each artifact is made once, and
whoever needs it meanwhile waits. The notebooks come to the same results without it, later.
"""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator

import torch

from mesa_lib import device as devices
from mesa_lib.experiments import params
from mesa_lib.experiments.params import Params
from mesa_lib.experiments.pipeline import Pipeline


@contextlib.contextmanager
def trained_ahead(p: Params) -> Iterator[dict[str, str]]:
    """Work ahead inside the context, if there are cores for it; give the environment for the process beside it.

    With two processes each has half of the cores. On a GPU, and with a single core, nothing is done.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = devices.threads_environment(min(torch.get_num_threads(), max(1, cores // 2)))
    if cores < 2 or Pipeline(p).compared is None or devices.pick_device(p.device).type != "cpu":
        yield {}
        return
    command = [sys.executable, "-m", "mesa_lib.experiments.ahead", json.dumps(p.model_dump())]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, env=os.environ | threads | {"MESA_BATCH": "1"}, **quiet)
    try:
        yield threads
    finally:
        process.terminate()  # whatever it has not finished, the notebooks made themselves
        process.wait()


def main(values: str) -> None:
    """Train everything that the table of the compared attack needs, then the same for the first."""
    devices.keep_memory()
    pipeline = Pipeline(params.check(json.loads(values)))
    if pipeline.compared is not None:
        pipeline.compared.report()
    pipeline.report()


if __name__ == "__main__":
    main(sys.argv[1])
