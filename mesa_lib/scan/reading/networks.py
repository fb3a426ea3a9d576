"""Architectures by name: this project's networks, those of CIFAR checkpoints, every classifier of torchvision.

Where people usually change an architecture, the file says so: one channel, a 3x3 stem, dropout before the last layer.
"""

import difflib
import importlib.util
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn

from mesa_lib.models import networks
from mesa_lib.scan.reading import checkpoint, cifar_networks
from mesa_lib.scan.reading.checkpoint import Header
from mesa_lib.scan.reading.extras import imported
from mesa_lib.scan.reading.hugging_face import HUGGING_FACE, hugging_face_network
from mesa_lib.store.sanitize import sanitize

#: of this project's networks: inputs of the last layer, as a multiple of `width`
HEADS = {"smallcnn": 4, "resnet18": 8, "fastcnn": 4}
#: the largest number of inputs of the last layer
MAX_HEAD = 2**14
TORCHVISION, CIFAR, TIMM = "torchvision:", "cifar:", "timm:"
#: classifiers of torchvision that a file is compared with if it does not fit the one that was named
COMMON = (
    "resnet18", "resnet34", "resnet50", "resnet101", "vgg16", "vgg16_bn", "vgg19_bn", "mobilenet_v2",
    "mobilenet_v3_small", "mobilenet_v3_large", "densenet121", "efficientnet_b0", "alexnet", "squeezenet1_1",
    "vit_b_16",
)  # fmt: skip


#: networks of timm that it is compared with, too, if timm is installed
COMMON_TIMM = (
    "resnet18", "resnet50", "resnet26d", "vit_tiny_patch16_224", "vit_small_patch16_224", "deit_tiny_patch16_224",
    "efficientnet_b0", "mobilenetv3_small_100", "mobilenetv3_large_100", "convnext_tiny", "regnety_002",
    "swin_tiny_patch4_window7_224", "densenet121",
)  # fmt: skip


def named_network(network: str, classes: int, header: Header) -> Callable[[], nn.Module]:
    """Return a function that builds a network by its name, untrained, changed as the file says.

    Args:
        network: `cifar:NAME`, `timm:NAME`, `hf:FOLDER` or `torchvision:NAME`.
        classes: number of classes.
        header: of the file.

    Raises:
        ValueError: if there is no network of this name.
    """
    if network.startswith(CIFAR) and network.removeprefix(CIFAR) in cifar_networks.NAMES:
        build = partial(cifar_networks.builder, network.removeprefix(CIFAR), classes)
        return build(channels(header, build()))
    if network.startswith(TIMM):
        return timm_network(network, classes, header)
    if network.startswith(HUGGING_FACE):
        return hugging_face_network(network, classes)
    build = torchvision_network(network, classes, header)
    return lambda: changed(build(), header)


def timm_network(network: str, classes: int, header: Header) -> Callable[[], nn.Module]:
    """Return a function that builds a network of timm, untrained; ValueError if there is none of this name."""
    source, name = f"network = '{sanitize(network)}'", network.removeprefix(TIMM)
    timm = imported("timm", source)
    if not timm.is_model(name):
        near = [f"{TIMM}{n}" for n in timm.list_models(f"{name.split('_')[0].replace('*', '')[:20]}*")[:5]]
        raise ValueError(f"{source}: timm has no network of this name{', but ' + ', '.join(near) if near else ''}")
    build = partial(timm.create_model, name, pretrained=False, num_classes=classes)
    return partial(build, in_chans=channels(header, build))


def channels(header: Header, build: Callable[[], nn.Module]) -> int:
    """Return the channels of the images that the network in a file takes: 1, or 3 in all other cases.

    Args:
        header: of the file.
        build: returns the network for three channels.
    """
    parts = without_memory(build).named_modules()
    first = next((f"{name}.weight" for name, part in parts if isinstance(part, nn.Conv2d)), "")
    shape = _claimed(header, first)
    return 1 if len(shape) == 4 and shape[1] == 1 else 3


def _claimed(header: Header, name: str) -> tuple[int, ...]:
    """Return the shape of the tensor of this name, perhaps behind a prefix; () if there is none."""
    shapes = ((end, shape) for end, (_, shape) in header.tensors.items())
    return next((shape for end, shape in shapes if end == name or end.endswith(f".{name}")), ())


def changed(network: nn.Module, header: Header) -> nn.Module:
    """Return a network of torchvision with a 3x3 stem, one channel, or dropout before its last layer, as in the file.

    A 3x3 stem of a ResNet has stride 1 and no max pooling behind it, as is usual for 32x32 images.
    """
    claimed = partial(_claimed, header)
    stem = claimed("conv1.weight")
    if isinstance(getattr(network, "conv1", None), nn.Conv2d) and hasattr(network, "maxpool") and len(stem) == 4:
        small, width = stem[2:] == (3, 3), network.conv1.out_channels
        if small:
            network.conv1, network.maxpool = nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.Identity()
        if stem[1] == 1:
            old = network.conv1
            network.conv1 = nn.Conv2d(1, width, old.kernel_size, old.stride, old.padding, bias=False)
    if isinstance(getattr(network, "fc", None), nn.Linear) and claimed("fc.1.weight") and not claimed("fc.weight"):
        network.fc = nn.Sequential(nn.Dropout(), network.fc)
    return network


