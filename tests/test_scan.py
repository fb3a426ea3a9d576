"""The scan of a stranger's model: what comes in broken, what is odd, and toy models with a known answer."""

import json
import pickle
import struct

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save, save_file
from torch import nn
from toys import Coded, coded_images, quick_detector

from mesa_lib import scan as scanning
from mesa_lib import store
from mesa_lib.cli import main
from mesa_lib.models import networks
from mesa_lib.reporting.html import scan as scan_report
from mesa_lib.scan.reading import model as models
from mesa_lib.data import Split
from mesa_lib.defenses.mesa.detector import MESA
from mesa_lib.defenses.mesa.detector import DetectionResult
from mesa_lib.defenses.mesa.screening import PatchSpec
from mesa_lib.defenses.mesa.screening import ScreeningResult
from mesa_lib.defenses.mesa.screening import LocationScreening
from mesa_lib.scan.accuracy import NoVerdict
from mesa_lib.scan.detector import STRICTEST
from mesa_lib.scan.detector import ScanDetector
from mesa_lib.scan.detector import limit
from mesa_lib.scan.detector import margin
from mesa_lib.scan.options import Options
from mesa_lib.scan.scanner import Scanner

def picture(mode="RGB", size=(16, 16), color=0):
    return Image.new(mode, size, color)


@pytest.fixture
def tree(tmp_path):
    """Three classes of six images, 16x16; the folder may be added to."""
    for k, name in enumerate(("cat", "dog", "owl")):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(6):
            picture(color=(80 * k, 10 * i, 0)).save(tmp_path / "images" / name / f"{i}.png")
    return tmp_path / "images"


# --- checkpoints -----------------------------------------------------------------------------------------

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.2, 0.2)


def small(classes=3, width=4):
    return networks.build_network("smallcnn", classes, width, MEAN, STD, seed=0)


def written(tmp_path, weights, name="model.safetensors"):
    save_file(weights, tmp_path / name)
    return tmp_path / name


@pytest.mark.parametrize("network", ["smallcnn", "resnet18", "fastcnn"])
def test_a_network_of_this_project_is_read_with_its_width_and_normalization(tmp_path, network):
    made = networks.build_network(network, 3, 8, MEAN, STD, seed=0).eval()
    model = scanning.read_model(written(tmp_path, made.state_dict()), network, 3)
    x = torch.rand(4, 3, 32, 32)
    assert torch.allclose(model(x), made(x), atol=1e-6)


def test_a_network_of_torchvision_is_read_at_64_pixels_and_in_half_precision(tmp_path):
    from torchvision import models as theirs

    made = theirs.resnet18(num_classes=5).eval()
    half = {k: t.half() if t.is_floating_point() else t for k, t in made.state_dict().items()}
    model = scanning.read_model(written(tmp_path, half), "torchvision:resnet18", 5, MEAN, STD)
    x = torch.rand(4, 3, 64, 64)
    expected = made(networks.Normalize(MEAN, STD)(x))
    assert (model(x) - expected).abs().max() < 0.05 * expected.abs().max()


def test_mean_and_std_can_be_told_where_the_file_has_none(tmp_path):
    weights = {k: t for k, t in small().state_dict().items() if "normalize" not in k}
    file = written(tmp_path, weights)
    with pytest.raises(ValueError, match="holds no normalize.mean; name mean and std"):
        scanning.read_model(file, "smallcnn", 3)
    x = torch.rand(2, 3, 32, 32)
    assert torch.allclose(scanning.read_model(file, "smallcnn", 3, MEAN, STD)(x), small().eval()(x), atol=1e-6)


class Bomb:
    def __reduce__(self):
        return exec, ("raise SystemExit('the bomb went off')",)


def header(text: bytes, length=None) -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text


