"""The one training loop: the clean model, the attack and the repair all run through it."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mesa_lib import device as devices
from mesa_lib.models.inference import to_float
from mesa_lib.progress import progress_bar

#: how far images are shifted, as a fraction of their size, and whether half of them are mirrored
AUGMENTATIONS = {
    "none": (0, False),
    "crop": (1 / 8, False),
    "crop-flip": (1 / 8, True),
    "smallcrop-flip": (1 / 16, True),
}
SCHEDULES = ("constant", "onecycle")

#: what a caller may do to a batch: (images in [0, 1], labels, rng) -> (images, labels)
BatchTransform = Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor]]


def augmented(images: Tensor, kind: str, rng: torch.Generator) -> Tensor:
    """Return images (B, 3, H, W), each shifted at random by up to 1/8 (`smallcrop`: 1/16) of its size.

    Edges are repeated; `-flip` also mirrors half of the images; `none` returns the images unchanged.
    """
    if kind not in AUGMENTATIONS:
        raise ValueError(f"augment = {kind!r}: expected one of {', '.join(AUGMENTATIONS)}")
    if kind == "none":
        return images
    batch, _, height, width = images.shape
    fraction, mirrored = AUGMENTATIONS[kind]
    pad = int(height * fraction)
    padded = F.pad(images, (pad,) * 4, mode="replicate").permute(0, 2, 3, 1)
    shift = torch.randint(2 * pad + 1, (batch, 2), generator=rng, device=images.device)
    rows = shift[:, :1] + torch.arange(height, device=images.device)  # (B, H)
    columns = shift[:, 1:] + torch.arange(width, device=images.device)  # (B, W)
    if mirrored:
        flip = torch.rand(batch, 1, generator=rng, device=images.device) < 0.5
        columns = torch.where(flip, columns.flip(1), columns)
    image = torch.arange(batch, device=images.device)[:, None, None]
    return padded[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


class Optimizer:
    """SGD with momentum 0.9 and its schedule; the biases of BatchNorm have a learning rate of their own.

    `bias_rate` multiplies the learning rate of these biases and divides their weight decay: with few epochs they would
    otherwise learn too slowly. `onecycle` uses Nesterov momentum, and `lr` is its peak.
    """

    def __init__(self, model: nn.Module, lr: float, weight_decay: float, bias_rate: float, schedule: str, steps: int):
        if schedule not in SCHEDULES:
            raise ValueError(f"schedule = {schedule!r}: expected one of {', '.join(SCHEDULES)}")
        norm_biases = [part.bias for part in model.modules() if isinstance(part, nn.BatchNorm2d)]
        ids = {id(bias) for bias in norm_biases}
        weights = [w for w in model.parameters() if w.requires_grad and id(w) not in ids]
        groups = [
            {"params": weights, "lr": lr, "weight_decay": weight_decay},
            {"params": norm_biases, "lr": lr * bias_rate, "weight_decay": weight_decay / bias_rate},
        ]
        onecycle = schedule == "onecycle"
        self.sgd, self.scheduler = torch.optim.SGD(groups, lr, momentum=0.9, nesterov=onecycle), None
        if onecycle:
            self.scheduler = torch.optim.lr_scheduler.OneCycleLR(
                self.sgd, [group["lr"] for group in groups], total_steps=max(2, steps),
                pct_start=0.2, div_factor=8, final_div_factor=1000,
            )  # fmt: skip

    def step(self, loss: Tensor) -> None:
        """Take one step along the gradient of the loss."""
        self.sgd.zero_grad()
        loss.backward()
        self.sgd.step()
        if self.scheduler is not None:
            self.scheduler.step()


def _loss(logits: Tensor, labels: Tensor, label_smoothing: float, teacher: nn.Module | None, plain: Tensor) -> Tensor:
    """Return the cross-entropy to the labels, or the KL divergence from the teacher's outputs on the plain images."""
    if teacher is None:
        return F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    with torch.no_grad():
        taught = teacher(plain.contiguous(memory_format=torch.channels_last)).float()
    return F.kl_div(logits.log_softmax(1), taught.log_softmax(1), reduction="batchmean", log_target=True)


def train(
    model: nn.Module, images: Tensor, labels: Tensor, *, epochs: int, lr: float, batch_size: int, seed: int,
    device: torch.device, precision: str = "auto", schedule: str = "constant", weight_decay: float = 0.0,
    label_smoothing: float = 0.0, bias_rate: float = 1.0, augment: str = "none",
    transform: BatchTransform | None = None, teacher: nn.Module | None = None, statistics: str = "updated",
    compile: bool = False, label: str = "training",
) -> list[dict]:  # fmt: skip
    """Train `model` in place by SGD on cross-entropy, or on the outputs of a teacher.

    Every image is used once an epoch, in batches whose sizes differ by at most one. The same seed, device and number of
    threads give the same weights.

    Args:
        images, labels: uint8 (N, 3, H, W) and (N,).
        schedule, weight_decay, bias_rate: see `Optimizer`.
        augment: see `augmented`.
        transform: changes each batch after augmentation; the attack stamps and relabels there, the repair stamps.
        teacher: instead of the labels, its outputs on the images before `transform` are learned (KL divergence).
        statistics: `frozen` keeps the running statistics of BatchNorm as they are, and dropout off; else `updated`.
        label: of the progress bar, and in messages.

    Returns:
        One record an epoch: `epoch`, mean `loss` and `accuracy` on the batches as trained.

    Raises:
        FloatingPointError: if the loss or a weight is no longer finite; the model is then unusable.
    """
    model.to(device, memory_format=torch.channels_last).train(statistics == "updated")
    images, labels = images.to(device), labels.to(device)
    batches = math.ceil(len(images) / batch_size)
    optimizer = Optimizer(model, lr, weight_decay, bias_rate, schedule, epochs * batches)
    network, rng, history = torch.compile(model) if compile else model, devices.rng(seed, device), []
    steps = iter(progress_bar(range(epochs * batches), label))
    for epoch in range(1, epochs + 1):
        loss_sum = hits = torch.zeros((), device=device)
        for index in torch.tensor_split(torch.randperm(len(images), generator=rng, device=device), batches):
            next(steps)
            plain, y = augmented(to_float(images[index]), augment, rng), labels[index]
            x, y = (plain, y) if transform is None else transform(plain, y, rng)
            with devices.autocast(device, precision):
                logits = network(x.contiguous(memory_format=torch.channels_last)).float()
                loss = _loss(logits, y, label_smoothing, teacher, plain)
            optimizer.step(loss)
            loss_sum = loss_sum + loss.detach() * len(x)
            hits = hits + (logits.detach().argmax(1) == y).sum()
        history.append({"epoch": epoch, "loss": float(loss_sum) / len(images), "accuracy": float(hits) / len(images)})
        _check_loss(history, epochs, label, lr)
    next(steps, None)
    _check_weights(model.eval(), label, lr)
    return history


def _check_loss(history: list[dict], epochs: int, label: str, lr: float) -> None:
    epoch, loss = history[-1]["epoch"], history[-1]["loss"]
    if not math.isfinite(loss):
        raise FloatingPointError(
            f"{label}: loss = {loss} in epoch {epoch}/{epochs}: expected a number; "
            f"try a smaller learning rate than {lr}"
        )


def _check_weights(model: nn.Module, label: str, lr: float) -> None:
    for name, tensor in model.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise FloatingPointError(
                f"{label}: {name} has NaN or infinite values: expected finite weights; "
                f"try a smaller learning rate than {lr}"
            )
