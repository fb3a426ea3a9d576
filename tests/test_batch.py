"""Batch runs: what is asked for, who does it, how it ends, and what is left behind."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from distributed import Client as Dask
from safetensors.torch import save_file

from mesa_lib import store
from mesa_lib import triggers
from mesa_lib.cli import main
from mesa_lib.cli import sweep as sweep_command
from mesa_lib.defenses import registry
from mesa_lib.experiments import notebooks
from mesa_lib.experiments import params
from mesa_lib.experiments import results
from mesa_lib.experiments.sweep import cluster
from mesa_lib.experiments.sweep import grid
from mesa_lib.experiments.sweep import runner
from mesa_lib.experiments.sweep import task
from mesa_lib.reporting.html import sweep as sweep_report
from mesa_lib.store import paths
from mesa_lib.experiments.sweep.task import Outcome
from mesa_lib.defenses.random_triggers import RandomTriggers
from mesa_lib.experiments.pipeline import Pipeline

TINY = {
    "image_size": 16, "width": 4, "clean_epochs": 1, "attack_epochs": 1, "steps": 3, "triggers_per_step": 8,
    "repair_epochs": 1, "point_repeats": 1, "hidden": 16, "batch_size": 64, "compare": "", "clean_seed": 0,
}  # fmt: skip
FILES = sorted((paths.root() / "params" / "sweeps").glob("*.yaml"))


def written(folder, file_name="small", **parts):
    """A sweep file of tiny tasks -> its path."""
    file = folder / f"{file_name}.yaml"
    parts = {"params": ["digits"], "set": TINY, "grid": {"trigger": ["bw:170", "bw:16"]}, "notebooks": ["01"]} | parts
    file.write_text(json.dumps(parts))
    return str(file)


def tasks_of(folder, **parts):
    return grid.read(written(folder, **parts)).tasks()


# --- what is asked for -----------------------------------------------------------------------------------


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_every_sweep_of_the_project_is_good(file):
    read = grid.read(file.stem)
    cells = list(read.each())
    assert (
        read.title and cells and (read.notebooks == [notebooks.VICTIM_NOTEBOOK] or set(read.notebooks) <= {"01", "02", "03", "04"})
    )
    assert len({json.dumps(own, sort_keys=True) for own, _ in cells}) == len(cells)


@pytest.mark.parametrize("name", ["paper-cifar10", "paper-cifar10-published", "paper-resnet18"])
def test_the_papers_sweeps_have_every_pattern_in_the_order_that_they_say(name):
    drawn = np.array(triggers.representatives())[np.random.RandomState(2019).permutation(51)]
    assert [p.trigger for _, p in grid.read(name).each()] == [f"bw:{n}" for n in drawn]


def test_the_papers_targets_of_cifar100():
    cells = [(p.trigger, p.target) for _, p in grid.read("paper-cifar100-color").each()]
    assert cells == list(zip([f"color:{n}" for n in range(10)], (51, 90, 96, 79, 8, 50, 19, 7, 7, 91), strict=True))


def test_a_grid_is_every_combination_and_cells_go_with_each(tmp_path):
    file = written(
        tmp_path,
        grid={"seed": [0, 1], "alpha": [0, 1]},
        cells=[{"trigger": "bw:1", "target": 1}, {"trigger": "bw:2", "target": 2}],
    )
    cells = [(p.trigger, p.target, p.seed, p.alpha) for _, p in grid.read(file).each()]
    assert len(cells) == 8 and cells[0] == ("bw:1", 1, 0, 0) and cells[-1] == ("bw:2", 2, 1, 1)
    assert grid.read(file).axes == ["trigger", "target", "seed", "alpha"]


def test_an_override_replaces_an_axis(tmp_path):
    read = grid.read(written(tmp_path), ["trigger=bw:3", "attack_lr=1e-3"])
    (cell,) = read.each()
    assert (cell[1].trigger, cell[1].attack_lr, cell[0]) == ("bw:3", 0.001, {})
    assert read.folder == "small,attack_lr=0.001,trigger=bw3", "another report than that of the sweep itself"
    assert len(grid.read(written(tmp_path), [f"data_dir={'x' * 200}"]).folder) <= 80


def test_equal_cells_are_one_task(tmp_path):
    assert len(tasks_of(tmp_path, grid={"trigger": ["bw:1", "bw:1"], "alpha": [0, 0.0]})) == 1


BAD = {
    "nowhere": (None, "sweep 'nowhere': not found; expected a path, or one of .*paper-cifar10"),
    "unknown part": ({"gird": {}}, "gird: unknown; expected some of title, params, set, grid"),
    "unknown parameter": ({"grid": {"triger": ["bw:1"]}}, "triger = 'bw:1': no notebook has .* did you mean trigger"),
    "bad value": ({"grid": {"trigger": ["bw:512"]}}, "small', {'trigger': 'bw:512'}: trigger = 'bw:512'"),
    "no values": ({"grid": {"trigger": []}}, "grid has no value for trigger"),
    "no list": ({"grid": {"trigger": "bw:1"}}, "grid.trigger = 'bw:1': expected name: list of values"),
    "twice": ({"cells": [{"trigger": "bw:1"}]}, "trigger stands in cells and in grid"),
    "set and grid": ({"set": TINY | {"trigger": "bw:1"}}, "trigger stands in set and in grid"),
    "set and cells": ({"set": TINY | {"seed": 1}, "cells": [{"seed": 2}]}, "seed stands in set and in cells"),
    "number": ({"notebooks": [4]}, "notebooks.0 = 4: expected a list of notebooks, in quotes"),
    "published otherwise": (
        {"-p": "seed=1", "--publish": "r.json"},
        "-p seed=1 with --publish: a published file holds",
    ),
    "published nowhere": ({"--publish": "nowhere/r.json"}, "r.json: its folder is not there"),
    "target": ({"set": TINY | {"target": 12}}, "target = 12: expected a class from 0 to 9"),
    "notebook": ({"notebooks": ["99"]}, "notebook '99'"),
    "order": ({"notebooks": ["02", "01"]}, "notebooks = 02, 01; expected some of 01_attacking"),
    "quickstart": ({"notebooks": ["00"]}, "expected some of 01_attacking"),
    "file": ({"params": ["nothing"]}, "parameter file 'nothing': not found"),
    "name": ({"name": "other"}, "take the line name: out"),
    "grid is a list": ({"grid": ["bw:1"]}, "grid = \\['bw:1'\\]: expected name: list of values"),
    "override": ({"-p": "alpha=[0"}, "'\\[0': .*expected a value as in YAML"),
    "override without a value": ({"-p": "alpha"}, "'alpha': expected name=value"),
    "jobs elsewhere": ({"--scheduler": "x", "--jobs": "2"}, "jobs = 2: a scheduler has the workers that it has"),
    "first": ({"--first": "0"}, "first = 0: expected a number from 1"),
    "no scheduler": ({"--scheduler": "nonsense://x"}, "scheduler 'nonsense://x': no answer"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_is_wrong_is_said_before_anything_runs(what, tmp_path, capsys, empty_store):
    parts, said = BAD[what]
    parts = parts or {}
    options = [text for name, value in parts.items() if name.startswith("-") for text in (name, value)]
    parts = {name: value for name, value in parts.items() if not name.startswith("-")}
    file = "nowhere" if what == "nowhere" else written(tmp_path, **parts)
    assert main.main(["sweep", file, *options]) == 1
    shown = capsys.readouterr().err
    assert re.search(f"^mesa: .*{said}", shown, re.M), shown
    assert "Traceback" not in shown and not list(empty_store.glob("sweeps/*/*/"))


# --- keys ------------------------------------------------------------------------------------------------


def test_a_key_follows_from_content_and_not_from_places(tmp_path, class_folder):
    def key(tree, **changes):
        p = params.check(TINY | {"dataset": "folder", "data_dir": str(tree)} | changes)
        return task.Task.of("s", {}, Pipeline(p), ["01_attacking"]).key

    first = class_folder("a")
    shutil.copytree(first, tmp_path / "copied")
    assert key(first) == key(tmp_path / "copied") == key(first, compare="bw:1")
    assert key(first) != key(class_folder("b", seed=1))
    one, other = tmp_path / "patch.npy", tmp_path / "other.npy"
    np.save(one, np.zeros((3, 3, 3)))
    shutil.copy(one, other)
    before = key(first, trigger=f"file:{one}")
    assert key(first, trigger=f"file:{other}") == before
    np.save(one, np.ones((3, 3, 3)))
    assert key(first, trigger=f"file:{one}") != before


def test_a_key_follows_a_checkpoints_weights_the_parameters_and_the_notebooks(tmp_path):
    def key(notebooks=("01",), **changes):
        return task.Task.of("s", {}, Pipeline(params.check(TINY | changes)), notebooks).key

    def weights(name, seed):
        state = Pipeline(params.check(TINY)).fresh(seed).state_dict()
        save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / name)
        return str(tmp_path / name)

    first = key(checkpoint=weights("a.safetensors", 0))
    assert first == key(checkpoint=weights("b.safetensors", 0))
    second = key(checkpoint=weights("a.safetensors", 1))
    keys = [first, second, key(), key(("01", "02")), key(alpha=0.2)]
    keys += [key(("03",)), key(("03",), compare="bw:1")]
    assert len(set(keys)) == len(keys)


def test_a_task_asked_for_in_other_words_is_the_same_task(tmp_path, empty_store):
    (one,) = tasks_of(tmp_path, grid={"trigger": ["bw:170"]})
    keep(one)
    (same,) = tasks_of(tmp_path, grid={"seed": [0], "trigger": ["bw:170"]})
    assert same.folder == one.folder and same.result()


def test_files_travel_with_absolute_paths_and_stay_out_of_results(tmp_path, monkeypatch):
    np.save(tmp_path / "patch.npy", np.zeros((3, 3, 3)))
    monkeypatch.chdir(tmp_path)
    values = task.absolute_paths(params.check(TINY | {"trigger": "file:patch.npy", "data_dir": "."}))
    assert values["trigger"] == f"file:{tmp_path}/patch.npy" and values["data_dir"] == str(tmp_path)
    assert task.named({"trigger": values["trigger"], "checkpoint": "/x/m.safetensors", "seed": 1}) == {
        "trigger": "file:patch.npy", "checkpoint": "m.safetensors", "seed": 1}  # fmt: skip


def test_a_folder_has_a_readable_name(tmp_path):
    (one, _) = tasks_of(tmp_path)
    assert re.fullmatch(r"bw170-[0-9a-f]{8}", one.name) and one.folder.parent.name == "small"


# --- one task --------------------------------------------------------------------------------------------


@pytest.fixture
def one(tmp_path, empty_store):
    return tasks_of(tmp_path)[0]


def test_a_task_is_done_when_its_whole_result_is_there(one):
    assert one.result() is None
    one.folder.mkdir(parents=True)
    file = one.folder / "result.json"
    for text in ("", '{"key": ', "[]", "null", '{"key": "other"}', '{"key"'):
        file.write_text(text)
        assert one.result() is None, text
    (one.folder / "01_attacking.ipynb").write_text("{}")  # a notebook says nothing
    assert one.result() is None
    file.write_text(json.dumps({"key": one.key}))
    assert one.result() == {"key": one.key} and task.perform(one) == Outcome(one.name, "before")


def test_a_victim_goes_through_the_bench_and_its_figures_are_published(tmp_path, empty_store):
    grid = {"attack": ["warp"], "kinds": ["reformers"]}
    file = written(tmp_path, grid=grid, notebooks=[notebooks.VICTIM_NOTEBOOK])
    read = grid.read(file)
    (one,) = read.tasks()
    assert task.perform(one).state == "done"
    result = one.result()
    assert result["attack"] == "warp" and result["planted"] == [0] and result["notebooks"] == [notebooks.VICTIM_NOTEBOOK]
    assert [row["model"] for row in result["rows"]] == ["clean, never attacked", "attacked"]
    assert result["reformers"]["4 bits"]["asr"]["images"] > 100 and "detectors" not in result
    assert sweep_report.publish(tmp_path / "kept.json", read, [one]) == 1
    sweep_report.write(read, [one], {})
    assert pd.read_csv(one.folder.parent / "summary.csv").loc[0, "attack"] == "warp"


def test_a_threshold_that_changes_makes_another_task_of_the_bench_and_of_no_other(tmp_path, monkeypatch):
    def keys():
        grid = {"kinds": ["detectors", "filters"]}
        bench = tasks_of(tmp_path, grid=grid, notebooks=[notebooks.VICTIM_NOTEBOOK])
        return [one.key for one in [*bench, *tasks_of(tmp_path)]]

    before = keys()
    monkeypatch.setitem(registry.DETECTORS, "random triggers", lambda: RandomTriggers(above=0.21))
    after = keys()
    assert [a == b for a, b in zip(before, after, strict=True)] == [False, True, True, True]


@pytest.mark.parametrize("books", [[notebooks.VICTIM_NOTEBOOK, "04"], ["04", notebooks.VICTIM_NOTEBOOK], ["05"], ["02", "01"]])
def test_the_bench_stands_alone_and_the_series_in_order(tmp_path, books):
    with pytest.raises(ValueError, match="in this order, or one_victim alone"):
        tasks_of(tmp_path, notebooks=books)


def test_a_task_that_somebody_holds_is_busy(one, monkeypatch):
    monkeypatch.setattr(task, "_perform", lambda t: pytest.fail("it was done all the same"))
    with store.lock(f"task-{one.key}") as mine:
        assert mine
        found = []
        other = threading.Thread(target=lambda: found.append(task.perform(one)))
        other.start()
        other.join()
    assert found == [Outcome(one.name, "busy")]


def test_a_task_whose_files_changed_meanwhile_is_refused(tmp_path, empty_store, monkeypatch):
    patch = tmp_path / "patch.npy"
    np.save(patch, np.zeros((3, 3, 3)))
    (one,) = tasks_of(tmp_path, grid={"trigger": [f"file:{patch}"]})
    np.save(patch, np.ones((3, 3, 3)))
    monkeypatch.setattr(notebooks, "run_notebooks", lambda *a, **k: pytest.fail("it ran"))
    outcome = task.perform(one)
    assert outcome.state == "failed" and "are not those that the sweep was started with" in outcome.message


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (notebooks.SeriesFailed("01_attacking.ipynb failed: its kernel died"), "01_attacking.ipynb failed: its kernel"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (ValueError("target = 3: no"), "target = 3: no"),
        (KeyError("odd"), "KeyError('odd')"),
    ],
)
def test_what_goes_wrong_is_the_outcomes_message_and_frees_the_task(one, monkeypatch, error, said):
    def fail(these):
        raise error

    monkeypatch.setattr(task, "_perform", fail)
    for _ in range(2):  # the second try finds it free
        outcome = task.perform(one)
        assert outcome.state == "failed" and said in outcome.message
    assert one.result() is None


def test_a_write_error_at_the_very_end_leaves_the_task_undone(one, monkeypatch):
    monkeypatch.setattr(notebooks, "run_notebooks", lambda *a, **k: None)
    rows = [{"model": "attacked", "asr": {"rate": 1, "low": 0, "high": 1}} | dict.fromkeys(
        ("clean_accuracy", "target_recall", "true_label_accuracy"), {"rate": 0.5})]  # fmt: skip
    monkeypatch.setattr(results, "of", lambda pipeline, last: {"rows": rows, "seconds": {}})
    monkeypatch.setattr(results, "artifacts", lambda pipeline, last: {})
    replaced = os.replace

    def full(source, target):
        if str(target).endswith("result.json"):
            raise OSError(28, "No space left on device")
        replaced(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        outcome = task.perform(one)
    assert outcome.state == "failed" and "cannot write" in outcome.message and "No space left" in outcome.message
    assert [f.name for f in one.folder.iterdir()] == ["table.csv"], "nothing half-written"
    (one.folder / ".result.json-of-the-dead").write_text("{")
    assert task.perform(one).state == "done" and one.result()["rows"] == rows
    assert sorted(f.name for f in one.folder.iterdir()) == ["result.json", "table.csv"]


# --- handing out -----------------------------------------------------------------------------------------


class Future:
    def __init__(self, outcome=None, status="finished", after=0.0, error=None):
        self.outcome, self.status, self.error = outcome, status, error
        self.at = time.monotonic() + after

    def done(self):
        return time.monotonic() >= self.at

    def result(self):
        return self.outcome

    def exception(self):
        return self.error


class Client:
    """In place of Dask's: `answers` says what becomes of each task, in the order in which they are handed out."""

    def __init__(self, answers, workers=2, resources=()):
        self.answers, self.workers, self.status = list(answers), workers, "running"
        self.handed, self.running, self.most = [], [], 0
        self.resources = resources or [{}] * workers

    def scheduler_info(self, n_workers):
        return {"workers": {n: {"nthreads": 1, "resources": self.resources[n]} for n in range(self.workers)}}

    def submit(self, function, one, threads, resources, **options):
        assert function is task.perform
        self.asked = resources
        self.running = [f for f in self.running if not f.done()]
        future = self.answers.pop(0)(one)
        self.handed.append(one.name)
        self.running.append(future)
        self.most = max(self.most, len(self.running))
        return future


