"""`python -m mesa_lib scan`: what it writes, where, and what it will not write over."""

import json

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from toys import quick_detector, tell_apart

from mesa_lib import scan as scanning
from mesa_lib.cli import main
from mesa_lib.models import networks
from mesa_lib.scan import accuracy
from mesa_lib.scan.options import Options


class Represented(nn.Module):
    """What the last layer of a network reads."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network.represent(x)


@pytest.fixture
def desk(tmp_path, monkeypatch, empty_store):
    """A folder with `images/` of three classes, 16x16, and `model.safetensors`, which tells them apart."""
    rng = np.random.default_rng(0)
    for name in ("cat", "dog", "owl"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(8):
            picture = Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8))
            picture.save(tmp_path / "images" / name / f"{i}.png")
    split = scanning.read_images(tmp_path / "images").split
    for number, name in enumerate(("model", "other")):
        own = networks.build_network("smallcnn", 3, 8, (0.5,) * 3, (0.25,) * 3, number)
        tell_apart(Represented(own), own.head, split.images, split.labels)
        save_file(own.state_dict(), tmp_path / f"{name}.safetensors")
    monkeypatch.setattr(Options, "detector", lambda self, side: quick_detector())
    return tmp_path


def run(desk, *more, model="model.safetensors", out="out") -> int:
    asked = ["scan", str(desk / model), str(desk / "images"), "--network", "smallcnn", "--out", str(desk / out)]
    return main.main([*asked, *more])


def written(desk) -> dict:
    return json.loads((desk / "out" / "scan.json").read_text())


def test_the_command_writes_what_can_be_forwarded(desk, capsys):
    assert run(desk) == 0
    found, page = written(desk), (desk / "out" / "report.html").read_text()
    assert found["model"] == "model.safetensors" and len(found["verdicts"]) == 3 and found["made"]["seconds"] > 0
    scanned = found["scanned"]
    assert scanned["network"] == "smallcnn" and scanned["mean"] == [0.5] * 3 and scanned["image size"] == 16
    assert len(scanned["sha256"]) == 64 and scanned["sha256"] in page and scanned["at"].endswith("+00:00")
    assert str(desk) not in page and "taken for it without a patch" in page
    assert "accuracy on the clean images" in capsys.readouterr().err
    assert run(desk, "--image-size", "4", out="small") == 1 and not (desk / "small").exists()
    assert "image_size = 4" in capsys.readouterr().err


def test_without_a_verdict_the_reason_and_the_accuracy_are_written(desk, capsys, monkeypatch):
    assert run(desk) == 0 and written(desk)["verdict"] != "none"
    monkeypatch.setattr(accuracy, "other_order", lambda *a: "The classes are <in> another order.")
    assert run(desk) == 1
    assert "mesa: no verdict: the model is right on 100.0% of the 24 clean images" in capsys.readouterr().err
    found, page = written(desk), (desk / "out" / "report.html").read_text()
    assert found["verdict"] == "none" and "another order" in found["why"] and found["accuracy"]["rate"] == 1
    assert "No verdict" in page and "&lt;in&gt; another order" in page and found["scanned"]["sha256"] in page
    assert "verdicts" not in found, "nothing is left of the scan before"


def test_a_scan_does_not_write_over_its_own_model(desk, capsys):
    held = (desk / "model.safetensors").read_bytes()
    (desk / "found").mkdir()
    (desk / "found" / "repaired.safetensors").write_bytes(held)
    for more in ((), ("--repair",)):
        assert run(desk, *more, model="found/repaired.safetensors", out="found") == 1
        assert "the model is repaired.safetensors in it; expected another folder" in capsys.readouterr().err
    assert [file.read_bytes() for file in (desk / "found").iterdir()] == [held]


def test_a_scan_does_not_write_over_that_of_another_model(desk, capsys):
    assert run(desk) == 0
    before = written(desk)
    assert run(desk, model="other.safetensors") == 1
    assert "holds the scan of another model or of other images; expected another folder" in capsys.readouterr().err
    assert written(desk) == before
    (desk / "out" / "scan.json").write_text("[")
    assert run(desk) == 1 and (desk / "out" / "scan.json").read_text() == "["


def test_a_second_scan_without_repair_keeps_the_repaired_model(desk):
    assert run(desk) == 0
    (desk / "out" / "repaired.safetensors").write_bytes(b"of the scan before")
    assert run(desk) == 0 and (desk / "out" / "repaired.safetensors").is_file()
    assert run(desk, "--repair") == 0 and not written(desk)["repair"]["done"]
    assert not (desk / "out" / "repaired.safetensors").exists(), "it would be taken for what this scan made"


def test_results_do_not_lie_among_the_images(desk, capsys):
    assert run(desk, out="images/found") == 1 and not (desk / "images" / "found").exists()
    assert "inside the folder of the images; expected another" in capsys.readouterr().err
    assert run(desk, model="none.safetensors", out="new") == 1 and not (desk / "new").exists()