WHOLE = save({k: t for k, t in small().state_dict().items()})
LYING = json.dumps({"head.weight": {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 8]}}).encode()
OVERLAP = json.dumps({n: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for n in ("a", "b")}).encode()
BROKEN = {
    "pickle": (pickle.dumps(Bomb()), "is a pickle: loading one runs whatever code it holds"),
    "pickle in a zip": (b"PK\x03\x04" + pickle.dumps(Bomb()), "is a pickle"),
    "truncated": (WHOLE[: len(WHOLE) // 2], "expected a whole safetensors file"),
    "a header longer than the file": (header(b"{}", 10**6), "expected a whole safetensors file"),
    "a header of exabytes": (header(b"{}", 2**63), "expected a whole safetensors file"),
    "shapes that are not there": (header(LYING) + bytes(8), "expected a whole safetensors file"),
    "tensors over each other": (header(OVERLAP) + bytes(8), "expected a whole safetensors file"),
    "no json": (header(b"[1, 2"), "expected a whole safetensors file"),
    "nothing": (b"", "expected a whole safetensors file"),
    "no tensors": (save({}), "0 tensors; expected those of one classifier"),
    "another network": (save({"w": torch.ones(2)}), "no smallcnn .it has no fitting head.weight"),
    "nan": (
        save(small().state_dict() | {"head.bias": torch.tensor([0.0, float("nan"), 1.0])}),
        "head.bias holds NaN or infinite values",
    ),
    "infinite": (
        save(small().state_dict() | {"features.0.0.0.weight": torch.full((4, 3, 3, 3), float("inf"))}),
        "features.0.0.0.weight holds NaN or infinite values",
    ),
    "twelve classes": (save(small(12).state_dict()), "the model tells 12 classes apart, the images have 3"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_or_hostile_checkpoint_is_one_message(what, tmp_path, tree, capsys):
    content, said = BROKEN[what]
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=said):
        scanning.read_model(tmp_path / "model.safetensors", "smallcnn", 3)
    assert main.main(["scan", str(tmp_path / "model.safetensors"), str(tree), "--network", "smallcnn"]) == 1
    shown = capsys.readouterr().err
    assert "Traceback" not in shown and shown.splitlines()[-1].startswith(("mesa: ", "Convert it"))


BAD_REQUESTS = {
    "network": (
        {"network": "vgg"},
        "'vgg': expected one of smallcnn, resnet18, fastcnn, or torchvision:NAME",
    ),
    "torchvision": ({"network": "torchvision:resnet19"}, "such as torchvision:resnet101"),
    "detector": ({"network": "torchvision:fasterrcnn_resnet50_fpn"}, "network = "),
    "other width": ({"network": "resnet18"}, "another architecture than ResNet18|no resnet18"),
    "mean": ({"mean": (0.5, 0.5)}, r"mean = \(0.5, 0.5\): expected three numbers"),
    "std": ({"mean": MEAN, "std": (0.2, 0, 0.2)}, "std = .*all above 0"),
    "other mean": ({"mean": (0.1, 0.1, 0.1)}, r"mean = \(0.1, 0.1, 0.1\): the file says \[0.5, 0.4, 0.3\]"),
}


@pytest.mark.parametrize("what", BAD_REQUESTS)
def test_a_request_that_does_not_fit_the_file_is_refused(what, tmp_path):
    asked, said = BAD_REQUESTS[what]
    with pytest.raises(ValueError, match=said):
        models.read(written(tmp_path, small().state_dict()), **({"network": "smallcnn", "classes": 3} | asked))


def test_torchvision_needs_mean_and_std(tmp_path):
    with pytest.raises(ValueError, match="mean and std of its inputs have to be named"):
        scanning.read_model(written(tmp_path, small().state_dict()), "torchvision:resnet18", 3)


def test_a_head_of_torchvision_with_other_classes_is_said_as_such(tmp_path):
    from torchvision import models as theirs

    file = written(tmp_path, theirs.squeezenet1_1(num_classes=7).state_dict())
    with pytest.raises(ValueError, match="the model tells 7 classes apart, the images have 3"):
        scanning.read_model(file, "torchvision:squeezenet1_1", 3, MEAN, STD)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 3000), st.binary(min_size=1, max_size=12))
def test_no_checkpoint_ends_in_a_traceback(tmp_path, at, junk):
    """Bytes overwritten anywhere in the header or the first weights: a model, or one message."""
    file = tmp_path / "model.safetensors"
    file.write_bytes(WHOLE[:at] + junk + WHOLE[at + len(junk) :])
    try:
        model = scanning.read_model(file, "smallcnn", 3)
    except ValueError as error:
        assert len(str(error)) < 2000
    else:
        assert all(torch.isfinite(t).all() for t in model.state_dict().values())


# --- any module ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def coded():
    return coded_images()


def test_larger_patches_are_not_tried_at_one_place():
    """They turn most images of some clean models."""
    rules = Options().detector(32).screening.rules(None)
    assert [str(r) for r in rules if r.fixed_location] == [f"{side}x{side} at one place" for side in (3, 4)]
    assert [r.size[0] for r in rules if not r.fixed_location] == [3, 4, 5]


def test_every_way_of_stamping_has_a_limit_of_its_own():
    rules = {(side, one): limit(PatchSpec((side, side), one)) for side in (2, 3, 4, 5) for one in (False, True)}
    assert all(rules[side, True] > rules[side, False] for side in (2, 3, 4, 5)), "a place that may be chosen asks more"
    assert rules[4, True] > rules[3, True] and limit(PatchSpec((4, 3), True)) == rules[4, True]
    assert limit(PatchSpec((9, 9))) == limit(PatchSpec((9, 9), True)) == STRICTEST
    assert margin(PatchSpec((3, 3)), 1.0) == 1 and margin(PatchSpec((3, 3)), limit(PatchSpec((3, 3)))) == 0


def searched(rates, modeled=()):
    """What a search would have found: rule -> rate of each class."""
    locations = {rule: torch.zeros(len(own), 2) if rule.fixed_location else None for rule, own in rates.items()}
    return DetectionResult(ScreeningResult(rates, locations), {}, dict(modeled))


def test_a_class_is_judged_by_the_rule_that_comes_highest_above_its_own_limit():
    anywhere, there, larger = PatchSpec((3, 3)), PatchSpec((3, 3), True), PatchSpec((4, 4), True)
    clean = searched({anywhere: [0.5, 0.1], there: [0.9, 0.2], larger: [0.97, 0.3]})
    assert ScanDetector().judge(clean).flagged == [] and ScanDetector().best(clean, 0)[0] == there
    assert ScanDetector().judge(searched({anywhere: [0.8, 0.1], there: [0.9, 0.2]})).flagged == [0]
    assert ScanDetector().judge(searched({there: [0.9, 0.2], larger: [0.99, 0.2]})).flagged == [0]
    found = searched({anywhere: [0.8, 0.1]}, {0: {anywhere: 0.6}})
    assert ScanDetector().judge(found).flagged == [], "the full model has the last word"


def test_of_a_suspect_the_best_rule_of_either_kind_is_modeled():
    three, four = PatchSpec((3, 3), True), PatchSpec((4, 4), True)
    rates = {
        PatchSpec((2, 2)): [0.05, 0],
        PatchSpec((5, 5)): [0.2, 0],
        PatchSpec((2, 2), True): [0.3, 0],
        three: [0.5, 0],
        four: [0.9, 0],
    }
    assert ScanDetector().suspects(searched(rates).screened) == {0: [PatchSpec((5, 5)), four, three]}


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(Options, "detector", lambda self, side: quick_detector())


def test_a_backdoor_at_one_place_is_found_shown_and_repaired(coded, quick, empty_store, tmp_path):
    said = []
    options = Options(repair=True, repair_epochs=1, repair_lr=1e-4, augment="none")
    done = scanning.scan(Coded(spot=(9, 4)), coded, options, said.append)
    found = done.result
    assert found["verdict"] == "backdoored" and found["flagged"] == ["green"]
    line = found["verdicts"][1]
    assert line["rule"] == "3x3 at one place" and line["place"][0] <= 9 < line["place"][0] + 3
    assert line["rate"] > line["limit"] == 0.93 and line["score"] > 0 > max(
        found["verdicts"][k]["score"] for k in (0, 2)
    )
    assert found["accuracy"]["rate"] == 1 and found["repair"]["done"] and done.repaired is not None
    assert found["repair"]["flagged and not repaired"] == []
    assert found["repair"]["images for the accuracy"] == 24 and found["repair"]["accuracy before"]["rate"] == 1
    assert any("left" in text for text in said) and any("suspects: green" in text for text in said)
    json_file, page = scan_report.write(done, tmp_path / "out", "odd <i>.safetensors")
    assert json.loads(json_file.read_text())["flagged"] == ["green"]
    html = page.read_text()
    assert "red &lt;b&gt;" in html and "odd &lt;i&gt;" in html and "<b>red" not in html and "<i>" not in html
    assert html.count("data:image/png;base64,") == len(done.samples) >= 1 and "http" not in html


def test_a_flagged_class_that_was_not_modeled_is_told_as_not_repaired(coded, quick, empty_store):
    own = Scanner(Coded(), coded, Options(), print)
    made, told = own.repair(searched({PatchSpec((3, 3)): [0.1, 0.9, 0.1]}))
    assert made is None and told == {"done": False, "why": "none of green was modeled"}


def test_a_model_without_backdoor_is_left_in_peace(coded, quick, empty_store):
    done = scanning.scan(Coded(), coded, Options(repair=True))
    assert done.result["verdict"] == "nothing found" and done.result["flagged"] == [] and done.repaired is None
    assert done.result["repair"] == {"done": False, "why": "nothing was flagged"}
    assert "No backdoor of this kind was found" in scan_report.page(done, "model")


def test_a_scan_goes_on_where_it_was(coded, quick, empty_store, monkeypatch):
    first = scanning.scan(Coded(spot=(9, 4)), coded)
    monkeypatch.setattr(LocationScreening, "by", lambda *a: pytest.fail("screened again"))
    monkeypatch.setattr(MESA, "model", lambda *a: pytest.fail("modeled again"))
    again = scanning.scan(Coded(spot=(9, 4)), coded)
    assert again.result["verdicts"] == first.result["verdicts"]
    with pytest.raises(pytest.fail.Exception, match="screened again"):
        scanning.scan(Coded(spot=(9, 5)), coded)  # another model, although its weights are the same


def test_probabilities_are_taken_for_what_they_are(coded, quick, empty_store):
    class Soft(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Coded(spot=(9, 4))

        def forward(self, x):
            return self.inner(x).softmax(1)

    own = scanning.prepare(Soft(), coded.split.images, 3)
    assert own.probabilities and "probabilities instead of logits" in own.notes[0]
    assert not scanning.prepare(Coded(), coded.split.images, 3).probabilities
    assert scanning.scan(Soft(), coded).result["flagged"] == ["green"]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda x: x.mean((2, 3)).repeat(1, 4), r"the model answers \(64, 12\) to 64 images; expected \(images, 3\)"),
        (lambda x: x.mean((2, 3)) * float("nan"), "the model answers NaN or infinite values to clean images"),
        (lambda x: x.reshape(len(x), 3, 9, 9), "does not take images of 16x16 pixels"),
        (lambda x: x.mean(), "the model answers"),
    ],
)
def test_a_module_that_is_no_classifier_of_these_images_is_refused(coded, answer, said):
    class Odd(nn.Module):
        def forward(self, x):
            return answer(x)

    with pytest.raises(ValueError, match=said):
        scanning.scan(Odd(), coded)


