"""Any `nn.Module` as the scanner takes it: tried on some images first, in float32, with logits of a usual size."""

import copy
import re

import torch
from torch import Tensor, nn

from mesa_lib import device as devices
from mesa_lib.models.inference import to_float
from mesa_lib.scan.reading.wrapped import NoTensor, WrappedClassifier
from mesa_lib.store.sanitize import sanitize

#: the median distance of the two highest logits of a model while it is scanned: that of small networks here
MARGIN = 6.0
#: words of an error that another size of the images may mend
SHAPES = re.compile(r"shape|size|dimension|smaller|larger|match|\d+x\d+", re.I)
#: sides of images that are tried for the advice to take another size
USUAL_SIDES = (32, 28, 224, 64, 96, 128, 48, 112, 160, 192, 240, 256, 299, 384)
#: images on which a model is tried
TRIED = 64


def prepare(model: nn.Module, images: Tensor, classes: int, seed: int = 0, trained: bool = False) -> WrappedClassifier:
    """Return a copy of the model as it is scanned, after a try on some images.

    Its logits are scaled so that it is as sure of clean images as small networks are: a factor on the logits changes no
    prediction, and must change no verdict. `notes` of the result say what was done.

    Args:
        model: images (B, 3, H, W) in [0, 1] -> logits or probabilities; left unchanged.
        images: uint8 (N, 3, H, W), clean.
        classes: number of classes.
        trained: whether the model will be repaired; it is then tried in training mode, too.

    Raises:
        ValueError: if the model does not take such images, returns another number of classes, values that are not
            finite, or none with a gradient; or if it cannot be trained.
    """
    wrapped = _copied(model)
    rng = devices.rng(devices.derive_seed(seed, "try a model"))
    sample = to_float(images[torch.randperm(len(images), generator=rng)[:TRIED]]).to(wrapped.anchor.device)
    if not any(p.requires_grad for p in wrapped.network.parameters()):
        wrapped.network.requires_grad_(True)
    _choose_memory_format(wrapped, sample)
    logits = _outputs(wrapped, sample)
    if logits.dim() != 2 or logits.shape != (len(sample), classes):
        raise ValueError(
            f"the model returns {tuple(logits.shape)} for {len(sample)} images; "
            f"expected (images, {classes}), one number for each class folder"
        )
    if not torch.isfinite(logits).all():
        raise ValueError("the model returns NaN or infinite values for clean images; expected finite logits")
    if logits.min() >= 0 and (logits.sum(1) - 1).abs().max() < 1e-3:
        wrapped.probabilities = True
        wrapped.notes.append("The model returns probabilities instead of logits; their logarithms were taken.")
        logits = _outputs(wrapped, sample)
    _check_other_images(wrapped, sample, rng)
    _check_gradient(wrapped, sample)
    _scale_logits(wrapped, logits)
    _check_single_image(wrapped, sample, classes)
    if trained:
        _check_training(wrapped, sample)
    return wrapped


def _copied(model: nn.Module) -> WrappedClassifier:
    if not isinstance(model, nn.Module):
        raise ValueError(f"the model is a {type(model).__name__}; expected a torch.nn.Module")
    try:
        network = copy.deepcopy(model).eval().float()
    except Exception as error:  # third-party code may raise anything
        reason = _first_line(error)
        raise ValueError(f"the model cannot be copied ({reason}); expected a module of plain layers") from error
    wrapped = network if isinstance(network, WrappedClassifier) else WrappedClassifier(network)
    wrapped.notes, wrapped.probabilities = list(wrapped.notes), False
    wrapped.temperature.fill_(1)
    for name, tensor in [*wrapped.named_parameters(), *wrapped.named_buffers()]:
        if not torch.isfinite(tensor).all():
            raise ValueError(f"the model's {sanitize(name)} holds NaN or infinite values; expected finite weights")
    return wrapped


def _choose_memory_format(wrapped: WrappedClassifier, images: Tensor) -> None:
    """Let the network have contiguous memory if the faster format, channels last, ends in an error.

    Many networks flatten the last feature map by `view`, which takes contiguous memory only. Search and repair also
    keep the weights in that format, which is tried on a copy.
    """
    trial = copy.deepcopy(wrapped).to(memory_format=torch.channels_last)
    try:
        trial(images[:8])
    except Exception:  # third-party code may raise anything; what is wrong with both formats is said later
        wrapped.memory_format = torch.contiguous_format
        wrapped.to(memory_format=torch.contiguous_format)


