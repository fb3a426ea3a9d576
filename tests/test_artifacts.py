"""Train or load: keys, damage, full disks, several processes."""

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from mesa_lib import store
from mesa_lib.store import artifacts, files

CONFIG = {"alpha": 0.1, "stage": {"seed": 0, "betas": [0.9, 0.5]}}


@pytest.fixture(autouse=True)
def store_folder(empty_store):
    return empty_store


class Maker:
    """A maker for `train_or_load` that counts its calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        tensors = {"w": torch.arange(6.0).reshape(2, 3), "n": torch.tensor(7), "x.y": torch.ones(2, dtype=torch.uint8)}
        return tensors, {"loss": [1.5, 0.25], "name": "é"}


def make(maker, config=CONFIG):
    return store.train_or_load("kind", config, maker)


# --- keys -------------------------------------------------------------------------------------------------


def test_the_order_of_a_configuration_does_not_matter():
    turned = {"stage": {"betas": [0.9, 0.5], "seed": 0}, "alpha": 0.1}
    assert list(turned) != list(CONFIG) and store.config_key(turned) == store.config_key(CONFIG)


@pytest.mark.parametrize(
    "other",
    [
        {"alpha": 0.2, "stage": {"seed": 0, "betas": [0.9, 0.5]}},
        {"alpha": 0.1, "stage": {"seed": 1, "betas": [0.9, 0.5]}},
        {"alpha": 0.1, "stage": {"seed": 0, "betas": [0.5, 0.9]}},
        {"alpha": 0.1, "stage": {"seed": 0, "betas": [0.9]}},
        {"alpha": "0.1", "stage": {"seed": 0, "betas": [0.9, 0.5]}},
        {"alpha": 0.1, "stage": {"seed": None, "betas": [0.9, 0.5]}},
        {"alpha": 0.1, "stage": {"betas": [0.9, 0.5]}},
        CONFIG | {"more": None},
    ],
)
def test_a_changed_value_has_another_key(other):
    assert store.config_key(other) != store.config_key(CONFIG)


def test_a_new_version_of_the_code_has_other_keys(monkeypatch):
    before = store.config_key(CONFIG)
    monkeypatch.setattr(artifacts, "VERSION", artifacts.VERSION + 1)
    assert store.config_key(CONFIG) != before


def test_the_key_is_16_hexadecimal_digits():
    assert len(store.config_key(CONFIG)) == 16 and int(store.config_key(CONFIG), 16) >= 0


# --- make once, load afterward ----------------------------------------------------------------------------


def test_an_artifact_is_made_once_and_loaded_to_the_bit():
    maker = Maker()
    first, second = make(maker), make(maker)
    assert maker.calls == 1 and (first.loaded, second.loaded) == (False, True)
    assert first.result == second.result == {"loss": [1.5, 0.25], "name": "é"}
    assert first.config == second.config == CONFIG and first.path == second.path and first.made == second.made
    assert first.tensors.keys() == second.tensors.keys() == {"w", "n", "x.y"}
    for name, tensor in second.tensors.items():
        assert tensor.dtype == first.tensors[name].dtype and torch.equal(tensor, first.tensors[name])


def test_a_folder_holds_the_documented_files():
    folder = make(Maker()).path
    assert folder == store.artifact_folder("kind", CONFIG) and folder.name == store.config_key(CONFIG)
    assert {f.name for f in folder.iterdir()} == {"config.json", "result.json", "made.json", "tensors.safetensors"}
    assert json.loads((folder / "config.json").read_text()) == CONFIG
    made = json.loads((folder / "made.json").read_text())
    assert {"seconds", "at", "python", "torch", "device", "threads", "files"} <= set(made)


def test_another_configuration_or_kind_is_made_anew():
    maker = Maker()
    make(maker)
    make(maker, CONFIG | {"alpha": 0.2})
    store.train_or_load("other kind", CONFIG, maker)
    assert maker.calls == 3


def test_an_artifact_may_hold_numbers_alone():
    for loaded in (False, True):
        artifact = store.train_or_load("numbers", CONFIG, lambda: ({}, {"rate": 0.5}))
        assert artifact.loaded is loaded and artifact.tensors == {} and artifact.result == {"rate": 0.5}


def test_a_new_artifact_equals_the_loaded_one():
    first = store.train_or_load("kind", CONFIG, lambda: ({}, {"pair": (1, 2), "by number": {3: "x"}}))
    assert first.result == store.load("kind", CONFIG).result == {"pair": [1, 2], "by number": {"3": "x"}}


def test_tensors_of_any_layout_are_kept():
    weights = torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last)
    store.train_or_load("kind", CONFIG, lambda: ({"w": weights, "t": weights[0, 0].T.requires_grad_()}, {}))
    loaded = store.load("kind", CONFIG).tensors
    assert torch.equal(loaded["w"], weights) and torch.equal(loaded["t"], weights[0, 0].T)


# --- damage -----------------------------------------------------------------------------------------------


def cut(file: Path):
    file.write_bytes(file.read_bytes()[:-1])


def flip(file: Path):
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


DAMAGE = {
    "tensors cut": lambda folder: cut(folder / "tensors.safetensors"),
    "tensors altered": lambda folder: flip(folder / "tensors.safetensors"),
    "tensors empty": lambda folder: (folder / "tensors.safetensors").write_bytes(b""),
    "tensors missing": lambda folder: (folder / "tensors.safetensors").unlink(),
    "result altered": lambda folder: (folder / "result.json").write_text(
        (folder / "result.json").read_text().replace("1.5", "2.5")
    ),
    "result missing": lambda folder: (folder / "result.json").unlink(),
    "config altered": lambda folder: (folder / "config.json").write_text("{}"),
    "config missing": lambda folder: (folder / "config.json").unlink(),
    "made missing": lambda folder: (folder / "made.json").unlink(),
    "made empty": lambda folder: (folder / "made.json").write_text(""),
    "made a list": lambda folder: (folder / "made.json").write_text("[]"),
    "made without files": lambda folder: (folder / "made.json").write_text("{}"),
    "made with a list of files": lambda folder: (folder / "made.json").write_text('{"files": []}'),
    "made no text": lambda folder: (folder / "made.json").write_bytes(b"\xff\xfe"),
    "all missing": lambda folder: [file.unlink() for file in folder.iterdir()],
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_artifact_is_made_again(name):
    maker = Maker()
    whole = make(maker)
    DAMAGE[name](whole.path)
    assert store.load("kind", CONFIG) is None
    again = make(maker)
    assert maker.calls == 2 and not again.loaded
    assert make(maker).loaded and torch.equal(store.load("kind", CONFIG).tensors["w"], whole.tensors["w"])


def test_a_folder_of_another_configuration_is_not_loaded():
    """Somebody copied an artifact to the key of another one."""
    maker, other = Maker(), CONFIG | {"alpha": 0.7}
    shutil.copytree(make(maker).path, store.artifact_folder("kind", other))
    assert store.load("kind", other) is None
    assert not make(maker, other).loaded and maker.calls == 2


def test_an_incomplete_folder_is_not_loaded(store_folder):
    """A process that was killed left everything written, but not renamed."""
    maker = Maker()
    folder = make(maker).path
    folder.rename(folder.parent / ".making-0123")
    assert not make(maker).loaded and maker.calls == 2


# --- disks that refuse ------------------------------------------------------------------------------------


def broken(code):
    def fail(*args, **options):
        raise OSError(code, os.strerror(code))

    return fail


def break_rename(monkeypatch, code):
    monkeypatch.setattr(artifacts.os, "rename", broken(code))


def break_tensors(monkeypatch, code):
    monkeypatch.setattr(artifacts, "save_file", broken(code))


def break_text(monkeypatch, code):
    monkeypatch.setattr(Path, "write_text", broken(code))


def break_last_text(monkeypatch, code):
    whole = Path.write_text

    def write(self, *args, **options):
        return broken(code)() if self.name == "made.json" else whole(self, *args, **options)

    monkeypatch.setattr(Path, "write_text", write)


def break_folder(monkeypatch, code):
    monkeypatch.setattr(Path, "mkdir", broken(code))


def break_scratch_folder(monkeypatch, code):
    whole = Path.mkdir

    def mkdir(self, *args, **options):
        return broken(code)() if self.name.startswith(".making-") else whole(self, *args, **options)

    monkeypatch.setattr(Path, "mkdir", mkdir)


def break_sync(monkeypatch, code):
    monkeypatch.setattr(files.os, "fsync", broken(code))


def contents(folder):
    """Everything in a store except its locks, which are empty files."""
    return [f for f in folder.rglob("*") if ".locks" not in f.relative_to(folder).parts]


BREAKS = [break_rename, break_tensors, break_text, break_last_text, break_folder, break_scratch_folder, break_sync]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES], ids=errno.errorcode.get)
@pytest.mark.parametrize("fault", BREAKS, ids=lambda f: f.__name__)
def test_a_failed_write_says_why_and_leaves_nothing(store_folder, monkeypatch, fault, code):
    with monkeypatch.context() as patch:
        fault(patch, code)
        with pytest.raises(OSError) as error:
            make(Maker())
    message = str(error.value)
    assert error.value.errno == code and os.strerror(code) in message
    assert "cannot write kind" in message and "MESA_RUNS" in message and len(message.splitlines()) == 1
    assert str(store_folder) not in message, "no absolute path"
    assert not [f for f in contents(store_folder) if f.name != "kind"]
    maker = Maker()
    assert not make(maker).loaded and make(maker).loaded and maker.calls == 1, "once the disk works, all works"


def test_a_write_error_of_safetensors_is_an_oserror_too(store_folder, monkeypatch):
    def fail(*args):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(artifacts, "save_file", fail)
    with pytest.raises(OSError, match="No space left on device"):
        make(Maker())
    assert not list(store_folder.rglob(".making-*"))


@pytest.mark.parametrize("result", [{"rate": float("nan")}, {"rate": torch.ones(1)}], ids=["nan", "tensor"])
def test_a_result_that_json_cannot_hold_leaves_nothing(store_folder, result):
    with pytest.raises((ValueError, TypeError)):
        store.train_or_load("kind", CONFIG, lambda: ({"w": torch.ones(2)}, result))
    assert not list(store_folder.rglob(".making-*")) and store.load("kind", CONFIG) is None


def test_an_error_while_making_leaves_nothing(store_folder):
    def fail():
        raise FloatingPointError("the loss became nan")

    with pytest.raises(FloatingPointError):
        make(fail)
    assert not contents(store_folder)


# --- several processes ------------------------------------------------------------------------------------


SLOW = """
import sys, time, torch
from pathlib import Path
from mesa_lib import store

