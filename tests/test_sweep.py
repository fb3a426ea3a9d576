"""Sweeps: what a file asks for, the keys of tasks, and one task."""

import json
import os
import re
import shutil
import threading

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import save_file
from sweeps import TINY, keep, tasks_of, written
from toy_notebooks import toy_repository

from mesa_lib import store, triggers
from mesa_lib.cli import main
from mesa_lib.defenses import registry
from mesa_lib.defenses.random_triggers import RandomTriggers
from mesa_lib.experiments import notebooks, params, results
from mesa_lib.experiments.pipeline import Pipeline
from mesa_lib.experiments.sweep import grid, publish, task
from mesa_lib.experiments.sweep.task import Outcome
from mesa_lib.reporting.html import sweep as sweep_report
from mesa_lib.store import paths

FILES = sorted((paths.root() / "params" / "sweeps").glob("*.yaml"))


# --- sweep files -----------------------------------------------------------------------------------


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_every_sweep_of_the_project_is_good(file):
    sweep = grid.read(file.stem)
    cells = list(sweep.each())
    assert sweep.title and cells
    assert sweep.notebooks == [notebooks.VICTIM_NOTEBOOK] or set(sweep.notebooks) <= {"01", "02", "03", "04"}
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
    sweep = grid.read(written(tmp_path), ["trigger=bw:3", "attack_lr=1e-3"])
    (cell,) = sweep.each()
    assert (cell[1].trigger, cell[1].attack_lr, cell[0]) == ("bw:3", 0.001, {})
    assert sweep.folder == "small,attack_lr=0.001,trigger=bw3", "another report than that of the sweep itself"
    assert len(grid.read(written(tmp_path), [f"data_dir={'x' * 200}"]).folder) <= 80


def test_equal_cells_are_one_task(tmp_path):
    assert len(tasks_of(tmp_path, grid={"trigger": ["bw:1", "bw:1"], "alpha": [0, 0.0]})) == 1


