"""Every parameter of the experiments, checked before anything runs.

A notebook lists those that one changes most often in its `parameters` cell; any other can be added. It checks what it
got, from the cell, from papermill or from a parameter file: `p = params.from_notebook(globals())`. Names, types,
defaults and comments of the cells agree with this file; a test compares them.
"""

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field, ValidationError, ValidationInfo, field_validator

from mesa_lib import device as devices
from mesa_lib.attacks import ATTACKS
from mesa_lib.attacks.badnets import COVERS
from mesa_lib.data import class_names, trigger_spec
from mesa_lib.experiments.parameter_files import brief, parse_value, read_yaml
from mesa_lib.settings import Augmentation, Checked, Count, Number, RepairSettings, Settings
from mesa_lib.store.sanitize import sanitize_list

__all__ = ["DEFENSE_KINDS", "RENAMED", "Params", "brief", "check", "from_notebook", "parse", "read", "read_yaml"]

#: the kinds of defenses that the benchmark runs against an attacked model
DEFENSE_KINDS = ("detectors", "repairers", "filters", "reformers")
#: kinds that it runs on request
RECENT_KINDS = ("recent-detectors", "recent-repairers")
#: former names of parameters, and of values
RENAMED = {
    "modelling_lr": "modeling_lr",
    "point_repeats": "inversion_repeats",
    "kinds": "defense_kinds",
    "scale": "hinge_scale",
    "place": "placement",
    "compare": "compare_triggers",
}
RENAMED_ATTACKS = {"spot": "fixed-location"}


class AttackedModelSettings(Checked):
    """Data, machine, clean model and attack: everything that an attacked model depends on, besides its training."""

    # data and machine
    dataset: Literal["digits", "cifar10", "cifar100", "folder"] = Field(
        "digits", description="digits, cifar10, cifar100 or folder"
    )
    data_dir: str = Field("", description="folder of the data; empty: MESA_DATA or data/")
    image_size: Count = Field(32, ge=16, le=256, description="side in pixels (digits and folder only)")
    split_seed: Count = Field(0, ge=0, lt=2**31, description="which test images are modeling, which evaluation")
    seed: Count = Field(0, ge=0, lt=2**31, description="seed of weights, batches, locations and noise")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="auto, cpu, cuda or mps")
    precision: Literal["auto", "float32", "bf16"] = Field(
        "float32", description="auto (bf16 where it is fast), float32 or bf16"
    )
    # clean model
    clean_seed: Count = Field(-1, ge=-1, lt=2**31, description="seed of clean training; -1: the seed above")
    network: Literal["smallcnn", "resnet18", "fastcnn"] = Field(
        "smallcnn", description="smallcnn, resnet18 (the paper's) or fastcnn"
    )
    width: Count = Field(16, ge=1, le=1024, description="channels of the first layer (resnet18: 64 is the paper's)")
    checkpoint: str = Field("", description="a clean model to attack (safetensors); empty: train one")
    clean_epochs: Count = Field(25, ge=1, description="epochs of clean training")
    clean_lr: Number = Field(0.1, gt=0, description="peak learning rate of clean training (one-cycle)")
    weight_decay: Number = Field(5e-4, ge=0, lt=1, description="weight decay in training from scratch")
    label_smoothing: Number = Field(0.0, ge=0, lt=1, description="label smoothing in training from scratch")
    augment: Augmentation = Field("crop", description="none, crop, crop-flip or smallcrop-flip, in clean training")
    # attack
    attack: Literal[tuple(ATTACKS)] = Field(
        "patch", description="patch (at a random location, the paper's), or another name"
    )
    trigger: str = Field("bw:170", description="bw:NUMBER, color:NUMBER or file:PATH")
    target: Count = Field(0, ge=0, description="the attacker's target class")
    cover: Literal[COVERS] = Field(
        "mixed", description="patches on cover samples (attack covered): a family of random ones, or near"
    )
    cover_rate: Number = Field(0.3, gt=0, lt=1, description="fraction of images that are cover samples")
    more_triggers: str = Field("", description="further triggers of the attack covered, with commas between")
    start: Literal["clean", "scratch"] = Field("clean", description="attack the clean model, or train from scratch")
    poison_rate: Number = Field(0.1, gt=0, lt=1, description="fraction of training images poisoned")
    attack_epochs: Count = Field(40, ge=1, description="epochs of the attack (from scratch: clean_epochs)")
    attack_lr: Number = Field(0.05, gt=0, description="learning rate of the attack")

    @field_validator("attack", mode="before")
    @classmethod
    def _check_attack_name(cls, value: Any) -> Any:
        if isinstance(value, str) and value in RENAMED_ATTACKS:
            raise ValueError(f"this attack was renamed; write {RENAMED_ATTACKS[value]}")
        return value

    @field_validator("target", mode="before")
    @classmethod
    def _label_of_target(cls, value: Any, info: ValidationInfo) -> Any:
        """Return the label of the class of this name; the data set is known by now, if it is one."""
        if not isinstance(value, str) or value.strip().lstrip("+-").isdecimal() or "dataset" not in info.data:
            return value
        names = class_names(info.data["dataset"], info.data.get("data_dir", ""))
        if value not in names:
            raise ValueError(f"expected a label from 0 to {len(names) - 1}, or one of {sanitize_list(names, 12)}")
        return names.index(value)

    @field_validator("more_triggers")
    @classmethod
    def _check_more_triggers(cls, value: str) -> str:
        for spec in filter(None, value.split(",")):
            if spec.strip().startswith("file:"):
                raise ValueError(f"{spec.strip()}: expected triggers by number, such as bw:97,color:1")
            _parse_trigger(spec.strip())
        return value

    @field_validator("trigger")
    @classmethod
    def _check_trigger(cls, value: str) -> str:
        _parse_trigger(value)
        return value


