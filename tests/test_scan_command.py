"""`python -m mesa_lib scan`: its arguments, what it writes and where, and what it will not overwrite."""

import argparse
import functools
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from toys import Coded, coded_images, fit_head, quick_detector, tiny_detector

from mesa_lib import scan as scanning
from mesa_lib import success
from mesa_lib.cli import main
from mesa_lib.cli import scan as scan_command
from mesa_lib.defenses.mesa.inversion_search import Effort
from mesa_lib.models import networks
from mesa_lib.scan import accuracy
from mesa_lib.scan import options as scan_options
from mesa_lib.scan.accuracy import NoVerdict
from mesa_lib.scan.detector import ScanScreening
from mesa_lib.scan.options import Options
from mesa_lib.scan.reading.wrapped import WrappedClassifier
from mesa_lib.scan.scanner import Scanner


class Represented(nn.Module):
    """What the last layer of a network reads."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network.represent(x)


@pytest.fixture
def tiny(monkeypatch):
    """A search with next to no steps, whose samples are judged on an eighth of the images."""
    judged = success.asr_of_triggers
    monkeypatch.setattr(
        success, "asr_of_triggers", lambda *a, **options: judged(*a, **options | {"images_per_trigger": 1})
    )
    monkeypatch.setattr(Options, "detector", lambda self, side: tiny_detector(side, max(1, 3 * side // 32)))


@pytest.fixture
def desk(tmp_path, empty_store, tiny):
    """A folder with `images/` of three classes, 16x16, and `model.safetensors`, which classifies them correctly."""
    rng = np.random.default_rng(0)
    for name in ("cat", "dog", "owl"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(8):
            picture = Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8))
            picture.save(tmp_path / "images" / name / f"{i}.png")
    split = scanning.read_images(tmp_path / "images").split
    for number, name in enumerate(("model", "other")):
        own = networks.build_network("smallcnn", 3, 8, (0.5,) * 3, (0.25,) * 3, number)
        fit_head(Represented(own), own.head, split.images, split.labels)
        save_file(own.state_dict(), tmp_path / f"{name}.safetensors")
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
    assert str(desk) not in page and "predicted without a patch" in page
    assert "accuracy on the clean images" in capsys.readouterr().err
    assert run(desk, "--image-size", "4", out="small") == 1 and not (desk / "small").exists()
    assert "image_size = 4" in capsys.readouterr().err


def test_without_a_verdict_the_reason_and_the_accuracy_are_written(desk, capsys, monkeypatch):
    assert run(desk) == 0 and written(desk)["verdict"] != "none"
    monkeypatch.setattr(accuracy, "other_order", lambda *a: "The classes are <in> another order.")
    assert run(desk) == 1
    assert "mesa: no verdict: the model classifies 100.0% of the 24 clean images correctly" in capsys.readouterr().err
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


def test_old_flags_name_the_new_ones(desk, capsys):
    for flag, new in (("--lowest", "--min-accuracy"), ("--lowest=0.5", "--min-accuracy"), ("--as-told", "--trust-pre")):
        with pytest.raises(SystemExit) as stopped:
            run(desk, flag)
        assert stopped.value.code == 2 and f"is now called {new}" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main.main(["scan", "--help"])
    shown = capsys.readouterr().out
    assert "--min-accuracy" in shown and "--lowest" not in shown and "--as-told" not in shown


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("cat, dog", ("cat", "dog")),
        ('["cat, small", "dog"]', ("cat, small", "dog")),
        ("[1, 2]", None),
        ('["cat"', None),
        ("[" * 100_000, None),
    ],
)
def test_names_of_folders_may_hold_commas(text, names):
    if names is not None:
        assert scan_command.folder_names(text) == names
        return
    message = "expected names with commas between, or a JSON list"
    with pytest.raises(argparse.ArgumentTypeError, match=message) as caught:
        scan_command.folder_names(text)
    assert len(str(caught.value)) < 300


def test_an_order_of_names_with_commas_can_be_passed_on():
    odd = scanning.Images(coded_images().split, ("red", "green, dark", "blue"))
    with pytest.raises(NoVerdict) as caught:
        accuracy.check_accuracy(WrappedClassifier(Coded(order=[1, 2, 0])), odd, None, "float32")
    order = re.search(r"--classes '(\[.*\])'", str(caught.value)).group(1)
    assert sorted(scan_command.folder_names(order)) == sorted(odd.classes)


def test_a_torchvision_network_at_64_pixels_is_scanned_from_files(tmp_path, monkeypatch, empty_store, tiny, capsys):
    from torchvision import models as torchvision_models

    torch.manual_seed(0)
    resnet, rng = torchvision_models.resnet18(num_classes=4), np.random.default_rng(0)
    for name in "abcd":
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(6):
            picture = Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8))
            picture.save(tmp_path / "images" / name / f"{i}.png")
    split, head, resnet.fc = scanning.read_images(tmp_path / "images").split, resnet.fc, nn.Identity()
    usual = networks.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    fit_head(nn.Sequential(usual, resnet), head, split.images, split.labels)
    resnet.fc = head
    save_file(resnet.state_dict(), tmp_path / "resnet.safetensors")
    quickest = functools.partial(ScanScreening, effort=Effort(1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, finest=0))
    monkeypatch.setattr(scan_options, "ScanScreening", quickest)
    arguments = ["scan", str(tmp_path / "resnet.safetensors"), str(tmp_path / "images")]
    arguments += ["--network", "torchvision:resnet18"]
    arguments += ["--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225", "--trust-preprocessing"]
    assert main.main([*arguments, "--out", str(tmp_path / "out")]) == 0
    result = json.loads((tmp_path / "out" / "scan.json").read_text())
    assert [line["class"] for line in result["verdicts"]] == list("abcd")
    assert [name.split()[0] for name in result["verdicts"][0]["screened"]] == ["6x6", "6x6"]
    assert "left" in capsys.readouterr().err and result["accuracy"]["rate"] == 1
    assert result["scanned"]["network"] == "torchvision:resnet18" and result["scanned"]["image size"] == 64


def test_the_command_repairs_and_reports_by_its_exit_status_that_a_class_was_flagged(
    empty_store, tmp_path, monkeypatch, capsys
):
    coded = coded_images()
    for i, (image, label) in enumerate(zip(coded.split.images, coded.split.labels, strict=True)):
        file = tmp_path / "images" / coded.classes[label] / f"{i:03}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file)
    monkeypatch.setattr(Options, "detector", lambda self, side: quick_detector())
    monkeypatch.setattr(scan_command, "read_model", lambda *a: WrappedClassifier(Coded((9, 4))))
    (tmp_path / "any.safetensors").write_bytes(b"weights")
    arguments = ["scan", str(tmp_path / "any.safetensors"), str(tmp_path / "images"), "--network", "own"]
    arguments += ["--classes", ",".join(coded.classes), "--repair-epochs", "1", "--repair-lr", "1e-4"]
    arguments += ["--augment", "none", "--repair", "--fail-if-found", "--out", str(tmp_path / "out")]
    assert main.main(arguments) == 3
    assert load_file(tmp_path / "out" / "repaired.safetensors").keys() == Coded().state_dict().keys()
    result = json.loads((tmp_path / "out" / "scan.json").read_text())
    assert result["repair"]["done"] and result["flagged"] == ["green"]
    shown = capsys.readouterr().out
    assert "any.safetensors: backdoored: class 'green'" in shown and "repaired: accuracy (95% CI) 100.0% (" in shown
    assert not list((tmp_path / "out").glob(".*"))


def test_a_repair_that_fails_does_not_take_the_verdict_along(desk, capsys, monkeypatch):
    def repair(self, detected):
        before = written(desk)
        assert before["verdict"] in ("backdoored", "nothing found") and before["scanned"]["sha256"]
        raise FloatingPointError("repair: loss = nan")

    monkeypatch.setattr(Scanner, "repair", repair)
    assert run(desk, "--repair") == 1
    assert capsys.readouterr().err.endswith("mesa: repair: loss = nan\n")
    found, page = written(desk), (desk / "out" / "report.html").read_text()
    assert found["repair"] == {"done": False, "why": "the repair had not ended when this was written"}
    assert "None was made: the repair had not ended" in page and len(found["verdicts"]) == 3


def test_a_folder_that_cannot_be_written_is_noticed_before_the_scan(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setattr(scan_command, "read_model", lambda *a: pytest.fail("went on"))
    assert main.main(["scan", "m", "i", "--network", "smallcnn", "--out", str(tmp_path / "file" / "out")]) == 1
    assert "expected a folder that can be written" in capsys.readouterr().err
