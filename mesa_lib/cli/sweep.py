"""`python -m mesa_lib sweep NAME`: from the command line to the exit code."""

import argparse
import statistics
import sys
from pathlib import Path

import pandas as pd

from mesa_lib.experiments.sweep import cluster, grid, runner
from mesa_lib.experiments.sweep.task import Outcome, Task
from mesa_lib.reporting.html import sweep as sweep_report
from mesa_lib.store import paths

#: seconds between two reports while tasks end
REPORT_AGAIN = 5.0


def add(commands) -> None:
    """The command with its options."""
    parser = commands.add_parser("sweep", help="run a grid of parameters, params/sweeps/NAME.yaml")
    parser.add_argument("sweep", help="a file, or its name in params/sweeps/")
    parser.add_argument("-p", action="append", default=[], metavar="NAME=VALUE", help="one parameter for all tasks")
    parser.add_argument("--dry-run", action="store_true", help="show what would run, and how long it may take")
    parser.add_argument("--jobs", type=int, help="workers (default: one a GPU, else what cores and memory take)")
    parser.add_argument("--threads", type=int, help="threads of each task (default: the cores shared out)")
    parser.add_argument("--scheduler", metavar="ADDRESS", help="the workers of a Dask scheduler instead: tcp://... ")
    parser.add_argument("--publish", type=Path, metavar="FILE", help="add the results to FILE, where they stay")
    parser.add_argument("--first", type=int, metavar="N", help="only the first N tasks of the sweep")


def main(a: argparse.Namespace) -> int:
    """0 if every task is done, 1 if one failed or a report could not be written."""
    if a.scheduler and a.jobs:
        raise ValueError(f"jobs = {a.jobs}: a scheduler has the workers that it has; expected --jobs or --scheduler")
    if a.publish and a.p:
        raise ValueError(
            f"-p {a.p[0]} with --publish: a published file holds a sweep as its file asks for it; "
            "expected one without the other, or a sweep of your own with the value in `set`"
        )
    sweep = grid.read(a.sweep, a.p)
    if a.first is not None and a.first < 1:
        raise ValueError(f"first = {a.first}: expected a number from 1")
    tasks = sweep.tasks()[: a.first]
    kept = sweep_report.published(a.publish, sweep.name) if a.publish else {}
    to_do = [task for task in tasks if task.key not in kept and task.result() is None]
    device = tasks[0].params.device
    plan = None if a.scheduler else cluster.plan(a.jobs, a.threads, device, max(1, len(to_do)))
    if a.dry_run:
        show(sweep, tasks, to_do, kept, plan)
        return 0
    print(f"{sweep.folder}: {len(tasks)} tasks, {len(to_do)} to do" + (f", {plan}" if plan else ""), file=sys.stderr)
    ended: dict[str, Outcome] = {}
    whole = True
    try:
        if to_do:
            work(a, sweep, tasks, to_do, kept, plan, ended)
    finally:  # stopped or not, and a disk that is full is no reason to keep back what went wrong
        failed = [outcome for outcome in ended.values() if outcome.state == "failed"]
        for outcome in failed:
            print(f"mesa: {outcome.task}: {outcome.message}", file=sys.stderr)
        if a.publish:
            whole &= report_or_warn(sweep_report.publish, a.publish, sweep, tasks)
        whole &= report_or_warn(sweep_report.write, sweep, tasks, ended, kept)
    folder = paths.runs() / "sweeps" / sweep.folder
    print(f"summary  {folder}/summary.csv\nreport   {folder}/report.html\ntasks    {folder}/*/")
    if a.publish:
        print(f"results  {a.publish}")
    if failed:
        print(f"mesa: {len(failed)} of {len(to_do)} tasks failed; the same command tries them again", file=sys.stderr)
    return 0 if whole and not failed else 1


def work(
    a: argparse.Namespace,
    sweep: grid.Sweep,
    tasks: list[Task],
    to_do: list[Task],
    kept: dict[str, dict],
    plan: cluster.Plan | None,
    ended: dict[str, Outcome],
) -> None:
    """Do what is to be done; `ended` gets how each task ended, by its key. Reports are kept fresh meanwhile."""
    threads = plan.threads if plan else a.threads
    with cluster.connect(a.scheduler) if a.scheduler else cluster.workers(plan) as client:
        progress = runner.Progress(len(to_do), plan.workers if plan else cluster.capacity(client)[0])
        fresh = runner.Throttle(REPORT_AGAIN)
        try:
            for task, outcome in runner.outcomes_of(to_do, client, threads, progress.tick):
                ended[task.key] = outcome
                progress.tell(task, outcome)
                if fresh.due():
                    report_or_warn(sweep_report.write, sweep, tasks, ended, kept)
                    if a.publish and outcome.state != "failed":
                        report_or_warn(sweep_report.publish, a.publish, sweep, tasks)
        except KeyboardInterrupt:
            if a.scheduler:
                print("mesa: what the scheduler's workers have begun goes on there", file=sys.stderr)
            raise
        finally:
            progress.close()


def report_or_warn(function, *arguments) -> bool:
    """Write a report -> whether it could be written. If not, that is said, and is no reason to stop."""
    try:
        function(*arguments)
    except (OSError, ValueError) as error:
        print(f"mesa: {error}", file=sys.stderr)
        return False
    return True


def show(sweep: grid.Sweep, tasks: list[Task], to_do: list[Task], kept: dict, plan: cluster.Plan | None) -> None:
    """The table of --dry-run."""
    states = [sweep_report.state(task.result(), kept.get(task.key)) for task in tasks]
    rows = [{"task": task.name, **task.own, "state": state} for task, state in zip(tasks, states, strict=True)]
    print(pd.DataFrame(rows, dtype=object).fillna("").to_string(index=False))
    for name, value in sweep.changes.items():
        print(f"with {name} = {value} for all of them")
    print(f"\n{len(tasks)} tasks, {len(to_do)} to do, notebooks {', '.join(tasks[0].notebooks)}", end="")
    print(f"; {plan}" if plan else "")
    found = [task.result() or kept.get(task.key) for task in tasks]
    # a task that found its models made already says nothing about the next one
    seconds = [r["task_seconds"] for r in found if r and r["task_seconds"] > r["seconds"].get("attack", 0)]
    at_once, each, source = 1, 60 * sweep.minutes, "on two cores, as the sweep says"
    if seconds:
        at_once, each = plan.workers if plan else 1, statistics.median(seconds)
        order = f"{at_once} at once" if at_once > 1 else "one after another"
        source = f"the median of {len(seconds)} that were done, {order}"
    if each:
        print(
            f"expected time: {runner.duration(-(-len(to_do) // at_once) * each)} ({runner.duration(each)} a task, {source})"
        )
    else:
        print("expected time: unknown until a task is done (the sweep has no `minutes`)")
