"""What a batch run leaves behind, from the result files alone: summary.csv, report.html, and a file for results/."""

import base64
import html
import io
import json
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from mesa_lib import store
from mesa_lib.evaluation import intervals
from mesa_lib.experiments.sweep.grid import Sweep
from mesa_lib.experiments.sweep.task import Outcome, Task
from mesa_lib.reporting import plots
from mesa_lib.reporting.tables import paper
from mesa_lib.store import paths

#: the parts of a result that are rounded when it is published
MEASURED = ("rows", "levels", "samples", "rounds", "point_triggers_asr", "seconds", "detectors", "filters", "reformers")
#: the columns of a summary beside those of the grid: title -> (row of the table, measure)
COLUMNS = {
    "floor": ("clean, never attacked", "asr"),
    "attacked": ("attacked", "asr"),
    "fine-tune only": ("fine-tune only", "asr"),
    "random uniform": ("random uniform", "asr"),
    "random binary": ("random binary", "asr"),
    "random mixed": ("random mixed", "asr"),
    "point": ("point baseline", "asr"),
    "MESA": ("MESA", "asr"),
    "ideal": ("ideal", "asr"),
    "clean, repaired": ("clean, repaired", "asr"),
    "accuracy before": ("attacked", "clean_accuracy"),
    "accuracy after": ("MESA", "clean_accuracy"),
    "recall before": ("attacked", "target_recall"),
    "recall after": ("MESA", "target_recall"),
}


def state(result: dict | None, kept: dict | None, message: str = "") -> str:
    """Where a task stands: done here, done before and published, failed, or still to do."""
    return "done" if result else "published" if kept else "failed" if message else "to do"


def line(task: Task, kept: dict | None = None, message: str = "") -> dict:
    """One task in one line, rates in per cent; the point baseline as mean and worst of its repeats."""
    here = task.result()
    cells = {"task": task.name, **task.own, "state": state(here, kept, message)}
    result = here or kept
    if result:
        for title, (name, measure) in COLUMNS.items():
            own = paper.rates(result, name, measure)
            if own:
                cells[title] = round(intervals.mean_std(own)[0], 2)
            if len(own) > 1:
                cells[f"{title}, worst"] = round(max(own), 2)
        for level, row in result.get("levels", {}).items():
            cells[f"MESA, {level}"] = round(100 * row["asr"]["rate"], 2)
        for name, sample in result.get("samples", {}).items():
            cells[f"samples, {name}"] = round(100 * sample["asr"], 1)
        cells |= {f"{name} s": seconds for name, seconds in result["seconds"].items()}
        cells["task s"] = result["task_seconds"]
    return cells | {"message": message}


def write(sweep: Sweep, tasks: list[Task], ended: dict[str, Outcome], kept: dict[str, dict] | None = None) -> Path:
    """summary.csv and report.html in the sweep's folder, each whole -> the folder.

    ended: how tasks ended just now; kept: published results; both by key
    """
    folder = paths.runs() / "sweeps" / sweep.folder
    messages = {key: outcome.message for key, outcome in ended.items() if outcome.state == "failed"}
    kept = kept or {}
    table = pd.DataFrame([line(task, kept.get(task.key), messages.get(task.key, "")) for task in tasks])
    results = [found for task in tasks if (found := task.result() or kept.get(task.key))]
    store.write_atomic(folder / "summary.csv", table.to_csv(index=False))
    store.write_atomic(folder / "report.html", page(sweep, tasks, table, results))
    return folder


STYLE = """body{font:15px/1.5 system-ui,sans-serif;margin:2em auto;max-width:75em;padding:0 1em;color:#222}
table{border-collapse:collapse;font-size:13px;display:block;overflow-x:auto}td,th{border:1px solid #ccc;
padding:.2em .5em;text-align:right}td:first-child,th:first-child{text-align:left}.failed{color:#a00}
img{max-width:100%}pre{background:#f6f6f6;padding:.5em;overflow-x:auto}"""


#: what stands under the table of a report
LEGEND = """Attack success rates (ASR) in per cent: <i>floor</i>, the answer of the model that was never attacked to
the same triggered images; <i>attacked</i>, before any repair; then after each repair, a baseline that was repeated as
mean and worst. <i>accuracy</i> and <i>recall</i> (of the target class) on clean images, before and after MESA's
repair. <i>samples</i>: how often samples of a level fire. Columns with <i>s</i>: seconds of each part. A task's name
leads to its folder, where the page still lies beside it."""


def about(results: list[dict]) -> str:
    """What the results were made with: machine, versions, dates, and the parameters that are the same for all."""
    made = [result["made"] for result in results]
    dates = sorted(m["at"][:10] for m in made)
    first, *others = [result["params"] for result in results]
    same = {name: value for name, value in first.items() if all(other.get(name) == value for other in others)}
    words = ", ".join(f"{name} = {value}" for name, value in same.items() if value != "")
    when = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    return (
        f"<p>Made {when}: {html.escape(paper.machines(results))}.</p>"
        f"<details><summary>Parameters that all tasks share</summary><p>{html.escape(words)}</p></details>"
    )


