"""The files of a tree of class folders: which folders are classes, in which order, and which files hold images."""

import hashlib
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from mesa_lib import store
from mesa_lib.data.decoding import ENDINGS
from mesa_lib.store import paths
from mesa_lib.store.sanitize import sanitize, sanitize_list

#: files in a class folder, and folders in each other
MAX_FILES, MAX_DEPTH = 200_000, 20
#: names of classes in a note
SHOWN_CLASSES = 12


@dataclass(frozen=True)
class ImageFiles:
    """The image files below the class folders of `where`, each with its label; none was opened yet."""

    where: Path
    classes: tuple[str, ...]
    files: tuple[tuple[Path, int], ...]
    notes: tuple[str, ...] = ()

    def name(self, file: Path) -> str:
        """Return what messages call the file: its path below the tree, with the class folder."""
        return file.relative_to(self.where).as_posix()

    def content_hash(self) -> str:
        """Return a hash of the classes, and of the relative path and the bytes of every file."""
        listing = hashlib.sha256(repr(self.classes).encode())
        for file, _ in self.files:
            try:
                content = store.digest(file)
            except OSError:
                content = "unreadable"
            listing.update(os.fsencode(self.name(file)) + f"\0{content}\n".encode())
        return listing.hexdigest()


def check(holds: bool, where: Path, problem: str, expected: str) -> None:
    """Raise ValueError unless this holds; the message names the folder, the problem and what was expected."""
    if not holds:
        raise ValueError(f"{sanitize(paths.display_path(where))}: {problem}; expected {expected}")


def list_image_files(where: Path, classes: tuple[str, ...] | None = None) -> ImageFiles:
    """Return the image files below the class folders; arguments and errors as in `read_class_folder`."""
    if not where.is_dir():
        name = sanitize(paths.display_path(where))
        raise FileNotFoundError(f"images = '{name}': no such folder; expected one with a folder for each class")
    names = class_names(where, classes)
    _check_class_folders(where, names)
    others: Counter[str] = Counter()
    files = tuple((file, k) for k, name in enumerate(names) for file in image_files(where / name, others))
    ignored = ", ".join(f"{count} {sanitize(ending) or 'without'}" for ending, count in others.most_common(3))
    unread = f" (endings that are not read: {ignored})" if ignored else ""
    check(bool(files), where, f"no images{unread}", f"files that end in {', '.join(sorted(ENDINGS))}")
    counts = Counter(label for _, label in files)
    listed = sanitize_list([f"{k} = {name} ({counts[k]} files)" for k, name in enumerate(names)], SHOWN_CLASSES)
    notes = [f"Classes: {listed}."]
    notes += [f"Files with other endings were left out: {ignored}."] if ignored else []
    return ImageFiles(where, names, files, tuple(notes))


def class_names(where: Path, classes: tuple[str, ...] | None = None) -> tuple[str, ...]:
    """Return the names of the class folders, in the order of `classes`; hidden folders are left out.

    Raises:
        ValueError: if `classes` names others, a name is no text, or there are fewer than two.
    """
    names = tuple(sorted(d.name for d in where.iterdir() if d.is_dir() and not d.name.startswith(".")))
    if all(name.isascii() and name.isdecimal() for name in names):
        names = tuple(sorted(names, key=lambda name: (int(name), name)))
    for name in names:
        check(not any("\ud800" <= c <= "\udfff" for c in name), where, f"folder '{sanitize(name)}'", "a name in UTF-8")
    if classes is not None and (set(classes) != set(names) or len(classes) != len(names)):
        differing = sanitize_list(sorted(set(classes) ^ set(names))) or "a name twice"
        raise ValueError(f"classes = {sanitize_list(classes, 10)}: expected the folders' names; differs in {differing}")
    check(len(names) > 1, where, f"{len(names)} class folders", "two or more")
    return tuple(classes or names)


def _check_class_folders(where: Path, names: tuple[str, ...]) -> None:
    """Raise ValueError if one of them holds several folders and no image: then it is no class, but holds classes."""
    for name in names:
        visible = [path for path in sorted((where / name).iterdir()) if not path.name.startswith(".")]
        folders = [path.name for path in visible if path.is_dir() and not path.is_symlink()]
        images = any(path.suffix.lower() in ENDINGS and path.name not in folders for path in visible)
        held = f"the folder '{sanitize(name)}' holds folders ({sanitize_list(folders)}) and no images"
        check(
            images or len(folders) < 2, where, held, "a folder for each class, or train/ and test/ with the same ones"
        )


def image_files(folder: Path, others: Counter[str]) -> list[Path]:
    """Return all image files below the folder, in the order of their names.

    Links to folders are not followed and hidden files are left out. A link to nothing counts as a file, so that it is
    named among those that cannot be read.

    Args:
        folder: the folder of a class.
        others: counts the endings of everything else; changed in place.

    Raises:
        ValueError: if the folders are nested too deep, or the files too many.
    """
    files, folders = [], [(folder, 1)]
    while folders:
        location, depth = folders.pop()
        check(depth <= MAX_DEPTH, folder, f"folders nested more than {MAX_DEPTH} deep", "images in class folders")
        with os.scandir(location) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                ending = Path(entry.name).suffix.lower()
                if entry.is_dir(follow_symlinks=False):
                    folders.append((Path(entry.path), depth + 1))
                elif ending not in ENDINGS:
                    others[ending] += 1
                elif os.path.isfile(entry.path) or not os.path.exists(entry.path):
                    files.append(Path(entry.path))
                else:  # a pipe, or a link to a folder
                    others[f"{ending} that are no files"] += 1
        check(len(files) <= MAX_FILES, folder, f"more than {MAX_FILES:,} files", "some hundred images for each class")
    return sorted(files)
