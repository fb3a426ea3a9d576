"""Packages of the extra `scan`, imported where they are needed: timm, transformers, onnx, onnx2pytorch."""

import importlib
from types import ModuleType


def imported(package: str, needed_for: str) -> ModuleType:
    """Return a package of the extra `scan`.

    Args:
        package: its name.
        needed_for: what the user asked for, as messages begin: `network = 'timm:resnet18'`.

    Raises:
        ValueError: names the command that installs it.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ValueError(f"{needed_for}: needs {package}; install it with: pip install 'mesa-lib[scan]'") from error
