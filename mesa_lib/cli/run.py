"""The commands around the notebooks: `run`, `check`, `params`, `refresh`, `tables`."""

import argparse
from pathlib import Path

from mesa_lib.evaluation import metrics
from mesa_lib.experiments import notebooks, params, results
from mesa_lib.experiments.pipeline import Pipeline
from mesa_lib.reporting.tables import parameters
from mesa_lib.store import paths
from mesa_lib.store.sanitize import sanitize


def add(commands) -> None:
    """Add the commands with their options."""
    files = argparse.ArgumentParser(add_help=False)
    files.add_argument("files", nargs="*", help="parameter files, later over earlier (default: digits)")
    files.add_argument("-p", action="append", default=[], metavar="NAME=VALUE", help="one parameter, over the files")
    run = commands.add_parser("run", parents=[files], help="run the series 01 to 04 through papermill")
    run.add_argument("--notebooks", default=",".join(notebooks.SERIES), help="which, with commas between: 01,02")
    run.add_argument("--out", type=Path, help="folder for notebooks, figures and tables (default: runs/series/...)")
    run.set_defaults(function=run_series)
    check = commands.add_parser("check", parents=[files], help="check parameters and data, run nothing")
    check.set_defaults(function=check_parameters)
    commands.add_parser("params", help="list all parameters").set_defaults(function=list_parameters)
    again = commands.add_parser("refresh", help="execute notebooks in place with their defaults (maintainers)")
    again.add_argument("names", nargs="*", help="default: all")
    again.set_defaults(function=refresh)
    tables = commands.add_parser(
        "tables", help="write docs/parameters.md, and the tables and the figure of the pages (maintainers)"
    )
    tables.set_defaults(function=write_tables)
    # whatever options follow, they are refused in one message: no text begins with this prefix
    repeat = commands.add_parser(
        "repeat", help="removed: use sweep with a seed axis", prefix_chars="\0", add_help=False
    )
    repeat.add_argument("options", nargs="*", help=argparse.SUPPRESS)
    repeat.set_defaults(function=refuse_repeat)


def _checked(a: argparse.Namespace) -> Pipeline:
    """Return the pipeline of a command's parameters: missing data, an impossible target or trigger end here.

    What was understood is said: the target's name, and of a folder the classes and what was done to the images
    (resized, gray made RGB, left out).
    """
    pipeline = Pipeline(params.read([paths.parameter_file(file) for file in a.files], a.p))
    pipeline.check()
    for note in pipeline.data.notes:
        print(note)
    p, target = pipeline.p, sanitize(pipeline.data.classes[pipeline.p.target])
    print(f"attack {p.attack}, trigger {p.trigger}, target {p.target}: class '{target}'")
    return pipeline


def run_series(a: argparse.Namespace) -> int:
    """Run the notebooks and show the table."""
    pipeline = _checked(a)
    names = a.notebooks.split(",")
    out = notebooks.run_series(pipeline.p, names, a.out)
    if notebooks.notebook_path(names[-1]).stem == notebooks.SERIES[-1]:
        for attack, report in results.reports(pipeline).items():
            print(f"attack: {attack}\n{metrics.table(report.result['rows']).to_string(index=False, na_rep='')}\n")
        print(f"(one run, seed {pipeline.p.seed}, {report.made['device']}, torch {report.made['torch']})")
    print(f"\nexecuted notebooks  {out}/*.ipynb\nfigures             {out}/figures/")
    if (out / "table.csv").is_file():
        print(f"table               {out}/table.csv and result.json")
    return 0


def check_parameters(a: argparse.Namespace) -> int:
    """Check parameters and data, and show how many images each split has."""
    d = _checked(a).data
    sizes = f"{len(d.train)} / {len(d.modeling)} / {len(d.evaluation)}"
    print(f"parameters are good; {d.name}: {sizes} training / modeling / evaluation images")
    return 0


def list_parameters(a: argparse.Namespace) -> int:
    """Show all parameters."""
    print(parameters.listing())
    return 0


def refresh(a: argparse.Namespace) -> int:
    """Execute notebooks in place."""
    paths.repository("refresh")
    notebooks.refresh(a.names or notebooks.all_notebooks())
    return 0


def write_tables(a: argparse.Namespace) -> int:
    """Write docs/parameters.md, the tables of other pages, and the README's figure."""
    from mesa_lib.reporting import plots
    from mesa_lib.reporting.tables import findings, readme, scans, summary

    root = paths.repository("tables")
    (root / "docs" / "parameters.md").write_text(parameters.page())
    readme.fill_page(root / "docs" / "results.md", lambda _, content: readme.markdown(content), findings.FINDINGS)
    readme.fill_page(root / "docs" / "scan.md", lambda name, content: scans.TABLES[name](content))
    short = {findings.COVERED: findings.covered_short}
    readme.fill_page(root / "README.md", lambda _, content: summary.markdown(content), short)
    attacks = summary.by_attack(results.load_content(summary.RESULT)).items()
    rows = {title: {model: summary.measured(runs, model) for model in summary.ROWS} for title, runs in attacks}
    plots.theme()
    figure = plots.before_and_after(rows, summary.ROWS, summary.MESSAGE)
    figure.savefig(root / "results" / "before-after.png", dpi=150, metadata={"Software": None})
    return 0


def refuse_repeat(a: argparse.Namespace) -> int:
    """Say what took the place of the command."""
    raise ValueError(
        "repeat: this command was removed; use `sweep` with a seed axis (`grid: {seed: [0, 1, 2, 3, 4]}`), "
        "as params/sweeps/readme-digits.yaml"
    )
