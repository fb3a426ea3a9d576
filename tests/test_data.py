import dataclasses
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from mesa_lib import data
from mesa_lib.data import Split


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


# --- splits ----------------------------------------------------------------------------------------------


def numbered(n: int = 1000, classes: int = 10) -> Split:
    """Images that carry their own number."""
    return Split(torch.arange(n).reshape(n, 1, 1, 1), torch.arange(n) % classes)


def test_a_split_is_disjoint_and_loses_nothing():
    modeling, evaluation = data.split(numbered(), 0.8, 0, 10)
    assert (len(modeling), len(evaluation)) == (800, 200)
    assert sorted(modeling.images.flatten().tolist() + evaluation.images.flatten().tolist()) == list(range(1000))
    for part in (modeling, evaluation):
        assert torch.equal(part.images.flatten() % 10, part.labels), "labels stay with their images"


def test_a_split_is_fixed_by_its_seed():
    first, again, other = (data.split(numbered(), 0.8, seed, 10)[0].images for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first.sort(0).values, other.sort(0).values)


@pytest.mark.parametrize(("n", "part"), [(40, "evaluation"), (9, "modeling")])
def test_too_few_images_for_a_split_are_refused(n, part):
    with pytest.raises(ValueError, match=f"too few images: {n} test images leave .* for {part}.*of 10 classes"):
        data.split(numbered(n), 0.8, 0, 10)


# --- digits ----------------------------------------------------------------------------------------------


def test_digits_have_800_597_400_images(digits):
    assert [len(s) for s in (digits.train, digits.modeling, digits.evaluation)] == [800, 597, 400]
    for part in (digits.train, digits.modeling, digits.evaluation):
        assert part.images.shape == (len(part), 3, 32, 32) and part.images.dtype == torch.uint8
        assert part.labels.unique().tolist() == list(range(10))
    assert digits.classes == tuple("0123456789") and digits.image_size == (32, 32)


def test_digits_are_all_there_once():
    """At their own size, the three splits together are the 1,797 images of scikit-learn with their labels."""
    from sklearn.datasets import load_digits

    found, raw = data.load("digits", image_size=8), load_digits()
    ours = [
        (label, image[0].flatten().tolist())
        for part in (found.train, found.modeling, found.evaluation)
        for image, label in zip(part.images, part.labels.tolist(), strict=True)
    ]
    theirs = torch.from_numpy(raw.images / 16 * 255).float().round().int().flatten(1).tolist()
    assert sorted(ours) == sorted(zip(raw.target.tolist(), theirs, strict=True))


def test_split_seed_decides_what_is_modeling(digits):
    again, other = data.load("digits"), data.load("digits", split_seed=1)
    assert again.fingerprint == digits.fingerprint and torch.equal(again.modeling.images, digits.modeling.images)
    assert other.fingerprint != digits.fingerprint


def test_digits_can_be_resized():
    assert data.load("digits", image_size=20).image_size == (20, 20)


def test_mean_and_std_are_those_of_the_training_images(digits):
    pixels = digits.train.images.double() / 255
    assert np.allclose(digits.mean, pixels.mean((0, 2, 3)), atol=1e-4)
    assert np.allclose(digits.std, pixels.std((0, 2, 3), correction=0), atol=1e-4)


def test_channel_statistics_tell_channels_apart_and_cross_batches():
    images = torch.zeros(5001, 3, 1, 2, dtype=torch.uint8)
    images[:, 0] = 255
    images[:, 1, :, 0] = 255
    mean, std = data.channel_statistics(images)
    assert mean == (1, 0.5, 0) and std == pytest.approx((1e-4, 0.5, 1e-4), abs=1e-4)


def test_the_fingerprint_changes_with_one_pixel_or_label(digits):
    part = digits.evaluation
    pixel, label = part.images.clone(), part.labels.clone()
    pixel[-1, 2, 31, 31] += 1
    label[-1] = (label[-1] + 1) % 10
    marks = {data.fingerprint(part), data.fingerprint(Split(pixel, part.labels))}
    marks.add(data.fingerprint(Split(part.images, label)))
    assert len(marks) == 3
    assert data.fingerprint(part) == data.fingerprint(Split(part.images.clone(), part.labels.clone()))


def test_a_data_set_cannot_be_changed(digits):
    with pytest.raises(dataclasses.FrozenInstanceError):
        digits.evaluation = digits.train


def test_an_unknown_data_set_is_refused_by_name():
    with pytest.raises(ValueError, match="dataset = 'mnist'"):
        data.load("mnist")


# --- class folders ---------------------------------------------------------------------------------------


