"""NAD (Li, Lyu, Koren, Lyu, Li, Ma, ICLR 2021): neural attention distillation.

Fine-tuning alone leaves a part of the backdoor. NAD fine-tunes twice: first a copy of the attacked model, the teacher;
then the attacked model itself, the student, which learns the labels and where the teacher's inner layers are active:

    L = cross-entropy + beta * sum over layers of mean || A(student) - A(teacher) ||^2

The attention map A of a layer is the mean of its squared activations over channels, flattened and divided by its L2
norm. The squared distance is averaged over images and locations, for which the published beta was chosen.

Unlike the paper: the layers are the last activation of each spatial resolution, of any convolutional network, where the
paper takes the three groups of a WideResNet. Teacher and student are trained with the epochs, learning rate, schedule,
batch size and augmentation of fine-tuning in this project (`settings.RepairSettings`), not with the paper's.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mesa_lib import device as devices
from mesa_lib.defenses import clean_batches
from mesa_lib.defenses.base import DefenderView, RepairResult
from mesa_lib.models.inference import to_float

#: height and width of a layer's output -> the name of the layer
Layers = dict[tuple[int, int], str]
#: what is called after a layer: the layer's name, the layer, its output
Listener = Callable[[str, nn.Module, Tensor], None]


def attention(activations: Tensor) -> Tensor:
    """Return the attention maps (B, H * W), of L2 norm one, of activations (B, C, H, W)."""
    return F.normalize(activations.float().square().mean(1).flatten(1), dim=1)


def distance(student: dict[tuple[int, int], Tensor], teacher: dict[tuple[int, int], Tensor]) -> Tensor:
    """Return the sum over layers of the mean squared difference between attention maps (B, H * W)."""
    return torch.stack([F.mse_loss(student[size], teacher[size]) for size in teacher]).sum()


@contextmanager
def _listening(model: nn.Module, listener: Listener) -> Iterator[None]:
    """Call `listener` after every layer with an output (B, C, H, W), inside the context."""

    def hook_of(name: str):
        def hook(part: nn.Module, inputs: tuple, output: object) -> None:
            if isinstance(output, Tensor) and output.ndim == 4:
                listener(name, part, output)

        return hook

    handles = [part.register_forward_hook(hook_of(name)) for name, part in model.named_modules() if name]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def attended_layers(model: nn.Module, images: Tensor) -> Layers:
    """Return the layers whose attention is distilled: the last activation of each spatial resolution, largest first.

    What comes before the first convolution does not count, nor does a map of one pixel. A convolution itself is taken
    only where no other layer has an output of its size.

    Args:
        model: in eval mode.
        images: (B, 3, H, W) in [0, 1].

    Raises:
        ValueError: if there is no such layer.
    """
    convolutions: Layers = {}
    others: Layers = {}

    def listener(name: str, part: nn.Module, output: Tensor) -> None:
        if isinstance(part, nn.Conv2d):
            convolutions[tuple(output.shape[-2:])] = name
        elif convolutions:
            others[tuple(output.shape[-2:])] = name

    with torch.no_grad(), _listening(model, listener):
        model(images)
    found = {size: name for size, name in (convolutions | others).items() if size != (1, 1)}
    if not found:
        raise ValueError(
            f"model = {type(model).__name__}: expected a convolutional network, with inner layers "
            f"whose outputs are (B, channels, H, W) and larger than one pixel"
        )
    return dict(sorted(found.items(), reverse=True))


@contextmanager
def attention_maps(model: nn.Module, layers: Layers) -> Iterator[dict[tuple[int, int], Tensor]]:
    """Return a dictionary that holds the attention maps of `layers` after every forward pass, inside the context."""
    maps: dict[tuple[int, int], Tensor] = {}

    def listener(name: str, part: nn.Module, output: Tensor) -> None:
        size = tuple(output.shape[-2:])
        if layers.get(size) == name:
            maps[size] = attention(output)

    with _listening(model, listener):
        yield maps


@dataclass
class AttentionDistillation(clean_batches.FineTuned):
    """Train on clean images with the attention of a fine-tuned teacher.

    Attributes:
        beta: weight of the attention; the published value of the deeper layers.
        epochs, lr, schedule, batch_size, augment: of the student; as in fine-tuning.
    """

    beta: float = 1000.0

    def __post_init__(self):
        if not self.beta >= 0:
            raise ValueError(f"beta = {self.beta}: expected a number of at least 0")

    def repair(self, view: DefenderView) -> RepairResult:
        """Return the student; the history is its own, the teacher's final accuracy is among the numbers."""
        student, clean = view.model, view.clean
        layers = attended_layers(student, to_float(clean.images[:1].to(view.device)))
        clean_batches.trainable(student)
        teacher = copy.deepcopy(student)
        taught = view.retrain(teacher, label="NAD, teacher")
        teacher.eval().requires_grad_(False)
        optimizer = self.optimizer(student, clean)
        with attention_maps(student, layers) as own, attention_maps(teacher, layers) as wanted:

            def step(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
                with devices.autocast(x.device, view.precision):
                    with torch.no_grad():
                        teacher(x)
                    logits = student(x).float()
                    loss = F.cross_entropy(logits, y) + self.beta * distance(own, wanted)
                optimizer.step(loss)
                return loss.detach(), logits.detach()

            history = clean_batches.train(
                student, clean, step, epochs=self.epochs, batch_size=self.batch_size, lr=self.lr,
                seed=devices.derive_seed(view.seed, "NAD"), augment=self.augment, label="NAD",
            )  # fmt: skip
        about = {"layers": list(layers.values()), "teacher": taught[-1]["accuracy"] if taught else None}
        return RepairResult(student, history, about)
