"""Settings: every value is checked when it is set; the presets keep their published values."""

import json
import math

import pytest
from pydantic import ValidationError

from mesa_lib.settings import PRESETS, RepairSettings, Settings
from mesa_lib.training import AUGMENTATIONS, SCHEDULES

LITERALS = {
    "generator": ("plain", "skip"),
    "noise": ("gaussian", "uniform"),
    "critic": ("linear", "leaky"),
    "hinge": ("trigger", "image"),
    "placement": ("image", "batch"),
    "gamma": ("equal", "entropy"),
    "hinge_scale": ("probability", "log"),
}
REPAIR_LITERALS = {"schedule": SCHEDULES, "retrain_augment": tuple(AUGMENTATIONS)}


def refused(settings, name, value) -> str:
    """The message about one refused value."""
    with pytest.raises(ValueError, match=f"1 validation error for {settings.__name__}\n{name}\n") as error:
        settings(**{name: value})
    return str(error.value)


@pytest.mark.parametrize(
    ("settings", "name", "values"),
    [(Settings, *item) for item in LITERALS.items()] + [(RepairSettings, *item) for item in REPAIR_LITERALS.items()],
)
def test_switches_take_their_values_and_no_others(settings, name, values):
    for value in values:
        assert getattr(settings(**{name: value}), name) == value
    for value in ("odd", values[0].upper(), "", None, True, 1):
        message = refused(settings, name, value)
        assert repr(value) in message and all(expected in message for expected in values)


@pytest.mark.parametrize(
    ("settings", "name", "value"),
    [
        (Settings, "alpha", -0.1), (Settings, "alpha", math.nan), (Settings, "alpha", math.inf),
        (Settings, "steps", 0), (Settings, "steps", 1.5), (Settings, "triggers_per_step", 1),
        (Settings, "modeling_lr", 0), (Settings, "hidden", 0), (Settings, "noise_dim", 6), (Settings, "noise_dim", 0),
        (Settings, "critic_steps", 0), (Settings, "images_per_trigger", 0), (Settings, "trigger_noise", -1),
        (Settings, "ema_rate", 0), (Settings, "ema_rate", 1), (Settings, "patience", -1),
        (RepairSettings, "repair_rate", 0), (RepairSettings, "repair_rate", 1), (RepairSettings, "repair_epochs", 0),
        (RepairSettings, "repair_lr", 0), (RepairSettings, "batch_size", 1),
    ],
)  # fmt: skip
def test_numbers_out_of_range_are_refused(settings, name, value):
    assert str(value) in refused(settings, name, value)


@pytest.mark.parametrize("settings", [Settings, RepairSettings])
def test_true_is_not_a_number(settings):
    """Papermill turns the text `True` into a bool, which Python counts as 1."""
    numbers = [name for name, value in settings() if isinstance(value, int | float)]
    assert len(numbers) > 3
    for name in numbers:
        assert "True is not a number" in refused(settings, name, True)


@pytest.mark.parametrize(
    ("value", "betas"),
    [
        ("0.9,0.8,0.5", (0.9, 0.8, 0.5)), ("0.5, 0.9", (0.9, 0.5)), ("0.7", (0.7,)), (0.7, (0.7,)), (1, (1.0,)),
        ([0.5, 0.9], (0.9, 0.5)), ((0.3, 0.9, 0.3), (0.9, 0.3)), (["0.5", 0.9], (0.9, 0.5)),
    ],
)  # fmt: skip
def test_betas_may_be_text_a_number_or_a_sequence(value, betas):
    assert Settings(betas=value).betas == betas


@pytest.mark.parametrize(
    "value",
    ["", (), [], "0.9,", "high", None, True, [True], (0.9, 0.0), (1.1,), (-0.5,), (math.nan,), {0.9: 1}, "0.9;0.8"],
)
def test_bad_betas_are_refused(value):
    assert "expected numbers in (0, 1] separated by commas, such as 0.9,0.8,0.5" in refused(Settings, "betas", value)


