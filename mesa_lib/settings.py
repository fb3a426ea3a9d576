"""Settings of modeling and repair, each declared once, with its range; the presets `paper` and `official`.

The experiments' parameters inherit from both classes, so a parameter file names these fields.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError(f"{value} is not a number")
    return value


def _levels(value: Any) -> Any:
    """`0.9,0.8,0.5`, a number or a sequence -> the success levels, highest first."""
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list | tuple) else [value]
    try:
        levels = sorted({float(part) for part in map(_no_bool, parts)}, reverse=True)
    except (TypeError, ValueError):
        levels = []
    if not levels or not all(0 < level <= 1 for level in levels):
        raise ValueError("expected numbers in (0, 1] separated by commas, such as 0.9,0.8,0.5")
    return tuple(levels)


def _text(levels: tuple[float, ...]) -> str:
    return ",".join(map(str, levels))


Number = Annotated[float, BeforeValidator(_no_bool)]
Count = Annotated[int, BeforeValidator(_no_bool)]
Levels = Annotated[tuple[float, ...], BeforeValidator(_levels), PlainSerializer(_text)]
Augmentation = Literal["none", "crop", "crop-flip", "smallcrop-flip"]


class Checked(BaseModel):
    """Immutable values, checked when they are set; `pydantic.ValidationError`, a ValueError, names those refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def replace(self, **changes) -> Self:
        """Return a copy with some values changed, checked like the original."""
        return type(self)(**(dict(self) | changes))


class Settings(Checked):
    """How a trigger distribution is modeled. From `generator` on, each is a point where text and code differ."""

    alpha: Number = Field(0.1, ge=0, description="weight of the entropy")
    betas: Levels = Field((0.9, 0.8, 0.5), description="success levels of the staircase")
    steps: Count = Field(150, ge=1, description="optimizer steps per level")
    triggers_per_step: Count = Field(64, ge=2, description="triggers per step")
    modeling_lr: Number = Field(0.001, gt=0, description="Adam's learning rate while modeling")
    hidden: Count = Field(256, ge=1, description="units per layer of generator and statistics network")
    # with 64 (the code's value) MINE finds next to nothing in a few hundred steps
    noise_dim: Count = Field(16, ge=4, multiple_of=4, description="length of the noise z, a multiple of 4")
    # plain: text; skip: code
    generator: Literal["plain", "skip"] = Field("skip", description="plain: 3 layers; skip: 4, a quarter of z to each")
    # gaussian: text; uniform: code
    noise: Literal["gaussian", "uniform"] = Field("gaussian", description="noise z: gaussian or uniform")
    # linear: MINE; leaky ReLU: code
    critic: Literal["linear", "leaky"] = Field("linear", description="last layer of the statistics network")
    # code: 1; the statistics network is cheap beside the classifier
    critic_steps: Count = Field(4, ge=1, description="updates of the statistics network per generator update")
    # max(0, beta - F) per trigger: text; per image: code
    hinge: Literal["trigger", "image"] = Field("trigger", description="cap the success of a trigger or of each image")
    # code: 1
    images_per_trigger: Count = Field(4, ge=1, description="images that one trigger is tested on per step")
    # text: none; code: 0.1
    trigger_noise: Number = Field(0.1, ge=0, description="std of noise on triggers while searching")
    # code: 0.001
    ema_rate: Number = Field(0.01, gt=0, lt=1, description="weight of the newest batch in MINE's average")
    # batch: code
    placement: Literal["image", "batch"] = Field("image", description="a random location per image or per batch")
    # equal: code; entropy: step height x exp(entropy), as derived in the text
    gamma: Literal["equal", "entropy"] = Field("equal", description="mixture weights: equal or entropy")
    # probability: text and code, flat where F is next to 0; log: ours, which has a gradient there
    hinge_scale: Literal["probability", "log"] = Field(
        "log", description="of the hinge: success itself (probability, the paper) or its logarithm"
    )
    # text and code: 0
    patience: Count = Field(
        0, ge=0, description="stop when held-out samples reach the level so many checks in a row; 0: all steps"
    )


#: `official`: what the released code does; `paper`: what the text says (the code's values where it is silent)
PRESETS = {
    "official": Settings(
        steps=620, triggers_per_step=128, modeling_lr=2e-4, hidden=512, noise_dim=64, noise="uniform", critic="leaky",
        critic_steps=1, hinge="image", images_per_trigger=1, ema_rate=0.001, placement="batch",
        hinge_scale="probability",
    ),
    "paper": Settings(
        steps=620, triggers_per_step=128, modeling_lr=2e-4, hidden=512, noise_dim=64, generator="plain",
        critic_steps=1, images_per_trigger=1, trigger_noise=0.0, ema_rate=0.001, gamma="entropy",
        hinge_scale="probability",
    ),
}  # fmt: skip


class RepairSettings(Checked):
    """How a model is retrained by a repair and its controls."""

    repair_rate: Number = Field(0.2, gt=0, lt=1, description="fraction of images that carry a trigger")
    repair_epochs: Count = Field(10, ge=1, description="epochs of the repair")
    repair_lr: Number = Field(0.02, gt=0, description="learning rate of the repair")
    # distillation: ours; it costs little accuracy where clean images are few
    repair_loss: Literal["distillation", "labels"] = Field(
        "distillation", description="what a repair learns: the model's own outputs on clean images, or labels (paper)"
    )
    repair_statistics: Literal["updated", "frozen"] = Field(
        "updated", description="running statistics of BatchNorm in a repair: updated (paper) or frozen"
    )
    schedule: Literal["constant", "onecycle"] = Field(
        "onecycle", description="learning rate of attack and repair: constant (paper) or onecycle (as lr's peak)"
    )
    retrain_augment: Augmentation = Field("crop", description="augmentation in attack and repair (the paper: none)")
    batch_size: Count = Field(32, ge=2, description="images per batch, in every training")
