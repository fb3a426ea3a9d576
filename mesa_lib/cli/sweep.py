"""`python -m mesa_lib sweep NAME`: from the command line to the exit code."""

import argparse
import statistics
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from mesa_lib.experiments.sweep import grid, publish
from mesa_lib.experiments.sweep.task import Outcome, Task
from mesa_lib.store import paths

#: seconds between two reports while tasks end
REPORT_AGAIN = 5.0


def add(commands) -> None:
    """Add the command with its options."""
    parser = commands.add_parser("sweep", help="run a grid of parameters, params/sweeps/NAME.yaml")
    parser.add_argument("sweep", help="a file, or its name in params/sweeps/")
    parser.add_argument("-p", action="append", default=[], metavar="NAME=VALUE", help="one parameter for all tasks")
    parser.add_argument("--dry-run", action="store_true", help="show what would run, and how long it may take")
    parser.add_argument("--jobs", type=int, help="workers (default: one per GPU, else as cores and memory suffice)")
    parser.add_argument("--threads", type=int, help="threads of each task (default: the cores shared out)")
    parser.add_argument("--scheduler", metavar="ADDRESS", help="the workers of a Dask scheduler instead: tcp://... ")
    parser.add_argument("--publish", type=Path, metavar="FILE", help="add the results to FILE, where they stay")
    parser.add_argument("--first", type=int, metavar="N", help="only the first N tasks of the sweep")
    parser.set_defaults(function=main)


@dataclass
class State:
    """A sweep while it runs.

    Attributes:
        tasks: all of them; `to_do` are those without a result.
        published: results of earlier times from the published file, by the keys of tasks.
        ended: how tasks ended just now, by their keys.
    """

    sweep: grid.Sweep
    tasks: list[Task]
    to_do: list[Task]
    published: dict[str, dict]
    ended: dict[str, Outcome] = field(default_factory=dict)

    @property
    def failed(self) -> list[Outcome]:
        """The outcomes of the tasks that failed just now."""
        return [outcome for outcome in self.ended.values() if outcome.state == "failed"]


def main(a: argparse.Namespace) -> int:
    """Run the sweep; return 0 if every task is done, 1 if one failed or a report could not be written."""
    from mesa_lib.experiments.sweep import cluster  # Dask takes a second to import

    state = prepare(a)
    device = state.tasks[0].params.device
    plan = None if a.scheduler else cluster.plan(a.jobs, a.threads, device, max(1, len(state.to_do)))
    if a.dry_run:
        show(state, plan)
        return 0
    counts = f"{len(state.tasks)} tasks, {len(state.to_do)} to do"
    print(f"{state.sweep.folder}: {counts}" + (f", {plan}" if plan else ""), file=sys.stderr)
    complete = True
    try:
        if state.to_do:
            work(a, state, plan)
    finally:  # stopped or not; and a full disk is no reason to hide what went wrong
        for outcome in state.failed:
            print(f"mesa: {outcome.task}: {outcome.message}", file=sys.stderr)
        complete &= not a.publish or report_or_warn(publish.publish, a.publish, state.sweep, state.tasks)
        complete &= report_or_warn(write_report, state)
    folder = paths.runs() / "sweeps" / state.sweep.folder
    print(f"summary  {folder}/summary.csv\nreport   {folder}/report.html\ntasks    {folder}/*/")
    if a.publish:
        print(f"results  {a.publish}")
    if state.failed:
        failed = f"{len(state.failed)} of {len(state.to_do)} tasks failed"
        print(f"mesa: {failed}; the same command tries them again", file=sys.stderr)
    return 0 if complete and not state.failed else 1


