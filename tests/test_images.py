"""The reader of image files: orders, sizes, depths, what is left out and noted, what is refused."""

import os
import struct
import zlib
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mesa_lib.data import Split, class_folders
from mesa_lib.data import images as reader
from mesa_lib.data.decoding import decode
from mesa_lib.data.images import Images, read_class_folder, read_images


def picture(mode="RGB", size=(16, 16), color=0):
    return Image.new(mode, size, color)


@pytest.fixture
def tree(tmp_path):
    """Three classes of six images, 16x16; the folder may be added to."""
    for k, name in enumerate(("cat", "dog", "owl")):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(6):
            picture(color=(80 * k, 10 * i, 0)).save(tmp_path / "images" / name / f"{i}.png")
    return tmp_path / "images"


def test_a_folder_is_read_in_the_order_of_its_names(tree):
    images = read_images(tree)
    assert images.classes == ("cat", "dog", "owl") and images.split.images.shape == (18, 3, 16, 16)
    assert images.split.images.dtype == torch.uint8 and images.split.labels.bincount().tolist() == [6, 6, 6]
    assert set(images.split.images[images.split.labels == 1][:, 0].unique().tolist()) == {80}
    assert "18 images in 3 classes (6 to 6 each), 16x16" in images.notes[0] and "few" in images.notes[1]


def test_a_run_may_have_fewer_images_of_a_class_than_a_scan(tree):
    for file in list((tree / "cat").iterdir())[1:]:
        file.unlink()
    images = read_class_folder(tree)
    assert images.split.labels.bincount().tolist() == [1, 6, 6]
    assert images.notes == (
        "13 images in 3 classes (1 to 6 each), 16x16.",
        "Classes: 0 = cat (1 files), 1 = dog (6 files), 2 = owl (6 files).",
    )
    with pytest.raises(ValueError, match=r"too few images in cat \(1\); expected at least 2 in every class"):
        read_class_folder(tree, min_per_class=2)
    with pytest.raises(ValueError, match="13 images; expected at least 14 in all"):
        read_class_folder(tree, min_images=14)


