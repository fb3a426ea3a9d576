"""The series of notebooks, run through papermill with checked parameters."""

import base64
import contextlib
import json
import logging
import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import nbformat
import papermill
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from papermill.exceptions import PapermillExecutionError
from traitlets.config import Config

from mesa_lib import store
from mesa_lib.evaluation import metrics
from mesa_lib.experiments import params
from mesa_lib.experiments.params import Params
from mesa_lib.experiments.pipeline import Pipeline
from mesa_lib.store import paths

SERIES = ("01_attacking", "02_modeling", "03_visualizing", "04_defending")
#: one attack under every defense of the bench: what the sweeps of the benchmark run
VICTIM_NOTEBOOK = "one_victim"


class SeriesFailed(RuntimeError):
    """A notebook of the series failed; the message names it and the error."""


def notebook_path(name: str) -> Path:
    """The path of a notebook by its name or the beginning of it (`02`)."""
    found = sorted((paths.root() / "notebooks").glob(f"{name.removesuffix('.ipynb')}*.ipynb"))
    if len(found) != 1:
        raise ValueError(f"notebook {name!r}: expected one of {', '.join(all_notebooks())}")
    return found[0]


def all_notebooks() -> list[str]:
    """Their names, in the order in which they are read."""
    return sorted(f.stem for f in (paths.root() / "notebooks").glob("*.ipynb"))


def own_parameters(source: Path, p: Params) -> dict:
    """Those parameters that the notebook declares; ValueError if it is not about the attack that they name."""
    declared = papermill.inspect_notebook(str(source))
    if p.attack != "patch" and "attack" not in declared:
        raise ValueError(f"attack = {p.attack!r}: {source.name} is about patches at a random place; expected patch")
    return {name: getattr(p, name) for name in declared if hasattr(p, name)}


def folder_name(p: Params) -> str:
    """A readable, unique name for the results of these parameters."""
    return f"{p.dataset}-{Path(p.trigger).name.replace(':', '')}-{store.config_key(p.model_dump())[:8]}"


def run_series(p: Params, names: Sequence[str] = SERIES, out: Path | None = None) -> Path:
    """Run the notebooks in order and return the folder of what came out.

    `out` (default runs/series/<name>) gets each executed notebook, its figures as PNG files, and from the last
    `result.json` and `table.csv`. What earlier runs left in the store is taken up, so a run that was stopped
    goes on where it was. SeriesFailed if a notebook fails; its copy is kept as `<name>.failed.ipynb`.
    """
    out = out or paths.runs() / "series" / folder_name(p)
    sources = run_notebooks(p, names, out)
    if sources[-1].stem == SERIES[-1]:
        write_result(p, out)
    return out


def run_notebooks(p: Params, names: Sequence[str], out: Path, quiet: bool = False) -> list[Path]:
    """Execute the notebooks in order into the folder `out` -> the notebooks as they lie in the project."""
    sources = [notebook_path(name) for name in names]
    (out / "figures").mkdir(parents=True, exist_ok=True)
    for i, source in enumerate(sources, 1):
        label, beside = f"[{i}/{len(sources)}] {source.stem}", [s.name for s in sources]
        run_one(source, p, out, label, beside, quiet)
    return sources


def run_one(source: Path, p: Params, out: Path, label: str, beside: Sequence[str] = (), quiet: bool = False) -> Path:
    """Execute one notebook into the folder `out`, whole under its name or, failed, under another.

    beside: the notebooks that will lie in the folder; links to others become plain text
    quiet: nothing is shown while it runs
    """
    target, scratch = out / source.name, out / f".running-{source.name}"
    failed = target.with_suffix(".failed.ipynb")
    start = time.monotonic()
    for old in (scratch, failed, target):  # of an earlier try
        old.unlink(missing_ok=True)
    try:
        with watched(label, quiet):
            execute(source, scratch, own_parameters(source, p))
        book = with_notice(clean(nbformat.read(scratch, 4)), own_parameters(source, p))
        book = without_dead_links(book, beside)
        nbformat.write(book, scratch)
        os.replace(scratch, target)
        save_figures(book, out / "figures", source.stem)
    except SeriesFailed as error:
        kept = ""
        if scratch.exists():
            os.replace(scratch, failed)
            kept = f"\nsee {paths.display_path(failed)}"
        raise SeriesFailed(f"{source.name} failed: {error}{kept}") from error.__cause__
    except OSError as error:
        raise SeriesFailed(f"{source.name}: cannot write to {paths.display_path(out)}: {error.strerror or error}") from error
    if not quiet:
        print(f"{label}: done in {time.monotonic() - start:.0f} s", file=sys.stderr)
    return target


def execute(source: Path, target: Path, values: dict) -> None:
    """Run one notebook by papermill; SeriesFailed says what went wrong, and `target` holds what there is by then."""
    try:
        papermill.execute_notebook(
            str(source),
            str(target),
            values,
            kernel_name="python3",
            progress_bar=False,
            coalesce_streams=True,
            start_timeout=300,  # a busy machine
            config=Config(KernelManager={"transport_encryption": "auto"}),
        )
    except PapermillExecutionError as error:
        raise SeriesFailed(f"{error.ename}: {error.evalue}") from error
    except (CellTimeoutError, RuntimeError) as error:  # of the kernel: it died, or never started
        died = isinstance(error, DeadKernelError) or "died" in str(error)
        reason = "its kernel died (killed, or out of memory)" if died else " ".join(str(error).split())
        raise SeriesFailed(reason) from error


