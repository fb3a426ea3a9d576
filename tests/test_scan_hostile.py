"""A scan of what somebody else made: files, folders and models that are odd, broken or meant to harm."""

import argparse
import functools
import json
import math
import os
import re
import struct
import time

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from toys import Coded, coded_images, quick_detector, tell_apart

from mesa_lib import scan as scanning
from mesa_lib import store
from mesa_lib.cli import main
from mesa_lib.cli import scan as scan_command
from mesa_lib.defenses.mesa import location_search
from mesa_lib.models import inference
from mesa_lib.models import networks
from mesa_lib.scan import accuracy
from mesa_lib.scan import false_positives
from mesa_lib.scan.reading import checkpoint
from mesa_lib.scan.reading import model as models
from mesa_lib.store import paths
from mesa_lib.store import sanitize
from mesa_lib.data import Split
from mesa_lib.defenses.base import Knowledge
from mesa_lib.defenses.mesa.screening import PatchSpec
from mesa_lib.scan.accuracy import NoVerdict
from mesa_lib.scan.detector import ScanDetector
from mesa_lib.scan.detector import ScanScreening
from mesa_lib.scan.detector import limit
from mesa_lib.scan.options import SIDES
from mesa_lib.scan.options import Options
from mesa_lib.scan.options import squares
from mesa_lib.scan.progress import Progress
from mesa_lib.scan.scanner import Scanner
from mesa_lib.settings import Settings

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.2, 0.2)


def weights():
    return networks.build_network("smallcnn", 3, 4, MEAN, STD, 0).state_dict()


def read(tmp_path, held):
    save_file(held, tmp_path / "model.safetensors")
    return models.read(tmp_path / "model.safetensors", "smallcnn", 3)


def shows(x=32):
    return torch.rand(4, 3, x, x, generator=torch.Generator().manual_seed(0))


# --- checkpoints -----------------------------------------------------------------------------------------


def claiming(tensors: dict) -> bytes:
    """The header of a safetensors file that says that it holds these: name -> (type, shape, bytes)."""
    at, said = 0, {}
    for name, (kind, shape, size) in tensors.items():
        said[name] = {"dtype": kind, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    written = json.dumps(said).encode()
    return struct.pack("<Q", len(written)) + written


@pytest.mark.parametrize(
    "tensors",
    [
        {"head.weight": ("F16", [3, 2**14], 2 * 3 * 2**14)},  # a network of gigabytes
        {"head.weight": ("F16", [3, 16], 96), "more": ("F16", [2**29], 2**30)},  # a gigabyte of nothing
    ],
)
def test_nothing_is_loaded_or_built_before_the_header_fits(tmp_path, monkeypatch, tensors):
    file = tmp_path / "model.safetensors"
    start = claiming(tensors)
    with open(file, "wb") as stream:
        stream.write(start)
        stream.truncate(len(start) + sum(size for _, _, size in tensors.values()))
    monkeypatch.setattr(store, "load_checkpoint", lambda file: pytest.fail("loaded"))
    monkeypatch.setattr(torch.nn.Module, "load_state_dict", lambda *a: pytest.fail("built"))
    with pytest.raises(ValueError, match="of another architecture than SmallCNN .* missing"):
        models.read(file, "smallcnn", 3, MEAN, STD)


@pytest.mark.parametrize("kind", [torch.int8, torch.bool, torch.complex64, torch.float8_e4m3fn])
def test_weights_of_other_types_are_refused_and_not_cast(tmp_path, kind):
    held = weights() | {"head.bias": torch.ones(3).to(kind)}
    with pytest.raises(ValueError, match="head.bias .*; expected floating-point weights .BF16, F16, F32, F64"):
        read(tmp_path, held)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_precisions_are_read(tmp_path, kind):
    whole = read(tmp_path, weights())
    other = {name: t.to(kind) if t.is_floating_point() else t for name, t in weights().items()}
    assert torch.allclose(read(tmp_path, other)(shows()), whole(shows()), atol=0.05)


def test_wrappers_and_missing_counters_make_no_difference_and_are_said(tmp_path):
    whole = read(tmp_path, weights())(shows())
    wrapped = read(tmp_path, {f"_orig_mod.module.{name}": t for name, t in weights().items()})
    assert torch.equal(wrapped(shows()), whole)
    assert "'_orig_mod.'" in " ".join(wrapped.notes) and "'module.'" in " ".join(wrapped.notes)
    bare = read(tmp_path, {name: t for name, t in weights().items() if "num_batches_tracked" not in name})
    assert torch.equal(bare(shows()), whole) and "counters of batches" in bare.notes[0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"features.0.0.1.running_var": torch.full((4,), -1.0)}, "running_var is -1; expected variances"),
        ({"normalize.std": torch.zeros(1, 3, 1, 1)}, "normalize.std is 0; expected numbers above 0"),
        ({"features.0.0.1.num_batches_tracked": torch.ones(1).long()}, "1 of another shape: .*num_batches_tracked"),
        ({"more": torch.ones(2)}, "1 not known: more"),
        ({"\x1b[31mred\n" + 300 * "x": torch.ones(2)}, r"1 not known: \\x1b\[31mred\\nx+\.\.\."),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named_in_one_printable_line(tmp_path, change, said):
    with pytest.raises(ValueError, match=said) as told:
        read(tmp_path, weights() | change)
    assert str(told.value).isprintable() and len(str(told.value)) < 500