def test_a_scan_needs_twelve_images(tree):
    for k, name in enumerate(("cat", "dog", "owl")):
        for file in list((tree / name).iterdir())[4 - k // 2 :]:
            file.unlink()
    with pytest.raises(ValueError, match=r"too few images in owl \(3\); expected at least 4 in every class"):
        read_images(tree)
    for file in (tree / "owl").iterdir():
        file.unlink()
    (tree / "owl").rmdir()
    with pytest.raises(ValueError, match="8 images; expected at least 12 in all"):
        read_images(tree)


def test_the_fingerprint_of_images_is_that_of_pixels_and_labels(tree):
    images = read_images(tree).split
    pixel, label = images.images.clone(), images.labels.clone()
    pixel[3, 1, 2, 2] += 1
    label[0] += 1
    same = {Images(images, ()).fingerprint, Images(Split(images.images.clone(), images.labels), ("a", "b")).fingerprint}
    assert len(same) == 1
    others = {Images(Split(pixel, images.labels), ()).fingerprint, Images(Split(images.images, label), ()).fingerprint}
    assert len(same | others) == 3


def test_classes_can_have_the_models_order(tree):
    images = read_images(tree, classes=("owl", "cat", "dog"))
    assert images.classes == ("owl", "cat", "dog")
    assert set(images.split.images[images.split.labels == 0][:, 0].unique().tolist()) == {160}
    with pytest.raises(ValueError, match="classes = cat, dog: expected the folders' names; differs in owl"):
        read_images(tree, classes=("cat", "dog"))


def test_odd_images_are_handled_and_noted(tree):
    clear = Image.new("RGBA", (16, 16), (255, 0, 0, 0))  # red, and not to be seen
    clear.save(tree / "cat" / "clear.png")
    picture("RGBA", color=(1, 2, 3, 255)).save(tree / "cat" / "opaque.png")
    picture(size=(20, 12), color="white").save(tree / "dog" / "wide.png")
    Image.fromarray(np.full((16, 16), 65535, np.uint16)).save(tree / "dog" / "deep.png")
    frames = [picture(color="black"), picture(color="red")]
    frames[0].save(tree / "owl" / "moving.gif", save_all=True, append_images=frames[1:], duration=50)
    (tree / "owl" / "broken.png").write_bytes((tree / "owl" / "0.png").read_bytes()[:40])
    (tree / "owl" / "notes.txt").write_text("no image")
    images = read_images(tree)
    notes = " ".join(images.notes)
    for part in (
        "1 images were transparent in part and were put on white",
        "1 images had another size and were resized to 16x16",
        "1 images had more than 8 bits a channel",
        "1 images were animations",
        "1 files could not be read and were left out: owl/broken.png",
    ):
        assert part in notes, notes
    white = (images.split.images == 255).flatten(1).all(1)
    assert int(white.sum()) == 3, "the transparent one, the wide one and the deep one"


BAD_FOLDERS = {
    "nowhere": (lambda tree: tree / "nowhere", "no such folder"),
    "one class": (lambda tree: one_class(tree), "1 class folders; expected two or more"),
    "empty class": (lambda tree: (tree / "emu").mkdir() or tree, r"too few images in emu \(0\); expected at least 4"),
    "few": (lambda tree: [f.unlink() for f in list((tree / "cat").iterdir())[:3]] and tree, r"cat \(3\)"),
    "mostly broken": (
        lambda tree: [f.write_bytes(b"nothing") for f in (tree / "cat").iterdir()] and tree,
        "6 of 18 images cannot be read, the first is cat/0.png: cannot identify",
    ),
    "wide": (
        lambda tree: [picture(size=(20, 12)).save(f) for f in tree.rglob("*.png")] and tree,
        "most images are 20x12; name the side of the model's input with image_size",
    ),
}


def one_class(tree):
    for name in ("dog", "owl"):
        for file in (tree / name).iterdir():
            file.unlink()
        (tree / name).rmdir()
    return tree


@pytest.mark.parametrize("kind", BAD_FOLDERS)
def test_a_folder_that_cannot_be_used_is_refused_in_one_message(kind, tree):
    change, message = BAD_FOLDERS[kind]
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_images(change(tree))


def test_a_small_file_that_holds_a_huge_image_is_left_out(tree):
    Image.new("1", (9000, 9000)).save(tree / "cat" / "huge.png")
    assert (tree / "cat" / "huge.png").stat().st_size < 100_000
    with pytest.raises(ValueError, match="huge.png: 9000x9000 pixels, expected at most 50,000,000"):
        decode(tree / "cat" / "huge.png")
    assert any("left out: cat/huge.png" in note for note in read_images(tree).notes)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 200), st.binary(min_size=1, max_size=6))
def test_no_image_file_ends_in_a_traceback(tmp_path, at, junk):
    file = tmp_path / "image.png"
    picture(color=(1, 2, 3)).save(file)
    whole = bytearray(file.read_bytes())
    begin = min(at, len(whole) - 1)
    whole[begin : begin + len(junk)] = junk
    file.write_bytes(whole)
    try:
        image, _ = decode(file)
    except ValueError as error:
        assert "image.png" in str(error)
    else:
        assert image.mode == "RGB"


# --- files that mean harm, and what is odd ----------------------------------------------------------------


def test_no_decoder_starts_a_program(tree, tmp_path, monkeypatch):
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    page = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\nshowpage\n%%EOF\n"
    (tree / "cat" / "eps.png").write_bytes(page)
    assert "1 files could not be read and were left out: cat/eps.png" in " ".join(read_images(tree).notes)
    assert not (tmp_path / "started").exists()


