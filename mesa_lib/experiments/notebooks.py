"""The series of notebooks, run through papermill with checked parameters."""

import contextlib
import json
import logging
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import nbformat
import papermill
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from papermill.exceptions import PapermillExecutionError

from mesa_lib import store
from mesa_lib.evaluation import metrics
from mesa_lib.experiments import copies, kernels, results
from mesa_lib.experiments.ahead import trained_ahead
from mesa_lib.experiments.params import Params
from mesa_lib.experiments.pipeline import Pipeline
from mesa_lib.store import paths

SERIES = ("01_attacking", "02_modeling", "03_visualizing", "04_defending")
#: one attacked model under every defense of the benchmark: what the benchmark's sweeps run
VICTIM_NOTEBOOK = "one_victim"
PLAYGROUND = "playground"  # models to try by hand
#: the attacks that the series is about: patches at random locations, without and with cover samples
RANDOM_LOCATION = ("patch", "covered", "adaptive")


class SeriesFailed(RuntimeError):
    """A notebook of the series failed; the message names it and the error."""


# --- names -----------------------------------------------------------------------------------------------


def notebook_path(name: str) -> Path:
    """Return the path of a notebook by its name or the beginning of it (`02`); ValueError names those there are."""
    folder = paths.repository(f"notebook {name!r}") / "notebooks"
    matches = sorted(folder.glob(f"{name.removesuffix('.ipynb')}*.ipynb"))
    if len(matches) != 1:
        raise ValueError(f"notebook {name!r}: expected one of {', '.join(all_notebooks())}")
    return matches[0]


def all_notebooks() -> list[str]:
    """Return the names of all notebooks, in the order in which they are read; none without the repository."""
    return sorted(file.stem for file in (paths.root() / "notebooks").glob("*.ipynb"))


def injected_parameters(source: Path, p: Params) -> dict:
    """Return the parameters that a notebook gets: those that its cell lists, and all that are not the defaults.

    Raises:
        ValueError: if the notebook is about random-location patches and `p` has another attack.
    """
    listed, defaults = papermill.inspect_notebook(str(source)), Params().model_dump()
    allowed = RANDOM_LOCATION if "attack" in listed else RANDOM_LOCATION[:1]
    if p.attack not in allowed and source.stem != VICTIM_NOTEBOOK:
        raise ValueError(
            f"attack = {p.attack!r}: {source.name} is about patches at a random location; "
            f"expected {' or '.join(allowed)}"
        )
    return {name: value for name, value in p.model_dump().items() if name in listed or value != defaults[name]}


def series_folder(p: Params) -> str:
    """Return a readable, unique folder name for the results of these parameters."""
    return f"{p.dataset}-{Path(p.trigger).name.replace(':', '')}-{store.config_key(p.model_dump())[:8]}"


# --- running ---------------------------------------------------------------------------------------------


def run_series(p: Params, names: Sequence[str] = SERIES, out: Path | None = None) -> Path:
    """Run the notebooks in order and return the folder of the outputs.

    A stage that an earlier run trained is loaded, so a run that was stopped goes on from there. Of two runs in one
    folder the second waits for the first.

    Args:
        out: gets each executed notebook, its figures as PNG files, and after the last notebook of the series
            `result.json` and `table.csv`; default runs/series/<name>.

    Raises:
        SeriesFailed: if a notebook fails; its copy is kept as `<name>.failed.ipynb`.
        ValueError: if the folder holds a run of other parameters.
    """
    out = out or paths.runs() / "series" / series_folder(p)
    needs_tables = notebook_path(names[-1]).stem == SERIES[-1]
    with store.lock(f"series-{store.config_key({'out': str(out.resolve())})}"):
        claim_folder(p, out)
        with trained_ahead(p) if needs_tables else contextlib.nullcontext({}) as environment:
            sources = run_notebooks(p, names, out, environment=environment)
        if sources[-1].stem == SERIES[-1]:
            write_result(p, out)
    return out


def claim_folder(p: Params, out: Path) -> None:
    """Write the parameters of a run to its folder; ValueError if it holds a run of others, which would be mixed."""
    file, values = out / "params.json", json.dumps(p.model_dump(), indent=1)
    if file.is_file() and file.read_text() != values:
        name = paths.display_path(out)
        raise ValueError(f"out = {name}: holds a run with other parameters (params.json); expected another folder")
    out.mkdir(parents=True, exist_ok=True)
    store.write_atomic(file, values)