KINDS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I8": 1, "BOOL": 1, "U16": 2, "F8_E4M3": 1, "F4": 1, "X": 4}
NAMES = st.sampled_from(sorted(weights())) | st.text(max_size=12)
SHAPES = st.lists(st.integers(0, 40) | st.sampled_from([2**14, 2**40]), max_size=4)


def ends_in_a_message_or_a_model(tmp_path, network, own, claims, honest, *told):
    """A header that claims these tensors, in place of the network's own or beside them, is refused or read."""
    own = {name: ("I64" if "batches" in name else "F32", list(t.shape)) for name, t in own.items()}
    sizes = {name: (kind, shape, KINDS[kind] * math.prod(shape)) for name, (kind, shape) in (own | claims).items()}
    start = claiming(sizes)
    held = sum(size for _, _, size in sizes.values())
    (tmp_path / "model.safetensors").write_bytes(start + b"?" * (min(held, 10**5) if honest else 100))
    try:
        model = models.read(tmp_path / "model.safetensors", network, 3, *told)
    except ValueError as error:
        assert str(error).isprintable() and len(str(error)) < 1500
    else:
        assert all(torch.isfinite(t).all() for t in model.state_dict().values())


CLAIMS = st.tuples(st.sampled_from(sorted(KINDS)), SHAPES)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(NAMES, CLAIMS, max_size=3), st.booleans())
def test_no_claim_of_a_header_ends_in_a_traceback(tmp_path, claims, honest):
    """Tensors of any type and shape that are there or are not."""
    ends_in_a_message_or_a_model(tmp_path, "smallcnn", weights(), claims, honest)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data(), st.sampled_from(("squeezenet1_1", "shufflenet_v2_x0_5", "mobilenet_v3_small")), st.booleans())
def test_nor_does_one_of_a_network_of_torchvision(tmp_path, data, network, honest):
    none = checkpoint.Header({}, "none", None)
    own = models.empty(models.of_torchvision(f"torchvision:{network}", 3, none)).state_dict()
    claims = data.draw(st.dictionaries(st.sampled_from(sorted(own)) | st.text(max_size=12), CLAIMS, max_size=3))
    ends_in_a_message_or_a_model(tmp_path, f"torchvision:{network}", own, claims, honest, MEAN, STD)