def prepare(a: argparse.Namespace) -> State:
    """Return the sweep with what is already done; ValueError for whatever is wrong with the command or the file."""
    if a.scheduler and a.jobs:
        raise ValueError(f"jobs = {a.jobs}: a scheduler has its own workers; expected --jobs or --scheduler")
    if a.publish and a.p:
        raise ValueError(
            f"-p {a.p[0]} with --publish: a published file holds a sweep as its file asks for it; "
            "expected one without the other, or a sweep of your own with the value in `set`"
        )
    sweep = grid.read(a.sweep, a.p)
    if a.first is not None and a.first < 1:
        raise ValueError(f"first = {a.first}: expected a number from 1")
    tasks = sweep.tasks()[: a.first]
    runs = publish.read_published(a.publish, sweep.name) if a.publish else {}
    published = publish.published_results(tasks, runs)
    return State(sweep, tasks, [t for t in tasks if t.key not in published and t.result() is None], published)


def work(a: argparse.Namespace, state: State, plan) -> None:
    """Run the tasks, keep the reports fresh, and record in `state.ended` how each task ended.

    Args:
        plan: the workers on this machine (`cluster.Plan`); None: those of a scheduler.
    """
    from mesa_lib.experiments.sweep import cluster, runner

    threads = plan.threads if plan else a.threads
    with cluster.connect(a.scheduler) if a.scheduler else cluster.workers(plan) as client:
        progress = runner.Progress(len(state.to_do), plan.workers if plan else cluster.capacity(client)[0])
        report_again = runner.Throttle(REPORT_AGAIN)
        try:
            for task, outcome in runner.outcomes_of(state.to_do, client, threads, progress.tick):
                state.ended[task.key] = outcome
                progress.show(task, outcome)
                if report_again.due():
                    report_or_warn(write_report, state)
                    if a.publish and outcome.state != "failed":
                        report_or_warn(publish.publish, a.publish, state.sweep, state.tasks)
        except KeyboardInterrupt:
            if a.scheduler:
                print("mesa: tasks that the scheduler's workers have begun go on there", file=sys.stderr)
            raise
        finally:
            progress.close()


def write_report(state: State) -> Path:
    """Write summary and HTML report of the sweep as it stands."""
    from mesa_lib.reporting.html import sweep as sweep_report

    return sweep_report.write(state.sweep, state.tasks, state.ended, state.published)


def report_or_warn(function, *arguments) -> bool:
    """Write a report and return whether that was possible; if not, warn, since it is no reason to stop."""
    try:
        function(*arguments)
    except (OSError, ValueError) as error:
        print(f"mesa: {error}", file=sys.stderr)
        return False
    return True


def show(state: State, plan) -> None:
    """Print what --dry-run shows: a row per task, and the expected time."""
    from mesa_lib.reporting.html.sweep import state as state_of

    states = [state_of(task.result(), state.published.get(task.key)) for task in state.tasks]
    rows = [{"task": t.name, **t.cell, "state": word} for t, word in zip(state.tasks, states, strict=True)]
    print(pd.DataFrame(rows, dtype=object).fillna("").to_string(index=False))
    for name, value in state.sweep.changes.items():
        print(f"with {name} = {value} for all of them")
    books = ", ".join(state.tasks[0].notebooks)
    print(f"\n{len(state.tasks)} tasks, {len(state.to_do)} to do, notebooks {books}" + (f"; {plan}" if plan else ""))
    print(expected_time(state, plan))


def expected_time(state: State, plan) -> str:
    """Return how long the tasks to do may take: from those that are done, else from the sweep's `minutes`."""
    from mesa_lib.experiments.sweep.runner import duration

    results = [task.result() or state.published.get(task.key) for task in state.tasks]
    # a task that found its models trained says nothing about the next one
    seconds = [
        result["task_seconds"]
        for result in results
        if result and result.get("task_seconds", 0) > result["seconds"].get("attack", 0)
    ]
    at_once, each, source = 1, 60 * state.sweep.minutes, "on two cores, as the sweep says"
    if seconds:
        at_once, each = plan.workers if plan else 1, statistics.median(seconds)
        order = f"{at_once} at once" if at_once > 1 else "one after another"
        source = f"the median of {len(seconds)} that were done, {order}"
    if not each:
        return "expected time: unknown until a task is done (the sweep has no `minutes`)"
    total = -(-len(state.to_do) // at_once) * each
    return f"expected time: {duration(total)} ({duration(each)} a task, {source})"