def named(*names):
    return [task.Task("s", name, name, {}, {}, ("01",), "/nowhere", "") for name in names]


@pytest.fixture
def there(monkeypatch):
    """Results are where the workers say."""
    monkeypatch.setattr(task.Task, "result", lambda self: {"key": self.key})


def ending(state="done", after=0.05, **more):
    return lambda one: Future(Outcome(one.name, state), after=after, **more)


def test_no_more_tasks_are_handed_out_than_there_are_workers(there):
    client = Client([ending() for _ in range(6)])
    found = [(t.name, o.state) for t, o in runner.outcomes_of(named(*"abcdef"), client)]
    assert sorted(found) == [(name, "done") for name in "abcdef"] and client.most == 2


def test_a_task_that_somebody_else_does_is_asked_for_again(monkeypatch, there):
    monkeypatch.setattr(runner, "BUSY_AGAIN", 0.05)
    client = Client([ending("busy"), ending(), ending("busy"), ending("before")])
    found = [(t.name, o.state) for t, o in runner.outcomes_of(named("a", "b"), client)]
    assert sorted(found) == [("a", "before"), ("b", "done")]


def test_a_worker_that_dies_again_and_again_fails_its_task_alone(there):
    from distributed.scheduler import KilledWorker

    killed = KilledWorker("a", None, 2)
    client = Client([lambda one: Future(status="error", error=killed), ending()])
    found = {t.name: o for t, o in runner.outcomes_of(named("a", "b"), client)}
    assert found["a"].state == "failed" and "its worker died again and again" in found["a"].message
    assert found["b"].state == "done"


