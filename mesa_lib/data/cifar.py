"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009): 50,000 training and 10,000 test images of 32x32 pixels."""

import os
from pathlib import Path

import torch

from mesa_lib.data.folder import folder
from mesa_lib.data.splits import Split, TrainAndTest
from mesa_lib.store import paths
from mesa_lib.store.sanitize import sanitize, sanitize_list


def cifar(name: str, where: Path) -> TrainAndTest:
    """Return CIFAR-10 or CIFAR-100 from the first source that is there.

    The sources, in this order: class folders `<where>/<name>/train/...`; the official folder or archive in `where`;
    a download from `MESA_CIFAR10_URL` or `MESA_CIFAR100_URL`; a download from the usual host.

    Args:
        name: `cifar10` or `cifar100`.
        where: the data folder.

    Raises:
        FileNotFoundError: if there is none and the download failed; the message says what to put where.
        ValueError: if files of the official name are there with other content: nothing is written over them.
    """
    if (where / name / "train").is_dir():
        return folder(where / name, 32, 0)
    from torchvision import datasets

    official = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    check_unchanged(official, where)
    mirror = os.environ.get(f"MESA_{name.upper()}_URL")
    source = type(official.__name__, (official,), {"url": mirror}) if mirror else official
    try:
        where.mkdir(parents=True, exist_ok=True)
        parts = [source(str(where), train=train, download=True) for train in (True, False)]
    except Exception as error:
        raise FileNotFoundError(
            f"{name} is not in {paths.display_path(where)} and could not be downloaded ({type(error).__name__}).\n"
            f"Put {official.filename} (md5 {official.tgz_md5}), or class folders {name}/train and {name}/test, "
            f"into {paths.display_path(where)},\n"
            f"or name another folder with MESA_DATA or data_dir, or a mirror with MESA_{name.upper()}_URL."
        ) from error
    splits = [Split(torch.from_numpy(p.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(p.targets)) for p in parts]
    return TrainAndTest(*splits, tuple(parts[0].classes))


def check_unchanged(official: type, where: Path) -> None:
    """Raise ValueError if the official folder or archive is in `where` with other content; a download would replace it.

    Args:
        official: torchvision's class of the data set.
        where: the data folder.
    """
    from torchvision.datasets.utils import check_integrity

    batches, archive = where / official.base_folder, where / official.filename
    if batches.exists():
        listed = [*official.train_list, *official.test_list, [official.meta["filename"], official.meta["md5"]]]
        differing = [name for name, md5 in listed if not check_integrity(str(batches / name), md5)]
    else:
        differing = [archive.name] if archive.exists() and not check_integrity(str(archive), official.tgz_md5) else []
    if differing:
        place = paths.display_path(batches if batches.exists() else archive)
        raise ValueError(
            f"{sanitize(place)}: missing or different from the official files: {sanitize_list(differing)}; expected "
            "all of them unchanged, or none (they are then downloaded). Images of your own go into class folders: "
            "dataset = 'folder'"
        )
