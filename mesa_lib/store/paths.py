"""The folders of the project: the repository, the data, the runs.

Notebooks hold no relative paths, since nbval and papermill start them in different folders. An installed package has no
repository: parameter files and notebooks are then missing, and runs and data go to the current folder.
"""

import os
from pathlib import Path


def root() -> Path:
    """Return the repository's top folder: `MESA_ROOT`, else the folder around the package, else the current folder."""
    if os.environ.get("MESA_ROOT"):
        return Path(os.environ["MESA_ROOT"]).expanduser()
    checkout = Path(__file__).resolve().parents[2]
    return checkout if (checkout / "notebooks").is_dir() else Path.cwd()


def repository(purpose: str) -> Path:
    """Return the repository's top folder.

    Args:
        purpose: what needs the repository, such as `notebook '01'`; the message begins with it.

    Raises:
        ValueError: if the package was installed without its repository.
    """
    if not (root() / "notebooks").is_dir():
        raise ValueError(
            f"{purpose}: needs the repository, where the notebooks, parameter files and results lie; an installed "
            "mesa_lib is without them: clone the repository and run there, or name its folder with MESA_ROOT"
        )
    return root()


def runs() -> Path:
    """Return the folder of all outputs (models, distributions, reports): `MESA_RUNS`, else `runs/` of the root."""
    return Path(os.environ.get("MESA_RUNS") or root() / "runs").expanduser()


def find(path: str | Path) -> Path:
    """Return a path that a user named: relative to the current folder if it exists there, else to the root."""
    path = Path(path).expanduser()
    return path if path.exists() else root() / path


def data_folder(folder: str = "") -> Path:
    """Return the data folder: `folder` unless it is empty, else `MESA_DATA`, else `data/` of the root."""
    if folder:
        return find(folder)
    return Path(os.environ.get("MESA_DATA") or root() / "data").expanduser()


def display_path(path: Path | str) -> str:
    """Return a path as it may be shown in a notebook: relative to the root or to the runs, never absolute."""
    path = Path(path).absolute()
    for base, prefix in ((root(), ""), (runs(), "runs/")):
        if path.is_relative_to(base.absolute()):
            return prefix + path.relative_to(base.absolute()).as_posix()
    return f".../{path.name}"


def find_named(text: str, kind: str, folder: Path) -> Path:
    """Return a file by its path, or by its name alone if it lies in `folder` as NAME.yaml.

    Args:
        text: path or name.
        kind: of file, for messages: `parameter file`, `sweep`.
        folder: a folder of the repository.

    Raises:
        ValueError: if there is no such file; lists the names, or says that the repository is missing.
    """
    for candidate in (Path(text), root() / text, folder / f"{text}.yaml"):
        if candidate.is_file():
            return candidate
    repository(f"{kind} {text!r}")
    names = ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))
    raise ValueError(f"{kind} {text!r}: not found; expected a path, or one of {names}")


def parameter_file(text: str) -> Path:
    """Return a parameter file by its path, or by its name alone if it lies in `params/`; ValueError as `find_named`."""
    return find_named(text, "parameter file", root() / "params")
