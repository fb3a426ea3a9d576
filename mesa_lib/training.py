"""The one training loop: the clean model, the attack and the repair all run through it."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import device as devices
from .progress import bar

#: how far images are shifted, as a part of their size, and whether half of them are mirrored
AUGMENTATIONS = {
    "none": (0, False),
    "crop": (1 / 8, False),
    "crop-flip": (1 / 8, True),
    "smallcrop-flip": (1 / 16, True),
}
SCHEDULES = ("constant", "onecycle")

#: what a caller may do to a batch: (images in [0, 1], labels, rng) -> (images, labels)
Edit = Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor]]


def augmented(images: Tensor, kind: str, rng: torch.Generator) -> Tensor:
    """Shift every image by up to an eighth of its size, a sixteenth for `smallcrop`; mirror half of them for `-flip`.

    Edges are repeated. (B, 3, H, W) -> (B, 3, H, W); `none` returns the images as they are.
    """
    if kind not in AUGMENTATIONS:
        raise ValueError(f"augment = {kind!r}: expected one of {', '.join(AUGMENTATIONS)}")
    if kind == "none":
        return images
    batch, _, height, width = images.shape
    part, mirrored = AUGMENTATIONS[kind]
    pad = int(height * part)
    padded = F.pad(images, (pad,) * 4, mode="replicate").permute(0, 2, 3, 1)
    shift = torch.randint(2 * pad + 1, (batch, 2), generator=rng, device=images.device)
    rows = shift[:, :1] + torch.arange(height, device=images.device)  # (B, H)
    columns = shift[:, 1:] + torch.arange(width, device=images.device)  # (B, W)
    if mirrored:
        flip = torch.rand(batch, 1, generator=rng, device=images.device) < 0.5
        columns = torch.where(flip, columns.flip(1), columns)
    which = torch.arange(batch, device=images.device)[:, None, None]
    return padded[which, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _groups(model: nn.Module, lr: float, weight_decay: float, bias_rate: float) -> list[dict]:
    """What SGD learns: the biases of BatchNorm, and all other weights that are not fixed."""
    norms = [part for part in model.modules() if isinstance(part, nn.BatchNorm2d)]
    biases = {id(norm.bias) for norm in norms}
    learned = [weight for weight in model.parameters() if weight.requires_grad]
    rest = {"params": [w for w in learned if id(w) not in biases], "lr": lr, "weight_decay": weight_decay}
    own = {"params": [norm.bias for norm in norms], "lr": lr * bias_rate, "weight_decay": weight_decay / bias_rate}
    return [rest, own]


def train(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epochs: int,
    lr: float,
    batch_size: int,
    seed: int,
    device: torch.device,
    precision: str = "auto",
    schedule: str = "constant",
    weight_decay: float = 0.0,
    label_smoothing: float = 0.0,
    bias_rate: float = 1.0,
    augment: str = "none",
    edit: Edit | None = None,
    compile: bool = False,
    label: str = "training",
) -> list[dict]:
    """Train `model` in place with SGD (momentum 0.9, Nesterov under one-cycle) on cross-entropy.

    images uint8 (N, 3, H, W); labels (N,). `edit` changes each batch after augmentation: the attack stamps
    and relabels there, the repair stamps. Every image is used once an epoch; the batches of an epoch differ
    in size by at most one, so none is dropped. `bias_rate` multiplies the learning rate of the biases of BatchNorm (and
    divides their weight decay): with few epochs they are too slow otherwise. Returns one record an epoch: mean loss and
    accuracy on the batches as trained. The same seed, device and thread count give the same weights.
    FloatingPointError if the loss or a weight is no longer finite; the model is then not to be used.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule = {schedule!r}: expected one of {', '.join(SCHEDULES)}")
    model.to(device, memory_format=torch.channels_last).train()
    images, labels = images.to(device), labels.to(device)
    batches = math.ceil(len(images) / batch_size)
    onecycle = schedule == "onecycle"
    groups = _groups(model, lr, weight_decay, bias_rate)
    optimiser = torch.optim.SGD(groups, lr, momentum=0.9, nesterov=onecycle)
    if onecycle:
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, [group["lr"] for group in groups], total_steps=max(2, epochs * batches),
            pct_start=0.2, div_factor=8, final_div_factor=1000,
        )  # fmt: skip
    network = torch.compile(model) if compile else model
    rng = devices.rng(seed, device)
    history = []
    steps = iter(bar(range(epochs * batches), label))
    for epoch in range(epochs):
        order = torch.randperm(len(images), generator=rng, device=device)
        loss_sum = hits = torch.zeros((), device=device)
        for index in torch.tensor_split(order, batches):
            next(steps)
            x, y = images[index].float() / 255, labels[index]
            x = augmented(x, augment, rng)
            if edit is not None:
                x, y = edit(x, y, rng)
            with devices.autocast(device, precision):
                logits = network(x.contiguous(memory_format=torch.channels_last))
            loss = F.cross_entropy(logits.float(), y, label_smoothing=label_smoothing)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            if onecycle:
                scheduler.step()
            loss_sum = loss_sum + loss.detach() * len(x)
            hits = hits + (logits.detach().argmax(1) == y).sum()
        mean = float(loss_sum) / len(images)
        if not math.isfinite(mean):
            raise FloatingPointError(
                f"{label}: the loss became {mean} in epoch {epoch + 1} of {epochs}; "
                f"expected a finite loss: try a smaller learning rate than {lr}"
            )
        history.append({"epoch": epoch + 1, "loss": mean, "accuracy": float(hits) / len(images)})
    next(steps, None)
    model.eval()
    broken = [name for name, tensor in model.state_dict().items() if not torch.isfinite(tensor).all()]
    if broken:
        raise FloatingPointError(
            f"{label}: {broken[0]} holds NaN or infinite values after {epochs} epochs; "
            f"expected finite weights: try a smaller learning rate than {lr}"
        )
    return history
