"""Class folders as a data set: layouts, what is left out and noted, and what the store keeps of them."""

import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from mesa_lib import data, store
from mesa_lib.data import images as reader
from mesa_lib.data.images import read_image, read_images


def test_a_folder_with_train_and_test(small_tree):
    dataset = data.load("folder", str(small_tree))
    assert [len(s) for s in (dataset.train, dataset.modeling, dataset.evaluation)] == [36, 48, 12]
    assert dataset.classes == ("class0", "class1", "class2")
    first = np.array(Image.open(small_tree / "train" / "class0" / "000.png"))
    assert torch.equal(dataset.train.images[0], torch.from_numpy(first).permute(2, 0, 1))
    assert dataset.train.labels.tolist() == [0] * 12 + [1] * 12 + [2] * 12
    assert dataset.notes == (
        "train/: 36 images in 3 classes (12 to 12 each), 32x32.",
        "train/: Classes: 0 = class0 (12 files), 1 = class1 (12 files), 2 = class2 (12 files).",
        "test/: 60 images in 3 classes (20 to 20 each), 32x32.",
        "test/: Classes: 0 = class0 (20 files), 1 = class1 (20 files), 2 = class2 (20 files).",
    )


@pytest.mark.parametrize(
    ("train", "test"), [("training", "testing"), ("Train", "Test"), ("TRAIN", "val"), ("train", "Validation")]
)
def test_the_parts_of_a_tree_have_other_names_too(small_tree, tmp_path, train, test):
    """As MNIST's and GTSRB's PNG trees have; what lies beside is left out and named."""
    for old, new in (("train", train), ("test", test)):
        shutil.copytree(small_tree / old, tmp_path / "tree" / new)
    shutil.copytree(small_tree / "test" / "class0", tmp_path / "tree" / "Meta")
    dataset, same = data.load("folder", str(tmp_path / "tree")), data.load("folder", str(small_tree))
    assert dataset.classes == ("class0", "class1", "class2") and dataset.fingerprint == same.fingerprint
    assert dataset.notes[-1] == "Folders beside these were left out: Meta."


def test_of_several_test_folders_the_first_name_is_taken(small_tree, tmp_path):
    for name in ("train", "test"):
        shutil.copytree(small_tree / name, tmp_path / "tree" / name)
    shutil.copytree(small_tree / "train", tmp_path / "tree" / "val")
    dataset = data.load("folder", str(tmp_path / "tree"))
    assert dataset.fingerprint == data.load("folder", str(small_tree)).fingerprint
    assert dataset.notes[-1] == "Folders beside these were left out: val."


def test_a_class_may_be_called_train(class_folder):
    tree = class_folder() / "test"
    (tree / "class1").rename(tree / "train")
    assert data.load("folder", str(tree)).classes == ("class0", "class2", "train")


def test_folders_of_classes_are_not_taken_for_classes(small_tree, tmp_path):
    for old, new in (("train", "one"), ("test", "two")):
        shutil.copytree(small_tree / old, tmp_path / "tree" / new)
    with pytest.raises(ValueError, match=r"the folder 'one' holds folders \(class0, class1, class2\) and no images;"):
        data.load("folder", str(tmp_path / "tree"))


def test_numbered_classes_are_in_the_order_of_their_numbers(class_folder, tmp_path):
    tree = class_folder(classes=12, train=3, test=30)
    for part in ("train", "test"):
        for k, folder in enumerate(sorted((tree / part).iterdir())):
            folder.rename(tree / part / str(k))
    assert data.load("folder", str(tree)).classes == tuple(map(str, range(12)))
    (tree / "train" / "3").rename(tree / "train" / "three")
    (tree / "test" / "3").rename(tree / "test" / "three")
    assert data.load("folder", str(tree)).classes[:4] == ("0", "1", "10", "11"), "as text, if one is no number"


def test_ten_classes_in_a_folder(class_folder):
    dataset = data.load("folder", str(class_folder(classes=10, train=3, test=30)))
    assert len(dataset.classes) == 10 and len(dataset.train) == 30 and len(dataset.modeling) == 240


