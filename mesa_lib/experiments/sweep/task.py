"""One cell of the grid: its parameters, its folder, and running it.

A task is done when its `result.json` exists, is complete, and carries the task's key. The key is made of all parameters
and of the content of images, trigger and checkpoint, not of where these lie.
"""

import contextlib
import json
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from mesa_lib import device as devices
from mesa_lib import store
from mesa_lib.defenses import registry
from mesa_lib.evaluation import metrics
from mesa_lib.experiments import notebooks, params, results
from mesa_lib.experiments.params import Params
from mesa_lib.experiments.pipeline import Pipeline
from mesa_lib.store import paths

State = Literal["done", "before", "busy", "failed"]
#: how far the results go after a notebook
THROUGH: dict[str, results.Through] = {
    "01_attacking": "attack", "02_modeling": "modeling", "03_visualizing": "modeling", "04_defending": "repair",
    notebooks.VICTIM_NOTEBOOK: "benchmark",
}  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """How a task ended: done now, done before, busy (another process has it), or failed with a message."""

    task: str
    state: State
    seconds: float = 0.0
    message: str = ""


@dataclass(frozen=True)
class Task:
    """One cell, ready to be sent to a worker: plain values only, every path absolute.

    Attributes:
        name: of its folder, readable.
        cell: the values that the grid gave it.
        values: all parameters.
        runs: the folder of everything that is trained.
        data: the folder of the data.
    """

    sweep: str
    name: str
    key: str
    cell: dict
    values: dict
    notebooks: tuple[str, ...]
    runs: str
    data: str

    @classmethod
    def from_pipeline(cls, sweep: str, cell: dict, pipeline: Pipeline, books: Sequence[str]) -> "Task":
        """Return the task of a pipeline, whose images are read for the key; `books`: names of its notebooks."""
        p = pipeline.p
        about = {"params": p.content(), "run": pipeline.identity(), "notebooks": list(books)}
        if any(name.startswith("03") for name in books):  # the only notebook that shows other triggers as well
            about["compare_triggers"] = p.compare_triggers
        if any(name[:2] in ("01", "04") for name in books):
            about["compare_attack"] = p.compare_attack
        if notebooks.VICTIM_NOTEBOOK in books:
            about["methods"] = registry.method_settings(p.defense_kinds.split(","), p.detector_search)
        key = store.config_key(about)
        words = [re.sub(r"[^\w.]+", "", Path(str(value)).name) for value in cell.values()] or ["only"]
        runs = paths.runs().absolute()
        earlier = sorted((runs / "sweeps" / sweep).glob(f"*-{key[:8]}"))  # the same task under other words
        name = earlier[0].name if earlier else f"{'-'.join(words)[:60]}-{key[:8]}"
        data = paths.data_folder().absolute()
        return cls(sweep, name, key, cell, absolute_paths(p), tuple(books), str(runs), str(data))

    @property
    def folder(self) -> Path:
        """The folder of its notebooks, figures and results."""
        return Path(self.runs) / "sweeps" / self.sweep / self.name

    @property
    def params(self) -> Params:
        """Its parameters, checked."""
        return params.check(self.values)

    def result(self) -> dict | None:
        """Return its result, or None if there is none, if it is incomplete, or if it is another task's."""
        try:
            result = json.loads((self.folder / "result.json").read_text())
            return result if result["key"] == self.key else None
        except (OSError, ValueError, KeyError, TypeError):
            return None


def absolute_paths(p: Params) -> dict:
    """Return all parameters with absolute paths of files: a worker may run in another folder."""
    values = p.model_dump()
    for name in ("checkpoint", "data_dir"):
        if values[name]:
            values[name] = str(paths.find(values[name]).absolute())
    if p.trigger.startswith("file:"):
        values["trigger"] = f"file:{paths.find(p.trigger.removeprefix('file:')).absolute()}"
    return values


def perform(task: Task, threads: int | None = None) -> Outcome:
    """Run a task in this worker, unless it is done or another process runs it; an error becomes the message.

    Args:
        threads: of its arithmetic; None leaves what the worker was started with.
    """
    start = time.monotonic()
    # this process is a worker, and has one task; its progress is that of the sweep
    os.environ.update(MESA_RUNS=task.runs, MESA_DATA=task.data, MESA_BATCH="1")
    devices.keep_memory()
    if threads:
        torch.set_num_threads(threads)
    try:
        if task.result() is not None:
            return Outcome(task.name, "before")
        with store.lock(f"task-{task.key}", wait=False) as mine:
            if not mine:
                return Outcome(task.name, "busy")
            if task.result() is not None:  # finished before this process had the lock
                return Outcome(task.name, "before")
            run_task(task, threads)
    except Exception as error:  # the other tasks go on
        plain = isinstance(error, (notebooks.SeriesFailed, ValueError, OSError))
        return Outcome(task.name, "failed", time.monotonic() - start, str(error) if plain else repr(error))
    return Outcome(task.name, "done", time.monotonic() - start)


def run_task(task: Task, threads: int | None = None) -> None:
    """Execute a task's notebooks, and write its results; ValueError if its files are no longer those of its key."""
    p, folder, start = task.params, task.folder, time.monotonic()
    pipeline = Pipeline(p)
    if Task.from_pipeline(task.sweep, task.cell, pipeline, task.notebooks).key != task.key:
        raise ValueError("images, trigger, checkpoint or code are not those that the sweep was started with")
    for leftover in folder.glob(".*"):  # of a try that was killed
        leftover.unlink()
    kernel_threads = devices.threads_environment(threads)
    notebooks.run_notebooks(p, task.notebooks, folder, quiet=True, environment=kernel_threads)
    through = THROUGH[task.notebooks[-1]]
    result = results.collect_results(pipeline, through)
    for name, artifact in results.artifact_folders(pipeline, through).items():
        link(folder / "artifacts" / name, artifact)
    store.write_atomic(folder / "table.csv", metrics.table(result["rows"]).to_csv(index=False))
    about = {"key": task.key, "sweep": task.sweep, "own": file_names(task.cell), "notebooks": list(task.notebooks)}
    about |= {"params": file_names(p.model_dump(exclude={"data_dir", "compare_triggers", "compare_attack"}))}
    content = about | result | {"task_seconds": round(time.monotonic() - start, 1)}
    store.write_atomic(folder / "result.json", json.dumps(content, allow_nan=False))  # last: this makes it done


def file_names(values: dict) -> dict:
    """Return the values with files by their names alone: results name no folder of a machine."""
    texts = {name: value for name, value in values.items() if isinstance(value, str) and value}
    files = {"checkpoint": Path(texts["checkpoint"]).name} if "checkpoint" in texts else {}
    if texts.get("trigger", "").startswith("file:"):
        files["trigger"] = f"file:{Path(texts['trigger']).name}"
    return values | files


def link(where: Path, to: Path) -> None:
    """Make a relative link to a folder of the artifact store; without effect on systems that have no links."""
    with contextlib.suppress(OSError):
        where.parent.mkdir(parents=True, exist_ok=True)
        where.unlink(missing_ok=True)
        where.symlink_to(os.path.relpath(to, where.parent), target_is_directory=True)
