"""What a batch run is asked for: a file of `params/sweeps/`, checked, and its grid as tasks.

title: CIFAR-10, black-white patterns          # of the report
params: [cifar10-cpu]                          # parameter files, later over earlier
set: {point_repeats: 3}                        # over the files
grid: {trigger: ["bw:3", "bw:16"], seed: [0]}  # every combination
cells: [{trigger: "color:0", target: 51}]     # values that belong together; each with the whole grid
notebooks: ["04"]                              # what each cell goes through; 04 makes whatever is missing
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
from mesa_lib.experiments.params import Params
from mesa_lib.experiments.pipeline import Pipeline
from mesa_lib.experiments.sweep.task import Task
from mesa_lib.store import paths

Values = dict[str, Any]


class Sweep(BaseModel):
    """The file, checked."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    changes: Values = Field(default={}, description="what the command line put over the file")
    title: str = ""
    params: list[str] = Field(default=[], description="names of parameter files")
    set: Values = Field(default={}, description="name: value pairs")
    grid: dict[str, list] = Field(default={}, description="name: list of values")
    cells: list[Values] = Field(default=[], description="a list of name: value pairs")
    notebooks: list[str] = Field(default=["04"], min_length=1, description='a list of notebooks, in quotes: ["04"]')
    minutes: float = Field(default=0, ge=0, description="minutes of one task")

    def each(self) -> Iterable[tuple[Values, Params]]:
        """Every cell of the grid: what is its own, and all its parameters. ValueError names a bad cell."""
        base: Values = {}
        for file in self.params:
            base |= params.read_yaml(paths.parameter_file(file))
        for part, names in (("grid", self.grid), ("cells", {name for cell in self.cells for name in cell})):
            twice = sorted(self.set.keys() & set(names))
            if twice:
                raise ValueError(f"sweep {self.name!r}: {', '.join(twice)} stands in set and in {part}")
        empty = [name for name, values in self.grid.items() if not values]
        if empty:
            raise ValueError(f"sweep {self.name!r}: grid has no value for {', '.join(empty)}; expected one or more")
        for cell in self.cells or [{}]:
            twice = sorted(cell.keys() & self.grid.keys())
            if twice:
                raise ValueError(f"sweep {self.name!r}: {', '.join(twice)} stands in cells and in grid")
            for values in itertools.product(*self.grid.values()):
                own = cell | dict(zip(self.grid, values, strict=True))
                try:
                    yield own, params.check(base | self.set | own)
                except ValueError as error:
                    raise ValueError(f"sweep {self.name!r}, {own or 'its only cell'}: {error}") from None

    def tasks(self) -> list[Task]:
        """The cells as tasks, each checked against its data; equal cells are one task."""
        books = [notebooks.notebook_path(name).stem for name in self.notebooks]
        in_order = books == sorted(books) and all(name in notebooks.SERIES for name in books)
        if not in_order and books != [notebooks.VICTIM_NOTEBOOK]:
            raise ValueError(
                f"sweep {self.name!r}: notebooks = {', '.join(self.notebooks)}; expected some of "
                f"{', '.join(notebooks.SERIES)}, in this order, or {notebooks.VICTIM_NOTEBOOK} alone"
            )
        looked = DatasetCache()
        found: dict[str, Task] = {}
        for own, p in self.each():
            try:
                pipeline = looked.pipeline(p)
            except (ValueError, OSError) as error:
                raise ValueError(f"sweep {self.name!r}, {own or 'its only cell'}: {error}") from None
            task = Task.of(self.folder, own, pipeline, books)
            found.setdefault(task.key, task)
        return list(found.values())

    @cached_property
    def folder(self) -> str:
        """The name of its folder: with values from the command line it has other tasks, and another report."""
        words = [re.sub(r"[^\w.=]+", "", f"{name}={value}") for name, value in sorted(self.changes.items())]
        name = ",".join([self.name, *words])
        return name if len(name) <= 80 else f"{name[:70]}-{store.config_key(self.changes)[:8]}"

    @cached_property
    def axes(self) -> list[str]:
        """The names that tell the tasks apart."""
        return list(dict.fromkeys([*(name for cell in self.cells for name in cell), *self.grid]))


class DatasetCache:
    """The data that many cells share, read once."""

    def __init__(self):
        self.known: dict[tuple, data.Dataset] = {}

    def pipeline(self, p: Params) -> Pipeline:
        """Stages of these parameters; ValueError for what can be refused before anything runs."""
        which = (p.dataset, p.data_dir, p.split_seed, p.image_size)
        pipeline = Pipeline(p, self.known.get(which))
        self.known = {which: pipeline.check()}  # one at a time: they are large
        return pipeline


def read(text: str, overrides: Iterable[str] = ()) -> Sweep:
    """A sweep by its path, or by its name in params/sweeps/; `name=value` texts go over what it sets.

    An override replaces an axis of the grid as well, and gives the sweep a name of its own. ValueError in one message.
    """
    file = paths.find_named(text, "sweep", paths.root() / "params" / "sweeps")
    values = {name: value for name, value in params.read_yaml(file, "sweep").items() if value is not None}
    if not values:
        raise ValueError(f"sweep {file.stem!r}: nothing in it; expected grid, cells, set or params")
    for own in values.keys() & {"name", "changes"}:
        raise ValueError(f"sweep {file.stem!r}: {own} is not for the file to say; take the line {own}: out")
    changes = dict(_change(text) for text in overrides)
    sweep = _checked(file.stem, values)
    if not changes:
        return sweep
    kept = {
        "grid": {name: values for name, values in sweep.grid.items() if name not in changes},
        "cells": [{k: v for k, v in cell.items() if k not in changes} for cell in sweep.cells],
        "set": sweep.set | changes,
    }
    return sweep.model_copy(update=kept | {"changes": changes})


def _change(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"{text!r}: expected name=value")
    return name.strip(), params.parse_value(value)


def _checked(name: str, values: Values) -> Sweep:
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
        meant = Sweep.model_fields[str(problem["loc"][0])].description
        raise ValueError(f"sweep {name!r}: {part} = {params.brief(problem['input'])}: expected {meant}") from None