def _check_single_image(wrapped: WrappedClassifier, images: Tensor, classes: int) -> None:
    """Raise a ValueError if one image alone has other outputs than among others: the last batch may be of one."""
    alone = _outputs(wrapped, images[:1])
    if alone.shape != (1, classes):
        raise ValueError(
            f"the model returns {tuple(alone.shape)} for a single image; expected (1, {classes}), as for several images"
        )


def _check_training(wrapped: WrappedClassifier, images: Tensor) -> None:
    """Raise a ValueError if the model cannot be trained as the repair does, tried on a copy."""
    trial = copy.deepcopy(wrapped).to(memory_format=torch.channels_last).train()
    try:
        with torch.enable_grad():
            trial(images[:8]).float().square().mean().backward()
    except Exception as error:  # third-party code may raise anything
        raise ValueError(
            f"the model cannot be trained ({_first_line(error)}), so it cannot be repaired; expected a network that "
            "takes batches in training mode, or a scan without repair"
        ) from error
    if not any(p.grad is not None and p.grad.abs().sum() > 0 for p in trial.network.parameters()):
        raise ValueError("no weight of the model has a gradient, so it cannot be repaired; expected trainable weights")


def _outputs(wrapped: WrappedClassifier, images: Tensor) -> Tensor:
    size = "x".join(map(str, images.shape[-2:]))
    try:
        with torch.no_grad():
            return wrapped(images)
    except NoTensor as error:
        message = f"the model returns a {sanitize(str(error))}; expected one tensor, a number for each class"
        raise ValueError(message) from error
    except Exception as error:  # third-party code may raise anything
        advice = _advice(wrapped) if SHAPES.search(str(error)) else "expected a network of images (B, 3, H, W)"
        raise ValueError(f"the model does not take images of {size} pixels ({_first_line(error)}); {advice}") from error


def _advice(wrapped: WrappedClassifier) -> str:
    """Return which other size of the images to try, the first of the usual ones that the model takes."""
    for side in USUAL_SIDES:
        try:
            with torch.no_grad():
                wrapped(torch.rand(2, 3, side, side, device=wrapped.anchor.device))
        except Exception:  # third-party code may raise anything
            continue
        return f"it takes {side} pixels: try image_size = {side} (--image-size {side})"
    return "try another image_size"


def _first_line(error: Exception) -> str:
    return sanitize((str(error).splitlines() or [""])[0] or type(error).__name__, 150)


def _check_other_images(wrapped: WrappedClassifier, images: Tensor, rng: torch.Generator) -> None:
    """Raise a ValueError if the outputs for images that are not clean are not finite."""
    noise = torch.rand(images.shape, generator=rng).to(images.device)
    patched = images.clone()
    side = max(3, images.shape[-1] // 8)
    patched[::2, :, :side, :side], patched[1::2, :, -side:, -side:] = 1, 0
    for what, other in (("noise", noise), ("images with patches", patched)):
        if not torch.isfinite(_outputs(wrapped, other)).all():
            raise ValueError(
                f"the model returns NaN or infinite values for {what}: no verdict, and suspicious by itself; expected "
                "finite logits for every image"
            )


def _check_gradient(wrapped: WrappedClassifier, images: Tensor) -> None:
    """Raise a ValueError if the outputs do not change with the image."""
    with torch.enable_grad():
        x = images[:8].clone().requires_grad_()
        try:
            (gradient,) = torch.autograd.grad(wrapped(x).square().sum(), x)
        except RuntimeError:
            gradient = torch.zeros(1)
    if torch.isfinite(gradient).all() and gradient.abs().max() > 0:
        return
    if wrapped.probabilities:
        raise ValueError(
            "the model returns probabilities that are too sure to be searched (0 and 1 to the last digit); "
            "expected its logits: hand it over without its softmax"
        )
    raise ValueError(
        "the model's outputs have no usable gradient with respect to the image (rounded, or computed without "
        "autograd); expected logits as the network computes them"
    )


def _scale_logits(wrapped: WrappedClassifier, logits: Tensor) -> None:
    top = logits.topk(2, 1).values
    margin = float((top[:, 0] - top[:, 1]).median())
    if margin > 0:
        wrapped.temperature.fill_(margin / MARGIN)
        if not 0.2 < margin / MARGIN < 5:
            wrapped.notes.append(
                f"The model's logits are {margin / MARGIN:.2g} times as large as usual and were divided by that."
            )