def test_without_any_worker_the_rest_is_given_up(monkeypatch):
    monkeypatch.setattr(runner, "NO_WORKER", 0.2)
    monkeypatch.setattr(runner, "ROOM_AGAIN", 0.01)
    found = [o for _, o in runner.outcomes_of(named("a", "b"), Client([], workers=0))]
    assert [o.state for o in found] == ["failed"] * 2 and "no worker for" in found[0].message


def test_without_its_scheduler_the_rest_is_given_up_at_once():
    client = Client([ending(after=60)], workers=1)
    found = runner.outcomes_of(named("a", "b"), client, tick=lambda: setattr(client, "status", "closed"))
    assert [(t.name, o.message) for t, o in found] == [(n, "the scheduler is gone") for n in "ab"]


def test_what_a_worker_says_is_done_has_to_be_there():
    ((_, outcome),) = runner.outcomes_of(named("a"), Client([ending()]))
    assert outcome.state == "failed" and "its worker says done, but" in outcome.message


def test_what_a_worker_could_not_begin_is_told():
    client = Client([lambda one: Future(status="error", error=ModuleNotFoundError("No module named 'mesa_lib'"))])
    ((_, outcome),) = runner.outcomes_of(named("a"), client)
    assert outcome.message == "its worker could not begin: ModuleNotFoundError(\"No module named 'mesa_lib'\")"


