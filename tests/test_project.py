"""The files around the code agree with one another."""

import json
import re
import tomllib
from importlib.metadata import requires

import pytest
import yaml

from mesa_lib.experiments import results
from mesa_lib.reporting.tables import readme
from mesa_lib.store import paths

ROOT = paths.root()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def names(requirements):
    return {re.match(r"[\w-]+", r).group().lower().replace("_", "-") for r in requirements}


def test_environment_yml_installs_the_package_and_nothing_of_its_own():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    plain = [d for d in environment["dependencies"] if isinstance(d, str)]
    (pip,) = [d["pip"] for d in environment["dependencies"] if isinstance(d, dict)]
    assert plain == [f"python{PROJECT['requires-python']}", "pip"] and pip == ["-e .[dev]"]


def test_what_is_installed_comes_from_pyproject():
    wanted = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]
    assert names(wanted) == names(requires("mesa-lib"))


def test_constraints_pin_every_dependency_within_its_range():
    from packaging.requirements import Requirement

    pins = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    )
    pins = {name.lower().replace("_", "-"): version for name, version in pins.items()}
    for text in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]:
        wanted = Requirement(text)
        assert wanted.specifier.contains(pins[wanted.name.lower()]), text


def test_every_import_is_declared():
    """A package imported by the library or the notebooks is a dependency, not somebody's accident."""
    import sys
    from importlib.metadata import packages_distributions

    code = [f.read_text() for f in (ROOT / "mesa_lib").rglob("*.py")]
    for book in (ROOT / "notebooks").glob("*.ipynb"):
        cells = json.loads(book.read_text())["cells"]
        code += ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    used = {m for text in code for m in re.findall(r"^\s*(?:import|from) ([a-z_A-Z0-9]+)", text, re.M)}
    used -= set(sys.stdlib_module_names) | {"mesa_lib"}
    owners = packages_distributions()
    declared = names(PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"])
    indirect = {"jupyter-client", "nbclient", "nbformat", "traitlets", "dask"}  # of jupyterlab, papermill, distributed
    for module in used:
        assert {d.lower().replace("_", "-") for d in owners[module]} & (declared | indirect), module


def test_the_readmes_commands_exist():
    readme, makefile = (ROOT / "README.md").read_text(), (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^(\w[\w-]*):", makefile, re.M))
    named = set(re.findall(r"(?:^|[`(]|# )make ([a-z][a-z-]*)", readme, re.M))
    assert {"run", "test", "lab"} <= named <= targets
    for line in re.findall(r"^\t\$\(BIN\)/(.*)$", makefile, re.M):
        if not line.startswith("python -m pip"):
            assert line in readme, f"also as a plain command: {line}"


def test_the_readmes_links_lead_somewhere():
    for document in ("README.md", "CONTRIBUTING.md"):
        for link in re.findall(r"\]\(([^)#:]+)\)", (ROOT / document).read_text()):
            assert (ROOT / link).exists(), f"{document}: {link}"


@pytest.mark.parametrize("name", ["digits", "cifar10-cpu", "cifar10-scratch", "cifar10-noaugment"])
def test_the_readmes_tables_are_those_of_the_results(name):
    assert readme.markdown(results.load_content(name)) in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("kind", [".safetensors", ".pt", ".pth", ".pkl", ".zip", ".npz", ".tar.gz"])
def test_no_weights_or_data_are_in_the_repository(kind):
    import subprocess

    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("no git checkout")
    assert not [f for f in listed.stdout.splitlines() if f.endswith(kind)]
