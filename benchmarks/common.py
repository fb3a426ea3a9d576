"""What the benchmark scripts share: arguments, and result files that a stopped script continues."""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from mesa_lib import device as devices
from mesa_lib import store
from mesa_lib.experiments import params
from mesa_lib.experiments.migration import FORMAT
from mesa_lib.store import paths


def parser(doc: str, *, params_file: str = "", sweep: str = "", parts: bool = False) -> argparse.ArgumentParser:
    """Return a parser with the arguments that scripts share.

    Args:
        doc: the script's docstring.
        params_file: default of `--params`; empty: there is no such argument.
        sweep: default of `--sweep`; empty: there is no such argument.
        parts: whether several processes may share the list of runs, by `--part`.
    """
    result = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--out", type=Path, required=True, help="JSON file of the results; continued if it exists")
    result.add_argument("--threads", type=int, help="of this process (default: PyTorch's)")
    if params_file:
        result.add_argument("--params", default=params_file, help="a file of params/ (default: %(default)s)")
    if sweep:
        result.add_argument("--sweep", default=sweep, help="a file of params/sweeps/ (default: %(default)s)")
    if parts:
        result.add_argument("--part", default="0/1", help="0/2: every second run, beginning with the first")
    return result


def start(arguments: argparse.Namespace, keep_memory: bool = True) -> None:
    """Set up this process as the arguments say; called once, at the start of a script.

    Args:
        keep_memory: whether freed memory is kept for the next step (`device.keep_memory`), as the commands do.
    """
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if keep_memory:
        devices.keep_memory()


def parameter_values(name: str) -> dict:
    """Return the values of a file of params/, not yet checked: a script adds its own before it checks them."""
    return params.read_yaml(paths.parameter_file(name))


def in_part(items: Sequence, part: str) -> list:
    """Return the items of one part of a list: `1/2` is every second item, beginning with the second."""
    first, _, step = part.partition("/")
    if not (first.isdigit() and step.isdigit() and int(first) < int(step)):
        raise ValueError(f"part = {part!r}: expected I/N with I below N, such as 0/2")
    return list(items)[int(first) :: int(step)]


class Results:
    """A JSON file of results that grows by one run, or one named entry, at a time.

    A script that was stopped continues its file. Several processes may add to one file.

    Attributes:
        file: where it lies.
        about: what the results are about; a file about anything else is written anew.
        made: the machine.
    """

    def __init__(self, file: Path, about: dict, device: str = "auto"):
        self.file, self.about = file, json.loads(json.dumps(about))
        self.made = devices.describe(devices.pick_device(device))

    def content(self) -> dict:
        """Return what the file holds, or an empty content if it holds nothing about this."""
        if self.file.is_file():
            content = json.loads(self.file.read_text())
            if all(content.get(name) == value for name, value in self.about.items()):
                return content
        return {"format": FORMAT} | self.about | {"made": self.made}

    def entries(self, section: str) -> dict:
        """Return a section of named entries; empty if there is none yet."""
        return self.content().get(section, {})

    def keep(self, section: str, name: str, entry: Any) -> None:
        """Add or replace an entry of a section."""
        self.update(lambda content: content.setdefault(section, {}).update({name: entry}))

    def find_run(self, **identity) -> dict | None:
        """Return the run whose values are these, or None."""
        runs = self.content().get("runs", [])
        return next((run for run in runs if all(run.get(k) == v for k, v in identity.items())), None)

    def keep_run(self, run: dict, identity: Sequence[str], order: Callable[[dict], Any] | None = None) -> None:
        """Add a run, or replace the one with equal values of `identity`.

        Args:
            run: plain values.
            identity: names of values that tell runs apart.
            order: sorts the runs; None: in the order in which they were added.
        """
        run = json.loads(json.dumps(run))

        def change(content: dict) -> None:
            runs = content.setdefault("runs", [])
            known = [[old.get(name) for name in identity] for old in runs]
            key = [run.get(name) for name in identity]
            if key in known:
                runs[known.index(key)] = run
            else:
                runs.append(run)
            if order is not None:
                runs.sort(key=order)

        self.update(change)

    def update(self, change: Callable[[dict], None]) -> None:
        """Apply a change to the content and write it, whole, while no other process does."""
        with store.lock(f"publish-{self.file.name}"):
            content = self.content()
            change(content)
            store.write_atomic(self.file, dump(content))


def dump(content: dict) -> str:
    """Return a result file's text: one run, or one entry of a section, a line."""

    def block(value: Any) -> str:
        if isinstance(value, list) and value and isinstance(value[0], dict | list):
            return "[\n" + ",\n".join(json.dumps(item) for item in value) + "\n]"
        if isinstance(value, dict) and value and all(isinstance(item, dict | list) for item in value.values()):
            return "{\n" + ",\n".join(f"{json.dumps(name)}: {json.dumps(item)}" for name, item in value.items()) + "\n}"
        return json.dumps(value)

    return "{\n" + ",\n".join(f"{json.dumps(name)}: {block(value)}" for name, value in content.items()) + "\n}\n"
