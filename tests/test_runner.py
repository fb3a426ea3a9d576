"""The runner: parameters reach the notebooks, results are whole, failures have names."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import nbformat
import pandas as pd
import papermill
import psutil
import pytest
import torch
from PIL import Image
from toy_notebooks import toy_repository

from mesa_lib.cli import main
from mesa_lib.experiments import copies, kernels, notebooks, params
from mesa_lib.experiments.ahead import trained_ahead
from mesa_lib.reporting.tables import parameters
from mesa_lib.store import paths

SMALL = {
    "clean_epochs": 1, "attack_epochs": 1, "steps": 3, "repair_epochs": 1, "inversion_repeats": 1, "hidden": 16,
    "compare_triggers": "", "search_candidates": 32, "search_generations": 1,
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


@pytest.mark.long
def test_the_series_runs_through_papermill_from_a_parameter_file(shared_store, tmp_path, capfd):
    """01 to 04 with few steps, on another trigger, so that no bound that is meant for the defaults applies."""
    out = tmp_path / "out"
    settings = tmp_path / "small.yaml"
    settings.write_text("\n".join(f"{n}: {json.dumps(v)}" for n, v in SMALL.items()) + "\ntrigger: file:patch.png\n")
    Image.new("RGB", (4, 5), (255, 0, 128)).save(tmp_path / "patch.png")
    patch = f"trigger=file:{tmp_path}/patch.png"
    code = main.main(["run", str(settings), "-p", patch, "-p", "alpha=0.2", "--out", str(out)])
    shown = capfd.readouterr()
    assert code == 0, shown.err
    assert [f.stem for f in sorted(out.glob("*.ipynb"))] == list(notebooks.SERIES)
    result = json.loads((out / "result.json").read_text())
    assert result["params"]["alpha"] == 0.2 and result["params"]["trigger"].endswith("patch.png")
    names = [row["model"] for row in result["rows"] if row["attack"] == "patch"]
    assert names == ["clean model", "attacked", "fine-tuning", "random uniform", "random binary", "random mixed",
                     "single inversion 1", "best inversion", "all inversions", "MESA", "MESA rounds", "ideal",
                     "clean model, repaired"]  # fmt: skip
    table = pd.read_csv(out / "table.csv")
    assert list(table["model"]) == 2 * names and table["ASR"].between(0, 100).all()
    assert list(table["attack"]) == ["patch"] * len(names) + ["covered"] * len(names)
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

    values = {"alpha": 0.2, "betas": "0.9,0.8,0.5", "trigger": "bw:16", "seed": 0, "data_dir": "/a/path"}
    copy = copies.with_notice(book(), values)
    assert [c.source for c in copy.cells][::2] == ["# title", "text"]
    notice = copy.cells[1].source
    assert "executed with other parameters" in notice
    assert notice.splitlines()[-1] == '> `alpha = 0.2`, `trigger = "bw:16"`', "each once, in the quotation"
    assert len(copies.with_notice(book(), {"alpha": 0.1, "data_dir": "x"}).cells) == 2
    nbformat.validate(copy)


@pytest.fixture
def toys(tmp_path, monkeypatch):
    """A repository of short notebooks, and a store for them."""
    root = toy_repository(tmp_path / "repository")
    monkeypatch.setenv("MESA_ROOT", str(root))
    monkeypatch.setenv("MESA_RUNS", str(tmp_path / "runs"))
    return root


TINY = SMALL | {"image_size": 16, "width": 4, "triggers_per_step": 8, "batch_size": 64, "compare_attack": ""}


def test_a_series_has_one_kernel_that_is_emptied_before_each_notebook(toys, tmp_path, monkeypatch, capfd):
    """Its environment is its own: nothing is written into that of this process.

    Neither a kernel of another environment that Jupyter finds first, nor the user's startup files have a say in it.
    """
    other, startup = tmp_path / "jupyter" / "kernels" / "python3", tmp_path / "ipython" / "profile_default" / "startup"
    for folder in (other, startup):
        folder.mkdir(parents=True)
    spec = {"argv": ["/nowhere/python", "-m", "ipykernel_launcher", "-f", "{connection_file}"]}
    (other / "kernel.json").write_text(json.dumps(spec | {"display_name": "other", "language": "python"}))
    (startup / "00.py").write_text("DATA = '/mnt/data'\nimport numpy as np\nnp.random.seed(3)")
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    step = "import os\nprint(os.getpid(), [name for name in ('MESA_BATCH', 'MESA_PROGRESS', 'MALLOC_MMAP_MAX_', 'X') "
    step += "if os.environ.get(name)])\nassert 'seen' not in globals() and 'DATA' not in globals()\nseen = p"
    for name in ("01_attacking", "02_modeling"):
        book = nbformat.read(toys / "notebooks" / f"{name}.ipynb", 4)
        book.cells[4].source = step
        nbformat.write(book, toys / "notebooks" / f"{name}.ipynb")
    monkeypatch.delenv("MESA_BATCH")
    before, out = dict(os.environ), tmp_path / "out"
    notebooks.run_notebooks(params.check(TINY), ["01", "02"], out, environment={"X": "1"})
    assert dict(os.environ) == before
    books = [nbformat.read(out / f"{name}.ipynb", 4) for name in ("01_attacking", "02_modeling")]
    pids = {book.cells[6].outputs[0]["text"].split()[0] for book in books}
    assert len(pids) == 1 and str(os.getpid()) not in pids
    assert "['MESA_BATCH', 'MESA_PROGRESS', 'MALLOC_MMAP_MAX_', 'X']" in books[0].cells[6].outputs[0]["text"]
    assert [[c.execution_count for c in book.cells if c.cell_type == "code"] for book in books] == [[*range(1, 7)]] * 2
    one, other = ((out / "figures" / f"{name}-1.png").read_bytes() for name in ("01_attacking", "02_modeling"))
    assert one == other, "the settings of figures as well"
    assert "[05]" not in books[0].cells[0].source and "[01](01_attacking.ipynb)" in books[0].cells[0].source
    assert "[2/2] 02_modeling: done" in capfd.readouterr().err
    assert not list(out.glob(".*")), "nothing half-made is left"


def test_the_series_ends_in_its_table_and_is_the_same_again(toys, tmp_path, capsys):
    settings = TINY | {"compare_attack": "covered"}
    arguments = [part for name, value in settings.items() for part in ("-p", f"{name}={value}")]
    assert main.main(["run", *arguments, "--notebooks", "04", "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "attack: patch" in shown and "attack: covered" in shown
    assert "MESA rounds" in shown and "(one run, seed 0" in shown and "table.csv and result.json" in shown
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["params"]["betas"] == "0.9,0.8,0.5" and result["rows"][1]["model"] == "attacked"
    first = (tmp_path / "out" / "04_defending.ipynb").read_text()
    assert main.main(["run", *arguments, "--notebooks", "04", "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "04_defending.ipynb").read_text() == first


def test_a_kernel_keeps_freed_memory_as_keep_memory_does(monkeypatch):
    environment = kernels.kernel_environment({"X": "1"})
    assert environment["MALLOC_MMAP_MAX_"] == "0" and environment["X"] == "1" and "X" not in os.environ


def test_a_kernel_is_reached_by_no_network_port_that_another_process_could_take_first(tmp_path, monkeypatch):
    with kernels.SharedKernel() as kernel:
        manager = kernel.client().km
        sockets = Path(manager.ip).parent
        assert manager.transport == "ipc" and len(list(sockets.glob("kernel-*"))) == 5
    assert not sockets.exists()
    deep = tmp_path / ("long" * 25)
    deep.mkdir()
    monkeypatch.setattr(kernels.tempfile, "tempdir", str(deep))  # too long for a socket: ports then
    with kernels.SharedKernel() as kernel:
        assert kernel.client().km.transport == "tcp"


def test_a_copy_links_only_to_what_lies_beside_it():
    text = "[00 start](00_start.ipynb) and [01 next](01_next.ipynb), [b](../docs/b.md#part), [c](https://c.org/c.md)"
    plain = "00 start and [01 next](01_next.ipynb), b, [c](https://c.org/c.md)"
    computed = nbformat.v4.new_code_cell(outputs=[nbformat.v4.new_output("display_data", {"text/markdown": text})])
    cells = [nbformat.v4.new_markdown_cell(text), computed]
    book = copies.without_dead_links(nbformat.v4.new_notebook(cells=cells), ["01_next.ipynb"])
    assert book.cells[0].source == book.cells[1].outputs[0].data["text/markdown"] == plain


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
    with pytest.raises(
        papermill.exceptions.PapermillExecutionError, match="posion_rate = 0.2: there is no such parameter"
    ):
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


def test_a_finished_notebook_stays_until_there_is_another(tmp_path, monkeypatch):
    """The second run of the notebook is stopped, as by Ctrl-C."""
    source, out = tmp_path / "01_attacking.ipynb", tmp_path / "out"
    nbformat.write(nbformat.v4.new_notebook(), source)
    out.mkdir()
    (out / source.name).write_text("finished")

    def stopped(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(notebooks, "execute", stopped)
    with pytest.raises(KeyboardInterrupt):
        notebooks.run_notebook(source, {}, out, None, [])
    assert (out / source.name).read_text() == "finished"


def test_a_folder_has_one_run(tmp_path, monkeypatch):
    """Runs of other parameters are refused, and of two equal ones the second waits."""
    p, out = params.check(TINY), tmp_path / "out"
    monkeypatch.setenv("MESA_RUNS", str(tmp_path / "runs"))
    inside = []

    def run_notebooks(p, names, folder, environment):
        inside.append("in")
        time.sleep(0.5)
        assert inside.count("in") - inside.count("out") == 1
        inside.append("out")
        return [Path("01_attacking.ipynb")]

    monkeypatch.setattr(notebooks, "run_notebooks", run_notebooks)
    threads = [threading.Thread(target=notebooks.run_series, args=(p, ["01"], out)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert inside == ["in", "out"] * 2
    with pytest.raises(ValueError, match=r"out = .*: holds a run with other parameters \(params.json\)"):
        notebooks.run_series(p.replace(seed=1), ["01"], out)
    assert len(inside) == 4 and json.loads((out / "params.json").read_text())["seed"] == 0


BAD = {
    "poison_rate=0": "poison_rate = 0: .*greater than 0",
    "poison_rate=1": "poison_rate = 1: .*less than 1",
    "poison_rate=1e3": "poison_rate = 1000.0",
    "target=10": "target = 10: .*from 0 to 9",
    "target=-1": "target = -1",
    "trigger=bw:512": "trigger = 'bw:512'",
    "bogus=3": "bogus = 3: there is no such parameter",
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
    with pytest.raises(ValueError, match="attack = 'corner': 04_defending.ipynb is about patches at a random location"):
        notebooks.injected_parameters(notebooks.notebook_path("04"), params.check({"attack": "corner"}))


def test_repeat_says_what_took_its_place(capsys):
    assert main.main(["repeat", "digits", "--seeds", "0,1", "-p", "alpha=1", "--out", "r.json"]) == 1
    shown = capsys.readouterr().err
    assert "use `sweep` with a seed axis" in shown and len(shown.splitlines()) == 1


@pytest.mark.parametrize("arguments", [["check"], ["run"], ["refresh"], ["sweep", "digits"], ["tables"]])
def test_without_the_repository_there_is_a_message(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MESA_ROOT", str(tmp_path))
    if arguments in (["check"], ["run"]):
        arguments = [*arguments, "digits"]
    assert main.main(arguments) == 1
    shown = capsys.readouterr().err
    assert "needs the repository" in shown and len(shown.splitlines()) == 1


def test_parameters_are_listed_without_the_repository(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MESA_ROOT", str(tmp_path))
    assert main.main(["params"]) == 0 and "hinge_scale" in capsys.readouterr().out


def test_a_command_responds_to_signals_whatever_it_inherited():
    """As a shell starts a command in the background: SIGINT ignored."""
    inherited = signal.signal(signal.SIGINT, signal.SIG_IGN), signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        for number, kind in ((signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, main.Terminated)):
            with pytest.raises(kind), main.stop_signals_heard():
                os.kill(os.getpid(), number)
            assert signal.getsignal(number) == signal.SIG_IGN, "restored"
    finally:
        signal.signal(signal.SIGINT, inherited[0])
        signal.signal(signal.SIGTERM, inherited[1])


@pytest.mark.parametrize(("stop", "code"), [(KeyboardInterrupt, 130), (main.Terminated, 143)])
def test_a_stopped_command_says_what_is_kept(stop, code, monkeypatch, capsys):
    def stopped():
        raise stop

    monkeypatch.setattr(parameters, "listing", stopped)
    assert main.main(["params"]) == code
    assert "stopped; what was finished is kept" in capsys.readouterr().err


# --- working ahead ---------------------------------------------------------------------------------------


def test_the_compared_attack_is_trained_ahead_and_the_process_ends_with_the_context(empty_store):
    p = params.check(TINY | {"compare_attack": "covered"})
    with trained_ahead(p) as environment:
        end = time.monotonic() + 120
        while not list(empty_store.glob("attacked/*/made.json")) and time.monotonic() < end:
            time.sleep(0.2)
        running = [child for child in psutil.Process().children() if "mesa_lib.experiments.ahead" in child.cmdline()]
        assert environment["OMP_NUM_THREADS"] == environment["MKL_NUM_THREADS"] == "1" and len(running) == 1
    (config,) = empty_store.glob("attacked/*/config.json")
    assert json.loads(config.read_text())["attack"] == "covered"
    assert not running[0].is_running(), "nobody is left"


@pytest.mark.parametrize(("changes", "cores"), [({"compare_attack": ""}, 2), ({"compare_attack": "covered"}, 1)])
def test_without_another_attack_or_a_second_core_nothing_is_trained_ahead(empty_store, monkeypatch, changes, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: pytest.fail("a process was started"))
    with trained_ahead(params.check(TINY | changes)) as environment:
        assert environment == {}