def test_depth_and_number_of_files_have_limits(tree, monkeypatch):
    deep = tree / "cat"
    for _ in range(class_folders.MAX_DEPTH + 5):
        deep = deep / "d"
    deep.mkdir(parents=True)
    with pytest.raises(ValueError, match=f"folders nested more than {class_folders.MAX_DEPTH} deep; expected"):
        read_images(tree)
    monkeypatch.setattr(class_folders, "MAX_FILES", 5)
    with pytest.raises(ValueError, match="more than 5 files"):
        class_folders.image_files(tree / "dog", Counter())


def test_sides_and_bytes_have_limits(tree, monkeypatch):
    for size in (0, -3, 7, 1025):
        with pytest.raises(ValueError, match=f"image_size = {size}: expected a side of 8 to 1024 pixels"):
            read_images(tree, size)
    monkeypatch.setattr(reader, "MAX_BYTES", 13000)
    with pytest.raises(ValueError, match="18 images of 16x16; expected at most 4 GB"):
        read_images(tree)
    monkeypatch.setattr(reader, "SIDES", (20, 1024))
    with pytest.raises(ValueError, match="most images are 16x16; name the side .* .20 to 1024"):
        read_images(tree)


def test_a_name_that_is_no_text_is_refused(tree):
    os.mkdir(os.fsencode(tree) + b"/caf\xe9")
    with pytest.raises(ValueError, match=r"folder 'caf\\udce9'; expected a name in UTF-8") as error:
        read_images(tree)
    assert str(error.value).isprintable()


def test_hidden_files_are_no_images_and_links_to_folders_are_not_followed(tree):
    (tree / "cat" / "._0.png").write_bytes(b"resource fork")
    (tree / "cat" / "loop").symlink_to(tree, target_is_directory=True)
    images = read_images(tree)
    assert len(images.split.labels) == 18 and "could not be read" not in " ".join(images.notes)


def test_colors_and_depths_are_converted_and_noted_or_refused(tree):
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tree / "cat" / "ink.jpg")
    Image.fromarray(np.full((16, 16), 0.5, np.float32)).save(tree / "cat" / "half.tif")
    images = read_images(tree)
    notes = " ".join(images.notes)
    assert "1 images had the colors CMYK" in notes and "1 images had more than 8 bits" in notes
    assert 128 in images.split.images[images.split.labels == 0].flatten(1).float().mean(1).round().tolist()
    for value in (float("nan"), 7.0):
        Image.fromarray(np.full((16, 16), value, np.float32)).save(tree / "dog" / "odd.tif")
        with pytest.raises(ValueError, match="odd.tif: values from .*; expected 0 to 1"):
            decode(tree / "dog" / "odd.tif")


def test_a_folder_without_images_is_refused_as_such(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        (tmp_path / "images" / name / "0.heic").write_bytes(b"of a telephone")
    with pytest.raises(
        ValueError, match=r"no images .endings that are not read: 2 \.heic.; expected files that end in"
    ):
        read_images(tmp_path / "images")


def test_changes_that_are_not_made_to_images_are_noted(tree):
    turned, marks = Image.new("RGB", (16, 16)), Image.Exif()
    marks[0x0112] = 6
    turned.save(tree / "cat" / "turned.jpg", exif=marks)
    Image.new("RGB", (32, 16)).save(tree / "cat" / "wide.png")
    (tree / "cat" / "more.jfif").write_bytes(b"?")
    deep = struct.pack(">IIBBBBB", 16, 16, 16, 2, 0, 0, 0)  # 16 bits a channel, in color

    def chunk(kind: bytes, held: bytes) -> bytes:
        return struct.pack(">I", len(held)) + kind + held + struct.pack(">I", zlib.crc32(kind + held))

    rows = zlib.compress(b"".join(b"\0" + 16 * 6 * b"\x80" for _ in range(16)))
    whole = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", deep) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    (tree / "dog" / "deep.png").write_bytes(whole)
    notes = " ".join(read_images(tree).notes)
    for part in ("should be turned (EXIF), which was not done", "were not square", "more than 8 bits", "1 .jfif"):
        assert part in notes, notes
