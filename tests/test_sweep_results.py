"""Sweeps: reports, published files, and whole sweeps."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from functools import partial

import pandas as pd
import pytest
import torch
from sweeps import TINY, keep, made_up, written
from toy_notebooks import toy_repository

from mesa_lib import mine, store
from mesa_lib.cli import main
from mesa_lib.cli import sweep as sweep_command
from mesa_lib.experiments import params, results
from mesa_lib.experiments.pipeline import Pipeline
from mesa_lib.experiments.sweep import grid, publish
from mesa_lib.experiments.sweep.task import Outcome
from mesa_lib.reporting.html import sweep as sweep_report
from mesa_lib.store import paths

# --- reports and published files ---------------------------------------------------------------------------------


@pytest.fixture
def pair(tmp_path, empty_store):
    """A sweep of two tasks, of which the first is done."""
    sweep = grid.read(written(tmp_path))
    tasks = sweep.tasks()
    keep(tasks[0], asr=1 / 3)
    return sweep, tasks


def test_the_summary_has_a_line_for_every_task_and_the_page_its_failures(pair):
    sweep, tasks = pair
    message = "01.ipynb failed: <b>ValueError</b>: 3 < 4\nsee there"
    folder = sweep_report.write(sweep, tasks, {tasks[1].key: Outcome(tasks[1].name, "failed", 3, message)})
    table = pd.read_csv(folder / "summary.csv")
    assert list(table["state"]) == ["done", "failed"] and table["message"][1] == message
    first = table.iloc[0]
    assert (first["MESA"], first["single inversion"], first["single inversion, worst"], first["task s"]) == (
        33.33,
        15.0,
        20.0,
        60.0,
    )
    page = (folder / "report.html").read_text()
    assert "&lt;b&gt;ValueError" in page and "<b>ValueError" not in page
    assert "data:image/png;base64," in page and f'<a href="{tasks[0].name}/">' in page
    assert (
        "<p>Made 2026-01-02: cpu, 1 thread, torch" in page and "dataset = cifar10" in page and "clean-model ASR" in page
    )
    assert "src=http" not in page and "1 done, 1 failed of 2" in page


def test_a_published_file_only_grows(pair, tmp_path):
    sweep, tasks = pair
    file = tmp_path / "results.json"
    assert publish.publish(file, sweep, tasks) == 1
    shutil.rmtree(tasks[0].folder)
    keep(tasks[1])
    assert publish.publish(file, sweep, tasks) == 2
    runs = publish.read_published(file)
    assert list(runs) == [tasks[0].key, tasks[1].key]
    mesa = next(row for row in runs[tasks[0].key]["rows"] if row["model"] == "MESA")
    assert mesa["asr"]["rate"] == 0.33333, "rounded"
    assert len(file.read_text().splitlines()) == 4, "a run a line"
    keep(tasks[1], asr=0.5)
    publish.publish(file, sweep, tasks)
    again = publish.read_published(file)
    assert len(again) == 2 and {"rate": 0.5, "low": 0.25, "high": 1, "images": 1800} in [
        row["asr"] for row in again[tasks[1].key]["rows"] if row["model"] == "MESA"
    ]
    file.write_text("[]")
    with pytest.raises(ValueError, match="not a file of published runs"):
        publish.publish(file, sweep, tasks)


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
    sweep, tasks = pair
    file = tmp_path / "results.json"
    publish.publish(file, sweep, tasks)
    before = file.read_text()
    assert main.main(["sweep", written(tmp_path, "other"), "--publish", str(file), "--dry-run"]) == 1
    assert "holds the sweep 'small'; expected a file of 'other'" in capsys.readouterr().err
    with pytest.raises(ValueError, match="holds the sweep 'small'"):
        publish.publish(file, grid.read(written(tmp_path, "other")), tasks)
    assert file.read_text() == before


def test_without_results_nothing_is_published(tmp_path, empty_store):
    sweep = grid.read(written(tmp_path))
    assert publish.publish(tmp_path / "r.json", sweep, sweep.tasks()) == 0 and not (tmp_path / "r.json").exists()


def test_what_is_published_is_not_done_again(pair, tmp_path, capsys, monkeypatch):
    sweep, tasks = pair
    keep(tasks[1])
    file = tmp_path / "results.json"
    publish.publish(file, sweep, tasks)
    for one in tasks:
        shutil.rmtree(one.folder)
    monkeypatch.setattr(sweep_command, "work", lambda *a: pytest.fail("something was done"))
    for options in ([], ["--dry-run"]):
        assert main.main(["sweep", written(tmp_path), "--publish", str(file), *options]) == 0
    shown = capsys.readouterr()
    assert "2 tasks, 0 to do" in shown.err and len(re.findall("published$", shown.out, re.M)) == 2
    table = pd.read_csv(paths.runs() / "sweeps" / "small" / "summary.csv")
    assert list(table["state"]) == ["published"] * 2 and list(table["MESA"]) == [33.33, 2.0]
    assert len(publish.read_published(file)) == 2


def old_file(sweep, tasks, file):
    """A published file of format 1: the second task, under a key and names of its time."""
    result = made_up(tasks[1], asr=0.25) | {"key": "0123456789abcdef", "params": tasks[1].values}
    old = json.dumps(result).replace("modeling_lr", "modelling_lr").replace("inversion_repeats", "point_repeats")
    old = old.replace("clean model, repaired", "clean, repaired").replace("defense_kinds", "kinds")
    file.write_text(f'{{"sweep": "{sweep.name}", "title": "", "runs": [\n{old}\n]}}\n')
    return file


def test_a_run_of_an_older_format_is_its_task_s_by_the_parameters(pair, tmp_path, capsys):
    sweep, tasks = pair
    file = old_file(sweep, tasks, tmp_path / "results.json")
    before = file.read_text()
    assert main.main(["sweep", written(tmp_path), "--publish", str(file), "--dry-run"]) == 0
    assert "2 tasks, 0 to do" in capsys.readouterr().out and file.read_text() == before
    other = grid.read(written(tmp_path), ["alpha=0.7"]).tasks()
    assert not publish.published_results(other, publish.read_published(file))


def test_an_older_file_is_migrated_when_something_is_published_into_it(pair, tmp_path):
    sweep, tasks = pair
    file = old_file(sweep, tasks, tmp_path / "results.json")
    assert publish.publish(file, sweep, tasks) == 2, "the old run stays"
    content = json.loads(file.read_text())
    assert content["format"] == 2 and [run["key"] for run in content["runs"]] == ["0123456789abcdef", tasks[0].key]
    assert content["runs"][0]["rows"][-1]["model"] == "clean model, repaired"
    assert content["runs"][0]["params"]["modeling_lr"] == 0.001
    keep(tasks[1], asr=0.5)
    assert publish.publish(file, sweep, tasks) == 2, "done anew, it replaces the old one"
    assert [run["key"] for run in json.loads(file.read_text())["runs"]] == [tasks[0].key, tasks[1].key]


def test_small_parameters_are_published_as_they_are(pair, tmp_path):
    sweep, tasks = pair
    result = made_up(tasks[0]) | {"params": {"weight_decay": 4e-6}, "own": {"modeling_lr": 1.23e-5}}
    store.write_atomic(tasks[0].folder / "result.json", json.dumps(result))
    publish.publish(tmp_path / "r.json", sweep, tasks)
    (run_,) = publish.read_published(tmp_path / "r.json").values()
    assert run_["params"]["weight_decay"] == 4e-6 and run_["own"]["modeling_lr"] == 1.23e-5


def test_the_first_tasks_are_the_first_whatever_is_done(pair, tmp_path, capsys):
    assert main.main(["sweep", written(tmp_path), "--first", "1", "--dry-run"]) == 0
    assert "1 tasks, 0 to do" in capsys.readouterr().out


def test_a_full_disk_at_the_end_keeps_back_nothing(pair, tmp_path, monkeypatch, capsys):
    sweep, tasks = pair

    def fail(*arguments):
        raise OSError(28, "cannot write summary.csv: No space left on device")

    def worked(a, state, plan):
        state.ended[tasks[1].key] = Outcome(tasks[1].name, "failed", 1, "01_attacking.ipynb failed: because")

    monkeypatch.setattr(sweep_report, "write", fail)
    monkeypatch.setattr(sweep_command, "work", worked)
    file = tmp_path / "r.json"
    assert main.main(["sweep", written(tmp_path), "--publish", str(file)]) == 1
    shown = capsys.readouterr().err
    assert "01_attacking.ipynb failed: because" in shown and "No space left" in shown and "1 of 1 tasks" in shown
    assert len(publish.read_published(file)) == 1


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


@pytest.fixture
def toys(tmp_path, monkeypatch):
    """Short notebooks in the place of the project's."""
    monkeypatch.setenv("MESA_ROOT", str(toy_repository(tmp_path / "repository")))


