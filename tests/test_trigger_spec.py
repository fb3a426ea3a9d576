"""Triggers by name: `bw:170`, `color:3`, `file:PATH`."""

import io
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from mesa_lib import triggers
from mesa_lib.data import trigger_spec


def test_a_color_trigger_survives_a_png_file(tmp_path):
    trigger = triggers.color(8, size=4)
    Image.fromarray((trigger * 255).round().byte().permute(1, 2, 0).numpy()).save(tmp_path / "t.png")
    assert torch.allclose(trigger_spec.parse_trigger(f"file:{tmp_path}/t.png"), trigger)


ROW = np.arange(2 * 5 * 3, dtype=np.uint8).reshape(2, 5, 3) * 8  # (h, w, 3) with h != w


@pytest.mark.parametrize(
    "array",
    [
        pytest.param(ROW, id="uint8-last"),
        pytest.param(ROW.transpose(2, 0, 1), id="uint8-first"),
        pytest.param(ROW.astype(np.float32) / 255, id="float32-last"),
        pytest.param(ROW.transpose(2, 0, 1).astype(np.float64) / 255, id="float64-first"),
    ],
)
def test_an_npy_trigger_is_read_in_either_layout(tmp_path, array):
    np.save(tmp_path / "t.npy", array)
    trigger = trigger_spec.parse_trigger(f"file:{tmp_path}/t.npy")
    assert trigger.shape == (3, 2, 5) and trigger.dtype == torch.float32
    assert torch.allclose(trigger, torch.from_numpy(ROW).permute(2, 0, 1) / 255)


@pytest.mark.parametrize("spec", ["bw:170", "bw:16", "color:3"])
def test_a_trigger_comes_back_from_the_file_that_this_project_writes(tmp_path, spec):
    """(3, 3, 3) could be read in two ways."""
    trigger = trigger_spec.parse_trigger(spec)
    np.save(tmp_path / "t.npy", trigger.numpy())
    assert torch.equal(trigger_spec.parse_trigger(f"file:{tmp_path}/t.npy"), trigger)
    np.save(tmp_path / "tall.npy", np.zeros((3, 5, 3)))
    assert trigger_spec.parse_trigger(f"file:{tmp_path}/tall.npy").shape == (3, 5, 3)
    np.save(tmp_path / "three_pixels.npy", ROW[:, :3].repeat(2, 0)[:3])
    assert trigger_spec.parse_trigger(f"file:{tmp_path}/three_pixels.npy").shape == (3, 3, 3)


def npy(array) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("text.png", b"no image at all"),
        ("empty.png", b""),
        ("text.npy", b"no array at all"),
        ("empty.npy", b""),
        ("cut.npy", npy(np.zeros((3, 3, 3)))[:-8]),
        ("flat.npy", npy(np.zeros((3, 3)))),
        ("gray.npy", npy(np.zeros((4, 4, 1)))),
        ("letters.npy", npy(np.full((3, 3, 3), "a"))),
        ("nothing.npy", npy(np.zeros((0, 3, 3)))),
        ("high.npy", npy(np.full((3, 3, 3), 1.5))),
        ("low.npy", npy(np.full((3, 3, 3), -0.5))),
        ("nan.npy", npy(np.full((3, 3, 3), np.nan))),
        ("pickle.npy", npy(np.full((3, 3, 3), None, dtype=object))),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_trigger_file_is_refused_by_name(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=name):
        trigger_spec.parse_trigger(f"file:{tmp_path}/{name}")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 3)), r"shape \(3, 3\), expected \(3, h, w\) or \(h, w, 3\)"),
        (np.zeros((0, 3, 3)), r"shape \(0, 3, 3\), expected one pixel or more"),
        (np.full((3, 3, 3), "a"), "values of type <U1, expected numbers"),
        (np.zeros((3, 3, 3), complex), "values of type complex128, expected numbers"),
        (np.full((3, 3, 3), np.inf), "values that are NaN or infinite"),
        (
            np.full((3, 3, 3), 255),
            r"values of type int64 from 255 to 255, expected uint8, or numbers in \[0, 1\]; divide",
        ),
        (np.full((3, 3, 3), -0.5), "values of type float64 from -0.5 to -0.5, expected uint8"),
    ],
)
def test_every_rule_for_an_array_has_a_message_of_its_own(tmp_path, array, message):
    np.save(tmp_path / "t.npy", array)
    with pytest.raises(ValueError, match=rf"trigger = 'file:t.npy': {message}"):
        trigger_spec.load_trigger(tmp_path / "t.npy")


