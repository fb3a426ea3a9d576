"""Where things lie: the repository, the data folder, the folder of runs.

Notebooks hold no relative paths, since nbval and papermill start them in different folders.
"""

import os
from pathlib import Path


def root() -> Path:
    """The repository's top folder (`MESA_ROOT` overrides it)."""
    return Path(os.environ.get("MESA_ROOT") or Path(__file__).resolve().parents[1])


def runs() -> Path:
    """The folder of everything that is made: models, distributions, reports (`MESA_RUNS` overrides it)."""
    return Path(os.environ.get("MESA_RUNS") or root() / "runs")


def find(path: str | Path) -> Path:
    """A path that a person named: relative to the current folder if it is there, else to the repository."""
    path = Path(path).expanduser()
    return path if path.exists() else root() / path


def data_folder(folder: str = "") -> Path:
    """The data folder: `folder` if given, else `MESA_DATA`, else `data/` of the repository."""
    if folder:
        return find(folder)
    return Path(os.environ.get("MESA_DATA") or root() / "data")


def display_path(path: Path | str) -> str:
    """A path as it may be printed in a notebook: relative to the repository or to the runs, never absolute."""
    path = Path(path).absolute()
    for base, prefix in ((root(), ""), (runs(), "runs/")):
        if path.is_relative_to(base.absolute()):
            return prefix + path.relative_to(base.absolute()).as_posix()
    return f".../{path.name}"


def find_named(text: str, what: str, folder: Path) -> Path:
    """A file by its path, or by its name alone when it lies in `folder` as NAME.yaml; ValueError names those there."""
    for candidate in (Path(text), root() / text, folder / f"{text}.yaml"):
        if candidate.is_file():
            return candidate
    known = ", ".join(sorted(f.stem for f in folder.glob("*.yaml")))
    raise ValueError(f"{what} {text!r}: not found; expected a path, or one of {known}")


def parameter_file(text: str) -> Path:
    """A parameter file by its path, or by its name alone when it lies in params/."""
    return find_named(text, "parameter file", root() / "params")
