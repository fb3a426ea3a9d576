"""A repository of short notebooks: they declare every parameter and train what the real ones train, in few cells."""

from pathlib import Path

import nbformat

from mesa_lib.experiments.params import Params
from mesa_lib.store import paths

#: what each notebook does after its parameters are checked
STEPS = {
    "01_attacking": "attacked = pipeline.attacked()\nprint(len(attacked.history), 'epochs')",
    "02_modeling": "distribution, _ = pipeline.distribution()\nprint(len(distribution.levels), 'levels')",
    "03_visualizing": "assert 'distribution' not in globals(), 'the kernel is empty'\nprint('shown')",
    "04_defending": "rows = pipeline.report().result['rows']\nprint(len(rows), 'rows')",
    "one_victim": "record = DefenseEvaluation(pipeline).record()\nprint(record['planted'])",
}
IMPORTS = """import matplotlib.pyplot as plt
from mesa_lib.experiments import params
from mesa_lib.experiments.benchmark import DefenseEvaluation
from mesa_lib.experiments.pipeline import Pipeline"""
PLOT = "plt.rcParams['lines.linewidth'] += 1\nplt.plot([0, 1])\nplt.show()"


def toy_notebook(step: str) -> nbformat.NotebookNode:
    """Return a notebook that declares all parameters, does this, and shows a figure."""
    v4 = nbformat.v4
    declared = "\n".join(f"{name} = {value!r}  # declared" for name, value in Params().model_dump().items())
    cells = [
        v4.new_markdown_cell("# Title, see [01](01_attacking.ipynb) and [05](05_paper.ipynb)"),
        v4.new_code_cell(IMPORTS),
        v4.new_code_cell(declared, metadata={"tags": ["parameters"]}),
        v4.new_code_cell("p = params.from_notebook(globals())\npipeline = Pipeline(p)"),
        v4.new_code_cell(step),
        v4.new_code_cell(PLOT),
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})


def toy_repository(folder: Path) -> Path:
    """Write the notebooks into a folder with the project's parameter files, for MESA_ROOT -> the folder."""
    (folder / "notebooks").mkdir(parents=True)
    for name, step in STEPS.items():
        nbformat.write(toy_notebook(step), folder / "notebooks" / f"{name}.ipynb")
    (folder / "params").symlink_to(paths.root() / "params")
    return folder