def test_a_sweep_runs_and_goes_on_when_one_fails(tmp_path, empty_store, toys, capsys):
    """A good task and one whose notebook fails, at once; the second start tries the failed one alone."""
    cells = [{"trigger": "bw:170"}, {"trigger": "bw:7", "attack_lr": 1e9}]
    file = written(tmp_path, grid={}, cells=cells)
    assert main.main(["sweep", file, "--jobs", "2", "--threads", "1"]) == 1
    shown = capsys.readouterr().err
    said = "01_attacking.ipynb failed: FloatingPointError: attack: loss = "
    assert "1 of 2 tasks failed" in shown and said in shown
    folder = empty_store / "sweeps" / "small"
    table = pd.read_csv(folder / "summary.csv").set_index("trigger")
    assert list(table["state"]) == ["done", "failed"] and said in table["message"]["bw:7"]
    before = {f: f.stat().st_mtime_ns for f in folder.glob("bw*/result.json")}
    assert len(before) == 1
    assert (folder / table["task"]["bw:7"] / "01_attacking.failed.ipynb").is_file()
    assert main.main(["sweep", file, "--jobs", "1", "--threads", "1"]) == 1
    shown = capsys.readouterr()
    assert "2 tasks, 1 to do" in shown.err and said in shown.err
    assert {f: f.stat().st_mtime_ns for f in before} == before, "what was done was left alone"
    for one in (f.parent for f in before):
        assert {"01_attacking.ipynb", "result.json", "table.csv", "figures", "artifacts"} == {
            f.name for f in one.iterdir()
        }
        assert (one / "artifacts" / "attacked" / "made.json").is_file()
        result = json.loads((one / "result.json").read_text())
        assert [row["model"] for row in result["rows"]] == ["clean model", "attacked"]
        assert result["seconds"].keys() == {"clean", "attack"} and result["made"]["threads"] == 1


