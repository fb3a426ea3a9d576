"""The structure of the package: what each part imports, what the method needs, how long functions and files are."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import mesa_lib

PACKAGE = Path(mesa_lib.__file__).parent
ROOT = PACKAGE.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
METHOD = {
    "triggers", "generator", "mine", "success", "settings", "staircase", "distribution", "inversion", "retrain",
    "training", "device", "progress",
}  # fmt: skip


def run_python(code: str) -> subprocess.CompletedProcess:
    """Run code in a fresh interpreter, away from the repository's folder."""
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, cwd=ROOT / "tests", timeout=120
    )


# --- imports ---------------------------------------------------------------------------------------------


def test_the_method_loads_nothing_but_itself_and_the_models():
    result = run_python("import json, sys, mesa_lib.staircase; print(json.dumps(sorted(sys.modules)))")
    assert result.returncode == 0, result.stderr
    loaded = json.loads(result.stdout)
    parts = {name.split(".")[1] for name in loaded if name.startswith("mesa_lib.")}
    assert "staircase" in parts and parts <= METHOD | {"models"}
    assert sum(name.split(".")[0] == "mesa_lib" for name in loaded) <= 20
    heavy = {"matplotlib", "seaborn", "pandas", "sklearn", "scipy", "papermill", "nbformat", "distributed", "PIL",
             "cv2", "filelock", "foolbox", "yaml", "torchvision"}  # fmt: skip
    assert not heavy & set(loaded)


def distributions(requirements: list[str]) -> set[str]:
    return {re.match(r"[\w.-]+", text).group().lower().replace("_", "-") for text in requirements} - {"mesa-lib"}


def extra_modules() -> set[str]:
    """The names under which the packages of all extras are imported."""
    extras = distributions(sum(PROJECT["optional-dependencies"].values(), []))
    names = {name for name, owners in packages_distributions().items() if distributions(owners) & extras}
    assert {"filelock", "pandas", "matplotlib", "PIL", "scipy", "yaml", "distributed", "jinja2", "papermill"} <= names
    return names


WITHOUT_EXTRAS = '''
import sys
from importlib.machinery import PathFinder

class Hiding:
    """Finds what PathFinder finds, except the packages of the extras."""

    hidden = set({names!r})

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in cls.hidden else PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Hiding
'''

METHOD_FROM_END_TO_END = """
import torch
import mesa_lib
from mesa_lib.models.networks import build_network

model = build_network("smallcnn", 3, 2, (0.5,) * 3, (0.2,) * 3, seed=0)
images = torch.randint(0, 256, (30, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
labels = torch.arange(30) % 3
settings = mesa_lib.Settings(betas="0.6,0.3", steps=3, triggers_per_step=8, hidden=8)
distribution = mesa_lib.fit(model, images, labels, 1, settings, precision="float32")
triggers = distribution.sample(12, torch.Generator().manual_seed(1))
rates = mesa_lib.asr_of_triggers(model, images, labels, triggers, 1, images_per_trigger=4)
inverted = mesa_lib.invert_trigger(model, images, 1, seed=0, steps=2, batch=8, precision="float32")
options = mesa_lib.RepairSettings(repair_epochs=1)
repaired, history = mesa_lib.repair(model, images, labels, mesa_lib.stamping(distribution.sample), options)
assert triggers.shape == (12, 3, 3, 3) and rates.shape == (12,) and inverted.shape == (3, 3, 3)
assert len(history) == 1 and repaired(images[:2].float() / 255).shape == (2, 3)
print("complete")
"""


def test_the_method_works_without_any_extra():
    """From the model to the repaired model with nothing but the required dependencies."""
    names = sorted(extra_modules())
    result = run_python(WITHOUT_EXTRAS.format(names=names) + METHOD_FROM_END_TO_END)
    assert result.stdout.strip() == "complete", result.stderr
    trap = run_python(WITHOUT_EXTRAS.format(names=names) + "import filelock")
    assert "No module named 'filelock'" in trap.stderr, "the trap works"


def test_the_contracts_of_import_linter_hold():
    command = Path(sys.executable).parent / "lint-imports"
    result = subprocess.run([command, "--no-cache"], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr
    assert "3 kept, 0 broken" in result.stdout


def test_the_map_of_the_package_is_complete():
    entries = re.findall(r"^    (\w+) {2,}\S", mesa_lib.__doc__, re.M)
    modules = {file.stem for file in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    packages = {file.parent.name for file in PACKAGE.glob("*/__init__.py")}
    assert len(entries) == len(set(entries)) and set(entries) == modules | packages
    assert modules == METHOD


def test_the_public_names_exist_and_are_documented():
    assert len(set(mesa_lib.__all__)) == len(mesa_lib.__all__) and mesa_lib.__version__ == PROJECT["version"]
    for name in mesa_lib.__all__:
        assert name == "PRESETS" or getattr(mesa_lib, name).__doc__, name


# --- sizes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", sorted({file.parent.relative_to(ROOT).as_posix() for file in PACKAGE.rglob("*.py")}))
def test_functions_and_files_are_short(folder):
    too_long = {}
    for file in sorted((ROOT / folder).glob("*.py")):
        text = file.read_text()
        lines, most = len(text.splitlines()), 200 if file.parent == PACKAGE else 300
        if lines > most:
            too_long[file.name] = lines
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno - node.lineno + 1 > 50:
                too_long[f"{file.name}: {node.name}"] = node.end_lineno - node.lineno + 1
    assert not too_long
