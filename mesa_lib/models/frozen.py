"""A classifier as a fixed function: no weight gradients, BatchNorm folded into the convolutions."""

import copy
import inspect
from collections import Counter

import torch
from torch import nn
from torch.fx import Graph, Node, Tracer
from torch.nn.utils.fusion import fuse_conv_bn_eval

from mesa_lib import device as devices
from mesa_lib.models.networks import NETWORKS


def frozen(model: nn.Module, precision: str = "float32") -> nn.Module:
    """Return a copy of `model` as a fixed function: eval mode, no weight gradients, BatchNorm folded.

    Folding is exact up to rounding and saves a quarter of the time of a pass. Where `precision` means bfloat16, the
    weights are kept in it, which saves casting them in every pass; the caller still computes under `device.autocast`.
    Gradients reach the input.

    Args:
        model: any classifier; left unchanged.
        precision: `auto`, `float32` or `bf16`, see `device.uses_bf16`.
    """
    network = copy.deepcopy(model).eval()
    fold_batch_norms(network)
    if isinstance(model, tuple(NETWORKS.values())):  # other networks may need a ReLU's input again
        for part in network.modules():
            if isinstance(part, nn.ReLU):
                part.inplace = True  # saves writing the activations twice
    if devices.uses_bf16(next(network.parameters()).device, precision):
        for part in network.modules():
            if isinstance(part, nn.Conv2d | nn.Linear):
                part.to(torch.bfloat16)
    return network.requires_grad_(False)


def fold_batch_norms(network: nn.Module) -> int:
    """Fold, in place, every BatchNorm that follows a convolution of its own into it; return how many were folded.

    A BatchNorm with positive scale is also folded through max pooling. A folded BatchNorm becomes `nn.Identity`, the
    forward pass keeps its code. Pairs are taken from a symbolic trace (`torch.fx`). If the control flow of a network
    depends on the data, its children, which it is assumed to call as a whole, are traced one by one.

    Args:
        network: in eval mode. Convolutions that are shared, have several readers or carry hooks (such as weight
            normalization) stay as they are.
    """
    uses = Counter(id(part) for _, part in network.named_modules(remove_duplicate=False))
    traced = copy.deepcopy(network)  # the network's code may leave symbolic values in its attributes
    pairs = [(conv, norm) for conv, norm in _pairs(traced) if _can_fold(network, conv, norm, uses)]
    for conv, norm in pairs:
        fused = fuse_conv_bn_eval(network.get_submodule(conv), network.get_submodule(norm))
        network.set_submodule(conv, fused)
        network.set_submodule(norm, nn.Identity())
    return len(pairs)


def _can_fold(network: nn.Module, conv: str, norm: str, uses: Counter) -> bool:
    """Return whether both modules are plain, unhooked and stand once in the network, and the BatchNorm is fixed."""
    parts = [network.get_submodule(name) for name in (conv, norm)]
    hooks = [part._forward_hooks or part._forward_pre_hooks for part in parts]
    return not any(hooks) and all(uses[id(part)] == 1 for part in parts) and parts[1].running_mean is not None


def _trace(network: nn.Module) -> Graph | None:
    """Return the calls of one forward pass with its default arguments, or None if they depend on the data."""
    parameters = inspect.signature(network.forward).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    try:
        return Tracer().trace(network, concrete_args=defaults)
    except Exception:  # the tracer passes on whatever the network's code raises on a symbolic value
        return None


def _pairs(network: nn.Module, prefix: str = "") -> list[tuple[str, str]]:
    """Return the names (convolution, BatchNorm) of the pairs in a network, or in its children if tracing fails."""
    modules = dict(network.named_modules())
    if not any(type(part) is nn.BatchNorm2d for part in modules.values()):
        return []
    graph = _trace(network)
    if graph is None:
        children = network.named_children()
        return [pair for name, child in children for pair in _pairs(child, f"{prefix}{name}.")]
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    owners = {node.target.rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}  # of `self.conv.weight`

    def only_input(node: Node, kind: type[nn.Module]) -> Node | None:
        """Return the node's input, if a module of this kind computes it for this node alone."""
        source = node.args[0] if node.args else None
        if not isinstance(source, Node) or source.op != "call_module" or len(source.users) > 1:
            return None
        return source if type(modules[source.target]) is kind and calls[source.target] == 1 else None

    pairs = []
    for node in graph.nodes:
        if node.op == "call_module" and type(norm := modules[node.target]) is nn.BatchNorm2d:
            pool = only_input(node, nn.MaxPool2d)
            through = pool is not None and norm.weight is not None and bool((norm.weight > 0).all())
            conv = only_input(pool if through else node, nn.Conv2d)
            if conv is not None and calls[node.target] == 1 and not owners & {conv.target, node.target}:
                pairs.append((prefix + conv.target, prefix + node.target))
    return pairs