def page(sweep: Sweep, tasks: list[Task], table: pd.DataFrame, results: list[dict]) -> str:
    """One HTML page that needs no other file to be read; the links lead to the tasks' folders beside it."""
    title = html.escape(", ".join([sweep.title or sweep.name, *(f"{k} = {v}" for k, v in sweep.changes.items())]))
    counts = table["state"].value_counts()
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{STYLE}</style>",
        f"<h1>{title}</h1><p>{', '.join(f'{number} {state}' for state, number in counts.items())} of {len(tasks)} "
        f"tasks; notebooks {', '.join(tasks[0].notebooks) if tasks else ''}.</p>",
    ]
    if results:
        parts.append(about(results))
    done = table[table["state"].isin(["done", "published"])]
    for figure in figures(done):
        parts.append(f'<p><img alt="attack success rates of all tasks" src="data:image/png;base64,{figure}">')
    numbers = done.drop(columns=["state", "message"]).dropna(axis=1, how="all")
    if len(numbers):
        over = numbers.select_dtypes("number").drop(columns=sweep.axes, errors="ignore").agg(["mean", "min", "max"])
        parts.append("<h2>Over all tasks</h2>" + over.T.round(2).to_html(border=0))
        parts.append(f"<h2>Each task</h2><p>{LEGEND}</p>")
        here = {name: f'<a href="{html.escape(name)}/">{html.escape(name)}</a>' for name in table["task"]}
        there = {name: html.escape(name) for name in table[table["state"] == "published"]["task"]}
        linked = numbers.assign(task=[(here | there)[name] for name in numbers["task"]])
        text = numbers.select_dtypes(exclude="number").columns.drop("task")
        linked[text] = linked[text].map(lambda v: html.escape(str(v)))
        parts.append(linked.to_html(border=0, index=False, escape=False, na_rep=""))
    for _, row in table[table["state"] == "failed"].iterrows():
        parts.append(f"<h2 class=failed>{html.escape(row['task'])} failed</h2><pre>{html.escape(row['message'])}</pre>")
    left = table[table["state"] == "to do"]["task"]
    if len(left):
        parts.append(f"<h2>To do</h2><p>{html.escape(', '.join(left))}</p>")
    return "\n".join(parts) + "</html>\n"


def figures(done: pd.DataFrame) -> list[str]:
    """The picture of the page as base64: ASR before and after, a task a column of points."""
    names = [name for name in COLUMNS if COLUMNS[name][1] == "asr" and name in done.columns]
    if done.empty or "attacked" not in names:
        return []
    plots.theme()
    stream = io.BytesIO()
    figure = plots.per_task(list(done["task"]), {name: list(done[name]) for name in names})
    figure.savefig(stream, format="png", metadata={"Software": None})
    plt.close(figure)
    return [base64.b64encode(stream.getvalue()).decode()]


# --- results that are committed --------------------------------------------------------------------------


def published(file: Path, sweep: str | None = None) -> dict[str, dict]:
    """The runs of a published file by their keys; none if there is no file.

    ValueError if its folder is not there, if it is not one of ours, or if it is another sweep's than `sweep`.
    """
    if not file.exists():
        if not file.absolute().parent.is_dir():
            raise ValueError(f"{paths.display_path(file)}: its folder is not there; expected a file in a folder that is")
        return {}
    try:
        content = json.loads(file.read_text())
        found, own = {run["key"]: run for run in content["runs"]}, content["sweep"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(
            f"{paths.display_path(file)}: not a file of published runs; expected one that --publish wrote"
        ) from None
    if sweep not in (None, own):
        raise ValueError(f"{paths.display_path(file)}: holds the sweep {own!r}; expected a file of {sweep!r}, or a new one")
    return found


def publish(file: Path, sweep: Sweep, tasks: list[Task]) -> int:
    """Put what is done beside what the file has already, one run a line -> how many there are then.

    The file only grows: runs of earlier times stay, a run that was done anew replaces its own. Without any run no file
    is made.
    """
    with store.lock(f"publish-{file.name}"):  # another command may be adding to it
        runs = published(file, sweep.name)
        for task in tasks:
            result = task.result()
            if result is not None:
                measured = {k: rounded(v) if k in MEASURED else v for k, v in result.items() if k != "sweep"}
                runs[task.key] = measured
        if not runs:
            return 0
        about = {"sweep": sweep.name, "title": sweep.title}
        lines = ",\n".join(json.dumps(run, allow_nan=False) for run in runs.values())
        store.write_atomic(file, f'{json.dumps(about)[:-1]}, "runs": [\n{lines}\n]}}\n')
    return len(runs)


def rounded(value, digits: int = 5):
    """Floats with five digits after the point, deep down: rates of 2,000 images have no more."""
    if isinstance(value, float):
        return round(value, digits)
    if isinstance(value, dict):
        return {k: rounded(v, digits) for k, v in value.items()}
    return [rounded(v, digits) for v in value] if isinstance(value, list) else value
