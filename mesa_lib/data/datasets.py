"""Data sets by name, each as three pairs of tensors: training, modeling and evaluation images with labels.

`digits` comes with scikit-learn and needs no network. `cifar10` and `cifar100` are looked for on the disk before
anything is downloaded. `folder` is any tree of class folders.
"""

from functools import cache

from mesa_lib.data.cifar import cifar
from mesa_lib.data.class_folders import list_image_files
from mesa_lib.data.digits import MODELING_SHARE as DIGITS_MODELING_SHARE
from mesa_lib.data.digits import digits
from mesa_lib.data.folder import find_parts, folder
from mesa_lib.data.splits import Dataset, channel_statistics, fingerprint, split
from mesa_lib.store import paths

NAMES = ("digits", "cifar10", "cifar100", "folder")
#: part of the test images that is for modeling, as in the paper; the rest is for evaluation
MODELING_SHARE = 0.8


@cache
def class_names(name: str, data_dir: str = "") -> tuple[str, ...]:
    """Return the names of the classes in the order of their labels, as `load` does; of a folder without its images.

    Args and errors: as in `load`.
    """
    if name != "folder":
        return load(name, data_dir).classes
    where = paths.data_folder(data_dir)
    parts = find_parts(where)[0] if where.is_dir() else []
    return list_image_files(parts[0] if parts else where).classes


def load(name: str, data_dir: str = "", split_seed: int = 0, image_size: int = 32) -> Dataset:
    """Return the data set `name`, its test images split into modeling and evaluation images.

    Args:
        name: one of `NAMES`.
        data_dir: folder that holds the files (default: `MESA_DATA`, else `data/` in the repository); for `folder`,
            the tree itself.
        split_seed: seed of every division of images into splits.
        image_size: side in pixels to which images of `digits` and `folder` are resized.

    Raises:
        ValueError: if the name is unknown, or the files cannot be used.
        FileNotFoundError: if there are no files and none could be downloaded.
    """
    if name not in NAMES:
        raise ValueError(f"dataset = {name!r}: expected one of {', '.join(NAMES)}")
    if name.startswith("cifar") and image_size != 32:
        raise ValueError(f"image_size = {image_size}: {name} images are 32x32; only digits and folder resize")
    share = MODELING_SHARE
    if name == "digits":
        source, share = digits(split_seed, image_size), DIGITS_MODELING_SHARE
    elif name == "folder":
        source = folder(paths.data_folder(data_dir), image_size, split_seed)
    else:
        source = cifar(name, paths.data_folder(data_dir))
    modeling, evaluation = split(source.test, share, split_seed, len(source.classes))
    mean, std = channel_statistics(source.train.images)
    mark = fingerprint(source.train, modeling, evaluation)
    return Dataset(name, source.train, modeling, evaluation, source.classes, mean, std, mark, source.notes)
