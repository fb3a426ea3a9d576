"""The files around the code agree with one another."""

import ast
import json
import re
import shlex
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions, requires

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import mesa_lib
from mesa_lib.cli.main import build_parser
from mesa_lib.experiments import results
from mesa_lib.reporting.tables import readme, summary
from mesa_lib.store import paths

ROOT = paths.root()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def names(requirements):
    return {re.match(r"[\w-]+", r).group().lower().replace("_", "-") for r in requirements} - {"mesa-lib"}


#: every requirement, of the package and of its extras
REQUIREMENTS = PROJECT["dependencies"] + sum(PROJECT["optional-dependencies"].values(), [])


def test_environment_yml_installs_the_package_and_nothing_of_its_own():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    plain = [d for d in environment["dependencies"] if isinstance(d, str)]
    (pip,) = [d["pip"] for d in environment["dependencies"] if isinstance(d, dict)]
    assert plain == [f"python{PROJECT['requires-python']}", "pip"] and pip == ["-e .[dev]"]


def test_what_is_installed_comes_from_pyproject():
    assert names(REQUIREMENTS) == names(requires("mesa-lib"))


def test_the_development_extra_has_all_others():
    (own,) = [r for r in PROJECT["optional-dependencies"]["dev"] if r.startswith("mesa-lib[")]
    assert set(re.findall(r"\w+", own.removeprefix("mesa-lib"))) == set(PROJECT["optional-dependencies"]) - {"dev"}


def pins():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


def test_constraints_pin_every_dependency_within_its_range():
    pinned = pins()
    for text in REQUIREMENTS:
        wanted = Requirement(text)
        if wanted.name != "mesa-lib":
            assert wanted.specifier.contains(pinned[canonicalize_name(wanted.name)]), text


def test_constraints_pin_what_the_dependencies_need():
    """Also indirect dependencies are pinned, except what torch brings (its CUDA packages)."""
    pinned, queue, needed = pins(), [Requirement(text) for text in REQUIREMENTS], set()
    while queue:
        requirement = queue.pop()
        name = canonicalize_name(requirement.name)
        if name in needed | {"mesa-lib"} or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        needed.add(name)
        if name != "torch":
            queue += map(Requirement, requires(name) or [])
    assert {"grimp", "rich", "pyproject-hooks", "torch"} <= needed
    assert needed - set(pinned) <= {"setuptools", "pip"}


def test_the_version_is_one_everywhere(capsys):
    with pytest.raises(SystemExit) as ended:
        build_parser().parse_args(["--version"])
    assert ended.value.code == 0 and capsys.readouterr().out == f"mesa {PROJECT['version']}\n"
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == mesa_lib.__version__ == PROJECT["version"]


def imported(code):
    """The top-level packages that some code imports, absolutely."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.split(".")[0]


def test_every_import_is_declared():
    """A package imported by the library or the notebooks is a dependency, not somebody's accident."""
    code = [f.read_text() for f in (ROOT / "mesa_lib").rglob("*.py")]
    for book in (ROOT / "notebooks").glob("*.ipynb"):
        cells = json.loads(book.read_text())["cells"]
        code += ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    used = {module for text in code for module in imported(text)} - set(sys.stdlib_module_names) - {"mesa_lib"}
    assert {"torch", "pandas", "jinja2", "dask"} <= used
    owners = packages_distributions()
    declared = names(REQUIREMENTS)
    indirect = {"ipykernel", "ipython", "jupyter-client", "nbclient", "nbformat", "traitlets", "dask", "markupsafe"}
    for module in used:
        assert {d.lower().replace("_", "-") for d in owners[module]} & (declared | indirect), module


def makefile_commands():
    """The recipes' commands that are run in the virtual environment, with the Makefile's variables in place."""
    makefile = (ROOT / "Makefile").read_text()
    variables = dict(re.findall(r"^(\w+) [?:]= ?(.*)$", makefile, re.M))
    for line in re.findall(r"^\t(\$\((?:BIN|PYTEST)\).*)$", makefile, re.M):
        while variable := re.search(r"\$\((\w+)\)", line):
            line = line.replace(variable.group(), variables[variable.group(1)])
        yield line


DOCS = sorted(file.relative_to(ROOT).as_posix() for file in (ROOT / "docs").glob("*.md"))


def test_the_plain_commands_are_those_of_the_makefile():
    text = "\n".join((ROOT / name).read_text() for name in ["README.md", *DOCS])
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^(\w[\w-]*):", makefile, re.M))
    named = set(re.findall(r"(?:^|[`(]|# )make ([a-z][a-z-]*)", text, re.M))
    assert {"run", "test", "test-all", "lab", "book"} <= named <= targets
    commands = [line for line in makefile_commands() if " -m pip " not in line]
    assert sum(" -m pytest " in line for line in commands) == 2 and len(commands) >= 8
    for line in commands:
        assert re.search(re.escape(line) + r"(?:$| +#)", text, re.M), f"also as a plain command: {line}"


def test_the_readme_fits_a_screen_or_two_and_begins_with_the_two_commands():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 150
    assert [line.split()[:2] for line in lines[:30] if line.startswith("make ")] == [["make", "run"], ["make", "test"]]


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", *DOCS])
def test_commands_in_documents_have_options_that_exist(document):
    text = (ROOT / document).read_text().replace("\\\n", " ")
    commands = re.findall(r"python -m mesa_lib ([a-z][^`#\n]*)", text)
    for command in commands:
        arguments = build_parser().parse_args(shlex.split(command))
        if arguments.command == "sweep" and re.fullmatch(r"[a-z][\w-]*", arguments.sweep):
            assert (ROOT / "params" / "sweeps" / f"{arguments.sweep}.yaml").is_file(), command
        elif arguments.command in ("run", "check"):
            assert all((ROOT / file).is_file() for file in arguments.files), command
    expected = {"README.md", "docs/batch.md", "docs/configuration.md", "docs/development.md", "docs/scan.md"}
    assert commands or document not in expected


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md", *DOCS])
def test_links_in_documents_lead_somewhere(document):
    file = ROOT / document
    for link in re.findall(r"\]\(([^)#:]+)(?:#[\w-]+)?\)", file.read_text()):
        assert (file.parent / link).exists(), link


def test_the_documents_name_every_extra_and_every_sweep():
    text = "\n".join((ROOT / name).read_text() for name in DOCS)
    for extra in PROJECT["optional-dependencies"]:
        assert f"`{extra}`" in text, extra
    for sweep in (ROOT / "params" / "sweeps").glob("*.yaml"):
        assert f"(../params/sweeps/{sweep.name})" in text, sweep.name


@pytest.mark.parametrize("name", ["digits", "cifar10-cpu", "cifar10-scratch", "cifar10-noaugment"])
def test_the_tables_of_the_results_page_are_those_of_the_results(name):
    assert readme.markdown(results.load_content(name)) in (ROOT / "docs" / "results.md").read_text()


def test_the_readmes_table_is_that_of_the_results():
    assert summary.markdown(results.load_content(summary.RESULT)) in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("kind", [".safetensors", ".pt", ".pth", ".pkl", ".zip", ".npz", ".tar.gz"])
def test_no_weights_or_data_are_in_the_repository(kind):
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("no git checkout")
    assert not [f for f in listed.stdout.splitlines() if f.endswith(kind)]
