"""A model from outside: a checkpoint and the name of its architecture, or any `nn.Module`.

What the scanner works with is always the same: a network in float32 that takes images in [0, 1] and answers with
logits of a usual size.
"""

import copy
import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed

from mesa_lib.models import networks
from mesa_lib.models.inference import to_float
from mesa_lib.scan.reading import checkpoint
from mesa_lib.store.sanitize import sanitize

#: of this project's networks: channels that the head reads, over `width`
HEADS = {"smallcnn": 4, "resnet18": 8, "fastcnn": 4}
TORCHVISION = "torchvision:"
#: values of images that go through the network in one piece: 2,604 images of 32x32, 53 of 224x224
AT_ONCE = 8_000_000
#: the median distance of the two highest logits that a model has while it is scanned: that of small networks here
MARGIN = 6.0


class NoTensor(Exception):
    """A network answered with something that is no tensor."""


class WrappedClassifier(nn.Module):
    """A network behind its normalization: images in [0, 1] -> logits.

    probabilities: whether the network answers with probabilities, of which the logarithm is a logit; temperature: what
    logits are divided by. Large batches go through in parts, of which gradients keep no more than the images
    """

    def __init__(self, network: nn.Module, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)):
        super().__init__()
        self.normalize, self.network = networks.Normalize(mean, std), network
        self.probabilities, self.notes = False, []
        self.register_buffer("temperature", torch.ones(()))
        self.anchor = nn.Parameter(torch.zeros(()), requires_grad=False)  # on the model's device, if nothing else is

    def forward(self, x: Tensor) -> Tensor:
        if self.training or x.numel() <= AT_ONCE:
            return self._logits(x)
        parts = x.split(max(1, AT_ONCE // x[0].numel()))
        if torch.is_grad_enabled() and x.requires_grad:
            return torch.cat([recomputed(self._logits, part, use_reentrant=False) for part in parts])
        return torch.cat([self._logits(part) for part in parts])

    def _logits(self, x: Tensor) -> Tensor:
        found = self.network(self.normalize(x))
        if isinstance(found, tuple | list) and found:  # of networks with auxiliary answers the first
            found = found[0]
        if not isinstance(found, Tensor):
            raise NoTensor(type(found).__name__)
        found = found.clamp(min=1e-30).log() if self.probabilities else found
        return found / self.temperature


def read(
    file: str | Path,
    network: str,
    classes: int,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> WrappedClassifier:
    """The model of a safetensors file; ValueError in one message if it is not what `network` names.

    network: `smallcnn`, `resnet18` or `fastcnn` of this project, whose files hold mean and std themselves, or
    `torchvision:NAME` of any classifier there, which needs both. classes: how many the images have
    """
    for what, values in (("mean", mean), ("std", std)):
        usable = values is None or (len(values) == 3 and all(map(math.isfinite, values)))
        if not usable or (values is not None and what == "std" and min(values) <= 0):
            raise ValueError(f"{what} = {values}: expected three numbers{', all above 0' * (what == 'std')}")
    found = checkpoint.header(file)
    if network in networks.NETWORKS:
        wrapped = own_network(network, found, classes, mean, std)
    else:
        build = of_torchvision(network, classes, found)
        if mean is None or std is None:
            raise ValueError(
                f"network = '{sanitize(network)}': mean and std of its inputs have to be named "
                "(usual are 0.485,0.456,0.406 and 0.229,0.224,0.225)"
            )
        names, notes = checkpoint.fitting(found, empty(build), classes)
        made = checkpoint.load(found, names, build())
        if without_helpers(made):
            notes.append("Its auxiliary heads, which are used in training alone, were left out.")
        wrapped = WrappedClassifier(made, mean, std)
        wrapped.notes = notes
    return wrapped.eval()


def own_network(network: str, found: checkpoint.Header, classes: int, mean, std) -> WrappedClassifier:
    """A network of this project, as wide as the file's; mean and std are the file's, or else what was told."""
    head = next((shape for name, (_, shape) in found.tensors.items() if name.endswith("head.weight")), ())
    if len(head) != 2 or not head[1] or head[1] % HEADS[network] or head[1] > 2**14:
        raise ValueError(f"{found.source}: no {network} (it has no fitting head.weight); expected its weights")
    said = {"mean": mean or (0.0, 0.0, 0.0), "std": std or (1.0, 1.0, 1.0)}

    def build() -> nn.Module:
        return networks.build_network(network, classes, head[1] // HEADS[network], **said, seed=0)

    absent = []
    for what, values in (("mean", mean), ("std", std)):
        if not any(name.endswith(f"normalize.{what}") for name in found.tensors):
            absent.append(f"normalize.{what}")
            if values is None:
                raise ValueError(f"{found.source}: holds no normalize.{what}; name mean and std")
    names, notes = checkpoint.fitting(found, empty(build), classes, may_miss=absent)
    made = checkpoint.load(found, names, build(), keep=absent)
    for what, values in (("mean", mean), ("std", std)):
        own = getattr(made.normalize, what).flatten()
        if values is not None and (own - torch.tensor(values)).abs().max() > 2e-3:
            raise ValueError(f"{what} = {values}: the file says {[round(v, 4) for v in own.tolist()]}")
    wrapped = WrappedClassifier(made)
    wrapped.notes = notes
    return wrapped


def empty(build: Callable[[], nn.Module]) -> nn.Module:
    """The network without memory for its weights, or, where its code computes with tensors (RegNet), with."""
    try:
        with torch.device("meta"):
            return build()
    except (NotImplementedError, RuntimeError):
        return build()


def without_helpers(network: nn.Module) -> bool:
    """Take off the heads that GoogLeNet and Inception have for their training alone; whether there were any."""
    helpers = [name for name in ("aux1", "aux2", "AuxLogits") if isinstance(getattr(network, name, None), nn.Module)]
    for name in helpers:
        setattr(network, name, None)
    if helpers:
        network.aux_logits = False
    return bool(helpers)


def of_torchvision(network: str, classes: int, found: checkpoint.Header) -> Callable[[], nn.Module]:
    """What builds an untrained classifier of torchvision by its name, with the auxiliary heads that the file has."""
    from torchvision import models

    known = models.list_models(module=models)
    name = network.removeprefix(TORCHVISION)
    if not network.startswith(TORCHVISION) or name not in known:
        near = [f"{TORCHVISION}{n}" for n in known if name[:4] and n.startswith(name[:4])][:5]
        raise ValueError(
            f"network = '{sanitize(network)}': expected one of {', '.join(networks.NETWORKS)}, or {TORCHVISION}NAME"
            f"{' such as ' + ', '.join(near) if near else ''}"
        )
    extra = {}
    if name in ("googlenet", "inception_v3"):
        helpers = any(part in ("aux1", "AuxLogits") for own in found.tensors for part in own.split("."))
        extra = {"init_weights": False, "aux_logits": helpers}
    return lambda: models.get_model(name, weights=None, num_classes=classes, **extra)


def prepare(model: nn.Module, images: Tensor, classes: int, seed: int = 0) -> WrappedClassifier:
    """The model as the scanner takes it, after a try on some images uint8 (N, 3, H, W); `notes` in `.notes`.

    Its logits are scaled so that it is as sure of clean images as small networks are: a factor changes no answer, and
    shall change no verdict. ValueError if it does not take such images, answers with another number of classes, with no
    numbers, or without a gradient
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"the model is a {type(model).__name__}; expected a torch.nn.Module")
    try:
        own = copy.deepcopy(model).eval().float()
    except Exception as error:  # whatever the code of a stranger's module raises
        raise ValueError(f"the model cannot be copied ({_first(error)}); expected a module of plain layers") from error
    own = own if isinstance(own, WrappedClassifier) else WrappedClassifier(own)
    own.notes, own.probabilities = list(own.notes), False
    own.temperature.fill_(1)
    for name, tensor in [*own.named_parameters(), *own.named_buffers()]:
        if not torch.isfinite(tensor).all():
            raise ValueError(f"the model's {sanitize(name)} holds NaN or infinite values; expected finite weights")
    rng = torch.Generator().manual_seed(seed)
    some = to_float(images[torch.randperm(len(images), generator=rng)[:64]]).to(own.anchor.device)
    found = _answers(own, some)
    if found.dim() != 2 or found.shape != (len(some), classes):
        raise ValueError(f"the model answers {tuple(found.shape)} to {len(some)} images; "
                         f"expected (images, {classes}), one number for each class folder")  # fmt: skip
    if not torch.isfinite(found).all():
        raise ValueError("the model answers NaN or infinite values to clean images; expected finite logits")
    if found.min() >= 0 and (found.sum(1) - 1).abs().max() < 1e-3:
        own.probabilities = True
        own.notes.append("The model answers with probabilities instead of logits; their logarithms were taken.")
        found = _answers(own, some)
    _also_elsewhere(own, some, rng)
    top = found.topk(2, 1).values
    margin = float((top[:, 0] - top[:, 1]).median())
    if margin > 0:
        own.temperature.fill_(margin / MARGIN)
        if not 0.2 < margin / MARGIN < 5:
            own.notes.append(
                f"The model's logits are {margin / MARGIN:.2g} times as large as usual and were divided by that."
            )
    if not any(p.requires_grad for p in own.network.parameters()):
        own.network.requires_grad_(True)
    return own


def _answers(own: WrappedClassifier, images: Tensor) -> Tensor:
    size = "x".join(map(str, images.shape[-2:]))
    try:
        with torch.no_grad():
            return own(images)
    except NoTensor as error:
        said = f"the model answers with a {sanitize(str(error))}; expected one tensor, a number a class"
        raise ValueError(said) from error
    except Exception as error:  # whatever the code of a stranger's module raises
        raise ValueError(
            f"the model does not take images of {size} pixels ({_first(error)}); try another image_size"
        ) from error


def _first(error: Exception) -> str:
    """The first line of what an error says."""
    return sanitize((str(error).splitlines() or [""])[0] or type(error).__name__, 150)


def _also_elsewhere(own: WrappedClassifier, images: Tensor, rng: torch.Generator) -> None:
    """ValueError if the answers to images that are not clean are no numbers, or do not change with the image."""
    noise = torch.rand(images.shape, generator=rng).to(images.device)
    patched = images.clone()
    side = max(3, images.shape[-1] // 8)
    patched[::2, :, :side, :side], patched[1::2, :, -side:, -side:] = 1, 0
    for what, other in (("noise", noise), ("images with patches", patched)):
        if not torch.isfinite(_answers(own, other)).all():
            raise ValueError(
                f"the model answers NaN or infinite values to {what}: no verdict, and suspicious by itself; expected "
                "finite logits for every image"
            )
    with torch.enable_grad():
        x = images[:8].clone().requires_grad_()
        try:
            (slope,) = torch.autograd.grad(own(x).square().sum(), x)
        except RuntimeError:
            slope = torch.zeros(1)
    if not torch.isfinite(slope).all() or not slope.abs().max() > 0:
        if own.probabilities:
            raise ValueError(
                "the model answers with probabilities that are too sure to be searched (0 and 1 to the last digit); "
                "expected its logits: hand it over without its softmax"
            )
        raise ValueError(
            "the model's answers have no usable gradient with respect to the image (rounded, or computed without "
            "autograd); expected logits as the network computes them"
        )
