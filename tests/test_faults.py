"""Sweeps that are killed, interrupted, starved of disk, or started twice: run by `make test-all`.

Every test starts `python -m mesa_lib sweep` on four small tasks, does something to it at some moment, and starts it
again: every task ends done, no finished task runs twice, and no half file is taken for a result.
"""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from toy_notebooks import toy_repository

from mesa_lib.experiments.sweep import grid

pytestmark = pytest.mark.faults
TRIGGERS = ["bw:170", "bw:16", "color:0", "color:1"]
SMALL = {"image_size": 16, "width": 4, "clean_epochs": 3, "attack_epochs": 3, "batch_size": 64, "clean_seed": 0}
WAIT = 240  # seconds after which something hangs


@pytest.fixture
def store(empty_store):
    """The folder of runs, and an end to everything that a test leaves running."""
    yield empty_store
    for process in psutil.process_iter():
        try:
            if str(empty_store) in process.environ().get("MESA_RUNS", "") and process.pid != os.getpid():
                process.kill()
        except psutil.Error:
            continue


@pytest.fixture
def file(tmp_path, store, monkeypatch):
    monkeypatch.setenv("MESA_ROOT", str(toy_repository(tmp_path / "repository")))
    where = tmp_path / "small.yaml"
    parts = {"params": ["digits"], "set": SMALL, "grid": {"trigger": TRIGGERS}, "notebooks": ["01"]}
    where.write_text(json.dumps(parts))
    return where


class Run:
    """A sweep in a process group of its own; what it prints goes to a file."""

    number = 0

    def __init__(self, file: Path, *arguments: str, jobs: int = 2, before=None):
        Run.number += 1
        self.log = file.parent / f"log-{Run.number}"
        command = [sys.executable, "-m", "mesa_lib", "sweep", str(file), "--threads", "1", "--jobs", str(jobs)]
        with open(self.log, "w") as stream:
            self.process = subprocess.Popen(
                [*command, *arguments], stdout=stream, stderr=stream, start_new_session=True, preexec_fn=before
            )

    @property
    def said(self) -> str:
        return self.log.read_text()

    def end(self) -> int:
        return self.process.wait(WAIT)

    def kernels(self) -> list[psutil.Process]:
        try:
            every = psutil.Process(self.process.pid).children(recursive=True)
            return [p for p in every if "ipykernel_launcher" in " ".join(p.cmdline())]
        except psutil.Error:
            return []

    def until(self, what, least: int = 1) -> list:
        """Wait until `what()` has so many elements -> those."""
        end = time.monotonic() + WAIT
        while time.monotonic() < end:
            found = what()
            if len(found) >= least:
                return found
            assert self.process.poll() is None, self.said
            time.sleep(0.02)
        raise AssertionError(f"waited {WAIT} s\n{self.said}")


def results(store: Path) -> list[Path]:
    return sorted((store / "sweeps" / "small").glob("*/result.json"))


def whole(file: Path) -> None:
    """Everything is done, and nothing half-made is taken for done."""
    tasks = grid.read(str(file)).tasks()
    assert len(tasks) == 4 and all(task.result() is not None for task in tasks)
    assert all(re.search(r'"execution_count": \d', (t.folder / "01_attacking.ipynb").read_text()) for t in tasks)


def again(file: Path, store: Path) -> None:
    """The same command once more: it does what is left, and nothing twice."""
    before = {f: (f.stat().st_mtime_ns, f.read_text()) for f in results(store)}
    second = Run(file)
    assert second.end() == 0, second.said
    assert f"4 tasks, {4 - len(before)} to do" in second.said
    assert {f: (f.stat().st_mtime_ns, f.read_text()) for f in before} == before, "a finished task ran twice"
    whole(file)


def nobody(store: Path, within: float = 20) -> None:
    """No process of the run outlives it by more than some seconds."""
    end = time.monotonic() + within
    while time.monotonic() < end:
        left = []
        for process in psutil.process_iter():
            try:
                if process.pid != os.getpid() and process.environ().get("MESA_RUNS") == str(store):
                    left.append(process)
            except psutil.Error:
                continue
        if not left:
            return
        time.sleep(0.2)
    raise AssertionError(f"still running: {left}")


#: when something is done to a run: as soon as a kernel is there, while it works, when a task has ended
MOMENTS = ["a kernel starts", "a kernel works", "a task is done"]


