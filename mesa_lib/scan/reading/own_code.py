"""A network that the user's own code builds: `FILE.py:FUNCTION`, run only where that is allowed."""

import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from torch import nn

from mesa_lib.store import paths
from mesa_lib.store.sanitize import sanitize

#: names under which functions and classes take the number of classes
CLASSES = ("num_classes", "n_classes", "classes", "nclasses", "num_class", "class_num", "nb_classes", "num_labels")


def network_of_file(network: str, classes: int, trust_code: bool) -> Callable[[], nn.Module]:
    """Return a function that builds the network by calling a function, or a class, of a Python file.

    It gets the number of classes if it has a parameter for it (`CLASSES`), and nothing else.

    Args:
        network: `FILE.py:FUNCTION`.
        classes: number of classes.
        trust_code: whether the code may run.

    Raises:
        ValueError: if it may not, or if there is no such function.
    """
    file_name, _, function_name = network.rpartition(":")
    source = f"network = '{sanitize(network)}'"
    if not trust_code:
        raise ValueError(f"{source}: would run the code of that file; read it, and add --trust-code if you trust it")
    file = Path(paths.find(file_name))
    if not file.is_file():
        raise ValueError(f"{source}: no such file; expected FILE.py:FUNCTION")
    function = _function(file, function_name, source)
    parameters = inspect.signature(function).parameters
    options = {name: classes for name in CLASSES if name in parameters}

    def build() -> nn.Module:
        try:
            with modules_beside(file):
                built = function(**options)
        except (Exception, SystemExit) as error:  # the user's code may raise anything
            raise ValueError(f"{source}: {type(error).__name__}: {sanitize(str(error), 150)}") from error
        if not isinstance(built, nn.Module):
            raise ValueError(f"{source}: returns a {type(built).__name__}; expected a torch.nn.Module")
        return built

    return build


@contextmanager
def modules_beside(file: Path) -> Iterator[None]:
    """Let a file import modules that lie beside it, as if it were run."""
    folder = str(file.absolute().parent)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        with suppress(ValueError):
            sys.path.remove(folder)


def _function(file: Path, name: str, source: str) -> Callable[..., nn.Module]:
    """Run a file and return a function or class of it."""
    spec = importlib.util.spec_from_file_location(f"mesa_network_{file.stem}", file)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    try:
        with modules_beside(file):
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise ValueError(f"{source}: {type(error).__name__}: {sanitize(str(error), 150)}") from error
    function = getattr(module, name, None)
    if not callable(function):
        available = [k for k, v in vars(module).items() if callable(v) and getattr(v, "__module__", "") == spec.name]
        raise ValueError(f"{source}: no function of this name; expected one of {', '.join(available) or 'the file'}")
    return function
