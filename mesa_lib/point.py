"""The baseline: reverse a single trigger by gradient descent on its pixels, as earlier defences do."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import device as devices
from .classifiers import frozen
from .progress import bar
from .triggers import random_places, stamp


def reverse(
    model: nn.Module,
    images: Tensor,
    target: int,
    *,
    seed: int,
    size: tuple[int, int] = (3, 3),
    steps: int = 55,
    batch: int = 100,
    lr: float = 0.1,
    clip_every: int = 11,
    precision: str = "auto",
) -> Tensor:
    """One trigger (3, h, w) in [0, 1] that makes `model` answer `target`.

    As the authors do: uniform start, cross-entropy to the target over a batch stamped at one random place, SGD
    (momentum 0.9) on the *normalised* patch, pixels clipped every 11 steps, 55 steps of 100 images. The model
    and `images` (uint8, N) are those of the defender.
    """
    device = next(model.parameters()).device
    rng, images = devices.rng(seed, device), images.to(device)
    mean, std = model.normalise.mean[0], model.normalise.std[0]
    model = frozen(model, precision)
    start = torch.rand(3, *size, generator=rng, device=device)
    patch = ((start - mean) / std).requires_grad_()
    optimiser = torch.optim.SGD([patch], lr, momentum=0.9)
    for step in bar(range(steps), "reversing one trigger"):
        index = torch.randint(len(images), (batch,), generator=rng, device=device)
        x = images[index].float() / 255
        place = random_places(1, x.shape[-2:], size, rng)
        x = stamp(x, patch * std + mean, place).contiguous(memory_format=torch.channels_last)
        with devices.autocast(device, precision):
            logits = model(x)
        loss = F.cross_entropy(logits.float(), torch.full((batch,), target, device=device))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if (step + 1) % clip_every == 0 or step == steps - 1:
            with torch.no_grad():
                patch.copy_(((patch * std + mean).clamp(0, 1) - mean) / std)
    return (patch.detach() * std + mean).clamp(0, 1)