def hint(header: Header, classes: int) -> str:
    """Return `; did you mean cifar:resnet18?` if a file fits a network of another name; else an empty text."""
    names = [*networks.NETWORKS, *(f"{CIFAR}{name}" for name in cifar_networks.NAMES)]
    names += [f"{TORCHVISION}{name}" for name in COMMON]
    names += [f"{TIMM}{name}" for name in COMMON_TIMM] if importlib.util.find_spec("timm") else []
    for name in names:
        try:
            own = name in networks.NETWORKS
            build = project_network(name, header, classes, None, None) if own else named_network(name, classes, header)
        except ValueError:  # no such head, or not in this version of timm
            continue
        try:
            checkpoint.match_names(header, without_memory(build), classes)
        except ValueError as error:
            if "the images have" not in str(error):  # all but the number of classes fits
                continue
        return f"; did you mean {name}?"
    return ""


def project_network(
    network: str, header: Header, classes: int, mean: tuple[float, ...] | None, std: tuple[float, ...] | None
) -> Callable[[], nn.Module]:
    """Return a function that builds a network of this project, untrained, as wide as the one in the file.

    Args:
        network: `smallcnn`, `resnet18` or `fastcnn`.
        header: of the file.
        classes: number of classes.
        mean, std: of the network's inputs; None: 0 and 1, for files that hold their own.

    Raises:
        ValueError: if the file holds no last layer of such a network.
    """
    head = next((shape for name, (_, shape) in header.tensors.items() if name.endswith("head.weight")), ())
    if len(head) != 2 or not head[1] or head[1] % HEADS[network] or head[1] > MAX_HEAD:
        raise ValueError(f"{header.source}: no {network} (it has no fitting head.weight); expected its weights")
    width, inputs = head[1] // HEADS[network], {"mean": mean or (0.0, 0.0, 0.0), "std": std or (1.0, 1.0, 1.0)}
    return lambda: networks.build_network(network, classes, width, **inputs, seed=0)


def torchvision_network(network: str, classes: int, header: Header) -> Callable[[], nn.Module]:
    """Return a function that builds a classifier of torchvision, untrained, with the auxiliary heads that the file has.

    Args:
        network: `torchvision:NAME`.
        classes: number of classes.
        header: of the file.

    Raises:
        ValueError: if torchvision has no classifier of this name.
    """
    from torchvision import models

    available = models.list_models(module=models)
    name = network.removeprefix(TORCHVISION)
    if not network.startswith(TORCHVISION) or name not in available:
        near = ", ".join(similar_names(network, available))
        raise ValueError(
            f"network = '{sanitize(network)}': expected one of {', '.join(networks.NETWORKS)}, {CIFAR}NAME with "
            f"{', '.join(cifar_networks.NAMES)}, {TORCHVISION}NAME, "
            f"{TIMM}NAME, {HUGGING_FACE}FOLDER, onnx, or FILE.py:FUNCTION with --trust-code (in Python, "
            f"mesa_lib.scan.scan takes any module){'; did you mean ' + near + '?' if near else ''}"
        )
    options = {}
    if name in ("googlenet", "inception_v3"):
        helpers = any(part in ("aux1", "AuxLogits") for tensor in header.tensors for part in tensor.split("."))
        options = {"init_weights": False, "aux_logits": helpers}
    return lambda: models.get_model(name, weights=None, num_classes=classes, **options)


def similar_names(network: str, of_torchvision: Sequence[str]) -> list[str]:
    """Return the networks that may be meant: those that differ in capitals or in what stands before; else near ones."""
    names = [*networks.NETWORKS, *(f"{CIFAR}{name}" for name in cifar_networks.NAMES)]
    names += [f"{TORCHVISION}{name}" for name in of_torchvision]
    asked = network.rpartition(":")[2].lower()
    same = [name for name in names if name.partition(":")[2] == asked]
    return same or difflib.get_close_matches(network.lower(), names, 3, 0.8)


def without_memory(build: Callable[[], nn.Module]) -> nn.Module:
    """Return the network on torch's meta device, or with memory if its code computes with tensors (RegNet)."""
    try:
        with torch.device("meta"):
            return build()
    except (NotImplementedError, RuntimeError):
        return build()


def remove_auxiliary_heads(network: nn.Module) -> bool:
    """Take off the heads that GoogLeNet and Inception use in training only -> whether there were any."""
    heads = [name for name in ("aux1", "aux2", "AuxLogits") if isinstance(getattr(network, name, None), nn.Module)]
    for name in heads:
        setattr(network, name, None)
    if heads:
        network.aux_logits = False
    return bool(heads)
