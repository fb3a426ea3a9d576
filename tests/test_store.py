import errno
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from mesa_lib import store

CONFIG = {"alpha": 0.1, "stage": {"seed": 0, "betas": [0.9, 0.5]}}


@pytest.fixture(autouse=True)
def own_store(empty_store):
    return empty_store


class Maker:
    """What is given to train_or_load: counts how often it was called."""

    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        tensors = {"w": torch.arange(6.0).reshape(2, 3), "n": torch.tensor(7), "x.y": torch.ones(2, dtype=torch.uint8)}
        return tensors, {"loss": [1.5, 0.25], "name": "é"}


def make(maker, config=CONFIG):
    return store.train_or_load("kind", config, maker)


# --- keys ------------------------------------------------------------------------------------------------


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
    monkeypatch.setattr(store, "VERSION", store.VERSION + 1)
    assert store.config_key(CONFIG) != before


def test_the_key_is_16_hexadecimal_digits():
    assert len(store.config_key(CONFIG)) == 16 and int(store.config_key(CONFIG), 16) >= 0


def test_tensors_have_a_key_by_value():
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(3), "c": torch.ones(2, dtype=torch.bfloat16)}
    base = store.tensors_key(tensors)
    assert base == store.tensors_key({name: tensors[name].clone() for name in ("c", "b", "a")})
    assert base == store.tensors_key(tensors | {"a": tensors["a"].T.contiguous().T}), "layout does not matter"
    kernel = torch.arange(12.0).reshape(4, 3, 1, 1)
    assert store.tensors_key({"k": kernel}) == store.tensors_key({"k": kernel.to(memory_format=torch.channels_last)})
    changes = [
        {"a": torch.arange(6.0).reshape(3, 2)}, {"a": torch.arange(6.0).reshape(2, 3) + 1e-6}, {"b": torch.tensor(4)},
        {"a": torch.arange(6).reshape(2, 3)}, {"c": torch.zeros(2, dtype=torch.bfloat16)}, {"d": torch.tensor(3)},
    ]  # fmt: skip
    assert len({base, *(store.tensors_key(tensors | change) for change in changes)}) == len(changes) + 1


# --- make once, load afterward --------------------------------------------------------------------------


def test_an_artifact_is_made_once_and_loaded_to_the_bit():
    maker = Maker()
    first, second = make(maker), make(maker)
    assert maker.calls == 1 and (first.loaded, second.loaded) == (False, True)
    assert first.result == second.result == {"loss": [1.5, 0.25], "name": "é"}
    assert first.config == second.config == CONFIG and first.path == second.path and first.made == second.made
    assert first.tensors.keys() == second.tensors.keys() == {"w", "n", "x.y"}
    for name, tensor in second.tensors.items():
        assert tensor.dtype == first.tensors[name].dtype and torch.equal(tensor, first.tensors[name])


def test_a_folder_holds_what_the_documentation_says():
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
        found = store.train_or_load("numbers", CONFIG, lambda: ({}, {"rate": 0.5}))
        assert found.loaded is loaded and found.tensors == {} and found.result == {"rate": 0.5}


def test_what_is_returned_at_once_is_what_a_load_returns():
    first = store.train_or_load("kind", CONFIG, lambda: ({}, {"pair": (1, 2), "by number": {3: "x"}}))
    assert first.result == store.load("kind", CONFIG).result == {"pair": [1, 2], "by number": {"3": "x"}}


def test_tensors_of_any_layout_are_kept():
    weights = torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last)
    store.train_or_load("kind", CONFIG, lambda: ({"w": weights, "t": weights[0, 0].T.requires_grad_()}, {}))
    loaded = store.load("kind", CONFIG).tensors
    assert torch.equal(loaded["w"], weights) and torch.equal(loaded["t"], weights[0, 0].T)


# --- damage ----------------------------------------------------------------------------------------------


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


def test_a_half_made_folder_is_not_loaded(own_store):
    """A process that was killed left everything written, but not renamed."""
    maker = Maker()
    folder = make(maker).path
    folder.rename(folder.parent / ".making-0123")
    assert not make(maker).loaded and maker.calls == 2


# --- disks that take nothing -----------------------------------------------------------------------------


def broken(code):
    def fail(*args, **options):
        raise OSError(code, os.strerror(code))

    return fail


def break_rename(monkeypatch, code):
    monkeypatch.setattr(store.os, "rename", broken(code))


def break_tensors(monkeypatch, code):
    monkeypatch.setattr(store, "save_file", broken(code))


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
    monkeypatch.setattr(store.os, "fsync", broken(code))


def left(where):
    """What lies in a store, but for its locks, which are empty files."""
    return [f for f in where.rglob("*") if ".locks" not in f.relative_to(where).parts]


BREAKS = [break_rename, break_tensors, break_text, break_last_text, break_folder, break_scratch_folder, break_sync]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES], ids=errno.errorcode.get)
@pytest.mark.parametrize("fault", BREAKS, ids=lambda f: f.__name__)
def test_a_write_that_fails_says_why_and_leaves_nothing(own_store, monkeypatch, fault, code):
    with monkeypatch.context() as patch:
        fault(patch, code)
        with pytest.raises(OSError) as error:
            make(Maker())
    message = str(error.value)
    assert error.value.errno == code and os.strerror(code) in message
    assert "cannot write kind" in message and "MESA_RUNS" in message and len(message.splitlines()) == 1
    assert str(own_store) not in message, "no absolute path"
    assert not [f for f in left(own_store) if f.name != "kind"]
    maker = Maker()
    assert not make(maker).loaded and make(maker).loaded and maker.calls == 1, "once the disk is well, all is well"


