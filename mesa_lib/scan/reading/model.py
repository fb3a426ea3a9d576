"""A third-party model from a file: a checkpoint and the name of its architecture."""

import math
from pathlib import Path

import torch
from torch import nn

from mesa_lib.models.networks import NETWORKS
from mesa_lib.scan.reading import checkpoint
from mesa_lib.scan.reading.checkpoint import Header
from mesa_lib.scan.reading.hugging_face import HUGGING_FACE, loaded, normalization
from mesa_lib.scan.reading.networks import (
    hint,
    named_network,
    project_network,
    remove_auxiliary_heads,
    without_memory,
)
from mesa_lib.scan.reading.onnx_file import read_onnx
from mesa_lib.scan.reading.own_code import network_of_file
from mesa_lib.scan.reading.wrapped import WrappedClassifier
from mesa_lib.store.sanitize import sanitize

Channels = tuple[float, ...]
#: by how much mean and std may differ from the file's
TOLERANCE = 2e-3


def read_model(
    file: str | Path, network: str, classes: int, mean: Channels | None = None, std: Channels | None = None,
    trust_code: bool = False,
) -> WrappedClassifier:  # fmt: skip
    """Return the model of a safetensors file, in eval mode.

    Args:
        file: the safetensors file; with `onnx`, an ONNX file.
        network: `smallcnn`, `resnet18` or `fastcnn` of this project, whose files hold mean and std themselves; or
            `cifar:NAME`, `torchvision:NAME`, `timm:NAME`, `hf:FOLDER`, `onnx` or `FILE.py:FUNCTION`, which need both
            (but for `hf`, where the folder says so).
        classes: how many classes the images have.
        mean, std: of the network's inputs in [0, 1], three numbers each, or one for all channels.
        trust_code: whether code of a file may run, which `FILE.py:FUNCTION` needs.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: in one message, if the file does not hold what `network` names.
    """
    if network.startswith(HUGGING_FACE) and (mean is None or std is None):
        own = normalization(network)
        mean, std = mean or own[0], std or own[1]
    mean, std = (_three(what, values) for what, values in (("mean", mean), ("std", std)))
    if network == "onnx":
        _check_named(network, mean, std)
        return _wrap(*read_onnx(file), mean, std).eval()
    header = checkpoint.read_header(file)
    try:
        if network in NETWORKS:
            model = _read_project_network(network, header, classes, mean, std)
        else:
            model = _read_named(network, header, classes, mean, std, trust_code)
    except ValueError as error:
        if "another architecture" not in str(error) and f"no {network} " not in str(error):
            raise
        raise ValueError(f"{error}{hint(header, classes)}") from error
    return model.eval()


def _three(what: str, values: Channels | None) -> Channels | None:
    """Return the values of three channels; ValueError if they are not three usable numbers, or one."""
    values = (values,) if isinstance(values, int | float) else values
    usable = values is None or (len(values) in (1, 3) and all(map(math.isfinite, values)))
    if not usable or (values is not None and what == "std" and min(values) <= 0):
        raise ValueError(f"{what} = {values}: expected three numbers{', all above 0' * (what == 'std')}, or one")
    return tuple(values) * 3 if values is not None and len(values) == 1 else values


def _read_project_network(
    network: str, header: Header, classes: int, mean: Channels | None, std: Channels | None
) -> WrappedClassifier:
    """Read a network of this project; mean and std are the file's, or else those of the call."""
    build = project_network(network, header, classes, mean, std)
    absent = []
    for what, values in (("mean", mean), ("std", std)):
        if not any(name.endswith(f"normalize.{what}") for name in header.tensors):
            absent.append(f"normalize.{what}")
            if values is None:
                raise ValueError(f"{header.source}: holds no normalize.{what}; name mean and std")
    names, notes = checkpoint.match_names(header, without_memory(build), classes, may_miss=absent)
    model = checkpoint.load_weights(header, names, build(), keep=absent)
    for what, values in (("mean", mean), ("std", std)):
        own = getattr(model.normalize, what).flatten()
        if values is not None and (own - torch.tensor(values)).abs().max() > TOLERANCE:
            raise ValueError(f"{what} = {values}: expected the file's, {[round(v, 4) for v in own.tolist()]} (or none)")
    wrapped = _wrap(model, notes)
    wrapped.names = names
    return wrapped


def _read_named(
    network: str, header: Header, classes: int, mean: Channels | None, std: Channels | None, trust_code: bool
) -> WrappedClassifier:
    """Read a network that is no project's: by its name, or built by the user's code; mean and std are the call's."""
    in_file = ".py:" in network
    build = network_of_file(network, classes, trust_code) if in_file else named_network(network, classes, header)
    _check_named(network, mean, std)
    try:
        names, notes = checkpoint.match_names(header, without_memory(build), classes)
        model = checkpoint.load_weights(header, names, build())
    except ValueError as error:
        renamed = network.startswith(HUGGING_FACE) and "another architecture" in str(error)
        model, notes, names = loaded(network, header.path) if renamed else None, [], {}
        if model is None:
            raise
    if remove_auxiliary_heads(model):
        notes.append("Its auxiliary heads, which are used in training alone, were left out.")
    if not in_file and isinstance(getattr(model, "maxpool", None), nn.Identity):
        notes.append(
            "Its stem is 3x3; it was read with stride 1 and without max pooling, as is usual for 32x32 images."
        )
    wrapped = _wrap(model, notes, mean, std)
    wrapped.names = names
    if wrapped.channels == 1:
        wrapped.notes.append("It takes images of one channel and gets the mean of red, green and blue.")
    return wrapped


def _check_named(network: str, mean: Channels | None, std: Channels | None) -> None:
    if mean is None or std is None:
        raise ValueError(
            f"network = '{sanitize(network)}': mean and std of its inputs have to be named "
            "(usual are 0.485,0.456,0.406 and 0.229,0.224,0.225)"
        )


def _wrap(network: nn.Module, notes: list[str], *normalization: Channels) -> WrappedClassifier:
    wrapped = WrappedClassifier(network, *normalization)
    wrapped.notes = notes
    return wrapped
