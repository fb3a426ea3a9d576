"""Models as people have them, each scanned from its files by the command, from the first image to the report."""

import functools
import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from test_scan_command import tiny  # noqa: F401 (a fixture)
from torch import nn
from toys import fit_head

from mesa_lib import scan as scanning
from mesa_lib.cli import main
from mesa_lib.defenses.mesa.inversion_search import Effort
from mesa_lib.models.networks import Normalize
from mesa_lib.scan import options as scan_options
from mesa_lib.scan.detector import ScanScreening
from mesa_lib.scan.reading import cifar_networks

MEAN, STD = 0.5, 0.25
CLASSES = ("cat", "dog", "owl")


class Gray(nn.Module):
    """The mean of the three channels."""

    def forward(self, x):
        return x.mean(1, keepdim=True)


class Logits(nn.Module):
    """The logits of a network of Hugging Face."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x).logits


def classifying(network: nn.Module, head: str, images, before: nn.Module | None = None) -> nn.Module:
    """Return the network with the head, an attribute of it, that classifies the images correctly."""
    owner = network.get_submodule(head.rpartition(".")[0])
    name, last = head.rpartition(".")[2], network.get_submodule(head)
    setattr(owner, name, nn.Identity())
    normalized = nn.Sequential(Normalize((MEAN,) * 3, (STD,) * 3), *([before] if before else []))
    inner = Logits(network) if hasattr(network, "config") and hasattr(network.config, "id2label") else network
    fit_head(nn.Sequential(normalized, inner), last, images.split.images, images.split.labels)
    setattr(owner, name, last)
    return network


def cifar(folder, images):
    network = classifying(cifar_networks.builder("vgg11", 3)(), "classifier", images)
    save_file(network.state_dict(), folder / "m.safetensors")
    return "m.safetensors", "cifar:vgg11"


def of_timm(folder, images):
    timm = pytest.importorskip("timm")
    network = classifying(timm.create_model("resnet10t", num_classes=3), "fc", images)
    save_file(network.state_dict(), folder / "m.safetensors")
    return "m.safetensors", "timm:resnet10t"


def gray(folder, images):
    timm = pytest.importorskip("timm")
    network = classifying(timm.create_model("resnet10t", num_classes=3, in_chans=1), "fc", images, Gray())
    save_file(network.state_dict(), folder / "m.safetensors")
    return "m.safetensors", "timm:resnet10t"


def hugging_face(folder, images):
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        hidden_sizes=[16, 32], depths=[1, 1], embedding_size=16, layer_type="basic", num_labels=3
    )
    network = transformers.AutoModelForImageClassification.from_config(config)
    classifying(network, "classifier.1", images).save_pretrained(folder / "hf")
    return "hf/model.safetensors", f"hf:{folder / 'hf'}"


def onnx(folder, images):
    pytest.importorskip("onnxscript")
    layers = [nn.Conv2d(3, 16, 3, 2), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, 2), nn.ReLU()]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 3))
    classifying(network, "7", images)
    options = {"dynamo": True, "verbose": False, "external_data": False}
    shapes = ({0: torch.export.Dim("batch")},)
    torch.onnx.export(network.eval(), (torch.rand(2, 3, 32, 32),), folder / "m.onnx", dynamic_shapes=shapes, **options)
    return "m.onnx", "onnx"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("made", [cifar, of_timm, gray, hugging_face, onnx])
def test_a_model_is_scanned_from_its_files(tmp_path, monkeypatch, empty_store, tiny, capsys, made):  # noqa: F811
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    for name in CLASSES:
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(8):
            picture = Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8))
            picture.save(tmp_path / "images" / name / f"{i}.png")
    file, network = made(tmp_path, scanning.read_images(tmp_path / "images"))
    quickest = functools.partial(ScanScreening, effort=Effort(1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, finest=0))
    monkeypatch.setattr(scan_options, "ScanScreening", quickest)
    command = ["scan", str(tmp_path / file), str(tmp_path / "images"), "--network", network, "--mean", str(MEAN)]
    command += ["--std", str(STD), "--trust-preprocessing", "--repair", "--repair-epochs", "1"]
    assert main.main([*command, "--out", str(tmp_path / "out")]) == 0, capsys.readouterr().err
    result = json.loads((tmp_path / "out" / "scan.json").read_text())
    assert result["accuracy"]["rate"] == 1 and [line["class"] for line in result["verdicts"]] == list(CLASSES)
    assert result["scanned"]["network"] == network and (tmp_path / "out" / "report.html").is_file()
    assert result["repair"]["done"] or result["repair"]["why"] == "nothing was flagged"