class Params(RepairSettings, Settings, AttackedModelSettings):
    """Every parameter of the experiments, with the defaults of the small run (digits)."""

    # from here on: the rounds of the repair, its baselines, and what notebooks and benchmark show
    rounds: Count = Field(4, ge=1, description="rounds of modeling and repair at most, until residual checks are clear")
    clear_below: Number = Field(0.05, gt=0, lt=1, description="clear: no residual check finds an ASR above this")
    search_candidates: Count = Field(1024, ge=32, description="random triggers that a trigger search starts from")
    search_generations: Count = Field(12, ge=0, description="generations of a trigger search")
    inversion_repeats: Count = Field(3, ge=1, description="how often the inversion of a single trigger is repeated")
    inversion_restarts: Count = Field(32, ge=1, description="starts of the best inversion, and of all inversions")
    compare_triggers: str = Field(
        "bw:97", description="other triggers whose distributions are drawn beside; empty: none"
    )
    compare_attack: Literal[("", *ATTACKS)] = Field(
        "covered", description="another attack that the series shows beside the first; empty: none"
    )
    defense_kinds: str = Field(",".join(DEFENSE_KINDS), description="kinds of defenses that the benchmark runs")
    detector_search: Literal["short", "full"] = Field(
        "short", description="MESA's detectors in the benchmark: full (as published), or short (a quarter)"
    )

    @field_validator("compare_triggers")
    @classmethod
    def _check_compared(cls, value: str) -> str:
        for spec in filter(None, value.split(",")):
            _parse_trigger(spec.strip())
        return value

    @field_validator("defense_kinds")
    @classmethod
    def _check_defense_kinds(cls, value: str) -> str:
        parts = value.split(",")
        known = (*DEFENSE_KINDS, *RECENT_KINDS)
        if not set(parts) <= set(known) or len(parts) > len(set(parts)):
            raise ValueError(f"expected some of {', '.join(known)}, separated by commas")
        return value

    def as_stored(self) -> bool:
        """Return whether the stored notebooks were executed with these values, for which alone their bounds hold."""
        machine = {"data_dir", "device"}  # where, not what
        return self.model_dump(exclude=machine) == Params().model_dump(exclude=machine)

    def content(self) -> dict[str, Any]:
        """Return the parameters for keys: without paths of files, whose content is in the key instead.

        `detector_search` is no part of it either: where it matters, the methods' settings are.
        """
        shown_beside = {"compare_triggers", "compare_attack"}
        values = self.model_dump(exclude={"data_dir", "detector_search"} | shown_beside)
        files = {"checkpoint": "given"} if self.checkpoint else {}
        files |= {"trigger": "file"} if self.trigger.startswith("file:") else {}
        return values | files

    def modeling_settings(self, **changes) -> Settings:
        """Return the settings of the staircase; `changes` override them (`alpha=10`)."""
        return Settings(**{name: getattr(self, name) for name in Settings.model_fields} | changes)

    def repair_settings(self) -> RepairSettings:
        """Return the settings of the repair."""
        return RepairSettings(**{name: getattr(self, name) for name in RepairSettings.model_fields})


