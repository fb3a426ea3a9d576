"""Inference in batches and without gradients: predicted classes, logits, and representations."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from mesa_lib import device as devices

BATCH = 500
#: float values of images that are in memory at a time (0.8 GB): large images go in smaller batches
VALUES = 200_000_000


def batch_size_for(shape: Sequence[int], most: int = BATCH, values: int | None = None) -> int:
    """Return how many images of this shape go in one batch.

    Args:
        shape: of one image.
        most: most images in a batch.
        values: most floats in a batch; None: `VALUES`.
    """
    return max(1, min(most, (values or VALUES) // math.prod(shape)))


def to_float(images: Tensor) -> Tensor:
    """Return images as floats in [0, 1], from uint8 or from floats that are already in this range."""
    return images.float() / 255 if images.dtype == torch.uint8 else images


def in_batches(model: nn.Module, images: Tensor, precision: str, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply `function` to images in batches, in eval mode and without gradients -> one CPU tensor.

    Args:
        model: its device is used.
        images: (N, 3, H, W), uint8 or floats in [0, 1].
        precision: see `device.autocast`.
        function: a batch of floats in [0, 1] -> a tensor with one row per image.
    """
    device = next(model.parameters()).device
    model.eval()
    results = []
    for batch in images.split(batch_size_for(images.shape[1:])):
        batch = to_float(batch.to(device))
        with torch.no_grad(), devices.autocast(device, precision):
            results.append(function(batch.contiguous(memory_format=torch.channels_last)))
    return torch.cat(results).cpu()


def logits(model: nn.Module, images: Tensor, precision: str = "float32") -> Tensor:
    """Return logits (N, classes), float32, of images (N, 3, H, W), uint8 or floats in [0, 1]."""
    return in_batches(model, images, precision, lambda batch: model(batch).float())


def predict(model: nn.Module, images: Tensor, precision: str = "float32") -> Tensor:
    """Return predicted classes (N,) of images (N, 3, H, W), uint8 or floats in [0, 1]."""
    return in_batches(model, images, precision, lambda batch: model(batch).argmax(1))


def representations(model: nn.Module, images: Tensor, precision: str = "float32") -> Tensor:
    """Return the input of the last layer (N, channels), float32, of images (N, 3, H, W), uint8 or in [0, 1]."""
    return in_batches(model, images, precision, lambda batch: model.represent(batch).float())
