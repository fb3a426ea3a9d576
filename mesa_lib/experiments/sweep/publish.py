"""Published results: the finished runs of a sweep in one file that only grows, such as `results/NAME.json`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mesa_lib import store
from mesa_lib.experiments import params
from mesa_lib.experiments.migration import BEFORE, FORMAT, migrate
from mesa_lib.experiments.notebooks import VICTIM_NOTEBOOK
from mesa_lib.experiments.sweep.grid import Sweep
from mesa_lib.experiments.sweep.task import Task
from mesa_lib.store import paths

#: the parts of a result that are rounded when it is published
MEASURED = ("rows", "levels", "samples", "rounds", "inverted_triggers_asr", "seconds", "detectors", "filters",
            "reformers")  # fmt: skip


def read_published(file: Path, sweep: str | None = None) -> dict[str, dict]:
    """Return the runs of a published file by their keys, in today's format; none if there is no file.

    Raises:
        ValueError: if the file's folder does not exist, if it was not written by `--publish`, or if it holds another
            sweep than `sweep`.
    """
    name = paths.display_path(file)
    if not file.exists():
        if not file.absolute().parent.is_dir():
            raise ValueError(f"{name}: its folder does not exist; expected a file in an existing folder")
        return {}
    try:
        content = migrate(json.loads(file.read_text()), file.stem)
        runs, holds = {run["key"]: run for run in content["runs"]}, content["sweep"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{name}: not a file of published runs; expected one that --publish wrote") from None
    if sweep not in (None, holds):
        raise ValueError(f"{name}: holds the sweep {holds!r}; expected a file of {sweep!r}, or a new one")
    return runs


def published_results(tasks: Sequence[Task], runs: dict[str, dict]) -> dict[str, dict]:
    """Return the published run of each task that has one, by the task's key.

    A run of format 1 has a key of its time, when parameters had other names; it is the run of the task that has the
    same parameters and notebooks.
    """
    migrated = {cell_of(run): run for run in runs.values() if run.get("migrated")}
    results = {task.key: runs.get(task.key) or migrated.get(same_cell(task.values, task.notebooks)) for task in tasks}
    return {key: run for key, run in results.items() if run}


def cell_of(run: dict) -> str:
    """Return the text of `same_cell` for a published run of format 1."""
    return same_cell(BEFORE | run["params"], run["notebooks"])


def same_cell(values: dict[str, Any], notebooks: Sequence[str]) -> str:
    """Return a text that is equal for equal parameters and notebooks; of files only the names are known."""
    p = params.check(values)
    named = p.content() | {"trigger": Path(p.trigger).name, "checkpoint": Path(p.checkpoint).name}
    if VICTIM_NOTEBOOK in notebooks:
        named["detector_search"] = p.detector_search
    return store.canonical([named, list(notebooks)])


def publish(file: Path, sweep: Sweep, tasks: Sequence[Task]) -> int:
    """Add the finished tasks to the file, one run a line, and return how many runs it then holds.

    The file only grows: a run that was repeated replaces its predecessor, all others stay. Without any run no file is
    written. A file of an older format is written in today's.
    """
    with store.lock(f"publish-{file.name}"):  # another command may be adding to it
        runs = read_published(file, sweep.name)
        finished = {task.key: result for task in tasks if (result := task.result()) is not None}
        predecessors = published_results([task for task in tasks if task.key in finished], runs)
        for key, result in finished.items():
            if key in predecessors:
                del runs[predecessors[key]["key"]]
            runs[key] = {k: rounded(v) if k in MEASURED else v for k, v in result.items() if k != "sweep"}
        if runs:
            store.write_atomic(file, _text(sweep, list(runs.values())))
    return len(runs)


def _text(sweep: Sweep, runs: list[dict]) -> str:
    """Return a published file's text: the sweep's name, title and format, then a run a line."""
    about = {"sweep": sweep.name, "title": sweep.title, "format": FORMAT}
    lines = ",\n".join(json.dumps(run, allow_nan=False) for run in runs)
    return f'{json.dumps(about)[:-1]}, "runs": [\n{lines}\n]}}\n'


def rounded(value: Any, digits: int = 5) -> Any:
    """Return a value whose floats, at any depth, have five decimals: rates of 2,000 images have no more."""
    if isinstance(value, float):
        return round(value, digits)
    if isinstance(value, dict):
        return {k: rounded(v, digits) for k, v in value.items()}
    return [rounded(v, digits) for v in value] if isinstance(value, list) else value