def wait_for(moment: str, run: Run, store: Path) -> list[psutil.Process]:
    """-> the kernels that run then"""
    if moment == "a task is done":
        run.until(lambda: results(store))
        return run.until(run.kernels)
    kernels = run.until(run.kernels)
    if moment == "a kernel works":
        run.until(lambda: list(store.glob(".locks/clean-*")))
        time.sleep(0.5)
    return kernels


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_worker_that_is_killed_is_replaced_and_its_task_done_again(moment, file, store):
    run = Run(file)
    kernels = wait_for(moment, run, store)
    done = {f: f.stat().st_mtime_ns for f in results(store)}
    psutil.Process(kernels[0].ppid()).kill()
    assert run.end() == 0, run.said
    assert {f: f.stat().st_mtime_ns for f in done} == done
    whole(file)
    again(file, store)
    nobody(store)


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_kernel_that_is_killed_is_reported_in_seconds_and_its_task_fails_alone(moment, file, store):
    run = Run(file, jobs=1)
    kernels = wait_for(moment, run, store)
    kernels[0].kill()  # as the system does when memory is short
    killed = time.monotonic()
    run.until(lambda: re.findall("failed: its kernel died", run.said))
    assert time.monotonic() - killed < 15
    assert run.end() == 1 and "1 of 4 tasks failed" in run.said
    assert "01_attacking.ipynb failed: its kernel died (killed, or out of memory)" in run.said
    assert len(results(store)) == 3, "the others went on"
    again(file, store)


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_runner_that_is_killed_takes_everything_with_it_and_can_be_started_again(moment, file, store):
    run = Run(file)
    wait_for(moment, run, store)
    run.process.kill()
    run.end()
    nobody(store)
    again(file, store)


def ignore_sigint():
    """What a shell without job control does to the commands that it starts in the background, as some CI systems do."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@pytest.mark.parametrize(
    ("sent", "inherited"),
    [(signal.SIGINT, None), (signal.SIGINT, ignore_sigint), (signal.SIGTERM, None)],
    ids=["Ctrl-C", "Ctrl-C where SIGINT was ignored", "SIGTERM"],
)
@pytest.mark.parametrize("moment", [*MOMENTS, "at the start"])
def test_a_signal_ends_in_a_message_and_the_next_start_goes_on(moment, sent, inherited, file, store):
    """Sent to the whole process group, as a terminal sends Ctrl-C; 130 and 143 are the exit codes of shells."""
    run = Run(file, before=inherited)
    if moment == "at the start":
        run.until(lambda: re.findall("to do", run.said))
        time.sleep(0.5)
    else:
        wait_for(moment, run, store)
    os.killpg(run.process.pid, sent)
    at = time.monotonic()
    assert run.end() == 128 + sent, run.said
    assert time.monotonic() - at < 30
    assert "stopped; what was finished is kept" in run.said and "Traceback" not in run.said
    nobody(store)
    again(file, store)


def test_two_runners_never_do_the_same_task_twice(file, store):
    runs = [Run(file, jobs=1), Run(file, jobs=1)]
    assert [run.end() for run in runs] == [0, 0], "\n".join(run.said for run in runs)
    done = [name for run in runs for name in re.findall(r"\] (\S+): done in", run.said)]
    assert len(done) == len(set(done)) == 4, [run.said for run in runs]
    assert len([f for f in (store / "clean").iterdir() if not f.name.startswith(".")]) == 1
    whole(file)
    again(file, store)


def test_files_that_may_not_grow_end_in_a_message(file, store):
    """Every write above 20 kB fails, in the runner, its workers and their kernels (executed notebooks are larger)."""

    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    run = Run(file, jobs=1, before=small_files)
    assert run.end() == 1
    assert "4 of 4 tasks failed" in run.said and "File too large" in run.said and not results(store)
    again(file, store)


def test_a_full_disk_ends_in_a_message(file, store, monkeypatch):
    store.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40k", "tmpfs", str(store)], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small disk to fill cannot be mounted here")
    try:
        run = Run(file, jobs=1)
        assert run.end() == 1
        assert "4 of 4 tasks failed" in run.said and "No space left on device" in run.said
        assert "Traceback" not in run.said and not results(store)
        subprocess.run(["mount", "-o", "remount,size=200m", str(store)], check=True)
        again(file, store)
    finally:
        subprocess.run(["umount", "-l", str(store)])