def test_a_folder_of_classes_alone_is_halved_by_the_seed(small_tree):
    loaded = [data.load("folder", str(small_tree / "test"), split_seed=seed) for seed in (0, 0, 1)]
    first = loaded[0]
    assert len(first.train) == 30 and len(first.modeling) + len(first.evaluation) == 30
    images = torch.cat([first.train.images, first.modeling.images, first.evaluation.images]).flatten(1)
    assert len(images.unique(dim=0)) == 60, "disjoint"
    assert first.fingerprint == loaded[1].fingerprint != loaded[2].fingerprint
    assert first.notes == (
        "60 images in 3 classes (20 to 20 each), 32x32.",
        "Classes: 0 = class0 (20 files), 1 = class1 (20 files), 2 = class2 (20 files).",
    )


@pytest.mark.parametrize("size", [16, 48, (40, 20)])
def test_images_of_another_size_are_resized(class_folder, size):
    dataset = data.load("folder", str(class_folder(size=size)), image_size=24)
    assert dataset.train.images.shape == (36, 3, 24, 24)
    assert "train/: 36 images had another size and were resized to 24x24." in dataset.notes


def test_a_resized_image_of_one_color_keeps_it(tmp_path):
    Image.new("RGB", (50, 31), (10, 200, 30)).save(tmp_path / "one.png")
    image, changes = read_image(tmp_path / "one.png", 24)
    assert torch.equal(image, torch.tensor([10, 200, 30], dtype=torch.uint8)[:, None, None].expand(3, 24, 24))
    assert len(changes) == 2 and "resized to 24x24" in changes[0] and "not square" in changes[1]


# --- what the store keeps ----------------------------------------------------------------------------------


def test_a_changed_image_is_read_again(class_folder):
    tree = class_folder()
    before = data.load("folder", str(tree))
    Image.new("RGB", (32, 32), (1, 2, 3)).save(tree / "train" / "class0" / "000.png")
    after = data.load("folder", str(tree))
    assert after.fingerprint != before.fingerprint
    assert after.train.images[0, :, 0, 0].tolist() == [1, 2, 3]


def to_bmp(tree, change=lambda pixels: pixels):
    """Make every image of the tree a bitmap with a modification time of 0: archives and copies leave such files."""
    for file in list(tree.rglob("*.png")):
        Image.fromarray(change(np.array(Image.open(file)))).save(file.with_suffix(".bmp"))
        file.unlink()
    for file in tree.rglob("*.bmp"):
        os.utime(file, (0, 0))
    return tree


def test_another_image_of_equal_name_size_and_time_is_read_again(class_folder, empty_store):
    tree = to_bmp(class_folder())
    before, file = data.load("folder", str(tree)), tree / "train" / "class0" / "000.bmp"
    size = file.stat().st_size
    Image.new("RGB", (32, 32), (1, 2, 3)).save(file)
    os.utime(file, (0, 0))
    assert file.stat().st_size == size and file.stat().st_mtime == 0
    after = data.load("folder", str(tree))
    assert after.train.images[0, :, 0, 0].tolist() == [1, 2, 3]
    assert after.fingerprint != before.fingerprint


def test_two_trees_of_equal_names_sizes_and_times_are_told_apart(class_folder, empty_store):
    clean, inverted = to_bmp(class_folder("clean")), to_bmp(class_folder("inverted"), lambda pixels: 255 - pixels)
    one, two = data.load("folder", str(clean)), data.load("folder", str(inverted))
    assert torch.equal(two.train.images, 255 - one.train.images) and one.fingerprint != two.fingerprint
    assert np.allclose(np.add(one.mean, two.mean), 1, atol=1e-3)


def test_unchanged_images_are_decoded_once_and_keep_their_notes(class_folder, empty_store, monkeypatch):
    tree = class_folder(size=40)
    (tree / "test" / "class1" / "005.png").write_bytes(b"")
    (tree / "test" / "class1" / "more.heic").write_bytes(b"?")
    first = data.load("folder", str(tree))
    moved = tree.rename(tree.with_name("moved"))
    for file in moved.rglob("*.png"):
        os.utime(file, (1, 1))
    monkeypatch.setattr(reader, "decode", lambda *a: pytest.fail("decoded again"))
    again = data.load("folder", str(moved))
    assert again.fingerprint == first.fingerprint and again.notes == first.notes
    assert "test/: 1 files could not be read and were left out: class1/005.png." in again.notes
    assert "test/: Files with other endings were left out: 1 .heic." in again.notes


