"""What a model answers, batch by batch and without gradients: classes, logits, what its last layer reads."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from . import device as devices

BATCH = 500
#: values of images that are held as floats at a time: fewer images of large ones go together (0.8 GB)
VALUES = 200_000_000


def at_once(shape: Sequence[int], most: int = BATCH, values: int | None = None) -> int:
    """How many images of this shape go together, at most `most`; values: None, `VALUES`."""
    return max(1, min(most, (values or VALUES) // math.prod(shape)))


def unit(images: Tensor) -> Tensor:
    """Images as float values in [0, 1], whether they are bytes or are so already."""
    return images.float() / 255 if images.dtype == torch.uint8 else images


def in_batches(model: nn.Module, images: Tensor, precision: str, of: Callable[[Tensor], Tensor]) -> Tensor:
    """`of` each batch of images, uint8 or float in [0, 1], (N, 3, H, W), on the model's device -> one CPU tensor."""
    device = next(model.parameters()).device
    model.eval()
    found = []
    for batch in images.split(at_once(images.shape[1:])):
        batch = unit(batch.to(device))
        with torch.no_grad(), devices.autocast(device, precision):
            found.append(of(batch.contiguous(memory_format=torch.channels_last)))
    return torch.cat(found).cpu()


def logits(model: nn.Module, images: Tensor, precision: str = "float32") -> Tensor:
    """Logits (N, classes), float32, of images as in `predict`."""
    return in_batches(model, images, precision, lambda batch: model(batch).float())


def predict(model: nn.Module, images: Tensor, precision: str = "float32") -> Tensor:
    """Predicted classes (N,) of images, uint8 or float in [0, 1], (N, 3, H, W), on the model's device."""
    return in_batches(model, images, precision, lambda batch: model(batch).argmax(1))


def representations(model: nn.Module, images: Tensor, precision: str = "float32") -> Tensor:
    """What the last layer reads (N, channels), float32, of images as in `predict`."""
    return in_batches(model, images, precision, lambda batch: model.represent(batch).float())
