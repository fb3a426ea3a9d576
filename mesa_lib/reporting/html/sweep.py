"""The report of a sweep from its result files alone: `summary.csv` and `report.html`."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from mesa_lib import store
from mesa_lib.evaluation import intervals
from mesa_lib.experiments.sweep.grid import Sweep
from mesa_lib.experiments.sweep.task import Outcome, Task
from mesa_lib.reporting import plots
from mesa_lib.reporting.html import png_base64, render
from mesa_lib.reporting.tables import paper
from mesa_lib.store import paths

#: the ASR columns: rows of the results table
ASR_COLUMNS = ("clean model", "attacked", "fine-tuning", "random uniform", "random binary", "random mixed",
               "single inversion", "best inversion", "all inversions", "MESA", "ideal",
               "clean model, repaired")  # fmt: skip
#: the columns of a summary beside those of the grid: title -> (row of the results table, measure)
COLUMNS = {name: (name, "asr") for name in ASR_COLUMNS} | {
    "accuracy before": ("attacked", "clean_accuracy"),
    "accuracy after": ("MESA", "clean_accuracy"),
    "recall before": ("attacked", "target_recall"),
    "recall after": ("MESA", "target_recall"),
}


def state(result: dict | None, published: dict | None, message: str = "") -> str:
    """Return where a task stands: done here, done before and published, failed, or still to do."""
    return "done" if result else "published" if published else "failed" if message else "to do"


def summary_row(task: Task, published: dict | None = None, message: str = "") -> dict:
    """Return one task as a row, rates in percent; a repeated baseline by its mean and its worst repeat."""
    here = task.result()
    row = {"task": task.name, **task.cell, "state": state(here, published, message)}
    result = here or published
    if result:
        for title, (name, measure) in COLUMNS.items():
            repeats = paper.rates(result, name, measure)
            if repeats:
                row[title] = round(intervals.mean_std(repeats)[0], 2)
            if len(repeats) > 1:
                row[f"{title}, worst"] = round(max(repeats), 2)
        for level, measures in result.get("levels", {}).items():
            row[f"MESA, {level}"] = round(100 * measures["asr"]["rate"], 2)
        for name, sample in result.get("samples", {}).items():
            row[f"samples, {name}"] = round(100 * sample["asr"], 1)
        row |= {f"{name} s": seconds for name, seconds in result["seconds"].items()}
        row["task s"] = result.get("task_seconds")
        warnings = [f"{r['model']}: {r['failed']}" for r in result["rows"] if "failed" in r]
        row |= {"warnings": "; ".join(warnings)} if warnings else {}
    return row | {"message": message}


def write(
    sweep: Sweep, tasks: Sequence[Task], ended: dict[str, Outcome], published: dict[str, dict] | None = None
) -> Path:
    """Write summary.csv and report.html into the sweep's folder, each atomically, and return the folder.

    Args:
        ended: how tasks ended just now, by their keys.
        published: published results, by the keys of tasks.
    """
    folder = paths.runs() / "sweeps" / sweep.folder
    messages = {key: outcome.message for key, outcome in ended.items() if outcome.state == "failed"}
    published = published or {}
    rows = [summary_row(task, published.get(task.key), messages.get(task.key, "")) for task in tasks]
    results = [result for task in tasks if (result := task.result() or published.get(task.key))]
    table = pd.DataFrame(rows)
    store.write_atomic(folder / "summary.csv", table.to_csv(index=False))
    store.write_atomic(folder / "report.html", page(sweep, tasks, table, results))
    return folder


def page(sweep: Sweep, tasks: Sequence[Task], table: pd.DataFrame, results: Sequence[dict]) -> str:
    """Return the HTML page; its links lead to the tasks' folders beside it."""
    finished = table[table["state"].isin(["done", "published"])]
    numbers = finished.drop(columns=["state", "message"]).dropna(axis=1, how="all")
    return render(
        "sweep.html.j2",
        title=", ".join([sweep.title or sweep.name, *(f"{k} = {v}" for k, v in sweep.changes.items())]),
        counts=table["state"].value_counts().to_dict(),
        total=len(tasks),
        notebooks=tasks[0].notebooks if tasks else (),
        made=provenance(results) if results else None,
        figure=asr_figure(finished),
        overall=overall(numbers, sweep.axes),
        columns=list(numbers.columns),
        tasks=[
            {"name": row["task"], "folder": finished.loc[index, "state"] == "done", "cells": _cells(row.iloc[1:])}
            for index, row in numbers.astype(object).iterrows()
        ],
        failed=_failed(table),
        to_do=list(table[table["state"] == "to do"]["task"]),
    )


def provenance(results: Sequence[dict]) -> dict[str, str]:
    """Return what the results were made with: dates, machines, and the parameters that all of them share."""
    dates = sorted(result["made"]["at"][:10] for result in results)
    first, *others = [result["params"] for result in results]
    shared = {name: value for name, value in first.items() if all(other.get(name) == value for other in others)}
    return {
        "when": dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}",
        "machines": paper.machines(results),
        "parameters": ", ".join(f"{name} = {value}" for name, value in shared.items() if value != ""),
    }


def overall(numbers: pd.DataFrame, axes: Sequence[str]) -> dict[str, list[str]]:
    """Return mean, minimum and maximum of every column of numbers that is not an axis of the grid."""
    measured = numbers.select_dtypes("number").drop(columns=list(axes), errors="ignore")
    return {name: _cells(column.agg(["mean", "min", "max"]).round(2)) for name, column in measured.items()}


def asr_figure(finished: pd.DataFrame) -> str:
    """Return the figure of the ASR before and after each repair, a column per task, as base64; empty without tasks."""
    names = [name for name in ASR_COLUMNS if name in finished.columns]
    if finished.empty or "attacked" not in names:
        return ""
    plots.theme()
    return png_base64(plots.asr_by_task(list(finished["task"]), {name: list(finished[name]) for name in names}))


def _failed(table: pd.DataFrame) -> list[dict[str, str]]:
    """Return name and message of every task that failed."""
    failed = table[table["state"] == "failed"]
    return [{"name": name, "message": message} for name, message in zip(failed["task"], failed["message"], strict=True)]


def _cells(values: Sequence) -> list[str]:
    """Return values as table cells; a missing one is empty."""
    return ["" if pd.isna(value) else f"{value:g}" if isinstance(value, float) else str(value) for value in values]
