"""Names from outside in messages and reports: printable, and not longer than a line."""

from collections.abc import Sequence

LONGEST = 80


def sanitize(name: str, longest: int = LONGEST) -> str:
    """The text with what cannot be printed written out (control and direction marks, halves of characters), and cut."""
    cut = name if len(name) <= longest else name[: longest - 3] + "..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)


def sanitize_list(names: Sequence[str], most: int = 3) -> str:
    """`a, b, c ...`"""
    return ", ".join(sanitize(name) for name in names[:most]) + " ..." * (len(names) > most)