def test_a_folder_with_train_and_test(small_tree):
    found = data.load("folder", str(small_tree))
    assert [len(s) for s in (found.train, found.modeling, found.evaluation)] == [36, 48, 12]
    assert found.classes == ("class0", "class1", "class2")
    first = np.array(Image.open(small_tree / "train" / "class0" / "000.png"))
    assert torch.equal(found.train.images[0], torch.from_numpy(first).permute(2, 0, 1))
    assert found.train.labels.tolist() == [0] * 12 + [1] * 12 + [2] * 12


def test_ten_classes_in_a_folder(class_folder):
    found = data.load("folder", str(class_folder(classes=10, train=3, test=30)))
    assert len(found.classes) == 10 and len(found.train) == 30 and len(found.modeling) == 240


def test_a_folder_of_classes_alone_is_halved_by_the_seed(small_tree):
    fit_and_holdout = [data.load("folder", str(small_tree / "test"), split_seed=seed) for seed in (0, 0, 1)]
    first = fit_and_holdout[0]
    assert len(first.train) == 30 and len(first.modeling) + len(first.evaluation) == 30
    images = torch.cat([first.train.images, first.modeling.images, first.evaluation.images]).flatten(1)
    assert len(images.unique(dim=0)) == 60, "disjoint"
    assert first.fingerprint == fit_and_holdout[1].fingerprint != fit_and_holdout[2].fingerprint


@pytest.mark.parametrize("size", [16, 48, (40, 20)])
def test_images_of_another_size_are_resized(class_folder, size):
    found = data.load("folder", str(class_folder(size=size)), image_size=24)
    assert found.train.images.shape == (36, 3, 24, 24)


def test_a_resized_image_of_one_color_keeps_it(tmp_path):
    Image.new("RGB", (50, 31), (10, 200, 30)).save(tmp_path / "one.png")
    found = data.read_image(tmp_path / "one.png", 24)
    assert torch.equal(found, torch.tensor([10, 200, 30], dtype=torch.uint8)[:, None, None].expand(3, 24, 24))


def test_a_changed_image_is_read_again(class_folder):
    tree = class_folder()
    before = data.load("folder", str(tree))
    Image.new("RGB", (32, 32), (1, 2, 3)).save(tree / "train" / "class0" / "000.png")
    after = data.load("folder", str(tree))
    assert after.fingerprint != before.fingerprint
    assert after.train.images[0, :, 0, 0].tolist() == [1, 2, 3]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="data_dir.*absent"):
        data.load("folder", str(tmp_path / "absent"))


@pytest.mark.parametrize("cut", [0, 20, 200])
def test_a_broken_image_is_named(class_folder, cut):
    file = class_folder() / "test" / "class1" / "005.png"
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(ValueError, match="005.png.*not a readable image"):
        data.load("folder", str(file.parents[2]))


def test_an_empty_class_is_named(class_folder):
    tree = class_folder()
    (tree / "train" / "vacant").mkdir()
    with pytest.raises(ValueError, match="vacant"):
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
    with pytest.raises(ValueError, match="two classes or more"):
        data.load("folder", str(class_folder(classes=1)))


def test_a_folder_with_too_few_test_images_is_refused(class_folder):
    with pytest.raises(ValueError, match="too few images"):
        data.load("folder", str(class_folder(classes=5, test=1)))


# --- CIFAR -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_is_read_from_class_folders(class_folder, name):
    tree = class_folder(name)
    found = data.load(name, str(tree.parent))
    assert found.name == name and len(found.train) == 36 and found.image_size == (32, 32)


def test_the_data_folder_may_come_from_the_environment(class_folder, monkeypatch):
    monkeypatch.setenv("MESA_DATA", str(class_folder("cifar10").parent))
    assert len(data.load("cifar10").train) == 36


@pytest.mark.parametrize(
    ("name", "file", "md5"),
    [
        ("cifar10", "cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a"),
        ("cifar100", "cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85"),
    ],
)
def test_missing_cifar_says_what_to_put_where(tmp_path, monkeypatch, name, file, md5):
    variable = f"MESA_{name.upper()}_URL"
    monkeypatch.setenv(variable, "http://127.0.0.1:9/x.tar.gz")
    with pytest.raises(FileNotFoundError) as error:
        data.load(name, str(tmp_path / "empty"))
    message = str(error.value)
    assert len(message.splitlines()) == 3
    for part in (name, file, md5, "MESA_DATA", "data_dir", variable):
        assert part in message


def test_a_broken_cifar_archive_is_not_taken(tmp_path, monkeypatch):
    monkeypatch.setenv("MESA_CIFAR10_URL", "http://127.0.0.1:9/x.tar.gz")
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(os.urandom(1000))
    with pytest.raises(FileNotFoundError, match="md5"):
        data.load("cifar10", str(tmp_path))


def test_cifar_is_not_resized():
    with pytest.raises(ValueError, match="image_size = 64"):
        data.load("cifar10", image_size=64)