def test_with_gpus_only_workers_that_have_one_count(there):
    client = Client([ending() for _ in range(3)], workers=3, resources=[{"GPU": 4.0}, {}, {}])
    assert len(list(runner.outcomes_of(named("a", "b", "c"), client))) == 3
    assert client.most == 1 and client.asked == {"GPU": 1}


def test_the_clock_goes_on_while_nothing_ends(there, monkeypatch):
    monkeypatch.setattr(runner, "ROOM_AGAIN", 0.05)
    ticks = []
    list(runner.outcomes_of(named("a"), Client([ending(after=0.4)]), tick=lambda: ticks.append(1)))
    assert len(ticks) > 3


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (89, "89 s"), (120, "120 s"), (200, "3 min"), (5399, "1 h 30 min"), (12000, "3 h 20 min")],
)
def test_durations_are_told_in_the_unit_that_fits(seconds, text):
    assert runner.duration(seconds) == text


def test_without_a_terminal_every_task_has_a_line_with_the_time_left(capsys):
    (one,) = named("a")
    for at_once, left in ((1, "120 s"), (2, "60 s"), (3, "0 s")):
        progress = runner.Progress(3, at_once)
        progress.start -= 60
        progress.tell(one, Outcome("a", "done", 60))
        progress.tell(one, Outcome("a", "failed", 2, "because\nof this"))
        first, second = capsys.readouterr().err.splitlines()
        assert first == f"[1/3] a: done in 60 s; {left} left" and second.startswith("[2/3] a: failed in 2 s: because; ")