def test_a_class_that_is_another_after_renaming_is_not_taken_from_the_store(class_folder, empty_store):
    tree = class_folder()
    before = data.load("folder", str(tree)).train
    for part in ("train", "test"):
        (tree / part / "class0").rename(tree / part / "class9")
    dataset = data.load("folder", str(tree))
    assert dataset.classes == ("class1", "class2", "class9")
    assert torch.equal(dataset.train.images[dataset.train.labels == 2], before.images[before.labels == 0])


# --- one reader for runs and scans -------------------------------------------------------------------------


def deep(pixels, file):
    """Gray of 16 bits."""
    Image.fromarray(pixels.astype(np.uint16) * 257).save(file)


def icon(pixels, file):
    """Black ink on a transparent ground."""
    ink = np.zeros((*pixels.shape, 4), np.uint8)
    ink[..., 3] = 255 - pixels
    Image.fromarray(ink).save(file)


def floating(pixels, file):
    """Numbers in [0, 1]."""
    Image.fromarray(pixels.astype(np.float32) / 255).save(file)


@pytest.mark.parametrize(
    ("write", "ending", "note"),
    [
        (deep, "png", "had more than 8 bits a channel and were reduced to 8"),
        (icon, "png", "were transparent in part and were put on white"),
        (floating, "tif", "had more than 8 bits a channel and were reduced to 8"),
    ],
)
def test_runs_and_scans_read_the_same_pixels(tmp_path, write, ending, note):
    rng = np.random.default_rng(0)
    grays = rng.integers(0, 256, (60, 32, 32), np.uint8)
    for i, gray in enumerate(grays):
        (tmp_path / "images" / "cat").mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / "dog").mkdir(exist_ok=True)
        write(gray, tmp_path / "images" / ("cat", "dog")[i // 30] / f"{i:02}.{ending}")
    scan = read_images(tmp_path / "images")
    assert torch.equal(scan.split.images, torch.from_numpy(grays)[:, None].expand(-1, 3, -1, -1))
    dataset = data.load("folder", str(tmp_path / "images"))
    parts = (dataset.train, dataset.modeling, dataset.evaluation)
    images, labels = (torch.cat([getattr(part, name) for part in parts]) for name in ("images", "labels"))
    by_pixels = {image.numpy().tobytes(): int(label) for image, label in zip(images, labels, strict=True)}
    expected = zip(scan.split.images, scan.split.labels, strict=True)
    assert by_pixels == {image.numpy().tobytes(): int(label) for image, label in expected} and len(by_pixels) == 60
    assert f"60 images {note}." in dataset.notes and f"60 images {note}." in scan.notes


# --- what is refused or left out ---------------------------------------------------------------------------


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="data_dir.*absent"):
        data.load("folder", str(tmp_path / "absent"))


@pytest.mark.parametrize("cut", [0, 20, 200])
def test_a_broken_image_is_left_out_and_named(class_folder, cut):
    file = class_folder() / "test" / "class1" / "005.png"
    file.write_bytes(file.read_bytes()[:cut])
    dataset = data.load("folder", str(file.parents[2]))
    assert len(dataset.modeling) + len(dataset.evaluation) == 59
    assert "test/: 1 files could not be read and were left out: class1/005.png." in dataset.notes


@pytest.mark.parametrize("cut", [0, 20, 200])
def test_many_broken_images_are_refused_and_one_is_named(class_folder, cut):
    tree = class_folder() / "test"
    for file in sorted((tree / "class1").iterdir())[5:12]:
        file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(ValueError, match="7 of 60 images cannot be read, the first is class1/005.png: "):
        data.load("folder", str(tree.parent))


def latin1(folder):
    (folder / os.fsdecode(b"caf\xe9.png")).write_bytes(b"")


def checkpoints(folder):
    (folder / ".ipynb_checkpoints").mkdir()
    shutil.copy(folder / "000.png", folder / ".ipynb_checkpoints" / "000.png")


ODD_FILES = {
    "resource fork": (lambda folder: (folder / "._0.png").write_bytes(b"\0\5\26\7" + bytes(99)), None),
    "empty": (lambda folder: (folder / "z.png").write_bytes(b""), "class1/z.png"),
    "broken link": (lambda folder: os.symlink("/nowhere.png", folder / "z.png"), "class1/z.png"),
    "Latin-1 name": (latin1, r"class1/caf\udce9.png"),
    "huge": (lambda folder: Image.new("1", (20000, 20000)).save(folder / "z.png"), "class1/z.png"),
    "link to itself": (lambda folder: os.symlink(folder / "z.png", folder / "z.png"), "class1/z.png"),
    "checkpoints": (checkpoints, None),
    "a folder with an image's name": (lambda folder: (folder / "x.png").mkdir(), None),
}


@pytest.mark.parametrize("kind", ODD_FILES)
def test_one_odd_file_stops_nothing(class_folder, kind):
    add, name = ODD_FILES[kind]
    tree = class_folder()
    add(tree / "train" / "class1")
    dataset = data.load("folder", str(tree))
    assert len(dataset.train) == 36
    left_out = [note for note in dataset.notes if "left out" in note]
    assert left_out == ([f"train/: 1 files could not be read and were left out: {name}."] if name else [])


def test_images_that_are_all_equal_are_refused(class_folder):
    tree = class_folder()
    for file in (tree / "train").rglob("*.png"):
        Image.new("RGB", (32, 32)).save(file)
    with pytest.raises(ValueError, match="all 36 images have equal pixels; expected images that differ"):
        data.load("folder", str(tree))


def test_animations_with_equal_first_frames_are_refused(class_folder):
    tree = class_folder()
    for file in list((tree / "train").rglob("*.png")):
        Image.new("RGB", (32, 32)).save(file.with_suffix(".gif"), save_all=True, append_images=[Image.open(file)])
        file.unlink()
    with pytest.raises(
        ValueError, match=r"equal pixels \(36 images were animations, of which the first frame was taken\)"
    ):
        data.load("folder", str(tree))


def test_a_pipe_is_not_opened(class_folder):
    tree = class_folder()
    os.mkfifo(tree / "train" / "class1" / "z.png")
    assert (
        "train/: Files with other endings were left out: 1 .png that are no files."
        in data.load("folder", str(tree)).notes
    )


def test_an_empty_class_is_named(class_folder):
    tree = class_folder()
    (tree / "train" / "vacant").mkdir()
    with pytest.raises(ValueError, match="vacant"):
        data.load("folder", str(tree))
    (tree / "test" / "vacant").mkdir()
    with pytest.raises(ValueError, match=r"too few images in vacant \(0\); expected at least 1 in every class"):
        data.load("folder", str(tree))


@pytest.mark.parametrize("part", ["train", "test"])
def test_train_and_test_with_other_classes_are_refused(class_folder, part):
    tree = class_folder()
    shutil.copytree(tree / part / "class0", tree / part / "odd")
    with pytest.raises(ValueError, match="differ in classes .*odd"):
        data.load("folder", str(tree))


@pytest.mark.parametrize("part", ["train", "test"])
def test_train_without_test_is_refused(class_folder, part):
    tree = class_folder()
    shutil.rmtree(tree / part)
    with pytest.raises(ValueError, match="both train/ and test/"):
        data.load("folder", str(tree))


def test_one_class_is_too_few(class_folder):
    with pytest.raises(ValueError, match="1 class folders; expected two or more"):
        data.load("folder", str(class_folder(classes=1)))


def test_a_folder_with_too_few_test_images_is_refused(class_folder):
    with pytest.raises(ValueError, match="too few images"):
        data.load("folder", str(class_folder(classes=5, test=1)))


def test_a_side_that_no_image_may_have_is_refused_before_anything_is_read(class_folder, monkeypatch):
    monkeypatch.setattr(store, "digest", lambda file: pytest.fail("read"))
    with pytest.raises(ValueError, match="image_size = 2000: expected a side of 8 to 1024 pixels"):
        data.load("folder", str(class_folder()), image_size=2000)
