"""What a sweep runs: a file of `params/sweeps/`, checked, and its grid as tasks.

title: CIFAR-10, black-white patterns          # of the report
params: [cifar10-cpu]                          # parameter files, later over earlier
set: {inversion_repeats: 3}                    # over the files
grid: {trigger: ["bw:3", "bw:16"], seed: [0]}  # every combination
cells: [{trigger: "color:0", target: 51}]      # values that belong together; each with the whole grid
notebooks: ["04"]                              # what each cell goes through; 04 trains whatever is missing
minutes: 16                                    # of one task on two cores, for --dry-run
"""

import itertools
import re
from collections.abc import Iterable
from functools import cached_property
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mesa_lib import data, store
from mesa_lib.experiments import notebooks, params
from mesa_lib.experiments.parameter_files import parse_value
from mesa_lib.experiments.params import Params
from mesa_lib.experiments.pipeline import Pipeline
from mesa_lib.experiments.sweep.task import Task
from mesa_lib.store import paths

Values = dict[str, Any]


class Sweep(BaseModel):
    """The file, checked."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    changes: Values = Field(default={}, description="values from the command line, over the file")
    title: str = ""
    params: list[str] = Field(default=[], description="names of parameter files")
    set: Values = Field(default={}, description="name: value pairs")
    grid: dict[str, list] = Field(default={}, description="name: list of values")
    cells: list[Values] = Field(default=[], description="a list of name: value pairs")
    notebooks: list[str] = Field(default=["04"], min_length=1, description='a list of notebooks, in quotes: ["04"]')
    minutes: float = Field(default=0, ge=0, description="minutes of one task")

    def each(self) -> Iterable[tuple[Values, Params]]:
        """Yield every cell of the grid: its own values, and all its parameters. ValueError names a bad cell."""
        base: Values = {}
        for file in self.params:
            base |= params.read_yaml(paths.parameter_file(file))
        self._refuse_ambiguity()
        for cell in self.cells or [{}]:
            for values in itertools.product(*self.grid.values()):
                both = cell | dict(zip(self.grid, values, strict=True))
                try:
                    yield both, params.check(base | self.set | both)
                except ValueError as error:
                    raise ValueError(f"sweep {self.name!r}, {both or 'its only cell'}: {error}") from None

    def _refuse_ambiguity(self) -> None:
        """Raise ValueError if a parameter is set in two parts of the file, or has no value."""
        in_cells = {name for cell in self.cells for name in cell}
        pairs = (("set", self.set, "grid", self.grid), ("set", self.set, "cells", in_cells),
                 ("cells", in_cells, "grid", self.grid))  # fmt: skip
        for part, names, other, others in pairs:
            twice = sorted({*names} & {*others})
            if twice:
                raise ValueError(f"sweep {self.name!r}: {', '.join(twice)} stands in {part} and in {other}")
        empty = [name for name, values in self.grid.items() if not values]
        if empty:
            raise ValueError(f"sweep {self.name!r}: grid has no value for {', '.join(empty)}; expected one or more")

    def tasks(self) -> list[Task]:
        """Return the cells as tasks, each checked against its data; equal cells are one task."""
        books = [notebooks.notebook_path(name).stem for name in self.notebooks]
        in_order = books == sorted(books) and all(name in notebooks.SERIES for name in books)
        if not in_order and books != [notebooks.VICTIM_NOTEBOOK]:
            raise ValueError(
                f"sweep {self.name!r}: notebooks = {', '.join(self.notebooks)}; expected some of "
                f"{', '.join(notebooks.SERIES)}, in this order, or {notebooks.VICTIM_NOTEBOOK} alone"
            )
        cache = DatasetCache()
        tasks: dict[str, Task] = {}
        for cell, p in self.each():
            try:
                pipeline = cache.pipeline(p)
            except (ValueError, OSError) as error:
                raise ValueError(f"sweep {self.name!r}, {cell or 'its only cell'}: {error}") from None
            task = Task.from_pipeline(self.folder, cell, pipeline, books)
            tasks.setdefault(task.key, task)
        return list(tasks.values())

    @cached_property
    def folder(self) -> str:
        """The name of its folder: with values from the command line it has other tasks, and another report."""
        words = [re.sub(r"[^\w.=]+", "", f"{name}={value}") for name, value in sorted(self.changes.items())]
        name = ",".join([self.name, *words])
        return name if len(name) <= 80 else f"{name[:70]}-{store.config_key(self.changes)[:8]}"

    @cached_property
    def axes(self) -> list[str]:
        """The names of the parameters in which the tasks differ."""
        return list(dict.fromkeys([*(name for cell in self.cells for name in cell), *self.grid]))


class DatasetCache:
    """The dataset that neighboring cells share, read once; only the last one is kept, since they are large."""

    def __init__(self):
        self.datasets: dict[tuple, data.Dataset] = {}

    def pipeline(self, p: Params) -> Pipeline:
        """Return the pipeline of these parameters; ValueError for whatever can be refused before anything runs."""
        key = (p.dataset, p.data_dir, p.split_seed, p.image_size)
        pipeline = Pipeline(p, self.datasets.get(key))
        self.datasets = {key: pipeline.check()}
        return pipeline


def read(text: str, overrides: Iterable[str] = ()) -> Sweep:
    """Return a sweep by its path, or by its name in params/sweeps/; `name=value` texts override what it sets.

    An override replaces an axis of the grid as well, and gives the sweep another folder.

    Raises:
        ValueError: in one message, if the file is missing or anything in it is wrong.
    """
    file = paths.find_named(text, "sweep", paths.root() / "params" / "sweeps")
    values = {name: value for name, value in params.read_yaml(file, "sweep").items() if value is not None}
    if not values:
        raise ValueError(f"sweep {file.stem!r}: nothing in it; expected grid, cells, set or params")
    for reserved in values.keys() & {"name", "changes"}:
        raise ValueError(f"sweep {file.stem!r}: {reserved} is not for the file to say; take the line {reserved}: out")
    changes = dict(_change(override) for override in overrides)
    sweep = _checked(file.stem, values)
    if not changes:
        return sweep
    update = {
        "grid": {name: axis for name, axis in sweep.grid.items() if name not in changes},
        "cells": [{k: v for k, v in cell.items() if k not in changes} for cell in sweep.cells],
        "set": sweep.set | changes,
        "changes": changes,
    }
    return sweep.model_copy(update=update)


def _change(text: str) -> tuple[str, Any]:
    """Return the name and the value of `name=value`."""
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"{text!r}: expected name=value")
    name = name.strip()
    is_axis = value.lstrip().startswith("[")
    return name, parse_value(value) if is_axis else params.parse(name, value)


def _checked(name: str, values: Values) -> Sweep:
    """Return the sweep; one ValueError names the first bad part."""
    try:
        return Sweep(name=name, **values)
    except ValidationError as error:
        problem = error.errors()[0]
        part = ".".join(str(step) for step in problem["loc"])
        if problem["type"] == "extra_forbidden":
            expected = ", ".join(field for field in Sweep.model_fields if field not in ("name", "changes"))
            raise ValueError(
                f"sweep {name!r}: {params.brief(part)[1:-1]}: unknown; expected some of {expected}"
            ) from None
        meaning = Sweep.model_fields[str(problem["loc"][0])].description
        raise ValueError(f"sweep {name!r}: {part} = {params.brief(problem['input'])}: expected {meaning}") from None
