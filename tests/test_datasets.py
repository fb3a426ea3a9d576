"""Data sets by name: digits and CIFAR."""

import hashlib
import os
import tarfile

import pytest
import torch
import torchvision

from mesa_lib import data


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


def test_an_unknown_data_set_is_refused_by_name():
    with pytest.raises(ValueError, match="dataset = 'mnist'"):
        data.load("mnist")


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

    dataset, raw = data.load("digits", image_size=8), load_digits()
    ours = [
        (label, image[0].flatten().tolist())
        for part in (dataset.train, dataset.modeling, dataset.evaluation)
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


# --- CIFAR -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_is_read_from_class_folders(class_folder, name):
    tree = class_folder(name)
    dataset = data.load(name, str(tree.parent))
    assert dataset.name == name and len(dataset.train) == 36 and dataset.image_size == (32, 32)


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
    with pytest.raises(ValueError, match="different from the official files: cifar-10-python.tar.gz; expected"):
        data.load("cifar10", str(tmp_path))


def test_cifar_files_of_the_user_are_never_written_over(tmp_path, monkeypatch):
    """A server has the official archive; in the user's folder one batch is another and one is missing."""
    names = [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch", "batches.meta"]
    served, own = tmp_path / "served" / "cifar-10-batches-py", tmp_path / "data" / "cifar-10-batches-py"
    for folder in (served, own):
        folder.mkdir(parents=True)
        for name in names:
            (folder / name).write_bytes(name.encode())
    archive = tmp_path / "served" / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(served, served.name)

    def md5(name: str) -> str:
        return hashlib.md5((served / name).read_bytes()).hexdigest()

    official = torchvision.datasets.CIFAR10
    monkeypatch.setattr(official, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    monkeypatch.setattr(official, "train_list", [[name, md5(name)] for name in names[:5]])
    monkeypatch.setattr(official, "test_list", [["test_batch", md5("test_batch")]])
    monkeypatch.setattr(official, "meta", official.meta | {"md5": md5("batches.meta")})
    monkeypatch.setenv("MESA_CIFAR10_URL", archive.as_uri())
    (own / "data_batch_2").write_bytes(b"mine")
    (own / "test_batch").unlink()
    with pytest.raises(ValueError, match="different from the official files: data_batch_2, test_batch; expected all"):
        data.load("cifar10", str(tmp_path / "data"))
    assert (own / "data_batch_2").read_bytes() == b"mine" and not (own / "test_batch").exists()
    assert sorted(file.name for file in (tmp_path / "data").iterdir()) == ["cifar-10-batches-py"]


def test_cifar_is_not_resized():
    with pytest.raises(ValueError, match="image_size = 64"):
        data.load("cifar10", image_size=64)
