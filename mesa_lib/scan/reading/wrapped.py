"""The form in which a third-party network is scanned: images in [0, 1] -> logits."""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from mesa_lib.models.networks import Normalize

#: float values of images that go through the network in one piece: 2,604 images of 32x32, 53 of 224x224
MAX_VALUES = 8_000_000


class NoTensor(Exception):
    """A network returned something that is no tensor."""


class WrappedClassifier(nn.Module):
    """A network behind its normalization: images (B, 3, H, W) in [0, 1] -> logits (B, classes).

    A network for images of one channel gets the mean of the three.

    Large batches go through in parts; for gradients, activations are computed again instead of kept.

    Attributes:
        network: the third-party network.
        probabilities: whether the network returns probabilities, whose logarithm is the logit.
        temperature: the logits are divided by it.
        channels: of the images that the network takes: 3, or 1 for the mean of red, green and blue.
        memory_format: in which the network gets images and weights; some networks take contiguous memory only.
        notes: sentences for people about how the model was read.
        names: of the network's tensors -> their names in the file from which it was read, where these differ.
    """

    def __init__(self, network: nn.Module, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)):
        super().__init__()
        self.normalize, self.network = Normalize(mean, std), network
        self.probabilities, self.notes, self.memory_format = False, [], torch.channels_last
        self.names: dict[str, str] = {}
        first = next((part for part in network.modules() if isinstance(part, nn.Conv2d)), None)
        self.channels = 1 if first is not None and first.in_channels == 1 else 3
        self.register_buffer("temperature", torch.ones(()))
        self.anchor = nn.Parameter(torch.zeros(()), requires_grad=False)  # tells the device, if nothing else does

    def to(self, *args, memory_format: torch.memory_format | None = None, **options) -> "WrappedClassifier":
        """Move or convert the network as `nn.Module.to` does; weights keep the memory format that the network takes."""
        wanted = None if memory_format is None else self.memory_format
        return super().to(*args, memory_format=wanted, **options)

    def forward(self, x: Tensor) -> Tensor:
        if self.training or x.numel() <= MAX_VALUES:
            return self._logits(x)
        parts = x.split(max(1, MAX_VALUES // x[0].numel()))
        if torch.is_grad_enabled() and x.requires_grad:
            return torch.cat([recompute(self._logits, part, use_reentrant=False) for part in parts])
        return torch.cat([self._logits(part) for part in parts])

    def network_inputs(self, x: Tensor) -> Tensor:
        """Return what the network gets for images (B, 3, H, W): normalized, of one channel or three."""
        x = self.normalize(x)
        x = x.mean(1, keepdim=True) if self.channels == 1 else x
        return x.contiguous(memory_format=self.memory_format)

    def _logits(self, x: Tensor) -> Tensor:
        output = self.network(self.network_inputs(x))
        output = getattr(output, "logits", output)  # of Hugging Face's networks
        if isinstance(output, tuple | list) and output:  # networks with auxiliary heads return theirs after the logits
            output = output[0]
        if not isinstance(output, Tensor):
            raise NoTensor(type(output).__name__)
        logits = output.clamp(min=1e-30).log() if self.probabilities else output
        return logits / self.temperature
