"""A repaired model is written as the scanned one came: under the names of its file, or as an ONNX file."""

import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mesa_lib import scan as scanning
from mesa_lib.models import networks
from mesa_lib.models.inference import to_float
from mesa_lib.scan import writing
from mesa_lib.scan.reading import cifar_networks
from mesa_lib.scan.reading.prepare import prepare

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.2, 0.2)
IMAGES = torch.randint(0, 256, (12, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def small():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    ).eval()


def repaired(model):
    """The model as a scan prepares it, with other weights."""
    prepared = prepare(model, IMAGES, 3)
    with torch.no_grad():
        for parameter in prepared.network.parameters():
            parameter.add_(0.01)
    return prepared


@pytest.mark.parametrize(("network", "prefix"), [("smallcnn", "module."), ("cifar:vgg11", "_orig_mod.module."),
                                                 ("smallcnn", "")])  # fmt: skip
def test_weights_have_the_names_of_the_file(tmp_path, network, prefix):
    """So that they load where the file came from."""
    if network == "smallcnn":
        original, inputs = networks.build_network("smallcnn", 3, 4, MEAN, STD, seed=0), ()
    else:
        original, inputs = cifar_networks.builder("vgg11", 3)(), (MEAN, STD)
    save_file({prefix + name: tensor for name, tensor in original.state_dict().items()}, tmp_path / "m.safetensors")
    model = repaired(scanning.read_model(tmp_path / "m.safetensors", network, 3, *inputs))
    file = writing.write_repaired(model, to_float(IMAGES), tmp_path)
    held, before = load_file(file), load_file(tmp_path / "m.safetensors")
    assert file.name == "repaired.safetensors" and held.keys() == before.keys()
    assert {name: tensor.shape for name, tensor in held.items()} == {n: tensor.shape for n, tensor in before.items()}
    again = prepare(scanning.read_model(file, network, 3, *inputs), IMAGES, 3)
    assert torch.allclose(again.network.state_dict()[next(iter(original.state_dict()))],
                          model.network.state_dict()[next(iter(original.state_dict()))])  # fmt: skip


def test_tied_weights_are_written(tmp_path):
    network = small()
    network.again = nn.Linear(8, 3)
    network.again.weight = network[5].weight
    writing.write_weights(network, tmp_path / "w.safetensors", {"0.weight": "stem"})
    held = load_file(tmp_path / "w.safetensors")
    assert "stem" in held and "0.weight" not in held
    assert torch.equal(held["again.weight"], held["5.weight"])


@pytest.mark.parametrize("fixed", [0, 3])
def test_a_model_from_an_onnx_file_is_written_as_one(tmp_path, fixed):
    exported(small(), tmp_path / "m.onnx", fixed)
    model = repaired(scanning.read_model(tmp_path / "m.onnx", "onnx", 3, MEAN, STD))
    file = writing.write_repaired(model, to_float(IMAGES), tmp_path, onnx=True)
    assert file.name == "repaired.onnx" and not list(tmp_path.glob(".*"))
    again = scanning.read_model(file, "onnx", 3, MEAN, STD)
    inputs = model.network_inputs(to_float(IMAGES))
    assert torch.allclose(again.network(inputs), model.network(inputs), atol=1e-4)
    first = scanning.read_model(tmp_path / "m.onnx", "onnx", 3, MEAN, STD)
    assert not torch.allclose(first.network(inputs), model.network(inputs), atol=1e-3), "the repaired weights"


def test_where_no_onnx_file_can_be_written_the_weights_are(tmp_path, monkeypatch):
    exported(small(), tmp_path / "m.onnx", 0)
    model = repaired(scanning.read_model(tmp_path / "m.onnx", "onnx", 3, MEAN, STD))

    def fails(*arguments, **options):
        raise RuntimeError("an operation that the exporter does not know")

    monkeypatch.setattr(torch.onnx, "export", fails)
    file = writing.write_repaired(model, to_float(IMAGES), tmp_path, onnx=True)
    assert file.name == "repaired.safetensors" and load_file(file).keys() == model.network.state_dict().keys()


def exported(network, file, fixed):
    pytest.importorskip("onnx2pytorch")
    axes = None if fixed else {"input": {0: "batch"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network, (torch.rand(fixed or 2, 3, 32, 32),), file, dynamo=False, input_names=["input"], dynamic_axes=axes
        )
