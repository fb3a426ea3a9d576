"""The package as `pip install .` brings it: complete, and clear about what only the repository holds."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import mesa_lib

PACKAGE = Path(mesa_lib.__file__).parent
ROOT = PACKAGE.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel of this tree, built from a copy, so that nothing is written here."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(PACKAGE, source / "mesa_lib", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, source]
    built = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert built.returncode == 0, built.stdout[-2000:] + built.stderr[-2000:]
    (file,) = out.glob("*.whl")
    return file


CALLS = {
    "notebook": "notebooks.notebook_path('01')",
    "parameter file": "paths.parameter_file('digits')",
    "command": "main(['run', 'digits'])",
}
CODE = """
import contextlib, importlib, io, json, sys
import mesa_lib

for name in {modules!r}:
    importlib.import_module(name)

from mesa_lib.cli.main import main
from mesa_lib.experiments import notebooks
from mesa_lib.scan import false_positives
from mesa_lib.store import paths

messages, error_output = {{}}, io.StringIO()
for name, call in {calls!r}.items():
    try:
        with contextlib.redirect_stderr(error_output):
            result = eval(call)
    except ValueError as error:
        messages[name] = str(error)
    else:
        messages[name] = f"{{result}}: {{error_output.getvalue()}}"
assert false_positives.published_clean_models(), "data that the package carries"
folders = [mesa_lib.__file__, str(paths.runs()), str(paths.data_folder())]
print(json.dumps({{"messages": messages, "folders": folders}}))
"""


@pytest.fixture(scope="module")
def outside(wheel, tmp_path_factory) -> dict:
    """What the installed package does in an empty folder, without the repository; one process for all tests."""
    site, folder = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("work")
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--quiet", "--target", site, wheel]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    modules = [
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for file in sorted(PACKAGE.rglob("*.py"))
        if file.stem != "__main__"
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MESA_")}
    environment["PYTHONPATH"] = str(site)
    command = [sys.executable, "-W", "ignore", "-c", CODE.format(modules=modules, calls=CALLS)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, timeout=180)
    assert result.returncode == 0, result.stderr
    written = sorted(file.name for file in folder.iterdir())
    return {"site": str(site), "work": str(folder), "written": written} | json.loads(result.stdout.splitlines()[-1])


def test_the_wheel_holds_every_file_of_the_package(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    kinds = {".py", ".j2", ".json"}
    expected = {file.relative_to(ROOT).as_posix() for file in PACKAGE.rglob("*") if file.suffix in kinds}
    assert any(name.endswith(".j2") for name in expected) and any(name.endswith(".json") for name in expected)
    assert {name for name in names if name.startswith("mesa_lib/")} == expected


def test_every_module_of_an_installed_package_can_be_imported(outside):
    assert outside["folders"][0].startswith(outside["site"]), "the installed package, and not the repository"
    assert outside["written"] == [], "importing writes nothing"


def test_an_installed_package_uses_the_current_folder(outside):
    assert outside["folders"][1:] == [f"{outside['work']}/runs", f"{outside['work']}/data"]


@pytest.mark.parametrize("name", CALLS)
def test_what_needs_the_repository_says_so(outside, name):
    message = outside["messages"][name]
    assert "needs the repository" in message and "clone" in message
    assert "expected one of" not in message and "Traceback" not in message and len(message.splitlines()) == 1
