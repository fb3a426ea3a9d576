"""Sentences of the notebooks whose figures are computed, so that no text can contradict the results that it is about.

A cell with the tag `computed-prose` ends with `prose.text(f"...")`. The notebook shows the text, and hides the source.
"""

from collections.abc import Callable, Iterable
from textwrap import dedent

import numpy as np
from IPython.display import Markdown

#: begins the line of a claim that does not hold
NOT_HERE = "does not hold in this run"


def text(markdown: str) -> Markdown:
    """Return what a notebook shows as formatted text; common indentation and outer blank lines are removed."""
    return Markdown(dedent(markdown).strip())


def percent(rate: float, digits: int = 1) -> str:
    """Return a rate in [0, 1] as a percentage: 0.012 as `1.2%`."""
    return f"{100 * rate:.{digits}f}%"


def points(difference: float, digits: int = 1) -> str:
    """Return a difference of rates in percentage points, with its sign: 0.012 as `+1.2`, -0.0001 as `0.0`."""
    shown = f"{100 * difference:+.{digits}f}"
    return shown if float(shown) else shown[1:]


def spread(rates: Iterable[float], digits: int = 1) -> str:
    """Return the lowest and highest of some rates in [0, 1]: `1.2–3.4%`, or `1.2%` where both are shown alike."""
    values = np.asarray(list(rates), float)
    low, high = (f"{100 * value:.{digits}f}" for value in (values.min(), values.max()))
    return f"{high}%" if low == high else f"{low}–{high}%"


def listed(names: Iterable[str]) -> str:
    """Return names as a list in a sentence: `a`, `a and b`, `a, b and c`; `none` without any."""
    *first, last = list(names) or ["none"]
    return f"{', '.join(first)} and {last}" if first else last


def rate(measured: dict, digits: int = 1) -> str:
    """Return a rate (`intervals.proportion`) with its interval: `0.3% (95% CI 0.0–1.5%)`."""
    return f"{percent(measured['rate'], digits)} (95% CI {spread((measured['low'], measured['high']), digits)})"


def overlap(one: dict, other: dict) -> bool:
    """Return whether the intervals of two rates (`intervals.proportion`) overlap: then no sentence ranks the two."""
    return one["low"] <= other["high"] and other["low"] <= one["high"]


def holds_here(stored: bool, claims: Callable[[], dict[str, bool]]) -> bool:
    """Print which claims about the stored run hold in this run, and return whether all do.

    Networks that are trained on another processor differ as by another seed, and a claim about details may not hold for
    them. Titles and sentences that make it are shown only where it does.

    Args:
        stored: whether the parameters are those of the stored run (`Params.as_stored`); if not, nothing is printed.
        claims: () -> text of each claim, and whether it holds here; called for the parameters of the stored run only.
    """
    if not stored:
        return False
    found = claims()
    print("\n".join(f"{'holds' if holds else NOT_HERE}: {text}" for text, holds in found.items()))
    return all(map(bool, found.values()))
