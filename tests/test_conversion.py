"""Pickles of weights become safetensors files: the usual kinds, what is refused, and that no code of theirs runs."""

import argparse
import socket
import subprocess
import sys
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_checkpoints import PICKLES, Evil
from torch import nn

from mesa_lib import store
from mesa_lib.cli import main
from mesa_lib.store import conversion, unpickling


@pytest.fixture
def here(monkeypatch):
    """Let this process read the files, which is faster than a new one for each."""
    monkeypatch.setattr(unpickling, "without_network", lambda: None)
    monkeypatch.setattr(conversion, "_ask", lambda file, out, key, name: unpickling.main(str(file), str(out), key))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


STATE = network().state_dict()
OPTIONS = argparse.Namespace(lr=0.1, milestones=[1, 2])
#: what people have -> where the weights lie in it, and what lies beside them
KINDS = {
    "plain": (STATE, "", []),
    "an ordered dict": (OrderedDict(STATE), "", []),
    "kuangliu": ({"net": STATE, "acc": 93.1, "epoch": 199}, "net", ["acc", "epoch"]),
    "accuracy of NumPy": ({"net": STATE, "acc": np.float64(93.1), "history": np.ones(3)}, "net", ["acc", "history"]),
    "Lightning": ({"state_dict": STATE, "epoch": 3, "callbacks": {}}, "state_dict", ["epoch", "callbacks"]),
    "BackdoorBench": ({"model_name": "preactresnet18", "model": STATE}, "model", ["model_name"]),
    "options beside": ({"model": STATE, "args": OPTIONS}, "model", ["args"]),
    "deep": ({"ema": {"shadow": {"weights": STATE}}, "step": 5}, "ema.shadow.weights", ["step"]),
    "two, one usual": ({"state_dict": STATE, "ema": STATE}, "state_dict", ["ema"]),
    "a tensor beside": ({"state_dict": STATE, "best": torch.tensor(3.0), "epoch": 1}, "state_dict", ["best", "epoch"]),
    "numbers beside tensors": (dict(STATE) | {"version": 2}, "", ["version"]),
}


@pytest.mark.parametrize(("kind", "old_format"), [*((kind, False) for kind in KINDS), ("kuangliu", True)])
def test_the_weights_are_found_and_said_to_be(tmp_path, here, kind, old_format):
    content, taken, left = KINDS[kind]
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=not old_format)
    found = conversion.convert(tmp_path / "w.pth")
    assert (found.taken, found.tensors, found.left) == (taken, len(STATE), left)
    loaded = store.load_checkpoint(found.file)
    assert loaded.keys() == STATE.keys() and all(torch.equal(loaded[name], STATE[name]) for name in STATE)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["w.pth", "w.safetensors"], "nothing is left behind"


def test_the_optimizer_s_tensors_are_not_taken_for_weights(tmp_path, here):
    net = network()
    adam = torch.optim.Adam(net.parameters())
    net(torch.ones(2, 3, 3, 3)).sum().backward()
    adam.step()
    torch.save({"optimizer": adam.state_dict(), "model": net.state_dict()}, tmp_path / "w.pt")
    assert conversion.convert(tmp_path / "w.pt").taken == "model"


def test_tied_weights_and_views_get_memory_of_their_own(tmp_path, here):
    base = torch.arange(12.0).reshape(3, 4)
    torch.save({"a.weight": base, "b.weight": base, "c.weight": base.T, "empty": torch.zeros(0)}, tmp_path / "w.pt")
    found = conversion.convert(tmp_path / "w.pt")
    loaded = load_file(found.file)
    assert found.copied == ["b.weight", "c.weight"] and torch.equal(loaded["c.weight"], base.T)
    assert "copied, since they shared memory with others: b.weight, c.weight" in found.text()


def test_the_command_of_the_refusal_converts_the_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.save({"net": STATE, "acc": 90}, "my net.pth")
    with pytest.raises(ValueError, match="is a pickle") as refused:
        store.load_checkpoint("my net.pth")
    program, _, command = str(refused.value).partition("python -m mesa_lib ")
    assert program.endswith("without running it: ")
    done = subprocess.run(f"{sys.executable} -m mesa_lib {command}", shell=True, capture_output=True, text=True)
    assert done.returncode == 0 and "my net.safetensors: 9 tensors under 'net'" in done.stdout, done.stderr
    assert "left out: acc" in done.stdout and store.load_checkpoint("my net.safetensors").keys() == STATE.keys()
    assert main.main(["convert", "my net.pth"]) == 1
    assert "my net.safetensors: exists already; expected a new file" in capsys.readouterr().err


