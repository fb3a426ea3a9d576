"""One cell of the grid: its parameters, its folder, and doing it.

A task is done when its `result.json` is there, whole, and says that it belongs to the task's key. All parameters and
the content of images, trigger and checkpoint make the key, and not where they lie.
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

from mesa_lib import store
from mesa_lib.defenses import registry
from mesa_lib.evaluation import metrics
from mesa_lib.experiments import notebooks, params, results
from mesa_lib.experiments.params import Params
from mesa_lib.experiments.pipeline import Pipeline
from mesa_lib.store import paths

State = Literal["done", "before", "busy", "failed"]
#: what libraries of arithmetic read when they are loaded
THREADS = tuple(f"{library}_NUM_THREADS" for library in ("OMP", "MKL", "OPENBLAS", "NUMEXPR"))


@dataclass(frozen=True)
class Outcome:
    """How a task ended: done now, done before, being done by somebody else, or failed with a message."""

    task: str
    state: State
    seconds: float = 0.0
    message: str = ""


@dataclass(frozen=True)
class Task:
    """One cell, ready to be sent to a worker (plain values only, and every path absolute)."""

    sweep: str
    name: str  # of its folder, readable
    key: str
    own: dict  # what the grid gave it
    values: dict  # all parameters
    notebooks: tuple[str, ...]
    runs: str  # the folder of everything that is made
    data: str  # where the data are looked for

    @classmethod
    def of(cls, sweep: str, own: dict, pipeline: Pipeline, notebooks: Sequence[str]) -> "Task":
        """The task of these stages, whose images are read for its key; `own`: what tells it from others."""
        p = pipeline.p
        about = {"params": p.content(), "run": pipeline.identity(), "notebooks": list(notebooks)}
        if any(name.startswith("03") for name in notebooks):  # the only one that draws other triggers beside
            about["compare"] = p.compare
        if notebooks.VICTIM_NOTEBOOK in notebooks:
            about["methods"] = registry.settings(p.kinds.split(","))
        key = store.config_key(about)
        words = [re.sub(r"[^\w.]+", "", Path(str(value)).name) for value in own.values()] or ["only"]
        runs = paths.runs().absolute()
        known = sorted((runs / "sweeps" / sweep).glob(f"*-{key[:8]}"))  # asked for in other words before
        name = known[0].name if known else f"{'-'.join(words)[:60]}-{key[:8]}"
        return cls(sweep, name, key, own, absolute_paths(p), tuple(notebooks), str(runs), str(paths.data_folder().absolute()))

    @property
    def folder(self) -> Path:
        return Path(self.runs) / "sweeps" / self.sweep / self.name

    @property
    def params(self) -> Params:
        return params.check(self.values)

    def result(self) -> dict | None:
        """The result, or None if it is not there, not whole, or another task's."""
        try:
            found = json.loads((self.folder / "result.json").read_text())
            return found if found["key"] == self.key else None
        except (OSError, ValueError, KeyError, TypeError):
            return None


def absolute_paths(p: Params) -> dict:
    """All parameters, files by their absolute paths: a worker may have been started in another folder."""
    values = p.model_dump()
    for name in ("checkpoint", "data_dir"):
        if values[name]:
            values[name] = str(paths.find(values[name]).absolute())
    if p.trigger.startswith("file:"):
        values["trigger"] = f"file:{paths.find(p.trigger.removeprefix('file:')).absolute()}"
    return values


def perform(task: Task, threads: int | None = None) -> Outcome:
    """Do the task, unless it is done or somebody is at it. Whatever goes wrong becomes the outcome's message.

    threads: of its arithmetic; None leaves what the worker was started with
    """
    start = time.monotonic()
    os.environ.update(MESA_RUNS=task.runs, MESA_DATA=task.data)
    if threads:
        os.environ.update(dict.fromkeys(THREADS, str(threads)))  # of the notebooks' kernels
        torch.set_num_threads(threads)
    try:
        if task.result() is not None:
            return Outcome(task.name, "before")
        with store.lock(f"task-{task.key}", wait=False) as mine:
            if not mine:
                return Outcome(task.name, "busy")
            if task.result() is not None:  # finished between the look and the lock
                return Outcome(task.name, "before")
            _perform(task)
    except Exception as error:  # the other tasks go on
        told = str(error) if isinstance(error, (notebooks.SeriesFailed, ValueError, OSError)) else repr(error)
        return Outcome(task.name, "failed", time.monotonic() - start, told)
    return Outcome(task.name, "done", time.monotonic() - start)


def _perform(task: Task) -> None:
    p, folder, start = task.params, task.folder, time.monotonic()
    pipeline = Pipeline(p)
    if Task.of(task.sweep, task.own, pipeline, task.notebooks).key != task.key:
        raise ValueError("images, trigger, checkpoint or code are not those that the sweep was started with")
    for left in folder.glob(".*"):  # by a try that was killed
        left.unlink()
    notebooks.run_notebooks(p, task.notebooks, folder, quiet=True)
    last = results.BENCH if task.notebooks[-1] == notebooks.VICTIM_NOTEBOOK else int(task.notebooks[-1][:2])
    found = results.collect_results(pipeline, last)
    for name, artifact in results.artifacts(pipeline, last).items():
        link(folder / "artifacts" / name, artifact)
    store.write_atomic(folder / "table.csv", metrics.table(found["rows"]).to_csv(index=False))
    about = {"key": task.key, "sweep": task.sweep, "own": named(task.own), "notebooks": list(task.notebooks)}
    about |= {"params": named(p.model_dump(exclude={"data_dir", "compare"}))}
    content = about | found | {"task_seconds": round(time.monotonic() - start, 1)}
    store.write_atomic(folder / "result.json", json.dumps(content, allow_nan=False))  # last: this makes it done


def named(values: dict) -> dict:
    """The values with files by their names alone: results name no folder of a machine."""
    texts = {name: value for name, value in values.items() if isinstance(value, str) and value}
    files = {"checkpoint": Path(texts["checkpoint"]).name} if "checkpoint" in texts else {}
    if texts.get("trigger", "").startswith("file:"):
        files["trigger"] = f"file:{Path(texts['trigger']).name}"
    return values | files


def link(where: Path, to: Path) -> None:
    """A relative link in the task's folder to a folder of the store; none where the system has no links."""
    with contextlib.suppress(OSError):
        where.parent.mkdir(parents=True, exist_ok=True)
        where.unlink(missing_ok=True)
        where.symlink_to(os.path.relpath(to, where.parent), target_is_directory=True)
