import json
import sys

import pytest
import torch

from mesa_lib import device as devices
from mesa_lib import progress
from mesa_lib.store import paths

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("cuda", "mps", "chosen"),
    [(False, False, "cpu"), (False, True, "mps"), (True, False, "cuda"), (True, True, "cuda")],
)
def test_auto_takes_the_best_device_there_is(monkeypatch, cuda, mps, chosen):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert devices.pick_device("auto").type == chosen
    assert devices.pick_device("cpu") == CPU


@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_a_device_that_is_not_there_is_refused(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ValueError, match=f"device = '{name}': this machine has none"):
        devices.pick_device(name)


@pytest.mark.parametrize("name", ["", "tpu", "CPU"])
def test_an_unknown_device_is_refused(name):
    with pytest.raises(ValueError, match=f"device = '{name}': expected one of"):
        devices.pick_device(name)


@pytest.mark.parametrize(
    ("precision", "pays", "expected"),
    [("float32", True, torch.float32), ("bf16", False, torch.bfloat16), ("auto", True, torch.bfloat16),
     ("auto", False, torch.float32)],
)  # fmt: skip
def test_precision_decides_how_products_are_computed(monkeypatch, precision, pays, expected):
    monkeypatch.setattr(devices, "bf16_pays", lambda where: pays)
    with devices.autocast(CPU, precision):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == expected
    assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="precision = 'half'"):
        devices.autocast(CPU, "half")


@pytest.mark.parametrize(
    ("capabilities", "pays"),
    [({}, False), ({"avx2": True}, False), ({"avx512_bf16": True}, True), ({"amx_bf16": True}, True)],
)
def test_bf16_pays_where_the_processor_has_it(monkeypatch, capabilities, pays):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert devices.has_fast_bf16(CPU) is pays


def test_random_numbers_follow_the_seed_and_leave_the_global_ones_alone():
    before = torch.random.get_rng_state()
    first, again, other = (torch.rand(5, generator=devices.rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_description_can_be_written_to_a_result_file():
    known = json.loads(json.dumps(devices.describe(CPU)))
    assert known["torch"] == torch.__version__ and known["device"] == "cpu"
    assert known["threads"] == torch.get_num_threads() and known["device_name"]


# --- where things lie ------------------------------------------------------------------------------------


def test_folders_come_from_the_environment(monkeypatch, tmp_path):
    for name in ("MESA_ROOT", "MESA_RUNS", "MESA_DATA"):
        monkeypatch.delenv(name, raising=False)
    assert (paths.root() / "mesa_lib" / "paths.py").is_file()
    assert paths.runs() == paths.root() / "runs" and paths.data_folder() == paths.root() / "data"
    monkeypatch.setenv("MESA_ROOT", str(tmp_path))
    assert paths.runs() == tmp_path / "runs" and paths.data_folder("mine") == tmp_path / "mine"
    monkeypatch.setenv("MESA_RUNS", str(tmp_path / "r"))
    monkeypatch.setenv("MESA_DATA", str(tmp_path / "d"))
    assert paths.runs() == tmp_path / "r" and paths.data_folder() == tmp_path / "d"
    assert paths.data_folder("/else/where").as_posix() == "/else/where"


@pytest.mark.parametrize(
    ("path", "shown"),
    [("ROOT/data/x", "data/x"), ("RUNS/clean/ab", "runs/clean/ab"), ("/somebody/secret/file.png", ".../file.png")],
)
def test_shown_paths_are_never_absolute(monkeypatch, tmp_path, path, shown):
    monkeypatch.setenv("MESA_ROOT", str(tmp_path / "root"))
    monkeypatch.setenv("MESA_RUNS", str(tmp_path / "made"))
    path = path.replace("ROOT", str(tmp_path / "root")).replace("RUNS", str(tmp_path / "made"))
    assert paths.display_path(path) == shown


# --- the progress bar ------------------------------------------------------------------------------------


def test_a_bar_passes_every_step_on(monkeypatch, tmp_path):
    monkeypatch.setenv("MESA_PROGRESS", str(tmp_path / "progress"))
    assert list(progress.progress_bar("abc", "letters")) == ["a", "b", "c"]
    assert (tmp_path / "progress").read_text() == "letters 0/3"


def test_a_display_that_cannot_be_written_stops_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("MESA_PROGRESS", str(tmp_path))  # a folder
    assert list(progress.progress_bar([1, 2], "numbers")) == [1, 2]


def test_a_batch_run_is_quiet(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert sum(progress.progress_bar(range(5), "numbers")) == 10
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_freed_memory_is_kept_for_the_next_step():
    """Without it every large tensor is mapped page by page, time and again."""
    import resource

    def faults():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(10):
            torch.ones(16 * 2**20)  # 64 MiB each, freed at once
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    if not devices.keep_memory():
        pytest.skip("another C library")
    faults()
    assert faults() < 1000  # one of these tensors alone has 16,384 pages