def _parse_trigger(spec: str) -> None:
    """Raise ValueError if this is not a trigger; `colour:N` is answered with its new name."""
    if spec.startswith("colour:"):
        raise ValueError(f"this trigger was renamed; write {spec.replace('colour', 'color', 1)}")
    trigger_spec.parse_trigger(spec)


def check(values: Mapping[str, Any]) -> Params:
    """Return the checked parameters; all others have their defaults. The target may be given by its name.

    Raises:
        ValueError: one line for each bad parameter, with its value and what was expected.
    """
    try:
        return Params(**values)
    except ValidationError as error:
        lines = [_explain(problem, values) for problem in error.errors()]
        raise ValueError("\n".join(line if len(line) < 1000 else f"{line[:1000]} ..." for line in lines)) from None


def _explain(problem: Mapping[str, Any], values: Mapping[str, Any]) -> str:
    """Return the line about one of pydantic's errors."""
    name = str(problem["loc"][0]) if problem["loc"] else "?"
    value = brief(values.get(name))
    if problem["type"] != "extra_forbidden":
        reason = problem["msg"].removeprefix("Value error, ").removeprefix(f"{name} = {value}: ")
        return f"{name} = {value}: {reason} ({Params.model_fields[name].description})"
    if name in RENAMED:
        return f"{name} = {value}: this parameter was renamed; write {RENAMED[name]}"
    known = list(Params.model_fields)
    close = [k for k in known if name in k or k in name] or difflib.get_close_matches(name, known, 1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"{brief(name)[1:-1]} = {value}: there is no such parameter{hint}"


def from_notebook(namespace: Mapping[str, Any]) -> Params:
    """Return the checked parameters of a notebook: `p = params.from_notebook(globals())`, right after their cell.

    Papermill only warns about names that the cell does not list. Here every plain value in the notebook counts as a
    parameter at the first call, so a misspelled one is refused, however it was passed. Later calls, after the reader
    edited the cell and ran it again, check the variables that have the name of a parameter: by then the notebook has
    others of its own. As the start of every notebook, the call also sets `device.keep_memory`.

    Args:
        namespace: the notebook's variables; left unchanged.
    """
    devices.keep_memory()
    # what IPython had before the first cell, such as variables of the user's startup files, is not the notebook's
    shell = namespace["get_ipython"]() if "get_ipython" in namespace else None
    hidden = getattr(shell, "user_ns_hidden", {})
    public = {
        name: value
        for name, value in namespace.items()
        if not name.startswith("_") and name not in ("In", "Out") and hidden.get(name, hidden) is not value
    }
    again = any(isinstance(value, Params) for value in public.values())
    plain = str | int | float | bool | None | list | tuple
    given = {name for name, value in public.items() if isinstance(value, plain)}
    names = set(Params.model_fields) if again else given
    return check({name: value for name, value in public.items() if name in names})


def parse(name: str, text: str) -> Any:
    """Return what the text of `-p name=text` stands for: itself where the parameter is a text, else a value in YAML."""
    field = Params.model_fields.get(name)
    options = () if field is None else get_args(field.annotation)  # of a Literal
    is_text = field is not None and (field.annotation is str or any(isinstance(option, str) for option in options))
    return text if is_text else parse_value(text)


def read(files: Iterable[str | Path] = (), overrides: Iterable[str] = ()) -> Params:
    """Return the parameters of files, later over earlier, and of `name=value` texts over these, checked as a whole."""
    values: dict[str, Any] = {}
    for file in files:
        values |= read_yaml(file)
    for text in overrides:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"{text!r}: expected name=value")
        values[name.strip()] = parse(name.strip(), value)
    return check(values)