@pytest.mark.long
def test_the_workers_of_a_scheduler_elsewhere_find_everything(tmp_path, empty_store, capsys):
    """Started in another folder, knowing neither the store nor the number of threads; with the project's notebook."""
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


def test_a_record_holds_everything_of_a_run(empty_store, monkeypatch):
    monkeypatch.setattr(mine, "estimate", partial(mine.estimate, steps=10))
    pipeline = Pipeline(params.check(TINY | {"inversion_repeats": 2}))
    found = results.collect_results(pipeline)
    assert found == json.loads(json.dumps(results.collect_results(pipeline)))
    assert set(found["levels"]) == {"beta 0.9", "beta 0.8", "beta 0.5", "beta 0.9, alpha 0"}
    assert (
        set(found["samples"]) == {"beta 0.9", "beta 0.8", "beta 0.5", "mixture", "alpha 0"}
        and len(found["inverted_triggers_asr"]) == 2
    )
    assert {"clean", "attack", "modeling", "repair", "rounds"} == set(found["seconds"])
    kept = found["triggers"]
    assert torch.equal(results.unpack_triggers(kept["original"], kept["shape"])[0], pipeline.trigger)
    assert results.unpack_triggers(kept["samples"], kept["shape"]).shape == (results.KEPT_SAMPLES, 3, 3, 3)
    assert found["images"] == {"train": 800, "modeling": 597, "evaluation": 400}
    assert [row["model"] for row in found["rows"]][-1] == "clean model, repaired"
    assert set(results.artifact_folders(pipeline)) == {"clean", "attacked", "distribution", "repaired"}


def test_triggers_survive_the_record_up_to_rounding():
    tasks = torch.rand(5, 3, 2, 4)
    assert (results.unpack_triggers(results.pack_triggers(tasks), [3, 2, 4]) - tasks).abs().max() <= 0.5 / 255 + 1e-6


def test_all_but_the_machine_decides_whether_a_run_is_the_stored_one():
    stored = params.Params()
    assert stored.as_stored() and params.check({"data_dir": "x", "device": "cpu"}).as_stored()
    assert not params.check({"seed": 1}).as_stored() and not params.check({"alpha": 0.2}).as_stored()