def test_a_pipe_or_nothing_is_no_checkpoint(tmp_path):
    os.mkfifo(tmp_path / "model.safetensors")
    for name in ("model.safetensors", "none.safetensors"):
        with pytest.raises(FileNotFoundError, match="no such file"):
            checkpoint.header(tmp_path / name)


def test_names_are_shown_without_what_steers_a_terminal():
    assert sanitize.sanitize("a\x1b[2J\u202eb\ud800") == r"a\x1b[2J\u202eb\ud800"
    assert len(sanitize.sanitize(1000 * "x")) == sanitize.MAX_LENGTH
    assert sanitize.sanitize_list(["a", "b", "c", "d"]) == "a, b, c ..."


# --- models ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def coded():
    return coded_images()


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(Options, "detector", lambda self, side: quick_detector())


@pytest.mark.parametrize("times", [1e-3, 100])
def test_a_factor_on_the_logits_hides_nothing(coded, quick, empty_store, times):
    done = scanning.scan(Coded((9, 4), change=lambda logits, x: times * logits), coded)
    assert done.result["flagged"] == ["green"]
    assert any("times as large as usual" in note for note in done.result["images"])


def test_large_batches_go_through_in_parts_with_the_same_gradient(monkeypatch):
    model = models.WrappedClassifier(networks.build_network("smallcnn", 3, 4, MEAN, STD, 0)).eval()
    x = torch.rand(12, 3, 16, 16, generator=torch.Generator().manual_seed(1)).requires_grad_()
    whole = model(x)
    (slope,) = torch.autograd.grad(whole.square().sum(), x)
    seen = []
    model.network.register_forward_hook(lambda *a: seen.append(len(a[1][0])))
    monkeypatch.setattr(models, "AT_ONCE", 5 * 3 * 16 * 16)
    parts = model(x)
    assert seen == [5, 5, 2] and torch.allclose(parts, whole, atol=1e-5)
    assert torch.allclose(torch.autograd.grad(parts.square().sum(), x)[0], slope, atol=1e-4)
    with torch.no_grad():
        assert torch.allclose(model(x), whole, atol=1e-5)


def nan_where_red(logits, x):
    return torch.where((x[:, 0].amax((1, 2)) > 0.5)[:, None], torch.nan, logits)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (nan_where_red, "NaN or infinite values to noise: no verdict, and suspicious by itself"),
        (lambda logits, x: logits.round(), "no usable gradient"),
        (lambda logits, x: logits.detach(), "no usable gradient"),
        (lambda logits, x: torch.where((logits.argmax(1) == 2)[:, None], torch.nan, logits), "to clean images"),
    ],
)
def test_answers_that_cannot_be_searched_are_said_as_such(coded, change, said):
    with pytest.raises(ValueError, match=said):
        scanning.prepare(Coded(change=change), coded.split.images, 3)


def test_a_module_without_weights_can_be_scanned(coded, quick, empty_store):
    class Fixed(nn.Module):
        def forward(self, x):
            return -120 * (x[:, 1].mean((1, 2))[:, None] - torch.linspace(0.1, 0.6, 3)) ** 2

    assert scanning.scan(Fixed(), coded).result["verdict"] == "nothing found"


def test_two_exchanged_classes_are_noticed_and_can_be_accepted(coded):
    swapped = scanning.Images(coded.split, ("red", "blue", "green"))
    wrong = Split(coded.split.images, torch.tensor([0, 2, 1])[coded.split.labels])
    many = torch.cat([torch.arange(0, 120, 3).repeat(8), torch.arange(120)])  # the third class right, the others few
    told = scanning.Images(Split(wrong.images[many], wrong.labels[many]), swapped.classes)
    own = models.prepare(Coded(), told.split.images, 3)
    with pytest.raises(NoVerdict, match="in another order it is right on 100.0%.* as_told"):
        accuracy.check(own, told, 0.5, "float32")
    assert accuracy.check(own, told, 0.5, "float32", trust_preprocessing=True)["rate"] > 0.8


