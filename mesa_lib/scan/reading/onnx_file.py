"""A model from an ONNX file: its graph becomes a PyTorch module, whose gradients reach the image.

onnx2pytorch translates the operations; none of them is code of the file. Weights outside the file are refused.
"""

import math
from pathlib import Path

import torch
from torch import Tensor, nn

from mesa_lib.scan.reading.extras import imported
from mesa_lib.store import paths
from mesa_lib.store.sanitize import sanitize

#: the largest file that is read, in bytes, which is the format's own limit
MAX_BYTES = 2**31
#: bytes of one number, by the format's types: float, double, float16, bfloat16, integers
WIDTHS = {1: 4, 11: 8, 10: 2, 16: 2, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 12: 4, 13: 8}


class FixedBatch(nn.Module):
    """A network that takes batches of one size only, for batches of any size."""

    def __init__(self, network: nn.Module, size: int):
        super().__init__()
        self.network, self.size = network, size

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for part in x.split(self.size):
            missing = self.size - len(part)
            full = torch.cat([part, part[-1:].expand(missing, *part.shape[1:])]) if missing else part
            outputs.append(self.network(full)[: len(part)])
        return torch.cat(outputs)


def read_onnx(file: str | Path) -> tuple[nn.Module, list[str]]:
    """Return the network of an ONNX file, and notes for people.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no ONNX file, if its weights lie elsewhere, or if an operation is not known.
    """
    path = paths.find(file)
    source = f"model = '{sanitize(path.name)}'"
    if not path.is_file():
        raise FileNotFoundError(f"{source}: no such file; expected an ONNX file")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{source}: larger than {MAX_BYTES:,} bytes; expected an ONNX file")
    onnx, converter = imported("onnx", source), imported("onnx2pytorch", source)
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # the file is from outside
        raise ValueError(f"{source}: cannot be read; expected an ONNX file") from error
    _check_weights(model, source)
    size = _batch_size(model, source)
    _take_weights_directly(model)
    for node in model.graph.node:  # inference is the default, and the translation does not know the attribute
        for attribute in [a for a in node.attribute if a.name == "training_mode" and a.i == 0]:
            node.attribute.remove(attribute)
    try:
        network = converter.ConvertModel(model, experimental=True)
    except Exception as error:  # the file is from outside
        reason = sanitize((str(error).splitlines() or [type(error).__name__])[0], 150)
        raise ValueError(f"{source}: cannot be translated to PyTorch ({reason})") from error
    notes = ["It was read from an ONNX file, and translated."]
    if size:
        notes.append(f"It was exported for batches of {size}, which makes the scan slower.")
        network = FixedBatch(network, size)
    return network, notes


def _check_weights(model, source: str) -> None:
    """Raise ValueError if a tensor lies outside the file, or does not hold what it claims."""
    if not model.graph.node or not model.graph.input or not model.graph.output:
        raise ValueError(f"{source}: holds no graph; expected an ONNX file of a classifier")
    constants = [a.t for node in model.graph.node for a in node.attribute if a.name == "value" and a.HasField("t")]
    for tensor in [*model.graph.initializer, *constants]:
        name = sanitize(tensor.name or "a constant")
        if tensor.data_location == 1 or tensor.external_data:
            raise ValueError(
                f"{source}: {name} lies outside the file, which is not read; expected one file: "
                "torch.onnx.export(..., external_data=False)"
            )
        claimed = math.prod(tensor.dims)
        if any(side < 0 for side in tensor.dims) or claimed > MAX_BYTES:
            raise ValueError(f"{source}: {name} claims the shape {tuple(tensor.dims)}; expected that of its numbers")
        width = WIDTHS.get(tensor.data_type)
        if width is None:
            raise ValueError(f"{source}: {name} has the type {tensor.data_type}; expected numbers")
        if tensor.raw_data and len(tensor.raw_data) != claimed * width:
            raise ValueError(f"{source}: {name} claims {claimed:,} numbers and holds {len(tensor.raw_data) // width:,}")


def _take_weights_directly(model) -> None:
    """Let nodes take weights from the file, not from nodes (Identity) that hand them on.

    Exporters store equal weights once and hand them on; the translation takes weights from the file alone.
    """
    source = {tensor.name: tensor.name for tensor in model.graph.initializer}
    outputs = {entry.name for entry in model.graph.output}
    for node in list(model.graph.node):
        for number, name in enumerate(node.input):
            node.input[number] = source.get(name, name)
        if node.op_type == "Identity" and len(node.input) == len(node.output) == 1 and node.input[0] in source:
            if node.output[0] not in outputs:
                source[node.output[0]] = node.input[0]
                model.graph.node.remove(node)


def _batch_size(model, source: str) -> int:
    """Return the size of the batches that the graph takes; 0: any."""
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [entry for entry in model.graph.input if entry.name not in weights]
    if len(inputs) != 1 or len(inputs[0].type.tensor_type.shape.dim) != 4:
        raise ValueError(f"{source}: takes {len(inputs)} inputs; expected one, images of four dimensions")
    return max(0, inputs[0].type.tensor_type.shape.dim[0].dim_value)
