"""Does a backdoor come back? A few poisoned images in a later fine-tuning, after a repair has removed it.

A repair may hide a backdoor instead of removing it: the weights still hold it, and next to nothing brings it back (Min
et al., *Uncovering, Explaining, and Mitigating the Superficial Safety of Backdoor Defense*, NeurIPS 2024). How much of
the ASR returns has to be compared with a clean model, which learns the backdoor anew from the same images.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mesa_lib import device as devices
from mesa_lib.attacks.base import Backdoor
from mesa_lib.data.splits import Split
from mesa_lib.models.inference import to_float


def poisoned_images(split: Split, backdoor: Backdoor, number: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return triggered images (number, 3, H, W) in [0, 1] and the attacker's labels (number,), of other classes.

    Raises:
        ValueError: if fewer images are of classes that the attacker wants to change.
    """
    rng, wanted = devices.rng(seed), backdoor.goal(split.labels.cpu())
    others = ((wanted >= 0) & (wanted != split.labels.cpu())).nonzero().flatten()
    if len(others) < number:
        raise ValueError(f"number = {number}: expected at most {len(others)}, the images of other classes")
    chosen = others[torch.randperm(len(others), generator=rng)[:number]]
    return backdoor.apply(to_float(split.images[chosen.to(split.images.device)].cpu()), rng), wanted[chosen]


def reactivate(
    model: nn.Module, split: Split, backdoor: Backdoor, *, poisoned: int = 5, clean: int = 45, steps: int = 20,
    lr: float = 0.001, seed: int = 0, precision: str = "float32",
) -> nn.Module:  # fmt: skip
    """Return a copy of the model, fine-tuned on clean images among which a few are poisoned.

    Every step takes the same poisoned images and newly drawn clean ones, with SGD (momentum 0.9); BatchNorm keeps its
    statistics.

    Args:
        model: after a repair, or a clean one; left unchanged.
        split: images that the fine-tuning draws from, which are not those that anything is measured on.
        backdoor: the attacker's.
        poisoned, clean: images a step.
        steps, lr: of the fine-tuning.
        seed: which images, where triggers lie, and the order.
        precision: see `device.autocast`.
    """
    tuned = copy.deepcopy(model).eval()
    device, rng = next(tuned.parameters()).device, devices.rng(devices.derive_seed(seed, "clean images"))
    triggered, labels = poisoned_images(split, backdoor, poisoned, devices.derive_seed(seed, "poisoned images"))
    optimizer = torch.optim.SGD([w for w in tuned.parameters() if w.requires_grad], lr, momentum=0.9)
    for _ in range(steps):
        index = torch.randint(len(split), (clean,), generator=rng).to(split.images.device)
        x = torch.cat([triggered, to_float(split.images[index]).cpu()]).to(device)
        y = torch.cat([labels, split.labels[index].cpu()]).to(device)
        optimizer.zero_grad()
        with devices.autocast(device, precision):
            loss = F.cross_entropy(tuned(x.contiguous(memory_format=torch.channels_last)).float(), y)
        loss.backward()
        optimizer.step()
    return tuned
