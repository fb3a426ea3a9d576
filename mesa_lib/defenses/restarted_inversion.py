"""The fair form of the inversion baseline: many starts, all of them kept, each judged on held-out images."""

import torch
from torch import Tensor, nn

from mesa_lib import device as devices
from mesa_lib.models.frozen import frozen
from mesa_lib.progress import progress_bar
from mesa_lib.settings import Settings
from mesa_lib.success import asr_of_triggers, held_out_split, log_success, success_function


def invert_triggers(
    model: nn.Module, images: Tensor, labels: Tensor, target: int, *, restarts: int, seed: int,
    size: tuple[int, int] = (3, 3), steps: int = 120, images_per_trigger: int = 4, lr: float = 0.1, group: int = 64,
    precision: str = "auto",
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return triggers (restarts, 3, h, w) in [0, 1], best first, and their ASR (restarts,) on held-out images.

    Each starts from uniform colors and is the sigmoid of what Adam optimizes: the cross-entropy to the target, on
    `images_per_trigger` images of other classes a step. A tenth of the images is held out.

    Args:
        model: images (B, 3, H, W) in [0, 1] -> logits.
        images, labels: uint8 (N, 3, H, W) and (N,), the defender's.
        target: the class to predict.
        restarts: number of starts.
        size: height and width of the triggers.
        group: starts that share a pass through the model.
    """
    device = next(model.parameters()).device
    rng, (fitted_on, unseen) = devices.rng(seed, device), held_out_split(images, labels, target)
    settings = Settings(images_per_trigger=images_per_trigger)
    options = {"targets": [target], "settings": settings, "size": size, "precision": precision}
    network = frozen(model, precision)
    F_fit = success_function(network, *(part.to(device) for part in fitted_on), **options)
    groups = []
    for first in range(0, restarts, group):
        start = torch.rand(min(group, restarts - first), 3, *size, generator=rng, device=device)
        x = start.logit(eps=0.01).requires_grad_()
        adam = torch.optim.Adam([x], lr)
        for _ in progress_bar(range(steps), f"inverting triggers {first + 1} to {first + len(x)} of {restarts}"):
            adam.zero_grad()
            (-log_success(F_fit(x.sigmoid(), rng))).mean(1).sum().backward()
            adam.step()
        groups.append(x.detach().sigmoid())
    found = torch.cat(groups).cpu()
    seed = devices.derive_seed(seed, "held-out images")
    rates = asr_of_triggers(
        network, *unseen, found, target, images_per_trigger=64, seed=seed, precision=precision
    )  # fmt: skip
    order = rates.argsort(descending=True)
    return found[order], rates[order]
