"""Shared by all tests: a temporary store, small image folders, toy data, and the skipping of GPU tests."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mesa_lib.data import Split


@pytest.fixture(scope="session", autouse=True)
def temporary_runs(tmp_path_factory):
    """Keep tests away from the repository's runs/: the store is an empty temporary folder.

    (MESA_TEST_RUNS names a folder to use instead, so that `make test` trains the models of the notebooks once.)
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MESA_RUNS", os.environ.get("MESA_TEST_RUNS") or str(tmp_path_factory.mktemp("runs")))
        patch.setenv("MESA_BATCH", "1")
        patch.delenv("MESA_PROGRESS", raising=False)
        yield


@pytest.fixture
def empty_store(tmp_path, monkeypatch) -> Path:
    """An empty store for this test alone."""
    folder = tmp_path / "empty-store"
    monkeypatch.setenv("MESA_RUNS", str(folder))
    return folder


def write_class_folder(
    root: Path, classes: int = 3, train: int = 12, test: int = 20, size: int | tuple[int, int] = 32, seed: int = 0
) -> Path:
    """`train/<class>/*.png` and `test/<class>/*.png`: each class a base color under noise, so it can be learned.

    `size`: side, or (width, height). Twenty test images a class are enough for three classes, thirty for ten.
    """
    rng = np.random.RandomState(seed)
    width, height = (size, size) if isinstance(size, int) else size
    base = rng.randint(40, 216, (classes, 3))
    for part, count in (("train", train), ("test", test)):
        for label in range(classes):
            folder = root / part / f"class{label}"
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = base[label] + rng.randint(-40, 40, (height, width, 3))
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i:03}.png")
    return root


@pytest.fixture
def class_folder(tmp_path):
    """A function that writes class folders: `class_folder(classes=10, test=30)` -> the path of the tree."""
    return lambda name="images", **options: write_class_folder(tmp_path / name, **options)


@pytest.fixture(scope="session")
def small_tree(tmp_path_factory) -> Path:
    """One class-folder tree for all tests that only read it: 3 classes, 12 training and 20 test images each."""
    return write_class_folder(tmp_path_factory.mktemp("tree") / "images")


@pytest.fixture(scope="session")
def toy() -> Split:
    """96 images of 16x16 in two classes: dark ones and bright ones, with noise."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(96) % 2
    noise = torch.randint(0, 100, (96, 3, 16, 16), generator=rng)
    return Split((noise + 100 * labels[:, None, None, None]).to(torch.uint8), labels)


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and torch finds none here"))
