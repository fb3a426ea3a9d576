"""Weights from outside: safetensors are read, pickles never run."""

import io
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mesa_lib import store
from mesa_lib.models import networks


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


# --- pickles ----------------------------------------------------------------------------------------------


class Evil:
    """Unpickling it makes a file."""

    def __init__(self, file):
        self.file = str(file)

    def __reduce__(self):
        return open, (self.file, "w")


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
    trace, file = tmp_path / "ran", tmp_path / name
    PICKLES[way](Evil(trace), file)
    with pytest.raises(ValueError, match=f"checkpoint = '{name}'") as error:
        store.load_checkpoint(file)
    assert not trace.exists()
    if way != "protocol 0" or name != "model.safetensors":
        assert "is a pickle" in str(error.value) and "python -m mesa_lib convert" in str(error.value)
    if way.startswith("torch"):
        torch.load(io.BytesIO(file.read_bytes()), weights_only=False)
    else:
        pickle.loads(file.read_bytes())
    assert trace.exists(), "the trap works"


# --- safetensors ------------------------------------------------------------------------------------------


def test_a_checkpoint_is_read(tmp_path):
    save_file({"w": torch.arange(3.0)}, tmp_path / "m.safetensors")
    assert torch.equal(store.load_checkpoint(tmp_path / "m.safetensors")["w"], torch.arange(3.0))


def test_no_length_of_a_header_makes_a_checkpoint_look_like_a_pickle(tmp_path):
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


def test_the_names_of_files_from_before_the_rebuild_are_renamed(tmp_path):
    """Version 0.1 wrote `normalise`; its files still load into today's networks."""
    model = networks.build_network("smallcnn", 3, 2, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), 0)
    old = {name.replace("normalize.", "normalise."): tensor for name, tensor in model.state_dict().items()}
    assert {"normalise.mean", "normalise.std"} <= old.keys()
    save_file(old, tmp_path / "old.safetensors")
    weights = store.load_checkpoint(tmp_path / "old.safetensors")
    other = networks.build_network("smallcnn", 3, 2, (0.0,) * 3, (1.0,) * 3, 1)
    restored = networks.load_weights(other, weights).state_dict()
    assert all(torch.equal(tensor, restored[name]) for name, tensor in model.state_dict().items())


def test_only_the_statistics_of_this_project_are_renamed(tmp_path):
    names = ["normalise.mean", "layer.normalise.mean", "normalise.weight"]
    save_file({name: torch.ones(1) for name in names}, tmp_path / "m.safetensors")
    assert set(store.load_checkpoint(tmp_path / "m.safetensors")) == {"normalize.mean", *names[1:]}
    assert set(store.load_checkpoint(tmp_path / "m.safetensors", any_name=True)) == set(names)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "m.safetensors",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
            "a pointer of Git LFS",
        ),
        ("m.safetensors", b"\n<!DOCTYPE html><title>404</title>", "a page in HTML or XML"),
        ("m.onnx", b"\x08\x07\x12\x07pytorch", "an ONNX model"),
    ],
)
def test_files_that_are_often_taken_for_weights_are_called_what_they_are(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"checkpoint = '{name}' is {said}.*; expected a safetensors file"):
        store.load_checkpoint(tmp_path / name)
