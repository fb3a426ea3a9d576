"""Scans of earlier versions, in the names of today: format 1 (unnamed, before the renaming) -> format 2."""

from typing import Any

from mesa_lib.defenses.mesa.screening import PatchSpec

FORMAT = 2
#: how format 1 named a fixed location, after the size
OLD_FIXED = " at one place"
#: the same today
FIXED = str(PatchSpec((1, 1), True)).removeprefix("1x1")
ATTACKS = {"spot": "fixed-location"}
#: keys of a scan and its parts
KEYS = {
    "modelled": "modeled",
    "place": "location",
    "lowest": "min_accuracy",
    "as_told": "trust_preprocessing",
    "samples fire before": "sample ASR before",
    "samples fire after": "sample ASR after",
}
#: fields of the detector and its parts
DETECTOR = {
    "knows": "knowledge",
    "each": "patches_per_location",
    "largest": "largest_fixed",
    "suspect": "suspect_above",
    "most": "max_suspects",
    "of_repair": "repair_modeling",
}
#: fields of `Settings`
SETTINGS = {"batch": "triggers_per_step", "lr": "modeling_lr", "place": "placement", "scale": "hinge_scale"}
#: fields that `Settings` had, and has no longer
DROPPED = ("trigger_size", "seed")


def migrate_scans(content: dict) -> dict:
    """Return the content of `results/scans.json` in the current format; content of that format as it is."""
    if content.get("format") == FORMAT:
        return content
    return {"format": FORMAT, "runs": [_run(run) for run in content["runs"]]}


def _run(run: dict) -> dict:
    attack = ATTACKS.get(run.get("attack"), run.get("attack"))
    changed = run | ({"attack": attack} if attack else {})
    return changed | ({"scan": migrate_scan(run["scan"])} if "scan" in run else {})


def migrate_scan(scan: dict) -> dict:
    """Return one scan (`scan.json`) of format 1 in the current format."""
    kept = {name: scan[name] for name in ("model", "classes", "images", "flagged") if name in scan}  # texts of others
    return _renamed(scan) | kept | ({"settings": _settings(scan["settings"])} if "settings" in scan else {})


def _renamed(value: Any) -> Any:
    """Rename keys, and specs in keys and texts."""
    if isinstance(value, dict):
        return {KEYS.get(name, _spec(name)): _renamed(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_renamed(part) for part in value]
    return _spec(value) if isinstance(value, str) else value


def _spec(text: str) -> str:
    return text.removesuffix(OLD_FIXED) + FIXED if text.endswith(OLD_FIXED) else text


def _settings(settings: dict) -> dict:
    changed = _detector(settings)
    # `max_specs` was called like the sizes of the screening
    changed["max_specs"] = changed.pop("sizes")
    return changed | {"images": settings["images"].replace("answered rightly", "classified correctly")}


def _detector(part: Any) -> Any:
    """Rename the fields of a detector and of the `Settings` in it."""
    if not isinstance(part, dict):
        return part
    if "betas" not in part:
        return {DETECTOR.get(name, name): _detector(value) for name, value in part.items()}
    renamed = {SETTINGS.get(name, name): value for name, value in part.items() if name not in DROPPED}
    return renamed | {"betas": ",".join(map(str, part["betas"]))}