# --- who works -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cores", "memory", "gpus", "wanted", "plan"),
    [
        (2, 24, (), {}, (2, 1)),
        (16, 24, (), {}, (8, 2)),
        (16, 2, (), {}, (1, 16)),
        (16, 24, (), {"jobs": 3}, (3, 5)),
        (16, 24, (), {"threads": 8}, (2, 8)),
        (16, 64, (), {"tasks": 2}, (2, 8)),
        (2, 24, (), {"jobs": 4}, (4, 1)),
        (16, 24, (), {"jobs": 100, "tasks": 4}, (4, 4)),
        (16, 24, ("0", "1"), {}, (2, 8)),
        (16, 24, ("0",), {"jobs": 4}, (4, 4)),
        (16, 64, ("0", "1", "2", "3"), {"tasks": 2}, (2, 8)),
        (16, 24, ("0", "1"), {"device": "cpu", "jobs": 1}, (1, 16)),
    ],
)
def test_workers_are_gpus_or_what_cores_and_memory_allow(monkeypatch, cores, memory, gpus, wanted, plan):
    monkeypatch.setattr(cluster, "CPU_COUNT", cores)
    monkeypatch.setattr(cluster, "MEMORY_LIMIT", memory * 2**30)
    monkeypatch.setattr(cluster, "visible_gpus", lambda: gpus)
    found = cluster.plan(**wanted)
    assert (found.workers, found.threads) == plan
    assert found.gpus == (gpus if wanted.get("device") != "cpu" else ())


@pytest.mark.parametrize("wanted", [{"jobs": 0}, {"threads": 0}, {"jobs": -1}])
def test_no_worker_and_no_thread_are_refused(wanted):
    with pytest.raises(ValueError, match="expected a number from 1"):
        cluster.plan(**wanted)


def test_workers_have_their_threads_and_a_card_each_and_answer_this_machine_alone():
    wanted = cluster.Plan(2, 3, ("5", "7"))
    with cluster.workers(wanted) as client:
        assert cluster.capacity(client) == (2, {"GPU": 1})
        known = cluster.known(client)
        assert all(address.startswith("tls://127.0.0.1:") for address in known)
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
        look = lambda: [os.environ.get(name) for name in names]  # noqa: E731 (sent by value)
        found = [client.submit(look, workers=[w], pure=False).result() for w in known]
        assert sorted(found) == [["3", "3", "5"], ["3", "3", "7"]]
        assert str(wanted) == "2 workers of 3 threads on GPU 5, 7"
        me = psutil.Process()
        listening = [c.laddr.ip for p in [me, *me.children(recursive=True)] for c in p.net_connections("inet")
                     if c.status == psutil.CONN_LISTEN]  # fmt: skip
        assert len(listening) >= 3 and set(listening) == {"127.0.0.1"}
        stranger = {"address": client.scheduler.address.replace("tls", "tcp"), "timeout": 3, "set_as_default": False}
        with pytest.raises((OSError, TimeoutError)):
            Dask(**stranger)


