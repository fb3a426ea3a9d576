"""What is done to the copy of a notebook after it was executed: cleaned, told apart, its figures saved."""

import base64
import json
import re
from collections.abc import Sequence
from pathlib import Path

import nbformat

from mesa_lib.experiments.params import Params

#: outputs that work only as long as their kernel
LIVE = "application/vnd.jupyter.widget-view+json"


def clean(book: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Remove what differs between equal runs: metadata of papermill and of the execution, widgets, a random cell id."""
    book.metadata = nbformat.NotebookNode(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    for cell in book.cells:
        for name in ("papermill", "execution", "widgets"):
            cell.metadata.pop(name, None)
        for output in cell.get("outputs", []):
            output.get("data", {}).pop(LIVE, None)  # its text stays
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell.id = "injected-parameters"
    return book


def with_notice(book: nbformat.NotebookNode, values: dict) -> nbformat.NotebookNode:
    """Say below the title which parameters are not the defaults, since general remarks are about the defaults."""
    defaults = Params().model_dump()
    # the folder of the data is a path of one machine, and no number depends on it
    changed = {k: v for k, v in values.items() if v != defaults[k] and k != "data_dir"}
    if changed:
        text = (
            "> **This copy was executed with other parameters than the stored notebook.** Outputs, figures and the "
            "sentences that quote them are about this run. Hints, solutions and general remarks are about the "
            "defaults, on digits.\n>\n> "
        )
        notice = nbformat.v4.new_markdown_cell(text + ", ".join(f"`{k} = {json.dumps(v)}`" for k, v in changed.items()))
        notice.id = "notice"  # the same in every copy, so that two equal runs give equal files
        book.cells.insert(1, notice)
    return book


def without_dead_links(book: nbformat.NotebookNode, beside: Sequence[str]) -> nbformat.NotebookNode:
    """Turn links to notebooks and pages that are not in the same folder into plain text, in computed sentences too."""

    def plain(text: str) -> str:
        link = r"\[([^\]]+)\]\((?!https?:)([\w./-]+\.(?:ipynb|md|yaml))(?:#[\w-]+)?\)"
        return re.sub(link, lambda m: m[0] if m[2] in beside else m[1], text)

    for cell in book.cells:
        if cell.cell_type == "markdown":
            cell.source = plain(cell.source)
        for output in cell.get("outputs", []):
            if "text/markdown" in output.get("data", {}):
                output.data["text/markdown"] = plain(output.data["text/markdown"])
    return book


def save_figures(book: nbformat.NotebookNode, folder: Path, stem: str) -> None:
    """Write every PNG among the outputs to folder/<stem>-<number>.png."""
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
