"""Result files of format 1, the names that the project used before, rewritten in the names of format 2.

Only names change, never a number. A sweep file (`sweep --publish`), a file of repeats (the table over several seeds,
which is a sweep today), and the files of `benchmarks/` are recognized by their content.
"""

import re
from typing import Any

from mesa_lib import store
from mesa_lib.experiments.params import RENAMED, RENAMED_ATTACKS

#: what the files of today say of themselves
FORMAT = 2
#: what runs of format 1 did where a parameter came later: its default is another today
BEFORE = {"repair_loss": "labels", "detector_search": "full"}
#: names of values, wherever they stand
KEYS = {
    "modelling": "modeling",
    "modelling_lr": "modeling_lr",
    "knows": "knowledge",
    "place": "location",
    "places": "locations",
    "point_triggers_asr": "inverted_triggers_asr",
    "points": "inverted",
    "floor": "clean model",
    "never attacked": "clean models",
    "learnt": "learned",
}
#: keys whose value holds parameters
PARAMETER_SETS = ("params", "own")
#: names of models, repairs, detectors
METHODS = {
    "clean, never attacked": "clean model",
    "clean, repaired": "clean model, repaired",
    "fine-tune only": "fine-tuning",
    "point": "single inversion",
    "point baseline": "single inversion",
    "MESA, any size": "MESA, size unknown",
    "MESA, any place or one": "MESA, location unknown",
    "MESA, target and place unknown": "MESA, target and location unknown",
}
#: what a repair stamps, as the table of all controls says it
STAMPED = {
    "no trigger at all": "no trigger",
    "random colours": "random colors",
    "one trigger reversed by SGD": "a single trigger inverted by SGD",
    "samples of the distribution": "samples of the trigger distribution",
    "the same, until a look finds nothing": "samples of the trigger distribution, until a residual check is clear",
    "samples of MESA, on the model never attacked": "samples of the trigger distribution, on the clean model",
}
SWEEPS = {
    "paper-cifar10-colour": "paper-cifar10-color",
    "paper-cifar100-colour": "paper-cifar100-color",
    "bench-places": "bench-fixed-location",
}
TITLES = {"Digits, one place inside the image": "Digits, a fixed location inside the image"}
#: files of repeats, by name: the sweep that makes them today, and its title
REPEATS = {
    "digits": ("readme-digits", "Digits, bw:170, five seeds"),
    "cifar10-cpu": ("readme-cifar10", "CIFAR-10, five triggers, three seeds"),
    "cifar10-scratch": ("readme-cifar10-scratch", "CIFAR-10, attacks from scratch"),
    "cifar10-noaugment": ("readme-cifar10-noaugment", "CIFAR-10, attack and repair without augmentation"),
}


def migrate(content: dict[str, Any], name: str = "") -> dict[str, Any]:
    """Return a result file's content in format 2; content of that format is returned as it is.

    Args:
        content: the file as it was read.
        name: the file's name without ending; a file of repeats does not say which sweep it belongs to.
    """
    if content.get("format", 1) >= FORMAT:
        return content
    if "paper" in content and "runs" in content:
        content = _repeats_as_sweep(content, name)
    renamed = _renamed(content)
    for run in renamed.get("runs", []):
        if "key" in run:
            run["migrated"] = True  # its key is of a time when parameters had other names
    if "title" in renamed:
        return {part: renamed[part] for part in ("sweep", "title")} | {"format": FORMAT} | renamed
    return {"format": FORMAT} | renamed


def _repeats_as_sweep(content: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the repeats over seeds and triggers as runs of a sweep, each with its parameters and a key."""
    shared = {k: v for k, v in content["params"].items() if k not in ("data_dir", "compare")}
    several = len({run["trigger"] for run in content["runs"]}) > 1
    runs = []
    for run in content["runs"]:
        own = ({"trigger": run["trigger"]} if several else {}) | {"seed": run["seed"]}
        params = shared | {"trigger": run["trigger"], "seed": run["seed"]}
        about = {"key": store.config_key({"repeat": params}), "own": own, "notebooks": ["04_defending"]}
        head = {"params": params, "trigger": run["trigger"], "target": shared["target"], "seed": run["seed"]}
        runs.append(about | head | run)
    sweep, title = REPEATS.get(name, (name or "repeats", name or "Repeats over seeds"))
    return {"sweep": sweep, "title": title, "runs": runs}


def _renamed(value: Any, key: str = "") -> Any:
    """Return a value with all names of today; `key`: the name under which it stands, already of today."""
    if isinstance(value, dict):
        names = RENAMED if key in PARAMETER_SETS else KEYS
        pairs = ((names[k] if k in names else _new_key(k), v) for k, v in value.items())
        return {new: _renamed(v, new) for new, v in pairs}
    if isinstance(value, list):
        return [_renamed(v, key) for v in value]
    return _new_text(value, key) if isinstance(value, str) else value


def _new_key(text: str) -> str:
    """Return the name of a value that may be a method, a patch or a measurement in words."""
    text = METHODS.get(text, text).replace("at one place", "at a fixed location")
    return re.sub(r"\bmodelling\b", "modeling", text).replace("a place per image", "a location per image")


def _new_text(text: str, key: str) -> str:
    """Return a text as it is written today; where it stands says what it may be."""
    if key in ("model", "repair"):
        return re.sub(r"^point (\d+)$", r"single inversion \1", METHODS.get(text, text))
    if key == "models" and text == "clean":
        return "clean model"
    if key in ("trigger", "triggers", "models"):
        return re.sub(r"^colour:", "color:", text)
    if key == "attack":
        return RENAMED_ATTACKS.get(text, text)
    if key == "sweep":
        return SWEEPS.get(text, text)
    if key == "title":
        text = TITLES.get(text, text)
        return text.replace("modelling", "modeling").replace("colour", "color").replace("defences", "defenses")
    if key == "rules":
        return _new_key(text)
    return STAMPED.get(text, text) if key == "triggers stamped" else text