def test_a_write_error_of_safetensors_is_an_oserror_too(own_store, monkeypatch):
    def fail(*args):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(store, "save_file", fail)
    with pytest.raises(OSError, match="No space left on device"):
        make(Maker())
    assert not list(own_store.rglob(".making-*"))


@pytest.mark.parametrize("result", [{"rate": float("nan")}, {"rate": torch.ones(1)}], ids=["nan", "tensor"])
def test_a_result_that_json_cannot_hold_leaves_nothing(own_store, result):
    with pytest.raises((ValueError, TypeError)):
        store.train_or_load("kind", CONFIG, lambda: ({"w": torch.ones(2)}, result))
    assert not list(own_store.rglob(".making-*")) and store.load("kind", CONFIG) is None


def test_an_error_while_making_leaves_nothing(own_store):
    def fail():
        raise FloatingPointError("the loss became nan")

    with pytest.raises(FloatingPointError):
        make(fail)
    assert not left(own_store)


# --- several processes -----------------------------------------------------------------------------------

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


def test_what_two_processes_want_is_made_once(tmp_path):
    calls = tmp_path / "calls"
    both = [slow(calls), slow(calls)]
    assert sorted(process.communicate(timeout=120)[0].strip() for process in both) == ["False", "True"]
    assert calls.read_text() == "made "


def test_a_process_that_is_killed_leaves_the_next_one_free(tmp_path, own_store):
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


def test_an_artifacts_seconds_are_its_own(own_store):
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


def test_a_lock_is_taken_once_and_freed(own_store):
    with store.lock("x") as mine, store.lock("x", wait=False) as second:
        assert mine and not second
    with store.lock("x", wait=False) as third:
        assert third


# --- checkpoints from outside ----------------------------------------------------------------------------


class Evil:
    """Unpickling it makes a file."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return open, (self.mark, "w")


def torch_zip(value, file):
    torch.save(value, file)


def torch_legacy(value, file):
    torch.save(value, file, _use_new_zipfile_serialization=False)


def raw(protocol):
    return lambda value, file: Path(file).write_bytes(pickle.dumps(value, protocol=protocol))


PICKLES = {"torch": torch_zip, "torch legacy": torch_legacy, "protocol 0": raw(0), "protocol 2": raw(2),
           "protocol 5": raw(5)}  # fmt: skip


@pytest.mark.parametrize("name", ["model.safetensors", "model.pt", "model.pth", "model.pkl"])
@pytest.mark.parametrize("way", PICKLES)
def test_a_pickle_is_refused_and_its_code_never_runs(tmp_path, way, name):
    mark, file = tmp_path / "ran", tmp_path / name
    PICKLES[way](Evil(mark), file)
    with pytest.raises(ValueError, match=f"checkpoint = '{name}'") as error:
        store.load_checkpoint(file)
    assert not mark.exists()
    if way != "protocol 0" or name != "model.safetensors":
        assert "is a pickle" in str(error.value) and "safetensors.torch.save_file" in str(error.value)
    if way.startswith("torch"):
        torch.load(io.BytesIO(file.read_bytes()), weights_only=False)
    else:
        pickle.loads(file.read_bytes())
    assert mark.exists(), "the trap works"


def test_a_checkpoint_is_read(tmp_path):
    save_file({"w": torch.arange(3.0)}, tmp_path / "m.safetensors")
    assert torch.equal(store.load_checkpoint(tmp_path / "m.safetensors")["w"], torch.arange(3.0))


def test_no_checkpoint_is_taken_for_a_pickle_by_the_length_of_its_header(tmp_path):
    """A safetensors file begins with that length, whose first byte can be any multiple of 8: 0x80 as well."""
    first_bytes, refused = set(), []
    for length in range(1, 280):
        file = tmp_path / "m.safetensors"
        save_file({"w" * length: torch.arange(3.0)}, file)
        first_bytes.add(file.read_bytes()[0])
        try:
            store.load_checkpoint(file)
        except ValueError as error:
            refused.append((length, str(error)))
    assert 0x80 in first_bytes and len(first_bytes) == 32
    assert not refused


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 20, -1])
def test_a_truncated_checkpoint_is_refused(tmp_path, keep):
    save_file({"w": torch.arange(3.0)}, tmp_path / "m.safetensors")
    (tmp_path / "m.safetensors").write_bytes((tmp_path / "m.safetensors").read_bytes()[:keep])
    with pytest.raises(ValueError, match="checkpoint = 'm.safetensors': .*whole safetensors file"):
        store.load_checkpoint(tmp_path / "m.safetensors")


@pytest.mark.parametrize("content", [b"hello world, this is no model", b"{}", bytes(100), b"\xff" * 100])
def test_any_other_file_is_refused(tmp_path, content):
    (tmp_path / "m.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="checkpoint = 'm.safetensors'"):
        store.load_checkpoint(tmp_path / "m.safetensors")


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(ValueError, match="checkpoint = 'absent.safetensors': No such file"):
        store.load_checkpoint(tmp_path / "absent.safetensors")


def test_a_folder_is_no_checkpoint(tmp_path):
    with pytest.raises(ValueError, match="expected a safetensors file"):
        store.load_checkpoint(tmp_path)


def test_a_text_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    file = tmp_path / "result.json"
    store.write_atomic(file, "first")
    monkeypatch.setattr(store.os, "replace", lambda *a: (_ for _ in ()).throw(OSError("stopped")))
    with pytest.raises(OSError, match="stopped"):
        store.write_atomic(file, "second")
    assert file.read_text() == "first"
    monkeypatch.undo()
    store.write_atomic(file, "third")
    with pytest.raises(OSError, match="cannot write .*inside: "):
        store.write_atomic(file / "inside", "fourth")
    assert file.read_text() == "third" and list(tmp_path.iterdir()) == [file]