def test_an_existing_scheduler_is_taken_and_one_that_is_not_there_is_named():
    from distributed import LocalCluster

    options = {"dashboard_address": None, "protocol": "tcp", "processes": False, "silence_logs": 50}
    with LocalCluster(n_workers=2, threads_per_worker=1, **options) as there:
        with cluster.connect(there.scheduler_address) as client:
            assert cluster.capacity(client) == (2, {})
    with LocalCluster(n_workers=1, threads_per_worker=4, **options) as there:
        with pytest.raises(ValueError, match="runs 4 tasks at a time; expected workers started with --nthreads 1"):
            with cluster.connect(there.scheduler_address):
                pass
    with pytest.raises(ValueError, match="scheduler 'tcp://127.0.0.1:9': no answer"):
        with cluster.connect("tcp://127.0.0.1:9", wait=1):
            pass


# --- what is left behind ---------------------------------------------------------------------------------


def made_up(these, asr=0.02, seconds=60.0):
    """A result as a task writes it."""

    def row(name, rate):
        measure = {"rate": rate, "low": rate / 2, "high": min(1, 2 * rate), "images": 1800}
        return {"model": name, "asr": measure} | {m: {"rate": 0.9} for m in ("clean_accuracy", "target_recall")}

    rates = {"clean, never attacked": 0.03, "attacked": 0.99, "fine-tune only": 0.98, "random uniform": 0.5}
    rates |= {"point 1": 0.1, "point 2": 0.2, "MESA": asr, "ideal": 0.01, "clean, repaired": 0.01}
    rows = [row(name, rate) for name, rate in rates.items()]
    about = {"key": these.key, "sweep": these.sweep, "own": these.own, "params": {"dataset": "cifar10"}, "rows": rows}
    about["made"] = {"at": "2026-01-02T03:04:05Z", "device_name": "cpu", "threads": 1, "torch": torch.__version__}
    return about | {"seconds": {"attack": 30.0}, "task_seconds": seconds, "levels": {}, "samples": {}}


def keep(these, **options):
    store.write_atomic(these.folder / "result.json", json.dumps(made_up(these, **options)))


@pytest.fixture
def pair(tmp_path, empty_store):
    """A sweep of two tasks, of which the first is done."""
    read = grid.read(written(tmp_path))
    these = read.tasks()
    keep(these[0], asr=1 / 3)
    return read, these


def test_the_summary_has_a_line_for_every_task_and_the_page_its_failures(pair):
    read, these = pair
    message = "01.ipynb failed: <b>ValueError</b>: 3 < 4\nsee there"
    folder = sweep_report.write(read, these, {these[1].key: Outcome(these[1].name, "failed", 3, message)})
    table = pd.read_csv(folder / "summary.csv")
    assert list(table["state"]) == ["done", "failed"] and table["message"][1] == message
    first = table.iloc[0]
    assert (first["MESA"], first["point"], first["point, worst"], first["task s"]) == (33.33, 15.0, 20.0, 60.0)
    page = (folder / "report.html").read_text()
    assert "&lt;b&gt;ValueError" in page and "<b>ValueError" not in page
    assert "data:image/png;base64," in page and f'<a href="{these[0].name}/">' in page
    assert "<p>Made 2026-01-02: cpu, 1 thread, torch" in page and "dataset = cifar10" in page and "<i>floor</i>" in page
    assert "src=http" not in page and "1 done, 1 failed of 2" in page


def test_a_published_file_only_grows(pair, tmp_path):
    read, these = pair
    file = tmp_path / "results.json"
    assert sweep_report.publish(file, read, these) == 1
    shutil.rmtree(these[0].folder)
    keep(these[1])
    assert sweep_report.publish(file, read, these) == 2
    runs = sweep_report.published(file)
    assert list(runs) == [these[0].key, these[1].key]
    mesa = next(row for row in runs[these[0].key]["rows"] if row["model"] == "MESA")
    assert mesa["asr"]["rate"] == 0.33333, "rounded"
    assert len(file.read_text().splitlines()) == 4, "a run a line"
    keep(these[1], asr=0.5)
    sweep_report.publish(file, read, these)
    again = sweep_report.published(file)
    assert len(again) == 2 and {"rate": 0.5, "low": 0.25, "high": 1, "images": 1800} in [
        row["asr"] for row in again[these[1].key]["rows"] if row["model"] == "MESA"
    ]
    file.write_text("[]")
    with pytest.raises(ValueError, match="not a file of published runs"):
        sweep_report.publish(file, read, these)