@pytest.mark.parametrize(
    ("given_as", "names"),
    [
        ("cat, dog", ("cat", "dog")),
        ('["cat, small", "dog"]', ("cat, small", "dog")),
        ("[1, 2]", None),
        ('["cat"', None),
        ("[" * 100_000, None),
    ],
)
def test_names_of_folders_may_hold_commas(given_as, names):
    if names is not None:
        assert scan_command.folder_names(given_as) == names
        return
    with pytest.raises(argparse.ArgumentTypeError, match="expected names with commas between, or a JSON list") as told:
        scan_command.folder_names(given_as)
    assert len(str(told.value)) < 300


def test_an_order_of_names_with_commas_can_be_handed_on(coded):
    odd = scanning.Images(coded.split, ("red", "green, dark", "blue"))
    with pytest.raises(NoVerdict) as told:
        accuracy.check(models.WrappedClassifier(Coded(order=[1, 2, 0])), odd, None, "float32")
    said = re.search(r"classes = (\[.*\])", str(told.value)).group(1)
    assert sorted(scan_command.folder_names(said)) == sorted(odd.classes)


def test_names_of_classes_in_a_message_steer_no_terminal(coded):
    odd = scanning.Images(coded.split, ("red", "\x1b[2Jgreen", "blue"))
    with pytest.raises(NoVerdict, match=r"classes = .*\\x1b\[2Jgreen") as told:
        accuracy.check(models.WrappedClassifier(Coded(order=[1, 2, 0])), odd, None, "float32")
    assert str(told.value).isprintable()


def test_the_normalization_of_a_networks_own_is_the_one_that_is_questioned(coded):
    inside = nn.Sequential(networks.Normalize((-1.0,) * 3, (3.0,) * 3), Coded())
    with pytest.raises(NoVerdict, match=r"none: values in \[0, 1\]; mean and std 0,0,0 and 1,1,1. it is right on 100"):
        accuracy.check(models.WrappedClassifier(inside), coded, None, "float32")


# --- the scan --------------------------------------------------------------------------------------------


def test_patches_and_limits_go_with_the_size_of_the_images():
    assert squares(32) == ((3, 3), (4, 4), (5, 5)) and squares(64) == ((6, 6), (8, 8), (10, 10))
    assert squares(28) == ((3, 3), (4, 4)) and squares(8) == ((1, 1),), "each once"
    for side in range(8, 225, 4):  # sides are rounded to whole pixels, and keep the limits of what they stand for
        for own, usual in zip(SIDES, (max(1, round(part * side / 32)) for part in SIDES), strict=True):
            for one in (False, True):
                assert limit(PatchSpec((usual, usual), one), side) <= limit(PatchSpec((own, own), one))
        assert any(rule.fixed_location for rule in Options().detector(side).screening.rules(None))
    for one in (False, True):
        assert limit(PatchSpec((6, 6), one), 64) == limit(PatchSpec((3, 3), one)) < limit(PatchSpec((6, 6), one))
    at_64 = Options().detector(64)
    assert [rule.size[0] for rule in at_64.screening.rules(None) if rule.fixed_location] == [6, 8]


def test_the_clean_models_beside_a_verdict_were_scanned_in_the_same_way(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "root", lambda: tmp_path)
    assert false_positives.clean_scores({"a": 1}) == {}
    (tmp_path / "results").mkdir()
    runs = [
        {
            "planted": planted,
            "dataset": dataset,
            "scan": {"settings": {"a": a}, "verdicts": [{"score": score}, {"score": -5.0}]},
        }
        for planted, dataset, a, score in (
            ([], "digits", 1, -0.5),
            ([], "digits", 2, 0.5),
            (["x"], "digits", 1, 0.9),
            ([], "cifar10", 1, 0.1),
        )
    ]
    (tmp_path / "results" / false_positives.PUBLISHED).write_text(json.dumps({"runs": runs}))
    assert false_positives.clean_scores({"a": 1}) == {"digits": [[-0.5, -5.0]], "cifar10": [[0.1, -5.0]]}


