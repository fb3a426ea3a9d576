"""Write the sources of one variant of the problem sets: `python variant.py 7 variant/7/source`.

`make assignments VARIANT=7` calls this. A set reads its trigger, class, seeds and numbers from its first code cell, and
its tests compute what they compare with from the same cell. Variant 0 is the sets as they are in `source/`.
"""

import random
import re
import sys
from pathlib import Path

import nbformat

HERE = Path(__file__).parent
#: black-white patterns of which the attack of set 1 plants each well: four or five white pixels, not all in one row
PATTERNS = (85, 170, 341, 186, 325, 171, 298, 106)
#: Patterns that are drawn again. 186 is a plus sign. The fixed-location attack with it responds to so few other patches
#: that in part 6 of set 4 the search misses its location (class 9), or the repair there leaves over 70% (class 5).
#: With the others and classes 9 and 5, the largest fraction of the search is 4% to 16% (tested: above 2%), and the
#: repair leaves 3% to 71% (tested: below 85%). Of the other classes five combinations were tried, and all passed.
LEFT_OUT = (186,)


def drawn_attack(draw: random.Random) -> dict[str, int]:
    """Return a trigger and a class with which a right hand-in passes every test."""
    while True:
        attack = {"TRIGGER": draw.choice(PATTERNS), "TARGET": draw.randrange(1, 10)}
        if attack["TRIGGER"] not in LEFT_OUT:
            return attack


def numbers(variant: int) -> dict[str, dict]:
    """Return set -> name in its first code cell -> value; nothing for variant 0."""
    if variant == 0:
        return {}
    draw = random.Random(variant)
    attack = drawn_attack(draw)
    return {
        "ps1_planting": attack
        | {"SEED": draw.randrange(10, 10_000)}
        | {"IMAGE": (draw.randrange(24, 48), draw.randrange(49, 64)), "PATCH": (draw.randrange(2, 5), 5)},
        "ps2_mine": {"SEED": draw.randrange(10), "SHADES": draw.choice([(0.2, 0.8), (0.8, 0.2), (0.25, 0.75)])},
        "ps3_staircase": attack
        | {"SEED": draw.randrange(1, 5)}
        | {"LITTLE": draw.randrange(50, 90) / 100, "MUCH": draw.randrange(300, 400) / 100},
        "ps4_repair": attack | {"T_QUANTILE": draw.choice([2.132, 3.747, 4.604])},
    }


def changed(source: str, values: dict) -> str:
    """Return a cell of lines `A, B = 1, 2  # why` in which names have other values; ValueError if one is missing."""
    names = {}
    exec(source, {}, names)
    if missing := set(values) - set(names):
        raise ValueError(f"names = {sorted(missing)}: expected names of the first code cell, {sorted(names)}")
    lines = []
    for line in source.split("\n"):
        if found := re.match(r"([A-Z_, ]+) = .*?(  #.*)?$", line):
            both = [name.strip() for name in found[1].split(",")]
            line = f"{found[1]} = {', '.join(repr(values.get(name, names[name])) for name in both)}{found[2] or ''}"
        lines.append(line)
    return "\n".join(lines)


def write(variant: int, folder: Path) -> list[Path]:
    """Write `NAME/NAME.ipynb` of all sets into the folder; return the paths."""
    written, values = [], numbers(variant)
    for path in sorted((HERE / "source").glob("*/*.ipynb")):
        book = nbformat.read(path, 4)
        (cell,) = [cell for cell in book.cells if cell.id.endswith("-variant")]
        cell.source = changed(cell.source, values.get(path.stem, {}))
        copy = folder / path.stem / path.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(book, copy)
        written.append(copy)
    return written


if __name__ == "__main__":
    for path in write(int(sys.argv[1]), Path(sys.argv[2])):
        print(path)
