"""Parameters of the notebooks: one schema, checked before anything runs.

Each notebook declares, in its `parameters` cell, those it needs; `of_notebook(globals())` checks what it got, from the
cell, from papermill or from a parameter file. Names, types, defaults and comments of the cells agree with this
file (a test sees to it).
"""

import difflib
import re
import reprlib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from mesa_lib.attacks import ATTACKS
from mesa_lib.data import trigger_spec
from mesa_lib.settings import Settings


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError(f"{value} is no number")
    return value


Number = Annotated[float, BeforeValidator(_no_bool)]
Count = Annotated[int, BeforeValidator(_no_bool)]
Augmentation = Literal["none", "crop", "crop-flip", "smallcrop-flip"]


#: parameters that came later, with the value that leaves everything as it was: so that keys of older runs stay
LATER = {"attack": "patch", "kinds": "detectors,repairers,filters,reformers"}
#: what of the bench is put on a victim
DEFENSE_KINDS = ("detectors", "repairers", "filters", "reformers")


class Params(BaseModel):
    """Every parameter of the series, with the default of the small run (digits)."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    # data and machine
    dataset: Literal["digits", "cifar10", "cifar100", "folder"] = Field(
        "digits", description="digits, cifar10, cifar100 or folder"
    )
    data_dir: str = Field("", description="where the data lie; empty: MESA_DATA or data/")
    image_size: Count = Field(32, ge=16, le=256, description="side in pixels (digits and folder only)")
    split_seed: Count = Field(0, ge=0, lt=2**31, description="which test images are modeling, which evaluation")
    seed: Count = Field(0, ge=0, lt=2**31, description="seed of weights, batches, places and noise")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="auto, cpu, cuda or mps")
    precision: Literal["auto", "float32", "bf16"] = Field(
        "float32", description="auto (bf16 where it pays), float32, bf16"
    )
    # clean classifier
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
    batch_size: Count = Field(32, ge=2, description="images per batch, in every training")
    augment: Augmentation = Field("crop", description="none, crop, crop-flip or smallcrop-flip, in clean training")
    retrain_augment: Augmentation = Field("crop", description="the same in attack and repair (the paper: none)")
    schedule: Literal["constant", "onecycle"] = Field(
        "onecycle", description="learning rate of attack and repair: constant (paper) or onecycle (as lr's peak)"
    )
    # attack
    attack: Literal[tuple(ATTACKS)] = Field(
        "patch", description="patch (at a random place, the paper's), or another name"
    )
    trigger: str = Field("bw:170", description="bw:NUMBER, color:NUMBER or file:PATH")
    target: Count = Field(0, ge=0, description="the attacker's target class")
    start: Literal["clean", "scratch"] = Field("clean", description="attack the clean model, or train from scratch")
    poison_rate: Number = Field(0.1, gt=0, lt=1, description="fraction of training images poisoned")
    attack_epochs: Count = Field(40, ge=1, description="epochs of the attack (from scratch: clean_epochs)")
    attack_lr: Number = Field(0.05, gt=0, description="learning rate of the attack")
    kinds: str = Field(
        "detectors,repairers,filters,reformers", description="of the defenses that are put on the victim"
    )
    # modeling the trigger distribution
    alpha: Number = Field(0.1, ge=0, description="weight of the entropy")
    betas: str = Field("0.9,0.8,0.5", description="success levels of the staircase")
    steps: Count = Field(150, ge=1, description="optimizer steps per level")
    triggers_per_step: Count = Field(64, ge=2, description="triggers per step")
    images_per_trigger: Count = Field(4, ge=1, description="images that one trigger is tested on per step")
    generator: Literal["plain", "skip"] = Field("skip", description="plain: 3 layers; skip: 4, a quarter of z to each")
    hidden: Count = Field(256, ge=1, description="units per layer of generator and statistics network")
    noise_dim: Count = Field(16, ge=4, multiple_of=4, description="length of the noise z, a multiple of 4")
    noise: Literal["gaussian", "uniform"] = Field("gaussian", description="law of the noise z: gaussian or uniform")
    critic: Literal["linear", "leaky"] = Field("linear", description="last layer of the statistics network")
    critic_steps: Count = Field(4, ge=1, description="updates of the statistics network for one of the generator")
    hinge: Literal["trigger", "image"] = Field("trigger", description="cap the success of a trigger or of each image")
    trigger_noise: Number = Field(0.1, ge=0, description="std of noise on triggers while searching")
    ema_rate: Number = Field(0.01, gt=0, lt=1, description="weight of the newest batch in MINE's average")
    location: Literal["image", "batch"] = Field("image", description="a random place per image or per batch")
    gamma: Literal["equal", "entropy"] = Field("equal", description="mixture weights: equal or entropy")
    scale: Literal["probability", "log"] = Field(
        "probability", description="of the hinge: success itself (paper) or its logarithm"
    )
    patience: Count = Field(
        0, ge=0, description="stop when held-out samples reach the level so many checks in a row; 0: all steps"
    )
    modeling_lr: Number = Field(0.001, gt=0, description="Adam's learning rate while modeling")
    compare: str = Field("bw:97,bw:16", description="other triggers whose distributions are drawn beside; empty: none")
    # repair
    repair_rate: Number = Field(0.2, gt=0, lt=1, description="fraction of images that carry a trigger")
    repair_epochs: Count = Field(10, ge=1, description="epochs of the repair")
    repair_lr: Number = Field(0.02, gt=0, description="learning rate of the repair")
    rounds: Count = Field(4, ge=1, description="rounds of modeling and repair at most, until a look finds nothing")
    clear_below: Number = Field(0.05, gt=0, lt=1, description="all clear when no look finds more success than this")
    inversion_repeats: Count = Field(3, ge=1, description="how often the point baseline is repeated")

    @field_validator("trigger")
    @classmethod
    def _trigger_parses(cls, value: str) -> str:
        trigger_spec.parse_trigger(value)
        return value

    @field_validator("compare")
    @classmethod
    def _compared_parse(cls, value: str) -> str:
        for spec in filter(None, value.split(",")):
            trigger_spec.parse_trigger(spec.strip())
        return value

    @field_validator("kinds")
    @classmethod
    def _kinds_are_known(cls, value: str) -> str:
        parts = value.split(",")
        if not set(parts) <= set(DEFENSE_KINDS) or len(parts) > len(set(parts)):
            raise ValueError(f"expected some of {', '.join(DEFENSE_KINDS)} with commas between")
        return value

    @field_validator("betas", mode="before")
    @classmethod
    def _betas_parse(cls, value: Any) -> Any:
        value = str(value) if isinstance(value, float) else value  # a single level
        if isinstance(value, str):
            parts = [part.strip() for part in value.split(",")]
            good = all(re.fullmatch(r"\d*\.?\d+(e-?\d+)?", part) and 0 < float(part) < 1 for part in parts)
            if not good:
                raise ValueError("expected numbers in (0, 1) with commas between, as 0.9,0.8,0.5")
        return value

    def as_stored(self) -> bool:
        """Whether the stored notebooks were executed with these values: their bounds are meant for no others."""
        machine = {"data_dir", "device"}  # where, not what
        return self.model_dump(exclude=machine) == Params().model_dump(exclude=machine)

    def content(self) -> dict[str, Any]:
        """The parameters without the places of files, for keys: what lies there is keyed by its content instead."""
        values = self.model_dump(exclude={"data_dir", "compare"})
        values = {name: value for name, value in values.items() if name not in LATER or value != LATER[name]}
        files = {"checkpoint": "given"} if self.checkpoint else {}
        files |= {"trigger": "file"} if self.trigger.startswith("file:") else {}
        return values | files

    def mesa(self, **changes) -> Settings:
        """The settings of the staircase (the trigger's size is known to the defender, as in the paper)."""
        chosen = {
            "alpha": self.alpha,
            "betas": tuple(sorted({float(b) for b in self.betas.split(",")}, reverse=True)),
            "steps": self.steps,
            "batch": self.triggers_per_step,
            "lr": self.modeling_lr,
            "trigger_size": tuple(trigger_spec.parse_trigger(self.trigger).shape[-2:]),
            "seed": self.seed,
        }
        same = ("images_per_trigger", "generator", "hidden", "noise_dim", "noise", "critic", "critic_steps", "hinge")
        same += ("trigger_noise", "ema_rate", "place", "gamma", "scale", "patience")
        return Settings(**(chosen | {name: getattr(self, name) for name in same} | changes))


def preset_parameters(settings: Settings) -> dict:
    """A preset of the staircase as notebook parameters: what `params/official.yaml`, `params/paper.yaml` hold."""
    renamed = {"triggers_per_step": "batch", "modeling_lr": "lr"}
    names = [
        "steps",
        "triggers_per_step",
        "images_per_trigger",
        "generator",
        "hidden",
        "noise_dim",
        "noise",
        "critic",
        "critic_steps",
    ]
    names += ["hinge", "trigger_noise", "ema_rate", "place", "gamma", "scale", "patience", "modeling_lr"]
    return {"alpha": settings.alpha, "betas": ",".join(map(str, settings.betas))} | {
        name: getattr(settings, renamed.get(name, name)) for name in names
    }


def brief(value: Any) -> str:
    """A value as messages quote it: what is long or nested (in a file it can be huge) is cut."""
    brief = reprlib.Repr()
    brief.maxlevel, brief.maxstring, brief.maxother = 2, 200, 200
    try:
        return brief.repr(value)
    except ValueError:  # Python writes no number of more than 4300 digits
        return "a number of thousands of digits"


def check(values: dict[str, Any]) -> Params:
    """Values -> Params; one ValueError names every bad parameter, its value and what was expected."""
    try:
        return Params(**values)
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            name = str(problem["loc"][0]) if problem["loc"] else "?"
            value = values.get(name)
            if problem["type"] == "extra_forbidden":
                known = list(Params.model_fields)
                close = [k for k in known if name in k or k in name] or difflib.get_close_matches(name, known, 1)
                hint = f"; did you mean {close[0]}?" if close else ""
                lines.append(f"{brief(name)[1:-1]} = {brief(value)}: no notebook has such a parameter{hint}")
            else:
                meant = Params.model_fields[name].description
                said = problem["msg"].removeprefix("Value error, ").removeprefix(f"{name} = {brief(value)}: ")
                lines.append(f"{name} = {brief(value)}: {said} ({meant})")
        raise ValueError("\n".join(line if len(line) < 1000 else f"{line[:1000]} ..." for line in lines)) from None


def from_notebook(namespace: dict[str, Any]) -> Params:
    """Check the parameters of a notebook: `p = params.of_notebook(globals())`, right after the cell.

    Papermill only warns about a name it does not know. Here every plain value that stands in the notebook at the first
    call is taken for a parameter, so a misspelt one is refused, whatever way it came in. Later calls, after somebody
    edited the cell and ran it again, look at the same names: by then the notebook has values of its own.
    """
    plain = (str, int, float, bool, type(None), list, tuple)
    names = namespace.get("_parameters") or [
        name
        for name, value in namespace.items()
        if not name.startswith("_") and isinstance(value, plain) and name not in ("In", "Out")
    ]
    found = check({name: namespace[name] for name in names if name in namespace})
    namespace["_parameters"] = names
    return found


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-3 is a number, as everybody expects, and a name given twice is an error."""

    def construct_mapping(self, node, deep=False):
        names = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = {str(name) for name in names if names.count(name) > 1}
        if twice:
            raise yaml.YAMLError(f"{', '.join(sorted(twice))} stands there twice")
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def read_yaml(file: str | Path, what: str = "parameter file") -> dict[str, Any]:
    """The plain name: value pairs of a parameter file, not yet checked."""
    file = Path(file)
    try:
        values = yaml.load(file.read_text(), _Loader)  # noqa: S506 (a SafeLoader)
    except RecursionError:
        raise ValueError(f"{what} {file.name!r}: nested too deeply; expected lines of name: value") from None
    except (OSError, ValueError, yaml.YAMLError) as error:  # ValueError: a date or number that is none
        raise ValueError(f"{what} {file.name!r}: {' '.join(str(error).split())}") from error
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise ValueError(f"{what} {file.name!r}: expected lines of name: value")
    return values


def read(files: Iterable[str | Path] = (), overrides: Iterable[str] = ()) -> Params:
    """Parameter files, later ones over earlier ones, then `name=value` texts, checked as a whole."""
    values: dict[str, Any] = {}
    for file in files:
        values |= read_yaml(file)
    for text in overrides:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"{text!r}: expected name=value")
        values[name.strip()] = parse_value(value)
    return check(values)


def parse_value(text: str) -> Any:
    """The value that a text has in a parameter file: `3` -> 3, `1e-3` -> 0.001, nothing -> ''."""
    try:
        return yaml.load(text, _Loader) if text.strip() else ""  # noqa: S506 (a SafeLoader)
    except (RecursionError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{brief(text)}: {' '.join(str(error).split())}; expected a value as in YAML") from None