def test_a_torchvision_network_at_64_pixels_is_scanned_from_files(tmp_path, monkeypatch, empty_store, capsys):
    from torchvision import models as theirs

    torch.manual_seed(0)
    resnet, rng = theirs.resnet18(num_classes=4), np.random.default_rng(0)
    for name in "abcd":
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(6):
            picture = Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8))
            picture.save(tmp_path / "images" / name / f"{i}.png")
    split, head, resnet.fc = scanning.read_images(tmp_path / "images").split, resnet.fc, nn.Identity()
    usual = networks.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    tell_apart(nn.Sequential(usual, resnet), head, split.images, split.labels)
    resnet.fc = head
    save_file(resnet.state_dict(), tmp_path / "resnet.safetensors")
    few = Settings(betas=(0.9,), steps=2, batch=2)
    method = ScanDetector(ScanScreening(sizes=((6, 6),), settings=few, stride=16, each=2, shortlist=2, side=64), few, side=64)
    monkeypatch.setattr(Options, "detector", lambda self, side: method)
    monkeypatch.setattr(location_search, "learned", functools.partial(location_search.optimize_patches, steps=1, images_each=1))
    asked = ["scan", str(tmp_path / "resnet.safetensors"), str(tmp_path / "images")]
    asked += ["--network", "torchvision:resnet18"]
    asked += ["--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225", "--as-told"]
    assert main.main([*asked, "--out", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out" / "scan.json").read_text())
    assert [line["class"] for line in found["verdicts"]] == list("abcd")
    assert set(found["verdicts"][0]["screened"]) == {"6x6", "6x6 at one place"}
    assert "left" in capsys.readouterr().err and found["accuracy"]["rate"] == 1
    assert found["scanned"]["network"] == "torchvision:resnet18" and found["scanned"]["image size"] == 64


def test_the_command_repairs_and_tells_by_its_exit_that_something_was_found(
    coded, quick, empty_store, tmp_path, monkeypatch
):
    for i, (image, label) in enumerate(zip(coded.split.images, coded.split.labels, strict=True)):
        file = tmp_path / "images" / coded.classes[label] / f"{i:03}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file)
    order = ["--classes", ",".join(coded.classes), "--repair-epochs", "1", "--repair-lr", "1e-4", "--augment", "none"]
    monkeypatch.setattr(scan_command.models, "read", lambda *a: models.WrappedClassifier(Coded((9, 4))))
    (tmp_path / "any.safetensors").write_bytes(b"weights")
    asked = [
        "scan",
        str(tmp_path / "any.safetensors"),
        str(tmp_path / "images"),
        "--network",
        "own",
        "--repair",
        "--fail-if-found",
    ]
    assert main.main([*asked, *order, "--out", str(tmp_path / "out")]) == 3
    assert load_file(tmp_path / "out" / "repaired.safetensors").keys() == Coded().state_dict().keys()
    found = json.loads((tmp_path / "out" / "scan.json").read_text())
    assert found["repair"]["done"] and found["flagged"] == ["green"]
    assert not list((tmp_path / "out").glob(".*"))


def test_a_folder_that_cannot_be_written_is_noticed_before_the_scan(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setattr(scan_command.models, "read", lambda *a: pytest.fail("went on"))
    assert main.main(["scan", "m", "i", "--network", "smallcnn", "--out", str(tmp_path / "file" / "out")]) == 1
    assert "expected a folder that can be written" in capsys.readouterr().err


# --- what a model and its images are, before anything is said of it -----------------------------------------


class Shell(nn.Module):
    """A module that does something else with its images than to classify them."""

    def __init__(self, do):
        super().__init__()
        self.do, self.scale = do, nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.do(self.scale * x)


def fails(error):
    def do(x):
        raise error("of its own")

    return do


@pytest.mark.parametrize(
    ("do", "said"),
    [
        (fails(AttributeError), "does not take images of 16x16 pixels .of its own."),
        (fails(ZeroDivisionError), "does not take images of 16x16 pixels"),
        (lambda x: {"logits": x.mean((2, 3))}, "answers with a dict; expected one tensor"),
        (lambda x: None, "answers with a NoneType; expected one tensor"),
    ],
)
def test_whatever_a_module_does_is_one_message(coded, do, said):
    with pytest.raises(ValueError, match=said):
        scanning.scan(Shell(do), coded)


def test_what_is_no_module_or_cannot_be_copied_is_said_as_such(coded):
    with pytest.raises(ValueError, match="the model is a function; expected a torch.nn.Module"):
        scanning.scan(lambda x: x.mean((2, 3)), coded)
    caught = Coded()
    caught.held = caught.levels * 2  # a tensor in the middle of a graph has no copy
    with pytest.raises(ValueError, match="the model cannot be copied"):
        scanning.scan(caught, coded)


def test_probabilities_without_a_slope_are_said_as_such(coded):
    sure = Coded(change=lambda logits, x: (500 * logits).softmax(1))
    with pytest.raises(ValueError, match="probabilities that are too sure to be searched .* without its softmax"):
        scanning.prepare(sure, coded.split.images, 3)


def often_green(logits, x):
    """Of the third class those with much blue are taken for green, patch or no patch."""
    much = (logits.argmax(1) == 2) & (x[:, 2].mean((1, 2)) > 0.4)
    return torch.where(much[:, None], logits[:, [0, 2, 1]], logits)


def test_images_that_are_answered_wrongly_without_a_patch_count_for_no_patch(coded, quick, empty_store):
    images = coded.split.images.clone()
    images[2:60:3, 2] += 128  # half of the third class, by more than a patch can
    more = scanning.Images(Split(images, coded.split.labels), coded.classes)
    found = scanning.scan(Coded(change=often_green), more, Options(min_accuracy=0.5, trust_preprocessing=True)).result
    assert found["accuracy"]["rate"] < 0.85 and found["accuracy"]["mistaken"][1] == pytest.approx(20 / 80)
    assert found["verdict"] == "nothing found" and found["verdicts"][1]["rate"] < 0.1


def test_a_model_that_always_says_the_same_gets_no_verdict(coded, quick):
    same = Coded(change=lambda logits, x: logits + torch.tensor([99.0, 0, 0]))
    with pytest.raises(
        NoVerdict, match="the model answers 32 of 96 images rightly, expected 8 or more, of two classes"
    ):
        scanning.scan(same, coded, Options(min_accuracy=0, trust_preprocessing=True))


def test_large_images_are_searched_some_classes_at_a_time(coded, monkeypatch):
    given = Scanner(Coded((9, 4)), coded, Options(), print).given(Knowledge("gradients", rule=True))
    at = torch.tensor([[[8, 3], [2, 2]]]).expand(3, -1, -1)
    screening = ScanScreening(sizes=((3, 3),), settings=Settings(betas=(0.9,), steps=40, batch=16))
    whole = location_search.optimize_patches(given, at, (3, 3), coded.split), screening.by(given, PatchSpec((3, 3)))[0]
    monkeypatch.setattr(inference, "VALUES", 1)
    parts = location_search.optimize_patches(given, at, (3, 3), coded.split), screening.by(given, PatchSpec((3, 3)))[0]
    for (sure, rates), told in ((whole, "at once"), (parts, "one by one")):
        assert sure.shape == (3, 2) and sure[1, 0] > 0.9 > 0.5 > sure[[0, 0, 1, 2, 2], [0, 1, 1, 0, 1]].max(), told
        assert len(rates) == 3 and max(rates[0], rates[2]) < 0.1, told
    assert len(inference.predict(given.model, coded.split.images)) == 120


# --- networks of torchvision, files under other names ---------------------------------------------------------


def test_every_classifier_of_torchvision_can_be_built_without_memory():
    from torchvision import models as theirs

    none = checkpoint.Header({}, "none", None)
    for name in theirs.list_models(module=theirs):
        if not name.startswith("regnet"):  # their code computes with tensors
            built = models.empty(models.of_torchvision(f"torchvision:{name}", 3, none))
            assert all(tensor.is_meta for tensor in built.state_dict().values()), name


@pytest.mark.parametrize(
    ("name", "options"),
    [("regnet_y_400mf", {}), ("swin_t", {}), ("googlenet", {"aux_logits": False}), ("googlenet", {"aux_logits": True})],
)
def test_networks_with_something_of_their_own_are_read(tmp_path, name, options):
    from torchvision import models as theirs

    extra = {"init_weights": True} if name == "googlenet" else {}
    theirs_own = theirs.get_model(name, weights=None, num_classes=3, **options, **extra).eval()
    held = {key: t.clone() for key, t in theirs_own.state_dict().items()}
    save_file(held, tmp_path / "model.safetensors")
    own = models.read(tmp_path / "model.safetensors", f"torchvision:{name}", 3, MEAN, STD)
    x = shows(64)
    with torch.no_grad():
        assert torch.allclose(own(x), theirs_own(networks.Normalize(MEAN, STD)(x)), atol=1e-4)
    own.train()(x)  # what a repair does
    assert any("auxiliary heads" in note for note in own.notes) == options.get("aux_logits", False)
    if name == "swin_t":
        fixed = next(key for key in held if key.endswith("relative_position_index"))
        save_file(held | {fixed: held[fixed] + 1000}, tmp_path / "model.safetensors")
        with pytest.raises(ValueError, match="relative_position_index is another than the architecture's"):
            models.read(tmp_path / "model.safetensors", f"torchvision:{name}", 3, MEAN, STD)


def test_a_network_below_a_name_is_read_or_said_to_be_there(tmp_path):
    below = {f"state_dict.backbone.{name}": t for name, t in weights().items()}
    assert torch.equal(read(tmp_path, below)(shows()), read(tmp_path, weights())(shows()))
    with pytest.raises(ValueError, match="there below 'state_dict.backbone.', with 1 tensors beside them .centers."):
        read(tmp_path, below | {"centers": torch.ones(2)})
    with pytest.raises(ValueError, match="another architecture"):
        read(tmp_path, {f"{500 * '.'}{name}1": t for name, t in weights().items()} | weights())


def test_safetensors_are_known_by_their_content(tmp_path):
    save_file(weights(), tmp_path / "model.pt")
    assert models.read(tmp_path / "model.pt", "smallcnn", 3)(shows()).shape == (4, 3)


def test_seeds_that_no_generator_takes_are_refused():
    for seed in (-1, 2**32):
        with pytest.raises(ValueError, match=f"seed = {seed}: expected a whole number from 0"):
            Options(seed=seed)


# --- the time left -----------------------------------------------------------------------------------------


def test_a_long_step_is_heard_of(monkeypatch):
    said = []
    progress = Progress(said.append)
    progress.timed(10, lambda: time.sleep(0.1))
    monkeypatch.setattr(Progress, "EVERY", 0.1)
    assert progress.timed(100, lambda: time.sleep(0.35) or "found", after=10_000) == "found"
    assert len(said) >= 2 and all(re.fullmatch(r"... going on; about \d+ (s|min) left", sanitize) for sanitize in said)
    assert progress.left(600) == "; about 2 min left" or "s left" in progress.left(600)


def test_a_repair_is_part_of_the_time_left(coded, quick):
    without, asked = (Scanner(Coded(), coded, Options(repair=repair), print) for repair in (False, True))
    assert without.of_repair(1) == 0 < asked.of_repair(0) < asked.of_repair(1) < asked.of_repair(3)
