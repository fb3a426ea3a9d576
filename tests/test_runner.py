"""The runner: parameters reach the notebooks, results are whole, failures have names."""

import json
import os
import subprocess
import sys

import nbformat
import pandas as pd
import papermill
import pytest

from mesa_lib.cli import main
from mesa_lib.experiments import notebooks
from mesa_lib.experiments import params
from mesa_lib.store import paths

SMALL = {
    "clean_epochs": 1, "attack_epochs": 1, "steps": 3, "repair_epochs": 1, "point_repeats": 1, "hidden": 16,
    "compare": "",
}  # fmt: skip
OVERRIDES = [part for name, value in SMALL.items() for part in ("-p", f"{name}={value}")]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("store")


@pytest.fixture
def shared_store(store, monkeypatch):
    monkeypatch.setenv("MESA_RUNS", str(store))


def command(*arguments, cwd=None, **environment):
    return subprocess.run(
        [sys.executable, "-m", "mesa_lib", *arguments],
        cwd=cwd, env=os.environ | environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip


def test_the_series_runs_through_papermill_from_a_parameter_file(shared_store, tmp_path, capfd):
    """01 to 04 with few steps, on another trigger, so that no bound that is meant for the defaults applies."""
    out = tmp_path / "out"
    settings = tmp_path / "small.yaml"
    settings.write_text("\n".join(f"{n}: {json.dumps(v)}" for n, v in SMALL.items()) + "\ntrigger: file:patch.png\n")
    from PIL import Image

    Image.new("RGB", (4, 5), (255, 0, 128)).save(tmp_path / "patch.png")
    patch = f"trigger=file:{tmp_path}/patch.png"
    code = main.main(["run", str(settings), "-p", patch, "-p", "alpha=0.2", "--out", str(out)])
    shown = capfd.readouterr()
    assert code == 0, shown.err
    assert [f.stem for f in sorted(out.glob("*.ipynb"))] == list(notebooks.SERIES)
    result = json.loads((out / "result.json").read_text())
    assert result["params"]["alpha"] == 0.2 and result["params"]["trigger"].endswith("patch.png")
    names = [row["model"] for row in result["rows"]]
    assert names == ["clean, never attacked", "attacked", "fine-tune only", "random uniform", "random binary",
                     "random mixed", "point 1", "MESA", "MESA rounds", "ideal", "clean, repaired"]  # fmt: skip
    table = pd.read_csv(out / "table.csv")
    assert list(table["model"]) == names and table["ASR"].between(0, 100).all()
    assert "MESA" in shown.out and "table.csv" in shown.out, "it ends in the table and the paths"
    for name in notebooks.SERIES:
        assert list((out / "figures").glob(f"{name}-*.png")), name
        assert f"{name}: done" in shown.err
        book = nbformat.read(out / f"{name}.ipynb", 4)
        assert not any("papermill" in cell.metadata for cell in book.cells)
    injected = [c.source for c in book.cells if "injected-parameters" in c.metadata.get("tags", [])]
    assert len(injected) == 1 and "alpha = 0.2" in injected[0]
    assert not list(out.glob(".*")), "nothing half-made is left"
    assert "MESA_PROGRESS" not in os.environ


def test_a_copy_says_which_parameters_are_not_the_defaults():
    def book():
        return nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(c) for c in ("# title", "text")])

    told = notebooks.with_notice(book(), {"alpha": 0.2, "trigger": "bw:16", "seed": 0, "data_dir": "/a/path"})
    assert [c.source for c in told.cells][::2] == ["# title", "text"]
    notice = told.cells[1].source
    assert "executed with other parameters" in notice and '`alpha = 0.2`, `trigger = "bw:16"`' in notice
    assert "seed" not in notice and "path" not in notice
    assert len(notebooks.with_notice(book(), {"alpha": 0.1, "data_dir": "x"}).cells) == 2
    nbformat.validate(told)


def test_a_copy_links_only_to_what_lies_beside_it():
    cell = nbformat.v4.new_markdown_cell("[00 start](00_start.ipynb) and [01 next](01_next.ipynb), [b](b.md)")
    book = notebooks.without_dead_links(nbformat.v4.new_notebook(cells=[cell]), ["01_next.ipynb"])
    assert book.cells[0].source == "00 start and [01 next](01_next.ipynb), [b](b.md)"


