"""Architectures by name: this project's networks and every classifier of torchvision."""

from collections.abc import Callable

import torch
from torch import nn

from mesa_lib.models import networks
from mesa_lib.scan.reading.checkpoint import Header
from mesa_lib.store.sanitize import sanitize

#: of this project's networks: inputs of the last layer, as a multiple of `width`
HEADS = {"smallcnn": 4, "resnet18": 8, "fastcnn": 4}
#: the largest number of inputs of the last layer
MAX_HEAD = 2**14
TORCHVISION = "torchvision:"


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
        near = [f"{TORCHVISION}{n}" for n in available if name[:4] and n.startswith(name[:4])][:5]
        raise ValueError(
            f"network = '{sanitize(network)}': expected one of {', '.join(networks.NETWORKS)}, or {TORCHVISION}NAME"
            f"{' such as ' + ', '.join(near) if near else ''}"
        )
    options = {}
    if name in ("googlenet", "inception_v3"):
        helpers = any(part in ("aux1", "AuxLogits") for tensor in header.tensors for part in tensor.split("."))
        options = {"init_weights": False, "aux_logits": helpers}
    return lambda: models.get_model(name, weights=None, num_classes=classes, **options)


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