def test_weights_that_are_no_numbers_are_refused(coded):
    model = Coded()
    model.levels.data[1] = float("inf")
    with pytest.raises(ValueError, match="levels holds NaN or infinite values"):
        scanning.scan(model, coded)


def test_a_wrong_normalization_is_noticed_before_a_verdict(coded):
    wrong = models.WrappedClassifier(nn.Sequential(networks.Normalize((-1.0,) * 3, (2.0,) * 3), Coded()))
    wrong.normalize = networks.Normalize((0.5,) * 3, (0.25,) * 3)
    with pytest.raises(NoVerdict, match="no verdict: the model is right on .* of the 120 clean images"):
        scanning.scan(wrong, coded)
    half = models.WrappedClassifier(Coded(), (0.5,) * 3, (0.5,) * 3)
    with pytest.raises(NoVerdict, match=r"none: values in \[0, 1\]; mean and std 0,0,0 and 1,1,1. it is right on 100"):
        scanning.scan(half, coded)


def test_another_order_of_the_classes_is_noticed(coded):
    with pytest.raises(NoVerdict, match="in another order it is right on 100.0%: classes = ") as told:
        scanning.scan(Coded(order=[1, 2, 0]), coded)
    order = str(told.value).split("classes = ")[1].split(",")
    trust_preprocessing = [coded.classes.index(name) for name in order]
    relabeled = torch.tensor([trust_preprocessing.index(k) for k in coded.split.labels.tolist()])
    fixed = scanning.Images(Split(coded.split.images, relabeled), tuple(order))
    assert Scanner(Coded(order=[1, 2, 0]), fixed, Options(), print).accuracy()["rate"] == 1