@pytest.mark.parametrize("way", PICKLES)
def test_code_never_runs(tmp_path, here, way):
    for content in (Evil(tmp_path / "ran"), {"net": STATE, "more": Evil(tmp_path / "ran")}):
        PICKLES[way](content, tmp_path / "w.pt")
        with pytest.raises(ValueError, match=r"checkpoint = 'w.pt': "):
            conversion.convert(tmp_path / "w.pt")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["w.pt"], "neither the code's file nor a half result"


def test_code_never_runs_in_the_reader_s_own_process_either(tmp_path):
    torch.save({"net": STATE, "more": Evil(tmp_path / "ran")}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"checkpoint = 'w.pt': more than tensors and plain values: it holds "):
        conversion.convert(tmp_path / "w.pt")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["w.pt"]


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_a_whole_network_is_refused_with_the_way_out(tmp_path, here):
    torch.save(network(), tmp_path / "whole.pt")
    with pytest.raises(ValueError, match=r"holds torch.nn.modules.*which is not read.*model.state_dict\(\)"):
        conversion.convert(tmp_path / "whole.pt")
    torch.jit.save(torch.jit.script(network()), tmp_path / "script.pt")
    with pytest.raises(ValueError, match="TorchScript archive, which holds code"):
        conversion.convert(tmp_path / "script.pt")


def test_several_sets_of_weights_have_to_be_chosen_from(tmp_path, here):
    torch.save({"student": STATE, "teacher": {"net": STATE}}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match="several sets of weights: student, teacher.net; choose one with --key"):
        conversion.convert(tmp_path / "w.pt")
    assert conversion.convert(tmp_path / "w.pt", key="teacher.net").taken == "teacher.net"
    with pytest.raises(ValueError, match="no weights under 'ema': student, teacher.net; choose"):
        conversion.convert(tmp_path / "w.pt", tmp_path / "other.safetensors", key="ema")


def bomb(file) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as parts:
        parts.writestr("archive/data.pkl", b"0" * 50_000_000)


NO_FILE = "no whole file that torch.save wrote"
REFUSED = {
    "nothing to be found": (lambda f: torch.save({"a": 1, "b": [STATE]}, f), "no dict of names and tensors; expected"),
    "one tensor": (lambda f: torch.save(torch.ones(3), f), "no dict of names and tensors"),
    "sparse": (lambda f: torch.save({"a": torch.eye(3).to_sparse()}, f), "a is a sparse or quantized tensor"),
    "no pickle": (lambda f: f.write_bytes(b"weights"), NO_FILE),
    "cut short": (
        lambda f: (torch.save(STATE, f), f.write_bytes(f.read_bytes()[:900])),
        NO_FILE,
    ),
    "empty": (lambda f: f.write_bytes(b""), NO_FILE),
    "bomb": (bomb, "compressed, as no checkpoint of PyTorch is"),
    "safetensors": (lambda f: save_file(STATE, f), "is a safetensors file already; nothing to convert"),
    "pointer": (lambda f: f.write_text("version https://git-lfs.github.com/spec/v1"), "a pointer of Git LFS"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_holds_no_weights_is_refused_in_one_line(tmp_path, capsys, here, kind):
    make, reason = REFUSED[kind]
    make(tmp_path / "w.pt")
    assert main.main(["convert", str(tmp_path / "w.pt")]) == 1
    said = capsys.readouterr().err
    assert reason in said and said.count("\n") == 1 and "Traceback" not in said
    assert [file.name for file in tmp_path.iterdir()] == ["w.pt"]


def test_files_and_folders_that_do_not_exist_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"checkpoint = 'none.pt': No such file"):
        conversion.convert(tmp_path / "none.pt")
    torch.save(STATE, tmp_path / "w.pt")
    with pytest.raises(ValueError, match="its folder does not exist"):
        conversion.convert(tmp_path / "w.pt", tmp_path / "nowhere" / "w.safetensors")


def test_code_is_named_and_never_advised_to_be_run(tmp_path, here):
    torch.save({"net": STATE, "more": Evil(tmp_path / "ran")}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match="it holds .*open, which is not read") as refused:
        conversion.convert(tmp_path / "w.pt")
    assert "weights_only" not in str(refused.value)


def test_the_reader_has_no_network_where_the_system_allows_it():
    """The child of the test listens to nothing: a connection to this process's own port is tried."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        code = (
            f"import runpy, socket; reader = runpy.run_path({unpickling.__file__!r}); reader['without_network']();"
            f"socket.create_connection(('127.0.0.1', {server.getsockname()[1]}), timeout=5)"
        )
        allowed = subprocess.run(["unshare", "--user", "--net", "true"], capture_output=True).returncode == 0
        if not allowed:
            pytest.skip("this system gives no process a network of its own")
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 1 and "Error" in done.stderr