def make():
    with open(sys.argv[1], "a") as calls:
        calls.write("made ")
    time.sleep(1.5)
    return {"w": torch.ones(2)}, {}

print(store.train_or_load("kind", {"a": 1}, make).loaded)
"""


def slow(calls):
    return subprocess.Popen([sys.executable, "-c", SLOW, str(calls)], stdout=subprocess.PIPE, text=True)


def test_an_artifact_that_two_processes_want_is_made_once(tmp_path):
    calls = tmp_path / "calls"
    both = [slow(calls), slow(calls)]
    assert sorted(process.communicate(timeout=120)[0].strip() for process in both) == ["False", "True"]
    assert calls.read_text() == "made "


def test_a_process_that_is_killed_leaves_the_next_one_free(tmp_path, store_folder):
    calls = tmp_path / "calls"
    first = slow(calls)
    while not calls.exists():
        time.sleep(0.02)
    first.kill()
    first.communicate()
    folder = store.artifact_folder("kind", {"a": 1})
    (folder.parent / f".making-{folder.name}-of-the-dead").mkdir(parents=True)
    assert slow(calls).communicate(timeout=120)[0].strip() == "False"
    assert calls.read_text() == "made made " and [f.name for f in folder.parent.iterdir()] == [folder.name]


def test_the_seconds_of_an_artifact_leave_out_nested_ones(store_folder):
    def inner():
        time.sleep(0.3)
        return {}, {}

    def outer():
        store.train_or_load("inner", {"a": 1}, inner)
        time.sleep(0.1)
        return {}, {}

    outer_made = store.train_or_load("outer", {"a": 1}, outer).made
    inner_made = store.load("inner", {"a": 1}).made
    assert 0.3 <= inner_made["seconds"] < 0.6 and 0.1 <= outer_made["seconds"] < 0.3
