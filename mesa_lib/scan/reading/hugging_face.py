"""A model of Hugging Face from a local folder: `config.json` says what is built, no code of the folder runs."""

import json
from collections.abc import Callable
from pathlib import Path

from torch import nn

from mesa_lib.scan.reading.extras import imported
from mesa_lib.store import paths
from mesa_lib.store.sanitize import sanitize

#: the largest file of settings that is read, in bytes
MAX_SETTINGS = 1_000_000
HUGGING_FACE = "hf:"
#: more channels or heads, and more layers, than any classifier of images has
MAX_SETTING, MAX_LAYERS = 100_000, 500


def hugging_face_network(network: str, classes: int) -> Callable[[], nn.Module]:
    """Return a function that builds the classifier of a folder, untrained.

    Args:
        network: `hf:FOLDER`.
        classes: number of classes.

    Raises:
        ValueError: if the folder does not describe a classifier of images whose code is in transformers.
    """
    source = f"network = '{sanitize(network)}'"
    settings = _settings(network, "config.json", source)
    if "auto_map" in settings:
        raise ValueError(f"{source}: its config.json asks for code of its own (auto_map), which is never run")
    _check_numbers(settings, source)
    labels = len(settings.get("id2label") or ()) or settings.get("num_labels", 2)
    if labels != classes:
        raise ValueError(f"{source}: the model has {labels} classes, the images have {classes}")
    transformers = imported("transformers", source)
    kind = settings.get("model_type")
    if kind not in transformers.models.auto.modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES:
        raise ValueError(f"{source}: model_type = '{sanitize(str(kind))}'; expected a classifier of images")

    def build() -> nn.Module:
        try:
            config = transformers.AutoConfig.for_model(**settings)
            return transformers.AutoModelForImageClassification.from_config(config, trust_remote_code=False)
        except Exception as error:  # settings from outside may be anything
            raise ValueError(f"{source}: {type(error).__name__}: {sanitize(str(error), 150)}") from error

    return build


def loaded(network: str, file: Path) -> nn.Module | None:
    """Return the classifier of a folder with its weights, as transformers loads it; None if they do not fit it.

    Transformers writes many networks under other names than those that it builds, and translates them when it loads.

    Args:
        network: `hf:FOLDER`, which `hugging_face_network` has accepted.
        file: the weights; None is also returned if they are not those that transformers takes from the folder.
    """
    folder = Path(paths.find(network.removeprefix(HUGGING_FACE)))
    if file.resolve() != (folder / "model.safetensors").resolve():
        return None
    transformers = imported("transformers", f"network = '{sanitize(network)}'")
    options = {"local_files_only": True, "trust_remote_code": False, "use_safetensors": True}
    try:
        model, found = transformers.AutoModelForImageClassification.from_pretrained(
            str(folder), output_loading_info=True, **options
        )
    except Exception:  # whatever a folder from outside makes it do; the first message says what is wrong
        return None
    wrong = any(found.get(kind) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    return None if wrong else model.float()


def normalization(network: str) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Return mean and std of a folder's `preprocessor_config.json`, None where it does not say."""
    try:
        settings = _settings(network, "preprocessor_config.json", f"network = '{sanitize(network)}'")
    except ValueError:
        return None, None
    if not settings.get("do_normalize", True):
        return (0.0,) * 3, (1.0,) * 3
    found = []
    for name in ("image_mean", "image_std"):
        values = settings.get(name)
        values = [values] if isinstance(values, int | float) else values
        usable = isinstance(values, list) and all(isinstance(v, int | float) for v in values)
        found.append(tuple(map(float, values)) if usable else None)
    return found[0], found[1]


def _settings(network: str, name: str, source: str) -> dict:
    """Return the content of a JSON file of the folder; ValueError if there is none that can be read."""
    file = Path(paths.find(network.removeprefix(HUGGING_FACE))) / name
    try:
        if file.stat().st_size > MAX_SETTINGS:
            raise ValueError(f"{source}: {name} is larger than {MAX_SETTINGS:,} bytes")
        settings = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{source}: {name}: {error.strerror}; expected a folder with config.json") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{source}: {name} is no JSON file; expected the settings of a model") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{source}: {name} holds no settings by name")
    return settings


def _check_numbers(settings: dict, source: str) -> None:
    """Raise ValueError if a setting would build a network larger than any classifier."""
    for name, value in settings.items():
        most = MAX_LAYERS if "layers" in name or "depth" in name else MAX_SETTING
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int) and not isinstance(number, bool) and abs(number) > most:
                raise ValueError(f"{source}: config.json: {sanitize(name)} = {number}; expected at most {most}")
