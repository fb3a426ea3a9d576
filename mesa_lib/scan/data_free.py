"""What the network says before any image is used: the largest margin of each class, and the rows of the last layer.

MM-BD (`defenses.maximum_margin`) is the only part of a scan that can see triggers which are no patches: blends, warps,
patterns of any size. Its figure alone makes a class suspicious, and never backdoored: the limit comes from few clean
networks. Statistics of the last layer are noted beside it, without a limit.

The limit is above what clean networks reach (4.2 at most on digits, 1.3 for one fastcnn of half width on CIFAR-10),
and misses much: on seven such networks with a covered backdoor the planted class came first each time, at 1.4 to 3.4.
"""

from collections.abc import Callable

from mesa_lib.defenses.base import DefenderView, Knowledge
from mesa_lib.defenses.last_layer import LastLayer
from mesa_lib.defenses.maximum_margin import MaximumMargin

#: from this number of classes on, the margins would take longer than the search for patches
MAX_CLASSES = 200
#: starts per class for ten classes of 32x32 pixels, a third of the method's own for the sake of time, and the fewest
STARTS, FEWEST_STARTS = 10, 2
REFERENCE_PIXELS, REFERENCE_CLASSES = 32 * 32, 10


def maximum_margin(classes: int, pixels: int) -> MaximumMargin:
    """Return the detector, with fewer starts for larger images and more classes, so that its price stays alike.

    Args:
        classes: their number.
        pixels: of an image, height times width.
    """
    share = REFERENCE_PIXELS / pixels * REFERENCE_CLASSES / classes
    return MaximumMargin(starts=max(FEWEST_STARTS, min(STARTS, round(STARTS * share))))


def why_not(classes: int) -> str:
    """Return why the margins are not computed for so many classes; "" if they are."""
    if 3 <= classes <= MAX_CLASSES:
        return ""
    return f"{classes} classes: margins are compared for 3 to {MAX_CLASSES} classes"


def examine(view_of: Callable[[Knowledge], DefenderView], method: MaximumMargin) -> dict:
    """Return the margins of all classes, and how far the rows of the last layer stand out.

    Args:
        view_of: knowledge -> the view of a method that declares it.
        method: with its number of starts.

    Returns:
        `ratios`: of each class, its largest margin divided by the median of all. `limit`: above which a class is
        suspicious. `suspicious`: these classes. `p-value`: of the paper's test, None if there is none. `starts`.
        `last layer`: the anomaly index of each row, None where there is no such layer.

    Raises:
        FloatingPointError: if a margin is not finite.
    """
    margins = method.detect(view_of(method.knowledge))
    rows = LastLayer()
    try:
        index = [round(value, 2) for value in rows.detect(view_of(rows.knowledge)).index]
    except ValueError:
        index = None
    return {
        "ratios": [round(value, 3) for value in margins.index],
        "limit": method.above,
        "suspicious": margins.flagged,
        "p-value": margins.about["p-value"],
        "starts": method.starts,
        "last layer": index,
    }