def test_plain_papermill_takes_a_parameter_file_and_a_trigger_from_any_folder(store, tmp_path):
    short = tmp_path / "short.yaml"
    short.write_text("clean_epochs: 1\nattack_epochs: 1\n")
    notebook, file = notebooks.notebook_path("01"), paths.root() / "params" / "digits.yaml"
    run = subprocess.run(
        [sys.executable, "-m", "papermill", str(notebook), "out.ipynb", "-f", str(file), "-f", str(short),
         "-p", "trigger", "color:5", "-k", "python3"],
        cwd=tmp_path, env=os.environ | {"MESA_RUNS": str(store)}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    book = nbformat.read(tmp_path / "out.ipynb", 4)
    assert any('trigger = "color:5"' in cell.source for cell in book.cells)


def test_papermill_with_a_misspelt_parameter_stops_at_the_check(store, tmp_path):
    with pytest.raises(papermill.exceptions.PapermillExecutionError, match="posion_rate = 0.2: no notebook has"):
        papermill.execute_notebook(
            str(notebooks.notebook_path("01")), str(tmp_path / "out.ipynb"), {"posion_rate": 0.2}, progress_bar=False,
            kernel_name="python3",
        )  # fmt: skip


def test_a_notebook_that_fails_is_named_and_its_copy_is_kept(shared_store, tmp_path, monkeypatch):
    book = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_code_cell("alpha: float = 0.1  # a", metadata={"tags": ["parameters"]}),
            nbformat.v4.new_code_cell("1 / 0"),
        ],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
    )
    (tmp_path / "notebooks").mkdir()
    nbformat.write(book, tmp_path / "notebooks" / "01_attacking.ipynb")
    monkeypatch.setenv("MESA_ROOT", str(tmp_path))
    with pytest.raises(notebooks.SeriesFailed, match=r"01_attacking.ipynb failed: ZeroDivisionError"):
        notebooks.run_series(params.Params(), ["01"], tmp_path / "out")
    assert (tmp_path / "out" / "01_attacking.failed.ipynb").is_file()
    assert not (tmp_path / "out" / "01_attacking.ipynb").exists()


BAD = {
    "poison_rate=0": "poison_rate = 0: .*greater than 0",
    "poison_rate=1": "poison_rate = 1: .*less than 1",
    "poison_rate=1e3": "poison_rate = 1000.0",
    "target=10": "target = 10: .*from 0 to 9",
    "target=-1": "target = -1",
    "trigger=bw:512": "trigger = 'bw:512'",
    "bogus=3": "bogus = 3: no notebook has such a parameter",
    "epochs=3": "did you mean clean_epochs",
    "steps=many": "steps = 'many': .*integer",
    "steps=1.5": "steps = 1.5",
    "alpha=.nan": "alpha = nan",
    "dataset=mnist": "dataset = 'mnist'",
    "checkpoint=missing.safetensors": "checkpoint = 'missing.safetensors'",
    "betas=1.5": "betas = .*1.5",
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_parameters_are_refused_before_anything_runs(shared_store, tmp_path, capsys, bad):
    out = tmp_path / "out"
    assert main.main(["run", "-p", bad, "--out", str(out)]) == 1
    shown = capsys.readouterr()
    import re

    assert shown.err.startswith("mesa: ") and re.search(BAD[bad], shown.err), shown.err
    assert "Traceback" not in shown.err and not out.exists()


@pytest.mark.parametrize("values", [{"data_dir": "no/such/folder", "dataset": "folder"}, {"dataset": "cifar10"}])
def test_missing_data_end_in_a_message(shared_store, tmp_path, capsys, monkeypatch, values):
    monkeypatch.setenv("MESA_DATA", str(tmp_path / "empty"))
    monkeypatch.setenv("MESA_CIFAR10_URL", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    arguments = [part for name, value in values.items() for part in ("-p", f"{name}={value}")]
    assert main.main(["check", *arguments]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("mesa: ") and 1 <= len(shown.strip().splitlines()) <= 3
    assert "expected" in shown or "Put " in shown


def test_a_pickle_is_refused_before_anything_runs(shared_store, tmp_path, capsys):
    import torch

    torch.save({"w": torch.ones(1)}, tmp_path / "model.bin")
    assert main.main(["run", "-p", f"checkpoint={tmp_path}/model.bin", "--out", str(tmp_path / "out")]) == 1
    assert "is a pickle" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_an_unknown_file_or_notebook_is_named(capsys):
    assert main.main(["run", "nowhere.yaml"]) == 1
    assert "parameter file 'nowhere.yaml'" in capsys.readouterr().err
    assert main.main(["run", "--notebooks", "99"]) == 1
    assert "notebook '99'" in capsys.readouterr().err


def test_numbers_in_yaml_are_numbers(tmp_path):
    (tmp_path / "p.yaml").write_text("modeling_lr: 1e-3\nalpha: 1E-1\n")
    p = params.read([tmp_path / "p.yaml"], ["attack_lr=2e-2"])
    assert (p.modeling_lr, p.alpha, p.attack_lr) == (0.001, 0.1, 0.02)


def test_check_and_params_run_nothing(shared_store, capsys):
    assert main.main(["check", "digits"]) == 0
    assert "800 / 597 / 400" in capsys.readouterr().out
    assert main.main(["params"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in params.Params.model_fields)


def test_the_command_line_runs_from_any_folder(tmp_path):
    found = command("check", "cifar10-cpu", "-p", "dataset=digits", cwd=tmp_path)
    assert found.returncode == 0, found.stderr


def test_an_attack_that_a_notebook_does_not_know_is_refused():
    with pytest.raises(ValueError, match="attack = 'corner': 04_defending.ipynb is about patches"):
        notebooks.own_parameters(notebooks.notebook_path("04"), params.check({"attack": "corner"}))
