"""`python -m mesa_lib play`: the playground as a page, by Voilà."""

import argparse
import os
import tempfile
from pathlib import Path

import nbformat

from mesa_lib.experiments import copies, notebooks
from mesa_lib.experiments.params import Params
from mesa_lib.reporting import playground

#: the page leaves out the cells with this tag
ONLY_STORED = "only-stored"
#: extensions of JupyterLab that the page does not load: they need all of JupyterLab
LEFT_OUT = ("@jupyter-notebook/lab-extension", "@jupyter/nbgrader")


def add(commands) -> None:
    """Add the command and its options."""
    command = commands.add_parser("play", help="open the playground in a browser: stamp triggers on images")
    command.add_argument("--port", type=int, default=8866, help="port of the page (default: 8866)")
    command.add_argument("--no-browser", action="store_true", help="print the address, open nothing")
    command.set_defaults(function=play)


def play(a: argparse.Namespace) -> int:
    """Train the models that the store lacks, with a progress bar, then serve the page until the command is stopped."""
    playground.require(*playground.PACKAGES, "voila")
    source = notebooks.notebook_path(notebooks.PLAYGROUND)
    print("playground: loading its models; those that are missing are trained (about four minutes for all)", flush=True)
    playground.load_models(Params())
    os.environ["MESA_BATCH"] = "1"  # the kernel behind the page finds everything made: no progress bars there
    from voila.app import Voila

    with tempfile.TemporaryDirectory(prefix="mesa-") as folder:
        page = Path(folder) / source.name
        nbformat.write(as_page(nbformat.read(source, 4)), page)
        Voila.launch_instance(page_options(page, a.port, a.no_browser))
    return 0


def as_page(book: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Return the notebook without what a single page cannot show: links to other files, and cells for stored copies."""
    book.cells = [cell for cell in book.cells if ONLY_STORED not in cell.metadata.get("tags", [])]
    return copies.without_dead_links(book, beside=())


def page_options(page: Path, port: int, no_browser: bool) -> list[str]:
    """Return the command line of Voilà: this environment's interpreter as the kernel, errors shown on the page."""
    options = [
        str(page), f"--port={port}", "--Voila.ip=127.0.0.1", "--show_tracebacks=True", "--show-margins",
        "--VoilaConfiguration.kernel_spec_manager_class=mesa_lib.experiments.kernels.OwnInterpreter",
        *(f"--VoilaConfiguration.extension_denylist={name}" for name in LEFT_OUT),
    ]  # fmt: skip
    return options + ["--no-browser"] * no_browser