def test_a_dry_run_shows_the_table_and_the_time_and_writes_nothing(pair, tmp_path, capsys, empty_store):
    before = sorted(empty_store.rglob("*"))
    assert main.main(["sweep", written(tmp_path), "--dry-run", "--jobs", "1"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"bw170-\w+\s+bw:170\s+done", shown) and re.search(r"bw16-\w+\s+bw:16\s+to do", shown)
    assert "2 tasks, 1 to do" in shown and "1 worker of" in shown
    assert "expected time: 60 s (60 s a task, the median of 1 that were done, one after another)" in shown
    assert sorted(empty_store.rglob("*")) == before
    other = written(tmp_path, "other", minutes=16)
    assert main.main(["sweep", other, "--dry-run", "-p", "alpha=0.3"]) == 0
    shown = capsys.readouterr().out
    assert "expected time: 32 min (16 min a task, on two cores, as the sweep says)" in shown
    assert "with alpha = 0.3 for all of them" in shown


def test_an_empty_sweep_is_no_sweep(tmp_path):
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    with pytest.raises(ValueError, match="sweep 'empty': nothing in it"):
        grid.read(str(tmp_path / "empty.yaml"))
    (tmp_path / "broken.yaml").write_text("grid: [")
    with pytest.raises(ValueError, match="sweep 'broken.yaml'"):
        grid.read(str(tmp_path / "broken.yaml"))


def test_another_sweeps_file_is_left_alone(pair, tmp_path, capsys):
    read, these = pair
    file = tmp_path / "results.json"
    sweep_report.publish(file, read, these)
    before = file.read_text()
    assert main.main(["sweep", written(tmp_path, "other"), "--publish", str(file), "--dry-run"]) == 1
    assert "holds the sweep 'small'; expected a file of 'other'" in capsys.readouterr().err
    with pytest.raises(ValueError, match="holds the sweep 'small'"):
        sweep_report.publish(file, grid.read(written(tmp_path, "other")), these)
    assert file.read_text() == before


def test_without_results_nothing_is_published(tmp_path, empty_store):
    read = grid.read(written(tmp_path))
    assert sweep_report.publish(tmp_path / "r.json", read, read.tasks()) == 0 and not (tmp_path / "r.json").exists()


def test_what_is_published_is_not_done_again(pair, tmp_path, capsys, monkeypatch):
    read, these = pair
    keep(these[1])
    file = tmp_path / "results.json"
    sweep_report.publish(file, read, these)
    for one in these:
        shutil.rmtree(one.folder)
    monkeypatch.setattr(sweep_command, "work", lambda *a: pytest.fail("something was done"))
    for options in ([], ["--dry-run"]):
        assert main.main(["sweep", written(tmp_path), "--publish", str(file), *options]) == 0
    shown = capsys.readouterr()
    assert "2 tasks, 0 to do" in shown.err and len(re.findall("published$", shown.out, re.M)) == 2
    table = pd.read_csv(paths.runs() / "sweeps" / "small" / "summary.csv")
    assert list(table["state"]) == ["published"] * 2 and list(table["MESA"]) == [33.33, 2.0]
    assert len(sweep_report.published(file)) == 2


def test_small_parameters_are_published_as_they_are(pair, tmp_path):
    read, these = pair
    result = made_up(these[0]) | {"params": {"weight_decay": 4e-6}, "own": {"modeling_lr": 1.23e-5}}
    store.write_atomic(these[0].folder / "result.json", json.dumps(result))
    sweep_report.publish(tmp_path / "r.json", read, these)
    (run_,) = sweep_report.published(tmp_path / "r.json").values()
    assert run_["params"]["weight_decay"] == 4e-6 and run_["own"]["modeling_lr"] == 1.23e-5


def test_the_first_tasks_are_the_first_whatever_is_done(pair, tmp_path, capsys):
    assert main.main(["sweep", written(tmp_path), "--first", "1", "--dry-run"]) == 0
    assert "1 tasks, 0 to do" in capsys.readouterr().out


def test_a_full_disk_at_the_end_keeps_back_nothing(pair, tmp_path, monkeypatch, capsys):
    read, these = pair

    def fail(*arguments):
        raise OSError(28, "cannot write summary.csv: No space left on device")

    def worked(a, of_sweep, tasks, to_do, kept, plan, ended):
        ended[these[1].key] = Outcome(these[1].name, "failed", 1, "01_attacking.ipynb failed: because")

    monkeypatch.setattr(sweep_report, "write", fail)
    monkeypatch.setattr(sweep_command, "work", worked)
    file = tmp_path / "r.json"
    assert main.main(["sweep", written(tmp_path), "--publish", str(file)]) == 1
    shown = capsys.readouterr().err
    assert "01_attacking.ipynb failed: because" in shown and "No space left" in shown and "1 of 1 tasks" in shown
    assert len(sweep_report.published(file)) == 1


def test_what_was_done_is_reported_after_ctrl_c(pair, tmp_path, monkeypatch, capsys):
    def stopped(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep_command, "work", stopped)
    assert main.main(["sweep", written(tmp_path)]) == 130
    assert (paths.runs() / "sweeps" / "small" / "summary.csv").is_file()
    assert "the same command goes on" in capsys.readouterr().err


def test_a_report_that_cannot_be_written_meanwhile_does_not_stop_the_others(capsys):
    def fail():
        raise OSError(28, "cannot write report.html: No space left on device")

    assert sweep_command.report_or_warn(fail) is False and sweep_command.report_or_warn(lambda: None) is True
    assert "No space left" in capsys.readouterr().err


# --- a whole sweep ---------------------------------------------------------------------------------------


def test_a_sweep_runs_and_goes_on_when_one_fails(tmp_path, empty_store, capsys, monkeypatch):
    """Two good tasks at once, and one whose notebook fails; the second start tries the failed one alone."""
    cells = [{"trigger": "bw:170"}, {"trigger": "bw:7", "attack_lr": 1e9}, {"trigger": "bw:16"}]
    file = written(tmp_path, grid={}, cells=cells)
    assert main.main(["sweep", file, "--jobs", "2", "--threads", "1"]) == 1
    shown = capsys.readouterr().err
    said = "01_attacking.ipynb failed: FloatingPointError: attack: the loss became"
    assert "1 of 3 tasks failed" in shown and said in shown
    folder = empty_store / "sweeps" / "small"
    table = pd.read_csv(folder / "summary.csv").set_index("trigger")
    assert list(table["state"]) == ["done", "failed", "done"] and said in table["message"]["bw:7"]
    before = {f: f.stat().st_mtime_ns for f in folder.glob("bw*/result.json")}
    assert len(before) == 2
    assert (folder / table["task"]["bw:7"] / "01_attacking.failed.ipynb").is_file()
    assert main.main(["sweep", file, "--jobs", "1", "--threads", "1"]) == 1
    shown = capsys.readouterr()
    assert "3 tasks, 1 to do" in shown.err and said in shown.err
    assert {f: f.stat().st_mtime_ns for f in before} == before, "what was done was left alone"
    for one in (f.parent for f in before):
        assert {"01_attacking.ipynb", "result.json", "table.csv", "figures", "artifacts"} == {
            f.name for f in one.iterdir()
        }
        assert (one / "artifacts" / "attacked" / "made.json").is_file()
        result = json.loads((one / "result.json").read_text())
        assert [row["model"] for row in result["rows"]] == ["clean, never attacked", "attacked"]
        assert result["seconds"].keys() == {"clean", "attack"} and result["made"]["threads"] == 1


def test_the_workers_of_a_scheduler_elsewhere_find_everything(tmp_path, empty_store, monkeypatch, capsys):
    """Started in another folder, knowing neither the store nor the number of threads."""
    there = tmp_path / "elsewhere"
    there.mkdir()
    known = there / "scheduler.json"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MESA_")}
    arguments = ["--scheduler-file", str(known), "--host", "127.0.0.1", "--no-dashboard"]
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "dask", what, *arguments, *more], cwd=there, env=environment,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        for what, more in (("scheduler", ["--port", "0"]), ("worker", ["--nthreads", "1"]))
    ]  # fmt: skip
    try:
        while not known.exists():
            time.sleep(0.1)
        file = written(tmp_path, grid={"trigger": ["bw:170"]})
        assert main.main(["sweep", file, "--scheduler", str(known), "--threads", "2"]) == 0, capsys.readouterr().err
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait(60)
    (result,) = empty_store.glob("sweeps/small/bw170-*/result.json")
    assert json.loads(result.read_text())["made"]["threads"] == 2
    assert not list(there.glob("runs"))


