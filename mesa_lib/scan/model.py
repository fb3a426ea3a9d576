"""A model from outside: a checkpoint and the name of its architecture, or any `nn.Module`.

What the scanner works with is always the same: a network in float32 that takes images in [0, 1] and answers with
logits.
"""

import copy
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from .. import classifiers, paths, store

#: of this project's networks: channels that the head reads, over `width`
HEADS = {"smallcnn": 4, "resnet18": 8, "fastcnn": 4}
TORCHVISION = "torchvision:"


class Stranger(nn.Module):
    """A network behind its normalisation: images in [0, 1] -> logits.

    probabilities: whether the network answers with probabilities, of which the logarithm is a logit
    """

    def __init__(self, network: nn.Module, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)):
        super().__init__()
        self.normalise, self.network = classifiers.Normalise(mean, std), network
        self.probabilities = False

    def forward(self, x: Tensor) -> Tensor:
        found = self.network(self.normalise(x))
        if not isinstance(found, Tensor):  # Inception and GoogLeNet in training: the first is the answer
            found = found[0]
        return found.clamp(min=1e-30).log() if self.probabilities else found


def read(
    file: str | Path,
    network: str,
    classes: int,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> Stranger:
    """The model of a safetensors file; ValueError in one message if it is not what `network` names.

    network: `smallcnn`, `resnet18` or `fastcnn` of this project, whose files hold mean and std themselves, or
    `torchvision:NAME` of any classifier there, which needs both. classes: how many the images have
    """
    weights = {name: t.float() if t.is_floating_point() else t for name, t in opened(file).items()}
    source = f"checkpoint = {Path(file).name!r}"
    for what, values in (("mean", mean), ("std", std)):
        if values is not None and (len(values) != 3 or (what == "std" and min(values) <= 0)):
            raise ValueError(f"{what} = {values}: expected three numbers{', all above 0' * (what == 'std')}")
    if network in classifiers.NETWORKS:
        made = own_network(network, weights, classes, mean, std, source)
        wrapped = Stranger(filled(made, weights, classes, source))
    else:
        made = of_torchvision(network, classes)
        if mean is None or std is None:
            raise ValueError(
                f"network = {network!r}: mean and std of its inputs have to be named "
                "(usual are 0.485,0.456,0.406 and 0.229,0.224,0.225)"
            )
        wrapped = Stranger(filled(made, weights, classes, source), mean, std)
    return wrapped.eval()


def opened(file: str | Path) -> dict[str, Tensor]:
    """The tensors of a file, after a look at its header: a number of tensors and bytes that a classifier can have."""
    found = paths.find(file)
    try:
        with safe_open(found, "pt") as stream:
            names = list(stream.keys())
    except (SafetensorError, OSError, ValueError, OverflowError, MemoryError):
        names = [""]  # `load_checkpoint` finds the words for it
    if len(names) > 100_000 or not names:
        raise ValueError(f"checkpoint = {found.name!r}: {len(names)} tensors; expected those of one classifier")
    return store.load_checkpoint(found)


def own_network(network: str, weights: dict, classes: int, mean, std, source: str) -> nn.Module:
    """An empty network of this project, as wide as the file's; mean and std are the file's, or else what was told."""
    head = weights.get("head.weight")
    if head is None or head.dim() != 2 or head.shape[1] % HEADS[network] or not 0 < head.shape[1] <= 2**14:
        raise ValueError(f"{source}: no {network} (it has no fitting head.weight); expected its weights")
    held = {}
    for what, told in (("mean", mean), ("std", std)):
        own = weights.get(f"normalise.{what}")
        if own is None and told is None:
            raise ValueError(f"{source}: holds no normalise.{what}; name mean and std")
        if own is None:
            weights[f"normalise.{what}"] = torch.tensor(told, dtype=torch.float32).reshape(1, 3, 1, 1)
        elif told is not None and (own.numel() != 3 or (own.flatten() - torch.tensor(told)).abs().max() > 2e-3):
            raise ValueError(f"{what} = {told}: the file says {[round(v, 4) for v in own.flatten().tolist()]}")
        held[what] = (0.0, 0.0, 0.0) if what == "mean" else (1.0, 1.0, 1.0)
    return classifiers.build(network, classes, head.shape[1] // HEADS[network], **held, seed=0)


def of_torchvision(network: str, classes: int) -> nn.Module:
    """An empty classifier of torchvision by its name."""
    from torchvision import models

    known = models.list_models(module=models)
    name = network.removeprefix(TORCHVISION)
    if not network.startswith(TORCHVISION) or name not in known:
        near = [f"{TORCHVISION}{n}" for n in known if name[:4] and n.startswith(name[:4])][:5]
        raise ValueError(
            f"network = {network!r}: expected one of {', '.join(classifiers.NETWORKS)}, or {TORCHVISION}NAME"
            f"{' such as ' + ', '.join(near) if near else ''}"
        )
    extra = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return models.get_model(name, weights=None, num_classes=classes, **extra)


def filled(network: nn.Module, weights: dict[str, Tensor], classes: int, source: str) -> nn.Module:
    """The weights in the network; a head of another number of classes is said as such."""
    own = network.state_dict()
    other = [name for name in own if name in weights and own[name].shape != weights[name].shape]
    heads = {len(weights[name]) for name in other if weights[name].dim() and len(own[name]) == classes}
    same_otherwise = all(own[name].shape[1:] == weights[name].shape[1:] for name in other)
    if other and own.keys() == weights.keys() and same_otherwise and len(heads) == 1:
        raise ValueError(
            f"{source}: the model tells {heads.pop()} classes apart, the images have {classes}; "
            "expected a folder for each class of the model"
        )
    return classifiers.load_weights(network, weights, source)


def understood(model: nn.Module, images: Tensor, classes: int) -> Stranger:
    """The model as the scanner takes it, after a try on some images uint8 (N, 3, H, W); `notes` in `.notes`.

    ValueError if it does not take such images, answers with another number of classes or with no numbers
    """
    own = copy.deepcopy(model).eval().float()
    own = own if isinstance(own, Stranger) else Stranger(own)
    own.notes = []
    for name, tensor in [*own.named_parameters(), *own.named_buffers()]:
        if not torch.isfinite(tensor).all():
            raise ValueError(f"the model's {name} holds NaN or infinite values; expected finite weights")
    device = next(iter([*own.parameters(), torch.zeros(())])).device
    size = "x".join(map(str, images.shape[-2:]))
    try:
        with torch.no_grad():
            found = own(images[:64].to(device).float() / 255)
    except (RuntimeError, ValueError, TypeError, AssertionError, IndexError, KeyError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0][:150]
        raise ValueError(
            f"the model does not take images of {size} pixels ({first}); try another image_size"
        ) from error
    if found.dim() != 2 or found.shape[1] != classes:
        raise ValueError(f"the model answers {tuple(found.shape)} to {min(64, len(images))} images; "
                         f"expected (images, {classes}), one number for each class folder")  # fmt: skip
    if not torch.isfinite(found).all():
        raise ValueError("the model answers NaN or infinite values to clean images; expected finite logits")
    if found.min() >= 0 and (found.sum(1) - 1).abs().max() < 1e-3:
        own.probabilities = True
        own.notes.append("The model answers with probabilities instead of logits; their logarithms were taken.")
    if not any(p.requires_grad for p in own.parameters()):
        own.requires_grad_(True)
    return own
