"""The playground: draw a trigger, stamp it on an image, and see what each model predicts.

`models` loads or trains what is shown, `scene` holds what is stamped where, `records` reads the results of earlier
runs. These three need no package of the extra `play`. `canvas`, `stamping` and `browsing` draw, by ipywidgets and
ipycanvas.
"""

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mesa_lib.reporting.playground.models import AttackedModels, load_models

if TYPE_CHECKING:
    from mesa_lib.reporting.playground.browsing import ResultsPanel
    from mesa_lib.reporting.playground.stamping import StampingPanel

__all__ = ["AttackedModels", "load_models", "require", "results_panel", "stamping_panel"]

#: the packages of the extra `play` that the panels import
PACKAGES = ("ipywidgets", "ipycanvas", "jinja2")


def require(*packages: str) -> None:
    """Raise ValueError, with the command that installs it, if a package of the extra `play` is missing."""
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ValueError(f"playground: needs {package}; install it with: pip install 'mesa-lib[play]'") from error


def stamping_panel(attacks: Sequence[AttackedModels]) -> "StampingPanel":
    """Return the panel on which triggers are drawn, chosen and stamped; ValueError if the extra `play` is missing."""
    require(*PACKAGES)
    from mesa_lib.reporting.playground.stamping import StampingPanel

    return StampingPanel(attacks)


def results_panel(stamp_on: "StampingPanel | None" = None) -> "ResultsPanel":
    """Return the panel with sliders over results of earlier runs; ValueError if the extra `play` is missing.

    Args:
        stamp_on: the panel that gets a sample when it is clicked.
    """
    require(*PACKAGES)
    from mesa_lib.reporting.playground.browsing import ResultsPanel

    return ResultsPanel(stamp_on)