def test_a_low_accuracy_can_be_accepted(coded):
    noisy = scanning.Images(Split(coded.split.images, coded.split.labels.roll(40)), coded.classes)
    with pytest.raises(NoVerdict):
        Scanner(Coded(), noisy, Options(), print).accuracy()
    half = torch.where(torch.arange(120) < 70, coded.split.labels, (coded.split.labels + 1) % 3)
    some = scanning.Images(Split(coded.split.images, half), coded.classes)
    with pytest.raises(NoVerdict, match="expected at least 6"):
        Scanner(Coded(), some, Options(), print).accuracy()
    assert 0.5 < Scanner(Coded(), some, Options(min_accuracy=0.3), print).accuracy()["rate"] < 0.62


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"sizes": ()}, "sizes = "), ({"sizes": ((0, 2),)}, "sizes = "), ({"repair_rate": 1.0}, "repair_rate = 1.0"),
        ({"lowest": 2}, "lowest = 2"), ({"augment": "all"}, "augment = 'all'"), ({"batch_size": 1}, "batch_size = 1"),
        ({"repair_lr": 0}, "repair_lr = 0"), ({"repair_epochs": 0}, "repair_epochs = 0"),
    ],
)  # fmt: skip
def test_options_are_checked(asked, said):
    with pytest.raises(ValueError, match=said):
        Options(**asked)


def test_a_patch_has_to_fit_the_images(coded):
    with pytest.raises(ValueError, match="a patch larger than the images"):
        scanning.scan(Coded(), coded, Options(sizes=((20, 20),)))


def test_the_images_for_the_accuracy_after_a_repair_are_of_every_class_and_of_no_other_use(coded):
    own = Scanner(Coded(), coded, Options(), print)
    assert own.kept.labels.bincount().tolist() == [8, 8, 8] and len(own.work) == 96
    kept, work = ({tuple(i.flatten().tolist()) for i in part.images} for part in (own.kept, own.work))
    assert not kept & work


def test_the_model_that_was_handed_on_stays_as_it_was(coded, quick, empty_store):
    model = Coded(spot=(9, 4)).train().requires_grad_(False)
    before = store.tensors_key(model.state_dict())
    scanning.scan(model, coded, Options(repair=True, repair_epochs=1, repair_lr=1e-3))
    assert model.training and not model.levels.requires_grad and store.tensors_key(model.state_dict()) == before
