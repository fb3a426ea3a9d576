"""What batch runs cost beside the work: two workers against one, papermill and Dask against none, 8 tasks against 200.

    python benchmarks/scale.py --out results/scale.json

Every measurement is the whole command `python -m mesa_lib sweep` on an empty store, start and end included, unless it
says otherwise; workers have one thread.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import Results, parser, start

from mesa_lib.store import paths

#: about a minute of work on one thread, nothing shared between tasks
MINUTE = {"params": ["digits"], "set": {"compare_triggers": "", "clean_seed": -1}, "notebooks": ["04"]}
#: next to no work
TINY = {
    "params": ["digits"],
    "set": {"clean_epochs": 1, "attack_epochs": 1, "width": 4, "image_size": 16, "batch_size": 64, "clean_seed": 0},
    "notebooks": ["01"],
}
#: the work of a task of MINUTE in one process: the notebook's cells one after the other, then the results of the run
PLAIN = """
import os, sys
import nbformat
from mesa_lib.experiments import params
from mesa_lib.experiments.pipeline import Pipeline
from mesa_lib.experiments.results import collect_results
from mesa_lib.store import paths
p = params.read([sys.argv[1]], sys.argv[2:])
cells = nbformat.read(paths.root() / "notebooks" / "04_defending.ipynb", 4).cells
names = {"__name__": "__main__"}
for cell in cells:
    if cell.cell_type == "code":
        exec(cell.source, names)
        if "parameters" in cell.metadata.get("tags", []):
            names.update({name: getattr(p, name) for name in names.keys() & params.Params.model_fields.keys()})
collect_results(Pipeline(p))
"""


def run_sweep(values: dict, seeds: range, jobs: int, folder: Path) -> dict:
    """Run one command on an empty store -> its seconds, and those of its tasks."""
    folder.mkdir(parents=True)
    file = folder / "measured.yaml"
    file.write_text(json.dumps(values | {"grid": {"seed": list(seeds)}}))
    begin = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "mesa_lib", "sweep", str(file), "--jobs", str(jobs), "--threads", "1"],
        env=os.environ | {"MESA_RUNS": str(folder / "runs"), "OMP_NUM_THREADS": "1"}, check=True,
    )  # fmt: skip
    seconds = time.perf_counter() - begin
    results = [json.loads(f.read_text()) for f in (folder / "runs" / "sweeps").glob("*/*/result.json")]
    assert len(results) == len(seeds)
    return {"tasks": len(seeds), "workers": jobs, "seconds": seconds, "each": [r["task_seconds"] for r in results]}


def plain(seed: int, folder: Path) -> float:
    """Return the seconds of one minute task without papermill, kernel and Dask, in a process of its own."""
    begin = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", PLAIN, str(paths.parameter_file("digits")), "compare_triggers=", f"seed={seed}"],
        env=os.environ | {"MESA_RUNS": str(folder), "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg", "MESA_BATCH": "1"},
        check=True, capture_output=True,
    )  # fmt: skip
    return time.perf_counter() - begin


def in_turns(seeds: range, folder: Path) -> list[dict]:
    """Run each task bare and by a sweep of it alone, one after the other, so that both meet the same load."""
    pairs = []
    for seed in seeds:
        pair = {}
        for which in ("bare", "command") if seed % 2 == 0 else ("command", "bare"):
            if which == "bare":
                pair["bare"] = plain(seed, folder / f"bare-{seed}")
            else:
                command = run_sweep(MINUTE, range(seed, seed + 1), 1, folder / f"sweep-{seed}")
                pair |= {"task": command["each"][0], "command": command["seconds"]}
        pairs.append(pair)
        print(pairs[-1], flush=True)
    return pairs


def summary(parts: dict) -> dict:
    """Return the figures of the README, from the measured parts."""
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


#: name -> what is measured in a folder
PARTS = {
    "in turns": lambda where: in_turns(range(5), where),
    "8 tasks, one worker": lambda where: run_sweep(MINUTE, range(8), 1, where),
    "8 tasks, two workers": lambda where: run_sweep(MINUTE, range(8), 2, where),
    "8 tiny tasks": lambda where: run_sweep(TINY, range(8), 2, where),
    "200 tiny tasks": lambda where: run_sweep(TINY, range(200), 2, where),
}


def main() -> None:
    """Measure every part that the file does not hold yet."""
    arguments = parser(__doc__)
    arguments.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "mesa-scale", help="empty stores")
    a = arguments.parse_args()
    start(a)
    results = Results(a.out, {}, "cpu")
    for name, measure in PARTS.items():
        if name in results.entries("parts"):
            continue
        where = a.work / name.replace(" ", "-")
        shutil.rmtree(where, ignore_errors=True)  # of a stopped run: its models would be loaded
        results.keep("parts", name, measure(where))
        print(name, "done", flush=True)
    figures = summary(results.entries("parts"))
    results.update(lambda content: content.update(summary=figures))
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