def run_notebooks(
    p: Params, names: Sequence[str], out: Path, quiet: bool = False, environment: Mapping[str, str] = {}
) -> list[Path]:
    """Execute the notebooks in order, in one kernel, and return their paths in the repository.

    Args:
        out: the folder of the executed copies and their figures.
        quiet: show nothing while they run.
        environment: variables of the kernel beside those of this process.
    """
    sources = [notebook_path(name) for name in names]
    values = [injected_parameters(source, p) for source in sources]
    (out / "figures").mkdir(parents=True, exist_ok=True)
    logging.getLogger("papermill").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "progress"
        with kernels.SharedKernel({"MESA_PROGRESS": str(file)} | environment) as kernel:
            for number, (source, own_values) in enumerate(zip(sources, values, strict=True), 1):
                file.unlink(missing_ok=True)
                start, label = time.monotonic(), f"[{number}/{len(sources)}] {source.stem}"
                with contextlib.nullcontext() if quiet else progress_shown(label, file):
                    run_notebook(source, own_values, out, kernel, [s.name for s in sources])
                if not quiet:
                    print(f"{label}: done in {time.monotonic() - start:.0f} s", file=sys.stderr)
    return sources


def run_notebook(source: Path, values: dict, out: Path, kernel: kernels.SharedKernel, beside: Sequence[str]) -> Path:
    """Execute one notebook into a folder and return the copy: complete under its name or, failed, under another.

    Args:
        values: of the parameters that it gets.
        beside: names of the notebooks in the folder; links to others become plain text.
    """
    target, scratch = out / source.name, out / f".running-{source.name}"
    failed = target.with_suffix(".failed.ipynb")
    for old in (scratch, failed):  # of an earlier try; a complete copy stays until there is another
        old.unlink(missing_ok=True)
    try:
        execute(source, scratch, values, kernel)
        book = copies.without_dead_links(copies.with_notice(copies.clean(nbformat.read(scratch, 4)), values), beside)
        nbformat.write(book, scratch)
        os.replace(scratch, target)
        copies.save_figures(book, out / "figures", source.stem)
    except SeriesFailed as error:
        copy = ""
        if scratch.exists():
            os.replace(scratch, failed)
            copy = f"\nsee {paths.display_path(failed)}"
        raise SeriesFailed(f"{source.name} failed: {error}{copy}") from error.__cause__
    except OSError as error:
        where = paths.display_path(out)
        raise SeriesFailed(f"{source.name}: cannot write to {where}: {error.strerror or error}") from error
    return target


def execute(source: Path, target: Path, values: dict, kernel: kernels.SharedKernel) -> None:
    """Run one notebook by papermill; `target` holds what was executed so far.

    Raises:
        SeriesFailed: with the error of the cell, or with what became of the kernel.
    """
    try:
        papermill.execute_notebook(
            str(source), str(target), values, engine_name=kernels.ENGINE, kernel=kernel, kernel_name="python3",
            progress_bar=False,
        )  # fmt: skip
    except PapermillExecutionError as error:
        raise SeriesFailed(f"{error.ename}: {error.evalue}") from error
    except (CellTimeoutError, RuntimeError) as error:  # of the kernel: it died, or never started
        died = isinstance(error, DeadKernelError) or "died" in str(error)
        reason = "its kernel died (killed, or out of memory)" if died else " ".join(str(error).split())
        raise SeriesFailed(reason) from error


@contextlib.contextmanager
def progress_shown(label: str, file: Path) -> Iterator[None]:
    """Show on stderr what the kernel is doing, from the file that `progress.progress_bar` writes."""
    start, stop, live = time.monotonic(), threading.Event(), sys.stderr.isatty()

    def show() -> None:
        while not stop.wait(0.5 if live else 20):
            activity = file.read_text() if file.exists() else "starting"
            line = f"{label}: {activity}, {time.monotonic() - start:.0f} s"
            print(f"\r{line:<78}" if live else line, end="" if live else "\n", file=sys.stderr, flush=True)

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        if live:
            print(f"\r{'':<78}\r", end="", file=sys.stderr)


def refresh(names: Sequence[str]) -> None:
    """Execute notebooks with their defaults and save them in place, as they are committed (for maintainers).

    The outputs are made under nbval's own capture rules (`PYTEST_CURRENT_TEST`), so that it finds them again.
    """
    environment = kernels.kernel_environment({"PYTEST_CURRENT_TEST": "refresh"})
    for name in names:
        source, start = notebook_path(name), time.monotonic()
        book = nbformat.read(source, 4)
        folder = {"metadata": {"path": str(source.parent)}}
        with tempfile.TemporaryDirectory(prefix="mesa-") as sockets:
            kernels.new_client(book, sockets, timeout=3600, resources=folder).execute(env=environment)
        scratch = source.with_suffix(".tmp")
        nbformat.write(copies.clean(book), scratch)
        os.replace(scratch, source)
        print(f"{source.name}: {time.monotonic() - start:.0f} s, {source.stat().st_size // 1024} KB")


# --- executed copies -------------------------------------------------------------------------------------


def write_result(p: Params, out: Path) -> None:
    """Write result.json and table.csv from the reports that the last notebook left in the artifact store."""
    reports = results.reports(Pipeline(p))
    rows = [{"attack": attack, **row} for attack, report in reports.items() for row in report.result["rows"]]
    content = {"params": p.model_dump(), "rows": rows, "made": reports[p.attack].made}
    store.write_atomic(out / "result.json", json.dumps(content, indent=1))
    store.write_atomic(out / "table.csv", metrics.table(rows).to_csv(index=False))