def test_an_archive_of_arrays_is_refused_as_such(tmp_path):
    with open(tmp_path / "t.npy", "wb") as stream:
        np.savez(stream, np.zeros((3, 3, 3)))
    with pytest.raises(ValueError, match=r"t.npy': expected one .npy array; the file is an archive of several"):
        trigger_spec.load_trigger(tmp_path / "t.npy")
    whole = (tmp_path / "t.npy").read_bytes()
    (tmp_path / "t.npy").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="t.npy': expected an image or a .npy array"):
        trigger_spec.load_trigger(tmp_path / "t.npy")


def test_image_files_are_read_as_those_of_data_sets(tmp_path):
    grays = np.arange(12, dtype=np.uint16).reshape(3, 4) * 5000
    Image.fromarray(grays).save(tmp_path / "deep.png")
    trigger = trigger_spec.load_trigger(tmp_path / "deep.png")
    assert torch.allclose(trigger, torch.from_numpy(grays / 65535).float().expand(3, 3, 4), atol=1 / 255)
    Image.new("RGBA", (2, 2), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert torch.equal(trigger_spec.load_trigger(tmp_path / "clear.png"), torch.ones(3, 2, 2))
    for side in (9000, 20000):  # beyond our limit; beyond Pillow's as well
        Image.new("1", (side, side)).save(tmp_path / "huge.png")
        with pytest.raises(ValueError, match="trigger = 'file:huge.png': expected an image or a .npy array"):
            trigger_spec.load_trigger(tmp_path / "huge.png")


def test_a_missing_trigger_file_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="absent.png"):
        trigger_spec.parse_trigger(f"file:{tmp_path}/absent.png")


# --- files cannot run code ---------------------------------------------------------------------------------


class Evil:
    """Unpickling it makes a file."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return open, (str(self.file), "w")


def test_an_npy_file_cannot_run_code(tmp_path):
    content = npy(np.full((3, 3, 3), Evil(tmp_path / "ran"), dtype=object))
    (tmp_path / "evil.npy").write_bytes(content)
    with pytest.raises(ValueError, match="evil.npy"):
        trigger_spec.load_trigger(tmp_path / "evil.npy")
    assert not (tmp_path / "ran").exists()
    np.load(tmp_path / "evil.npy", allow_pickle=True)  # the trap works
    assert (tmp_path / "ran").exists()


def test_a_raw_pickle_named_npy_cannot_run_code(tmp_path):
    (tmp_path / "evil.npy").write_bytes(pickle.dumps(Evil(tmp_path / "ran")))
    with pytest.raises(ValueError, match="evil.npy"):
        trigger_spec.load_trigger(tmp_path / "evil.npy")
    assert not (tmp_path / "ran").exists()


# --- names -----------------------------------------------------------------------------------------------


def test_names_mean_what_they_say():
    assert torch.equal(trigger_spec.parse_trigger("bw:170"), triggers.pattern(170))
    assert torch.equal(trigger_spec.parse_trigger("color:3"), triggers.color(3))


@pytest.mark.parametrize(
    "spec",
    ["", "170", "bw", "bw:", "bw:-1", "bw:512", "bw:1.5", "bw:x", "bw:²", "color:", "color:-1", "color:99999999999",
     "file:", "colour:3", "BW:170", "on", "True"],
)  # fmt: skip
def test_a_wrong_name_is_refused_with_its_value(spec):
    with pytest.raises(ValueError) as error:
        trigger_spec.parse_trigger(spec)
    assert spec in str(error.value) and "trigger" in str(error.value)
