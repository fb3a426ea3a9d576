"""A classifier as a fixed function: no weight gradients, BatchNorm folded into the convolutions."""

import copy

import torch
from torch import nn
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
    network, ours = copy.deepcopy(model).eval(), isinstance(model, tuple(NETWORKS.values()))
    fold_batch_norms(network)
    if ours:  # saves writing the activations twice; other networks may need a ReLU's input again
        for part in network.modules():
            if isinstance(part, nn.ReLU):
                part.inplace = True
    if devices.uses_bf16(next(network.parameters()).device, precision):
        for part in network.modules():
            if isinstance(part, nn.Conv2d | nn.Linear):
                part.to(torch.bfloat16)
    return network.requires_grad_(False)


def fold_batch_norms(network: nn.Module) -> int:
    """Fold, in place, every BatchNorm that only reads one convolution into it -> how many were folded.

    A BatchNorm with positive scale can also be folded through max pooling. Pairs are found in `nn.Sequential` and, by
    symbolic tracing (`torch.fx`), in any part of a network whose control flow does not depend on the data; what cannot
    be traced stays as it is. The code of the network stays its own: a folded BatchNorm becomes `nn.Identity`.
    """
    pairs = 0
    for conv, pool, norm in [*_sequential_pairs(network), *_traced_pairs(network)]:
        parent, name = network.get_submodule(norm.rpartition(".")[0]), norm.rpartition(".")[2]
        conv_parent, conv_name = network.get_submodule(conv.rpartition(".")[0]), conv.rpartition(".")[2]
        convolution, batch_norm = getattr(conv_parent, conv_name), getattr(parent, name)
        foldable = isinstance(convolution, nn.Conv2d) and isinstance(batch_norm, nn.BatchNorm2d)
        if not foldable or batch_norm.running_mean is None or convolution.out_channels != batch_norm.num_features:
            continue
        if pool and (batch_norm.weight is None or not bool((batch_norm.weight > 0).all())):
            continue
        setattr(conv_parent, conv_name, fuse_conv_bn_eval(convolution, batch_norm))
        setattr(parent, name, nn.Identity())
        pairs += 1
    return pairs


def _sequential_pairs(network: nn.Module) -> list[tuple[str, bool, str]]:
    """Names (convolution, whether pooling stands between, BatchNorm) of neighbors in an `nn.Sequential`."""
    pairs = []
    for prefix, part in network.named_modules():
        if isinstance(part, nn.Sequential):
            names = [f"{prefix}.{name}".lstrip(".") for name, _ in part.named_children()]
            kinds = [type(child) for child in part]
            for i, kind in enumerate(kinds):
                if kind is nn.Conv2d and kinds[i + 1 : i + 2] == [nn.BatchNorm2d]:
                    pairs.append((names[i], False, names[i + 1]))
                if kind is nn.Conv2d and kinds[i + 1 : i + 3] == [nn.MaxPool2d, nn.BatchNorm2d]:
                    pairs.append((names[i], True, names[i + 2]))
    return pairs


def _traced_pairs(network: nn.Module, prefix: str = "") -> list[tuple[str, bool, str]]:
    """The same by tracing the network, or else its children, whichever can be traced."""
    try:
        graph = torch.fx.Tracer().trace(network)
    except Exception:  # the tracer raises whatever the network's code raises on a symbolic value
        return [
            pair for name, child in network.named_children() for pair in _traced_pairs(child, f"{prefix}{name}.")
        ]
    modules, calls = dict(network.named_modules()), [node.target for node in graph.nodes if node.op == "call_module"]
    pairs = []
    for node in graph.nodes:
        if node.op != "call_module" or not isinstance(modules[node.target], nn.BatchNorm2d):
            continue
        before = node.args[0] if node.args else None
        if (
            getattr(before, "op", "") == "call_module"
            and isinstance(modules[before.target], nn.Conv2d)
            and len(before.users) == 1
            and calls.count(before.target) == calls.count(node.target) == 1
        ):
            pairs.append((prefix + before.target, False, prefix + node.target))
    return pairs
