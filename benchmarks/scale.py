"""What batch runs cost beside the work: two workers against one, papermill and Dask against none, 8 tasks against 200.

    python benchmarks/scale.py --out results/scale.json

Every measurement is the whole command `python -m mesa_lib sweep` on an empty store, start and end included, unless it
says otherwise; workers have one thread. What is finished is kept in --work, so that the script goes on where it was.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mesa_lib import device as devices
from mesa_lib import store
from mesa_lib.store import paths

#: about a minute of work on one thread, nothing shared between tasks
MINUTE = {"params": ["digits"], "set": {"compare": "", "clean_seed": -1}, "notebooks": ["04"]}
#: next to no work
TINY = {
    "params": ["digits"],
    "set": {"clean_epochs": 1, "attack_epochs": 1, "width": 4, "image_size": 16, "batch_size": 64, "clean_seed": 0},
    "notebooks": ["01"],
}
#: the work of a task of MINUTE in one process: the notebook's cells one after the other, then the record of the run
PLAIN = """
import os, sys
import nbformat
from mesa_lib import params, paths, record
from mesa_lib.stages import Stages
p = params.read([sys.argv[1]], sys.argv[2:])
cells = nbformat.read(paths.root() / "notebooks" / "04_defending.ipynb", 4).cells
names = {"__name__": "__main__"}
for cell in cells:
    if cell.cell_type == "code":
        exec(cell.source, names)
        if "parameters" in cell.metadata.get("tags", []):
            names.update({name: getattr(p, name) for name in names.keys() & params.Params.model_fields.keys()})
record.of(Stages(p))
"""


def sweep(parts: dict, seeds: range, jobs: int, folder: Path) -> dict:
    """One command on an empty store -> its seconds, and those of its tasks."""
    folder.mkdir(parents=True)
    file = folder / "measured.yaml"
    file.write_text(json.dumps(parts | {"grid": {"seed": list(seeds)}}))
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "mesa_lib", "sweep", str(file), "--jobs", str(jobs), "--threads", "1"],
        env=os.environ | {"MESA_RUNS": str(folder / "runs"), "OMP_NUM_THREADS": "1"}, check=True,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    results = [json.loads(f.read_text()) for f in (folder / "runs" / "sweeps").glob("*/*/result.json")]
    assert len(results) == len(seeds)
    return {"tasks": len(seeds), "workers": jobs, "seconds": seconds, "each": [r["task_seconds"] for r in results]}


def plain(seed: int, folder: Path) -> float:
    """Seconds of one minute task without papermill, kernel and Dask, in a process of its own, from start to end."""
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", PLAIN, str(paths.parameter_file("digits")), "compare=", f"seed={seed}"],
        env=os.environ | {"MESA_RUNS": str(folder), "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg", "MESA_BATCH": "1"},
        check=True, capture_output=True,
    )  # fmt: skip
    return time.perf_counter() - start


def in_turns(seeds: range, folder: Path) -> list[dict]:
    """The same task bare and by a sweep of it alone, one after the other, so that both see the same machine."""
    pairs = []
    for seed in seeds:
        pair = {}
        for which in ("bare", "command") if seed % 2 == 0 else ("command", "bare"):
            if which == "bare":
                pair["bare"] = plain(seed, folder / f"bare-{seed}")
            else:
                command = sweep(MINUTE, range(seed, seed + 1), 1, folder / f"sweep-{seed}")
                pair |= {"task": command["each"][0], "command": command["seconds"]}
        pairs.append(pair)
        print(pairs[-1], flush=True)
    return pairs


def summary(parts: dict) -> dict:
    """The three figures that were asked for."""
    one, two = parts["8 tasks, one worker"], parts["8 tasks, two workers"]
    pairs = parts["in turns"]
    per_task = {name: parts[name]["seconds"] / parts[name]["tasks"] for name in ("8 tiny tasks", "200 tiny tasks")}
    return {
        "two workers / one": two["seconds"] / one["seconds"],
        "a task, median seconds": statistics.median(pair["task"] for pair in pairs),
        "the same without papermill and Dask, median seconds": statistics.median(pair["bare"] for pair in pairs),
        "added to a task, median of the pairs": statistics.median(pair["task"] / pair["bare"] - 1 for pair in pairs),
        "added to a task, lowest and highest": [
            pick(pair["task"] / pair["bare"] - 1 for pair in pairs) for pick in (min, max)
        ],
        "added to the whole command, seconds": one["seconds"] - sum(one["each"]),
        "seconds a tiny task, of 8": per_task["8 tiny tasks"],
        "seconds a tiny task, of 200": per_task["200 tiny tasks"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "mesa-scale")
    a = parser.parse_args()
    kept = a.work / "measured.json"
    parts = json.loads(kept.read_text()) if kept.is_file() else {}

    def measure(name: str, what) -> None:
        if name not in parts:
            where = a.work / name.replace(" ", "-")
            shutil.rmtree(where, ignore_errors=True)  # of a try that was stopped: its models would be taken up
            parts[name] = what(where)
            store.write_atomic(kept, json.dumps(parts))
            print(name, "done", flush=True)

    measure("in turns", lambda where: in_turns(range(5), where))
    measure("8 tasks, one worker", lambda where: sweep(MINUTE, range(8), 1, where))
    measure("8 tasks, two workers", lambda where: sweep(MINUTE, range(8), 2, where))
    measure("8 tiny tasks", lambda where: sweep(TINY, range(8), 2, where))
    measure("200 tiny tasks", lambda where: sweep(TINY, range(200), 2, where))
    made = devices.describe(devices.pick_device("cpu"))
    content = {"made": made, "parts": parts, "summary": summary(parts)}
    store.write_atomic(a.out, json.dumps(content, indent=1) + "\n")
    print(json.dumps(content["summary"], indent=1))


if __name__ == "__main__":
    main()
