"""The command line: `python -m mesa_lib run params/digits.yaml -p trigger=bw:16`."""

import argparse
import sys
from pathlib import Path

from mesa_lib.cli import scan as scanning
from mesa_lib.cli import sweep as sweep_command
from mesa_lib.evaluation import metrics
from mesa_lib.experiments import notebooks, params
from mesa_lib.reporting.tables import readme
from mesa_lib.store import paths


def seeds(text: str) -> list[int]:
    """`0,1,2` -> [0, 1, 2]"""
    if not all(part.strip().isdecimal() for part in text.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r}: expected numbers with commas between, as 0,1,2")
    return [int(part) for part in text.split(",")]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m mesa_lib", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    files = argparse.ArgumentParser(add_help=False)
    files.add_argument("files", nargs="*", help="parameter files, later over earlier (default: digits)")
    files.add_argument("-p", action="append", default=[], metavar="NAME=VALUE", help="one parameter, over the files")
    run = commands.add_parser("run", parents=[files], help="run the series 01 to 04 through papermill")
    run.add_argument("--notebooks", default=",".join(notebooks.SERIES), help="which, with commas between: 01,02")
    run.add_argument("--out", type=Path, help="folder for notebooks, figures and tables (default: runs/series/...)")
    commands.add_parser("check", parents=[files], help="check parameters and data, run nothing")
    commands.add_parser("params", help="list all parameters")
    again = commands.add_parser("refresh", help="execute notebooks in place with their defaults (maintainers)")
    again.add_argument("names", nargs="*", default=notebooks.all_notebooks())
    many = commands.add_parser("repeat", parents=[files], help="the table over several seeds, without notebooks")
    many.add_argument("--seeds", default="0,1,2,3,4", type=seeds, help="with commas between")
    many.add_argument("--triggers", help="with spaces between: 'bw:170 color:0' (default: the parameter)")
    many.add_argument("--out", type=Path, required=True, help="the JSON file of the results")
    sweep_command.add(commands)
    scanning.add(commands)
    commands.add_parser("tables", help="put tables and picture into the README (maintainers)")
    a = parser.parse_args(arguments)

    try:
        if a.command == "sweep":
            return sweep_command.main(a)
        if a.command == "scan":
            return scanning.main(a)
        if a.command == "params":
            print(notebooks.reference())
        elif a.command == "refresh":
            notebooks.refresh(a.names)
        elif a.command == "tables":
            readme.into_readme()
            readme.picture()
        else:
            p = params.read([paths.parameter_file(f) for f in a.files], a.p)
            pipeline = notebooks.Pipeline(p)
            d = pipeline.check()  # missing data, an impossible target, trigger or checkpoint end here
            if a.command == "check":
                sizes = f"{len(d.train)} / {len(d.modeling)} / {len(d.evaluation)}"
                print(f"parameters are good; {d.name}: {sizes} training / modeling / evaluation images")
                return 0
            if a.command == "repeat":
                print(readme.markdown(readme.run(p, a.seeds, a.out, a.triggers and a.triggers.split())))
                return 0
            out = notebooks.run_series(p, a.notebooks.split(","), a.out)
            if (out / "result.json").is_file() and notebooks.SERIES[-1][:2] in a.notebooks:
                report = pipeline.report()
                print(metrics.table(report.result["rows"]).to_string(index=False))
                print(f"(one run, seed {p.seed}, {report.made['device']}, torch {report.made['torch']})")
            print(f"\nexecuted notebooks  {out}/*.ipynb\nfigures             {out}/figures/")
            print(f"table               {out}/table.csv and result.json")
    except (ValueError, OSError, FloatingPointError, notebooks.SeriesFailed) as error:
        print(f"mesa: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("mesa: stopped; what was finished is kept, the same command goes on from there", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