BAD = {
    "nowhere": (None, "sweep 'nowhere': not found; expected a path, or one of .*paper-cifar10"),
    "unknown part": ({"gird": {}}, "gird: unknown; expected some of title, params, set, grid"),
    "unknown parameter": ({"grid": {"triger": ["bw:1"]}}, "triger = 'bw:1': there is no such .* mean trigger"),
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
    "published nowhere": ({"--publish": "nowhere/r.json"}, "r.json: its folder does not exist"),
    "target": ({"set": TINY | {"target": 12}}, "target = 12: expected a class from 0 to 9"),
    "notebook": ({"notebooks": ["99"]}, "notebook '99'"),
    "order": ({"notebooks": ["02", "01"]}, "notebooks = 02, 01; expected some of 01_attacking"),
    "quickstart": ({"notebooks": ["00"]}, "expected some of 01_attacking"),
    "file": ({"params": ["nothing"]}, "parameter file 'nothing': not found"),
    "name": ({"name": "other"}, "take the line name: out"),
    "grid is a list": ({"grid": ["bw:1"]}, "grid = \\['bw:1'\\]: expected name: list of values"),
    "override": ({"-p": "alpha=[0"}, "'\\[0': .*expected a value as in YAML"),
    "override without a value": ({"-p": "alpha"}, "'alpha': expected name=value"),
    "jobs elsewhere": ({"--scheduler": "x", "--jobs": "2"}, "jobs = 2: a scheduler has its own workers"),
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
        return task.Task.from_pipeline("s", {}, Pipeline(p), ["01_attacking"]).key

    first = class_folder("a")
    shutil.copytree(first, tmp_path / "copied")
    assert key(first) == key(tmp_path / "copied") == key(first, compare_triggers="bw:1")
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
        return task.Task.from_pipeline("s", {}, Pipeline(params.check(TINY | changes)), notebooks).key

    def weights(name, seed):
        state = Pipeline(params.check(TINY)).build_model(seed).state_dict()
        save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / name)
        return str(tmp_path / name)

    first = key(checkpoint=weights("a.safetensors", 0))
    assert first == key(checkpoint=weights("b.safetensors", 0))
    second = key(checkpoint=weights("a.safetensors", 1))
    keys = [first, second, key(), key(("01", "02")), key(alpha=0.2)]
    keys += [key(("03",)), key(("03",), compare_triggers="bw:1")]
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
    assert task.file_names({"trigger": values["trigger"], "checkpoint": "/x/m.safetensors", "seed": 1}) == {
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


def test_a_victim_goes_through_the_bench_and_its_figures_are_published(tmp_path, empty_store, monkeypatch):
    monkeypatch.setenv("MESA_ROOT", str(toy_repository(tmp_path / "repository")))
    axes = {"attack": ["warp"], "defense_kinds": ["reformers"]}
    file = written(tmp_path, grid=axes, notebooks=[notebooks.VICTIM_NOTEBOOK])
    sweep = grid.read(file)
    (one,) = sweep.tasks()
    outcome = task.perform(one)
    assert outcome.state == "done", outcome.message
    result = one.result()
    assert (
        result["attack"] == "warp" and result["planted"] == [0] and result["notebooks"] == [notebooks.VICTIM_NOTEBOOK]
    )
    assert [row["model"] for row in result["rows"]] == ["clean model", "attacked"]
    assert result["reformers"]["4 bits"]["asr"]["images"] > 100 and "detectors" not in result
    assert publish.publish(tmp_path / "kept.json", sweep, [one]) == 1
    sweep_report.write(sweep, [one], {})
    assert pd.read_csv(one.folder.parent / "summary.csv").loc[0, "attack"] == "warp"


def test_a_threshold_that_changes_makes_another_task_of_the_bench_and_of_no_other(tmp_path, monkeypatch):
    def keys():
        axes = {"defense_kinds": ["detectors", "filters"]}
        bench = tasks_of(tmp_path, grid=axes, notebooks=[notebooks.VICTIM_NOTEBOOK])
        return [one.key for one in [*bench, *tasks_of(tmp_path)]]

    before = keys()
    monkeypatch.setitem(registry.DETECTORS, "random triggers", lambda: RandomTriggers(above=0.21))
    after = keys()
    assert [a == b for a, b in zip(before, after, strict=True)] == [False, True, True, True]


@pytest.mark.parametrize(
    "books", [[notebooks.VICTIM_NOTEBOOK, "04"], ["04", notebooks.VICTIM_NOTEBOOK], ["05"], ["02", "01"]]
)
def test_the_bench_stands_alone_and_the_series_in_order(tmp_path, books):
    with pytest.raises(ValueError, match="in this order, or one_victim alone"):
        tasks_of(tmp_path, notebooks=books)


def test_a_task_that_somebody_holds_is_busy(one, monkeypatch):
    monkeypatch.setattr(task, "run_task", lambda *a: pytest.fail("it ran all the same"))
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
    def fail(*arguments):
        raise error

    monkeypatch.setattr(task, "run_task", fail)
    for _ in range(2):  # the second try finds it free
        outcome = task.perform(one)
        assert outcome.state == "failed" and said in outcome.message
    assert one.result() is None


def test_a_write_error_at_the_very_end_leaves_the_task_undone(one, monkeypatch):
    monkeypatch.setattr(notebooks, "run_notebooks", lambda *a, **k: None)
    rows = [{"model": "attacked", "asr": {"rate": 1, "low": 0, "high": 1}} | dict.fromkeys(
        ("clean_accuracy", "target_recall", "true_label_accuracy"), {"rate": 0.5})]  # fmt: skip
    monkeypatch.setattr(results, "collect_results", lambda pipeline, through: {"rows": rows, "seconds": {}})
    monkeypatch.setattr(results, "artifact_folders", lambda pipeline, through: {})
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
