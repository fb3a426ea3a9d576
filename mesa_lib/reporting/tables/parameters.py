"""The list of all parameters, for the command line and for docs/parameters.md."""

from mesa_lib.experiments.params import AttackedModelSettings, Params
from mesa_lib.settings import RepairSettings, Settings

#: what parameters are about -> the class that declares them, and where they matter
GROUPS = {
    "Data, machine, clean model and attack": (AttackedModelSettings, "They matter from notebook 01 on."),
    "Modeling": (Settings, "They matter from notebook 02 on."),
    "Training of attack and repair": (RepairSettings, "Those of the repair matter in 04, the others from 01 on."),
    "Rounds, baselines, and what is shown": (Params, "They matter in notebooks 03 and 04, and in the benchmark."),
}


def grouped() -> dict[str, list[str]]:
    """Return the names of all parameters by what they are about, each once."""
    left, groups = list(Params.model_fields), {}
    for title, (owner, _) in GROUPS.items():
        groups[title] = [name for name in left if name in owner.model_fields]
        left = [name for name in left if name not in owner.model_fields]
    return groups


def listing() -> str:
    """Return every parameter with its default and its meaning, as text for a terminal."""
    defaults, lines = Params().model_dump(), []
    for title, names in grouped().items():
        lines += ["", f"{title}:"] if lines else [f"{title}:"]
        lines += [f"  {name:<20}{defaults[name]!r:<15} {Params.model_fields[name].description}" for name in names]
    return "\n".join(lines)


def page() -> str:
    """Return the content of docs/parameters.md."""
    defaults = Params().model_dump()
    lines = [
        "# Parameters",
        "",
        "Every notebook begins with a cell of the parameters that one changes most often. All others have the defaults",
        "below. To set one, add a line to that cell, such as `alpha: float = 1.0`, and run the cells from there on.",
        "[Configuration](configuration.md) shows how the command line, parameter files and papermill set them.",
        "",
        "`mesa_lib tables` writes this page.",
    ]
    for title, names in grouped().items():
        lines += ["", f"## {title}", "", GROUPS[title][1], "", "| parameter | default | meaning |", "|---|---|---|"]
        lines += [f"| `{name}` | `{defaults[name]!r}` | {Params.model_fields[name].description} |" for name in names]
    return "\n".join(lines) + "\n"