def test_a_record_holds_everything_of_a_run(empty_store):
    pipeline = Pipeline(params.check(TINY | {"point_repeats": 2}))
    found = results.collect_results(pipeline)
    assert found == json.loads(json.dumps(results.collect_results(pipeline)))
    assert set(found["levels"]) == {"beta 0.9", "beta 0.8", "beta 0.5"}
    assert set(found["samples"]) == {*found["levels"], "mixture"} and len(found["point_triggers_asr"]) == 2
    assert {"clean", "attack", "modeling", "repair", "rounds"} == set(found["seconds"])
    kept = found["triggers"]
    assert torch.equal(results.unpack_triggers(kept["original"], kept["shape"])[0], pipeline.trigger)
    assert results.unpack_triggers(kept["samples"], kept["shape"]).shape == (results.DRAWN, 3, 3, 3)
    assert found["images"] == {"train": 800, "modeling": 597, "evaluation": 400}
    assert [row["model"] for row in found["rows"]][-1] == "clean, repaired"
    assert set(results.artifacts(pipeline)) == {"clean", "attacked", "distribution", "repaired"}


def test_triggers_survive_the_record_up_to_rounding():
    these = torch.rand(5, 3, 2, 4)
    assert (results.unpack_triggers(results.pack_triggers(these), [3, 2, 4]) - these).abs().max() <= 0.5 / 255 + 1e-6


def test_all_but_the_machine_decides_whether_a_run_is_the_stored_one():
    stored = params.Params()
    assert stored.as_stored() and params.check({"data_dir": "x", "device": "cpu"}).as_stored()
    assert not params.check({"seed": 1}).as_stored() and not params.check({"alpha": 0.2}).as_stored()
