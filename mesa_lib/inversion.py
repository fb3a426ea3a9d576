"""The baseline: invert a single trigger by gradient descent on its pixels, as earlier defenses do."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mesa_lib import device as devices
from mesa_lib.models.frozen import frozen
from mesa_lib.models.inference import to_float
from mesa_lib.progress import progress_bar
from mesa_lib.triggers import random_locations, stamp


def invert_trigger(
    model: nn.Module, images: Tensor, target: int, *, seed: int, size: tuple[int, int] = (3, 3), steps: int = 55,
    batch: int = 100, lr: float = 0.1, clip_every: int = 11, precision: str = "auto",
) -> Tensor:  # fmt: skip
    """Return one trigger (3, h, w) in [0, 1] that makes `model` predict `target`.

    The procedure is that of the authors' code: uniform start, cross-entropy to the target over a batch stamped at one
    random location, SGD with momentum 0.9 on the normalized patch, pixels clipped every 11 steps.

    Args:
        model: a network of this project (its `normalize` gives the channel mean and std).
        images: uint8 (N, 3, H, W), the defender's.
        target: the class to predict.
        size: height and width of the trigger.
        steps, batch, lr, clip_every: as in the authors' code.
    """
    device = next(model.parameters()).device
    rng, images = devices.rng(seed, device), images.to(device)
    mean, std = model.normalize.mean[0], model.normalize.std[0]
    network = frozen(model, precision)
    start = torch.rand(3, *size, generator=rng, device=device)
    patch = ((start - mean) / std).requires_grad_()
    optimizer = torch.optim.SGD([patch], lr, momentum=0.9)
    for step in progress_bar(range(steps), "inverting one trigger"):
        index = torch.randint(len(images), (batch,), generator=rng, device=device)
        x = to_float(images[index])
        location = random_locations(1, x.shape[-2:], size, rng)
        x = stamp(x, patch * std + mean, location).contiguous(memory_format=torch.channels_last)
        with devices.autocast(device, precision):
            logits = network(x)
        loss = F.cross_entropy(logits.float(), torch.full((batch,), target, device=device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % clip_every == 0 or step == steps - 1:
            with torch.no_grad():
                patch.copy_(((patch * std + mean).clamp(0, 1) - mean) / std)
    return (patch.detach() * std + mean).clamp(0, 1)