def test_betas_are_dumped_as_text():
    """As a parameter file holds them; the dump is JSON and gives equal settings."""
    settings = Settings(betas=(0.5, 0.9))
    assert settings.model_dump()["betas"] == "0.9,0.5"
    assert Settings(**json.loads(json.dumps(settings.model_dump()))) == settings


@pytest.mark.parametrize("name", ["batch", "lr", "place", "scale", "trigger_size", "seed", "alhpa"])
def test_unknown_names_are_refused(name):
    assert "Extra inputs are not permitted" in refused(Settings, name, 1)


def test_settings_cannot_be_changed():
    settings = Settings()
    with pytest.raises(ValidationError, match="frozen"):
        settings.alpha = 1.0
    with pytest.raises(ValidationError, match="frozen"):
        RepairSettings().batch_size = 8
    assert hash(settings) == hash(Settings())


def test_a_replaced_copy_is_checked_and_leaves_the_original():
    settings = Settings(alpha=0.3)
    changed = settings.replace(steps=7, betas="0.6")
    assert (changed.alpha, changed.steps, changed.betas) == (0.3, 7, (0.6,)) and type(changed) is Settings
    assert settings == Settings(alpha=0.3) and settings.replace() == settings
    for wrong in ({"noise": "cauchy"}, {"steps": 0}, {"batch": 3}):
        with pytest.raises(ValidationError):
            settings.replace(**wrong)


# --- the presets -----------------------------------------------------------------------------------------

OFFICIAL = {
    "alpha": 0.1, "betas": "0.9,0.8,0.5", "steps": 620, "triggers_per_step": 128, "modeling_lr": 2e-4, "hidden": 512,
    "noise_dim": 64, "generator": "skip", "noise": "uniform", "critic": "leaky", "critic_steps": 1, "hinge": "image",
    "images_per_trigger": 1, "trigger_noise": 0.1, "ema_rate": 0.001, "placement": "batch", "gamma": "equal",
    "hinge_scale": "probability", "patience": 0,
}  # fmt: skip
PAPER = OFFICIAL | {
    "generator": "plain", "noise": "gaussian", "critic": "linear", "hinge": "trigger", "trigger_noise": 0.0,
    "placement": "image", "gamma": "entropy",
}  # fmt: skip
DEFAULTS = {
    "alpha": 0.1, "betas": "0.9,0.8,0.5", "steps": 150, "triggers_per_step": 64, "modeling_lr": 1e-3, "hidden": 256,
    "noise_dim": 16, "generator": "skip", "noise": "gaussian", "critic": "linear", "critic_steps": 4,
    "hinge": "trigger", "images_per_trigger": 4, "trigger_noise": 0.1, "ema_rate": 0.01, "placement": "image",
    "gamma": "equal", "hinge_scale": "log", "patience": 0,
}  # fmt: skip


def test_presets_and_defaults_have_their_published_values():
    assert PRESETS["official"].model_dump() == OFFICIAL and PRESETS["paper"].model_dump() == PAPER
    assert Settings().model_dump() == DEFAULTS and set(PRESETS) == {"official", "paper"}
    assert RepairSettings().model_dump() == {
        "repair_rate": 0.2, "repair_epochs": 10, "repair_lr": 0.02, "schedule": "onecycle", "retrain_augment": "crop",
        "batch_size": 32, "repair_loss": "distillation", "repair_statistics": "updated",
    }  # fmt: skip


def overrides(settings: Settings, other: Settings) -> dict:
    """The values in which `other` differs."""
    return {name: value for name, value in other if value != getattr(settings, name)}


def test_presets_differ_where_text_and_code_do():
    official, paper = PRESETS["official"], PRESETS["paper"]
    expected = {"generator", "noise", "critic", "hinge", "trigger_noise", "placement", "gamma"}
    assert set(overrides(official, paper)) == expected
    assert official.replace(**overrides(official, paper)) == paper
    assert overrides(paper, paper) == {}


def test_every_field_has_a_description():
    for settings in (Settings, RepairSettings):
        assert all(field.description for field in settings.model_fields.values())
