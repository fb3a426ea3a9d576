"""A repaired model as a file, in the form in which the scanned one came: under its own names, or as an ONNX file."""

import copy
import warnings
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from mesa_lib.scan.reading.onnx_file import FixedBatch, read_onnx
from mesa_lib.scan.reading.wrapped import WrappedClassifier
from mesa_lib.store import paths

#: names of the files that a scan may write
WEIGHTS, ONNX = "repaired.safetensors", "repaired.onnx"
#: by how much the outputs of a written ONNX file may differ, as a fraction of the largest
TOLERANCE = 1e-3


def write_repaired(model: WrappedClassifier, images: Tensor, folder: Path, onnx: bool = False) -> Path:
    """Write a repaired model, whole or not at all, and return the file.

    Args:
        model: as it was scanned; its normalization is not written.
        images: of the size that the model takes, float32 (B, 3, H, W) in [0, 1]; for the ONNX file, and to check it.
        folder: where the file is written.
        onnx: whether the model came from an ONNX file. If that cannot be written, the weights alone are.

    Raises:
        OSError: if the folder cannot be written.
    """
    if onnx and _write_onnx(model, images, folder / ONNX):
        return folder / ONNX
    write_weights(model.network, folder / WEIGHTS, model.names)
    return folder / WEIGHTS


def write_weights(network: nn.Module, file: Path, names: dict[str, str] | None = None) -> None:
    """Write the weights of a network, whole or not at all.

    Args:
        network: any.
        file: a safetensors file.
        names: name of a tensor -> its name in the file; others keep their names.

    Raises:
        OSError: if the file cannot be written.
    """
    names = names or {}
    weights = {names.get(name, name): tensor.cpu().clone(memory_format=torch.contiguous_format)
               for name, tensor in network.state_dict().items()}  # fmt: skip
    scratch = file.with_name(f".{file.name}.part")
    try:
        save_file(weights, scratch)
        scratch.replace(file)
    except (SafetensorError, OSError) as error:
        raise OSError(f"cannot write {paths.display_path(file)}: {error}") from error
    finally:
        scratch.unlink(missing_ok=True)


def _write_onnx(model: WrappedClassifier, images: Tensor, file: Path) -> bool:
    """Write the network as an ONNX file -> whether it could be written and has the same outputs when it is read."""
    model = copy.deepcopy(model).cpu().eval()  # the images and the file that is read again are on the CPU
    inputs, network = model.network_inputs(images.cpu()), model.network
    fixed = isinstance(network, FixedBatch)
    inputs = inputs[: network.size] if fixed else inputs
    scratch = file.with_name(f".{file.name}.part")
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # the translated network is traced, on purpose
            axes = None if fixed else {"input": {0: "batch"}, "output": {0: "batch"}}
            torch.onnx.export(
                network.network if fixed else network, (inputs,), scratch, dynamo=False, dynamic_axes=axes,
                input_names=["input"], output_names=["output"],
            )  # fmt: skip
            expected = network(inputs)
            again = read_onnx(scratch)[0].eval()(inputs)
        if (again - expected).abs().max() > TOLERANCE * expected.abs().max():
            return False
        scratch.replace(file)
    except OSError as error:
        raise OSError(f"cannot write {paths.display_path(file)}: {error}") from error
    except Exception:  # a network from outside, which the exporter may not know; the weights are written instead
        return False
    finally:
        scratch.unlink(missing_ok=True)
    return True
