"""Parameter files: YAML with name: value pairs, as plain values that are not checked yet."""

import re
import reprlib
from pathlib import Path
from typing import Any, ClassVar

import yaml


class _Loader(yaml.SafeLoader):
    """YAML 1.2 with its core schema: 010 is no octal number, 1:30 no time, 2024-01-05 no date and `no` no boolean.

    Numbers are decimal and have no leading zeros; everything else is text. A name that is given twice is an error.
    """

    yaml_implicit_resolvers: ClassVar = {}

    def construct_mapping(self, node, deep=False):
        names = [self.construct_object(key, deep=True) for key, _ in node.value]
        repeated = {str(name) for name in names if names.count(name) > 1}
        if repeated:
            raise yaml.YAMLError(f"{', '.join(sorted(repeated))} is given twice")
        return super().construct_mapping(node, deep)


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(0|[1-9]\d*)", "-+0123456789"),
    ("float", r"[-+]?((0|[1-9]\d*)\.\d*|\.\d+|(0|[1-9]\d*)(?=[eE]))([eE][-+]?\d+)?", "-+0123456789."),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+."),
    ("merge", r"<<", "<"),
):
    first = [*_first.replace("\0", ""), *([""] if "\0" in _first else [])]
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^({_pattern})$"), first)


def brief(value: Any) -> str:
    """Return a value as messages quote it; what is long or nested (in a file it can be huge) is cut."""
    shortened = reprlib.Repr()
    shortened.maxlevel, shortened.maxstring, shortened.maxother = 2, 200, 200
    try:
        return shortened.repr(value)
    except ValueError:  # Python writes no number of more than 4300 digits
        return "a number of thousands of digits"


def read_yaml(file: str | Path, kind: str = "parameter file") -> dict[str, Any]:
    """Return the name: value pairs of a file; an empty file has none.

    Args:
        file: its path.
        kind: what messages call it.

    Raises:
        ValueError: in one line, if the file cannot be read or holds something else.
    """
    file = Path(file)
    try:
        values = yaml.load(file.read_text(), _Loader)  # noqa: S506 (a SafeLoader)
    except RecursionError:
        raise ValueError(f"{kind} {file.name!r}: nested too deeply; expected lines of name: value") from None
    except (OSError, ValueError, yaml.YAMLError) as error:  # ValueError: an impossible date or number
        raise ValueError(f"{kind} {file.name!r}: {' '.join(str(error).split())}") from error
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise ValueError(f"{kind} {file.name!r}: expected lines of name: value")
    return values


def parse_value(text: str) -> Any:
    """Return the value that a text has in a parameter file: `3` -> 3, `1e-3` -> 0.001, nothing -> ''."""
    try:
        return yaml.load(text, _Loader) if text.strip() else ""  # noqa: S506 (a SafeLoader)
    except (RecursionError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{brief(text)}: {' '.join(str(error).split())}; expected a value as in YAML") from None
