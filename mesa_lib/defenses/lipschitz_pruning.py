"""CLP, channel Lipschitzness pruning (Zheng, Tang, Li, Liu, ECCV 2022): a repair that needs the weights only.

The paper is "Data-free Backdoor Removal based on Channel Lipschitzness". A channel that detects a small trigger has to
react strongly to a small change of its input, so its Lipschitz constant is large. For channel k of a convolution that
is followed by BatchNorm, an upper bound is

    bound_k = spectral_norm(W_k) * |gamma_k| / sqrt(running_var_k + eps)

where W_k is the channel's kernel as a matrix (input channels, kernel height * kernel width). Channels whose bound is
above mean + u * std of their layer are pruned: the BatchNorm's weight and bias of the channel are set to 0. The channel
then outputs 0 everywhere, before the activation. With a weight of 0 alone it would still output the constant `bias`.
Later layers lose the channel's average output as well, and no BatchNorm statistics are computed anew.

Choices that the paper leaves open, and deviations:

- A BatchNorm belongs to a convolution if it reads its output, directly or through pooling or ReLU. One forward pass on
  a black image shows this, so the order in which a network declares its layers does not matter.
- std is the sample standard deviation. No value of a layer with ten or fewer channels is more than three of these
  above the mean, so `u = 3` prunes nothing there.
- Convolutions without BatchNorm, linear layers and BatchNorm without parameters or running statistics are left alone.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mesa_lib.defenses.base import DefenderView, Knowledge, Repairer, RepairResult

#: autograd nodes of operations that act on each channel alone, with a Lipschitz constant of at most one
PASSED = ("MaxPool", "AvgPool", "MkldnnMaxPool", "Relu")


def convolutions_with_norms(model: nn.Module, image: Tensor) -> list[tuple[str, nn.Conv2d, nn.BatchNorm2d]]:
    """Return each BatchNorm that reads the output of a convolution, by its name, with that convolution.

    Args:
        model: in eval mode.
        image: (1, 3, H, W), any values; only the path that it takes matters.

    Returns:
        (name of the BatchNorm, convolution, BatchNorm), in the order of the forward pass.
    """
    names = {part: name for name, part in model.named_modules() if isinstance(part, nn.BatchNorm2d)}
    made_by, pairs = {}, {}

    def convolved(conv: nn.Conv2d, _, output: Tensor) -> None:
        if output.grad_fn is not None:
            made_by[output.grad_fn] = conv

    def normalized(norm: nn.BatchNorm2d, inputs: tuple[Tensor, ...]) -> None:
        node = inputs[0].grad_fn
        while node not in made_by and node is not None and node.name().startswith(PASSED):
            node = node.next_functions[0][0]
        if node in made_by and norm not in pairs:
            pairs[norm] = made_by[node]

    convs = [part for part in model.modules() if isinstance(part, nn.Conv2d)]
    hooks = [conv.register_forward_hook(convolved) for conv in convs]
    hooks += [norm.register_forward_pre_hook(normalized) for norm in names]
    try:
        with torch.enable_grad():
            model(image.clone().requires_grad_())
    finally:
        for hook in hooks:
            hook.remove()
    return [(names[norm], conv, norm) for norm, conv in pairs.items()]


def lipschitz_bounds(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> Tensor:
    """Return the upper bound of each output channel's Lipschitz constant (channels,), float64 on the CPU."""
    kernels = conv.weight.detach().cpu().double().flatten(2)  # (channels, inputs, height * width)
    gamma, variance = (v.detach().cpu().double() for v in (norm.weight, norm.running_var))
    return torch.linalg.matrix_norm(kernels, ord=2) * gamma.abs() / (variance + norm.eps).sqrt()


def outliers(bounds: Tensor, u: float) -> Tensor:
    """Return which of the bounds (channels,) are above mean + u * sample standard deviation, as booleans."""
    return bounds > bounds.mean() + u * bounds.std(correction=int(len(bounds) > 1))


@dataclass
class LipschitzPruning(Repairer):
    """Prune the channels whose Lipschitz bound is an outlier in their layer.

    Attributes:
        u: standard deviations above the mean of the layer from which on a channel is pruned; 3 is the paper's value for
            CIFAR-10. A smaller one prunes more.
    """

    u: float = 3.0
    knowledge: Knowledge = field(default=Knowledge("weights", images=0), init=False)

    def repair(self, view: DefenderView) -> RepairResult:
        """Return the pruned model, and how many channels were pruned, in all and for each BatchNorm by its name.

        Raises:
            ValueError: if no convolution of the network is followed by a BatchNorm with parameters and statistics.
        """
        image = torch.zeros(1, 3, *view.image_size, device=view.device)
        layers = {}
        for name, conv, norm in convolutions_with_norms(view.model, image):
            if norm.weight is None or norm.bias is None or norm.running_var is None:
                continue
            pruned = outliers(lipschitz_bounds(conv, norm), self.u)
            with torch.no_grad():
                for parameter in (norm.weight, norm.bias):
                    parameter[pruned.to(parameter.device)] = 0
            layers[name] = {"pruned": int(pruned.sum()), "of": len(pruned)}
        if not layers:
            raise ValueError(
                f"model = {type(view.model).__name__}: expected a convolution (Conv2d) followed by a BatchNorm2d with "
                "weight, bias and running statistics; use another repair for this network"
            )
        total = {key: sum(layer[key] for layer in layers.values()) for key in ("pruned", "of")}
        return RepairResult(view.model, about=total | {"layers": layers})