def clean(book: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Take out what names the machine or the moment: papermill's and the execution's metadata, widgets."""
    book.metadata = nbformat.NotebookNode(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    for cell in book.cells:
        for name in ("papermill", "execution", "widgets"):
            cell.metadata.pop(name, None)
    return book


def with_notice(book: nbformat.NotebookNode, values: dict) -> nbformat.NotebookNode:
    """Say below the title which parameters are not the defaults: the prose quotes the figures of the defaults."""
    # where the data lie is a path of one machine, and no figure depends on it
    other = {k: v for k, v in values.items() if v != Params.model_fields[k].default and k != "data_dir"}
    if other:
        named = ", ".join(f"`{name} = {json.dumps(value)}`" for name, value in other.items())
        text = (
            "> **This copy was executed with other parameters than the stored notebook.** Its outputs and figures "
            "belong to them; the text between still quotes the figures that the defaults give on the digits.\n>\n> "
            + named
        )
        notice = nbformat.v4.new_markdown_cell(text + named)
        notice.id = "notice"  # the same in every copy, so that two equal runs give equal files
        book.cells.insert(1, notice)
    return book


def without_dead_links(book: nbformat.NotebookNode, there: Sequence[str]) -> nbformat.NotebookNode:
    """Links to notebooks that do not lie in the same folder become plain text."""
    for cell in book.cells:
        if cell.cell_type == "markdown":
            cell.source = re.sub(
                r"\[([^\]]+)\]\((\d\d_\w+\.ipynb)\)", lambda m: m[0] if m[2] in there else m[1], cell.source
            )
    return book


def save_figures(book: nbformat.NotebookNode, folder: Path, stem: str) -> None:
    """Every PNG among the outputs -> folder/<stem>-<number>.png."""
    for old in folder.glob(f"{stem}-*.png"):
        old.unlink()
    pictures = [
        output.data["image/png"]
        for cell in book.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    for number, picture in enumerate(pictures, 1):
        (folder / f"{stem}-{number}.png").write_bytes(base64.b64decode(picture))


def write_result(p: Params, out: Path) -> None:
    """result.json and table.csv, written whole, from the report that the last notebook kept in the store."""
    report = Pipeline(p).report()
    content = {"params": p.model_dump(), "rows": report.result["rows"], "made": report.made}
    for name, text in (
        ("result.json", json.dumps(content, indent=1)),
        ("table.csv", metrics.table(report.result["rows"]).to_csv(index=False)),
    ):
        store.write_atomic(out / name, text)


@contextlib.contextmanager
def watched(label: str, quiet: bool = False) -> Iterator[None]:
    """Show on stderr what the notebook's kernel is doing, from the file that `progress.bar` writes."""
    logging.getLogger("papermill").setLevel(logging.ERROR)
    start, stop, live = time.monotonic(), threading.Event(), sys.stderr.isatty() and not quiet
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "progress"
        before = {name: os.environ.get(name) for name in ("MESA_BATCH", "MESA_PROGRESS")}
        os.environ.update(MESA_BATCH="1", MESA_PROGRESS=str(file))

        def show() -> None:
            while not quiet and not stop.wait(0.5 if live else 20):
                doing = file.read_text() if file.exists() else "starting"
                line = f"{label}: {doing}, {time.monotonic() - start:.0f} s"
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
            for name, value in before.items():
                os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)


def refresh(names: Sequence[str]) -> None:
    """Execute notebooks with their defaults and save them in place, as they are committed (for maintainers).

    The outputs are made under nbval's own capture rules (`PYTEST_CURRENT_TEST`), so that it finds them again.
    """
    from nbclient import NotebookClient

    os.environ.update(MESA_BATCH="1", PYTEST_CURRENT_TEST="refresh")
    for name in names:
        source = notebook_path(name)
        book = nbformat.read(source, 4)
        start = time.monotonic()
        client = NotebookClient(
            book, timeout=3600, kernel_name="python3", coalesce_streams=True,
            resources={"metadata": {"path": str(source.parent)}},
            config=Config(KernelManager={"transport_encryption": "auto"}),
        )  # fmt: skip
        client.execute()
        scratch = source.with_suffix(".tmp")
        nbformat.write(clean(book), scratch)
        os.replace(scratch, source)
        print(f"{source.name}: {time.monotonic() - start:.0f} s, {source.stat().st_size // 1024} KB")


def reference() -> str:
    """All parameters with type, default and meaning, and the notebooks that have them."""
    declared = {n: papermill.inspect_notebook(str(notebook_path(n))) for n in SERIES}
    lines = []
    for name, field in params.Params.model_fields.items():
        where = " ".join(n[:2] for n, names in declared.items() if name in names) or VICTIM_NOTEBOOK
        lines.append(f"{name:<20}{field.default!r:<15} {where:<13}{field.description}")
    return "\n".join(lines)
