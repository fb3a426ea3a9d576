"""Reports as HTML: single pages that need no other file, from jinja2 templates whose values are escaped."""

import base64
import io
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

TEMPLATES = Environment(
    loader=PackageLoader("mesa_lib.reporting.html"), autoescape=True, undefined=StrictUndefined,
    trim_blocks=True, lstrip_blocks=True,
)  # fmt: skip


def render(template: str, **values: Any) -> str:
    """Return the page of a template in `templates/`; every value is escaped, a missing one is an error."""
    return TEMPLATES.get_template(template).render(**values) + "\n"


def png_base64(figure: Figure) -> str:
    """Return a figure as a PNG in base64, for `data:` addresses, and close it; equal figures give equal texts."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    plt.close(figure)
    return base64.b64encode(stream.getvalue()).decode()
