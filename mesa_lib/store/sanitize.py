"""Text from outside (file names, class names, error texts) for messages and reports: printable, at most a line long."""

from collections.abc import Sequence

MAX_LENGTH = 80


def sanitize(text: str, max_length: int = MAX_LENGTH) -> str:
    """Return the text, shortened to `max_length` characters, with everything unprintable written as an escape.

    Control characters, direction marks and lone surrogates can rearrange or break what a terminal or page shows.
    """
    short = text if len(text) <= max_length else text[: max_length - 3] + "..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in short)


def sanitize_list(texts: Sequence[str], most: int = 3) -> str:
    """Return the first `most` texts, each sanitized, as `a, b, c`; ` ...` says that there are more."""
    return ", ".join(map(sanitize, texts[:most])) + " ..." * (len(texts) > most)
