"""Scans of toy models with a known answer: limits and verdicts, the accuracy before them, the repair, the time left."""

import html
import json
import re
import shlex
import time

import pytest
import torch
from torch import nn
from toys import Coded, coded_images, quick_detector

from mesa_lib import scan as scanning
from mesa_lib import store
from mesa_lib.data import Split
from mesa_lib.defenses.base import Knowledge
from mesa_lib.defenses.mesa import inversion_search, location_search
from mesa_lib.defenses.mesa.detector import MESA, DetectionResult
from mesa_lib.defenses.mesa.screening import PatchSpec, ScreeningResult
from mesa_lib.models import inference, networks
from mesa_lib.reporting.html import scan as scan_report
from mesa_lib.scan import accuracy, data_free
from mesa_lib.scan.accuracy import NoVerdict
from mesa_lib.scan.detector import STRICTEST_LIMIT, ScanDetector, ScanScreening, limit, margin
from mesa_lib.scan.observer import ScanObserver
from mesa_lib.scan.options import SIDES, Options, squares
from mesa_lib.scan.progress import Progress, modeling_passes
from mesa_lib.scan.reading.wrapped import WrappedClassifier
from mesa_lib.scan.repair import residual_record
from mesa_lib.scan.scanner import Scanner
from mesa_lib.settings import RepairSettings, Settings


@pytest.fixture(scope="module")
def coded():
    return coded_images()


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(Options, "detector", lambda self, side: quick_detector())


def silent(text):
    """Ignore what a scan says."""


# --- limits and verdicts ---------------------------------------------------------------------------------


def test_larger_patches_are_not_tried_at_a_fixed_location():
    """Most images of some clean models are misclassified with them."""
    specs = Options().detector(32).screening.specs()
    assert [spec.size for spec in specs if spec.fixed_location] == [(3, 3), (4, 4)]
    assert [spec.size[0] for spec in specs if not spec.fixed_location] == [3, 4, 5]


def test_every_way_of_stamping_has_a_limit_of_its_own():
    limits = {(side, fixed): limit(PatchSpec((side, side), fixed)) for side in (2, 3, 4, 5) for fixed in (False, True)}
    assert all(limits[side, True] > limits[side, False] for side in (2, 3, 4, 5)), "a searched location asks for more"
    assert limits[4, True] > limits[3, True] and limit(PatchSpec((4, 3), True)) == limits[4, True]
    assert limit(PatchSpec((9, 9))) == limit(PatchSpec((9, 9), True)) == STRICTEST_LIMIT
    assert margin(PatchSpec((3, 3)), 1.0) == 1 and margin(PatchSpec((3, 3)), limit(PatchSpec((3, 3)))) == 0


def test_patches_and_limits_scale_with_the_size_of_the_images():
    assert squares(32) == ((3, 3), (4, 4), (5, 5)) and squares(64) == ((6, 6), (8, 8), (10, 10))
    assert squares(28) == ((3, 3), (4, 4)) and squares(8) == ((1, 1),), "each once"
    for side in range(8, 225, 4):  # sides are rounded to whole pixels, and keep the limits of what they stand for
        for usual, scaled in zip(SIDES, (max(1, round(patch * side / 32)) for patch in SIDES), strict=True):
            for fixed in (False, True):
                assert limit(PatchSpec((scaled, scaled), fixed), side) <= limit(PatchSpec((usual, usual), fixed))
        assert any(spec.fixed_location for spec in Options().detector(side).screening.specs())
    for fixed in (False, True):
        scaled = limit(PatchSpec((6, 6), fixed), 64)
        assert scaled == limit(PatchSpec((3, 3), fixed)) < limit(PatchSpec((6, 6), fixed))
    at_64 = Options().detector(64)
    assert [spec.size[0] for spec in at_64.screening.specs() if spec.fixed_location] == [6, 8]


def detected(rates, modeled=()):
    """What a search would have found: spec -> rate of each class."""
    locations = {spec: torch.zeros(len(own), 2) if spec.fixed_location else None for spec, own in rates.items()}
    return DetectionResult(ScreeningResult(rates, locations), {}, dict(modeled))


def test_a_class_is_judged_by_the_spec_that_comes_highest_above_its_own_limit():
    anywhere, fixed, larger = PatchSpec((3, 3)), PatchSpec((3, 3), True), PatchSpec((4, 4), True)
    clean = detected({anywhere: [0.5, 0.1], fixed: [0.9, 0.2], larger: [0.97, 0.3]})
    assert ScanDetector().judge(clean).flagged == [] and ScanDetector().best(clean, 0)[0] == fixed
    assert ScanDetector().judge(detected({anywhere: [0.8, 0.1], fixed: [0.9, 0.2]})).flagged == [0]
    assert ScanDetector().judge(detected({fixed: [0.9, 0.2], larger: [0.99, 0.2]})).flagged == [0]
    modeled = detected({anywhere: [0.8, 0.1]}, {0: {anywhere: 0.6}})
    assert ScanDetector().judge(modeled).flagged == [], "the full model has the last word"


def test_of_a_suspect_the_best_specs_within_reach_are_modeled_and_smaller_ones_that_do_nearly_as_well():
    three, four, five = PatchSpec((3, 3), True), PatchSpec((4, 4), True), PatchSpec((5, 5))
    rates = {PatchSpec((2, 2)): [0.28, 0, 0.1], five: [0.4, 0, 0.3], three: [0.85, 0, 0.45], four: [0.9, 0, 0.5]}
    assert ScanDetector().suspects(detected(rates).screening) == {0: [five, three, four]}
    assert ScanDetector(comparable=0.01).suspects(detected(rates).screening) == {0: [five, four]}
    assert ScanDetector(reach=0.48).suspects(detected(rates).screening) == {0: [five, three, four], 2: [five]}
    assert list(ScanDetector(reach=1, max_suspects=1).suspects(detected(rates).screening)) == [0]
    small = PatchSpec((2, 2))
    assert ScanDetector().suspects(detected({small: [0.95], five: [1.0]}).screening) == {0: [small, five]}


def test_a_repair_takes_two_specs_of_a_class_those_at_random_locations_first():
    three, five, fixed = PatchSpec((3, 3)), PatchSpec((5, 5)), PatchSpec((3, 3), True)
    modeled = {0: {fixed: 0.99, three: 0.9}, 1: {three: 0.5, fixed: 0.99}, 2: {fixed: 0.99, three: 0.9, five: 0.9}}
    firing = ScanDetector().firing(detected({three: [0, 0, 0]}, modeled))
    assert firing == [(0, three), (0, fixed), (2, three), (2, five), (1, fixed)]


class RecordingScreening(ScanScreening):
    """Keeps which classes are modeled."""

    def modeled_rates(self, view, spec, labels, locations):
        self.recorded = list(labels)
        return [0.25] * view.classes


@pytest.mark.parametrize(
    ("reached", "kept", "modeled"),
    [((0.1, 0.4, 0.2), (), [1, 2]), ((0.6, 0.7, 0.9), (), [0, 1, 2]), ((0.1, 0.4, 0.2), (0,), [0, 1, 2])],
)
def test_the_classes_are_modeled_on_which_inverted_patches_succeed_most(coded, monkeypatch, reached, kept, modeled):
    view = Scanner(Coded(), coded, Options(), silent).view(Knowledge("gradients", rule=True))
    monkeypatch.setattr(inversion_search, "at_random_locations", lambda *a: torch.tensor(reached))
    screening = RecordingScreening(sizes=((3, 3),))
    rates, locations = screening.screen_spec(view, PatchSpec((3, 3)), kept=kept)
    assert screening.recorded == modeled and locations is None
    assert rates == pytest.approx([0.25 if k in modeled else value for k, value in enumerate(reached)])


def test_few_classes_can_be_screened_alone(coded, monkeypatch):
    view = Scanner(Coded(), coded, Options(), silent).view(Knowledge("gradients", rule=True))
    monkeypatch.setattr(inversion_search, "at_best_locations", lambda *a, **o: (torch.tensor([[2, 3]]), torch.ones(1)))
    screening = RecordingScreening(sizes=((3, 3),))
    rates, locations = screening.screen_spec(view, PatchSpec((3, 3), True), [1], kept=[0])
    assert screening.recorded == [1] and rates == [0, 0.25, 0] and locations.tolist() == [[0, 0], [2, 3], [0, 0]]


def test_a_rate_that_equals_its_limit_does_not_exceed_it():
    fixed = PatchSpec((4, 4), True)
    assert float(torch.tensor(0.985)) > 0.985 and margin(fixed, float(torch.tensor(0.985))) == 0
    assert ScanDetector().judge(detected({fixed: [float(torch.tensor(0.985)), 0.1]})).flagged == []
    assert margin(fixed, 0.9863) > 0


# --- options ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes": ()}, "sizes = "), ({"sizes": ((0, 2),)}, "sizes = "), ({"repair_rate": 1.0}, "repair_rate = 1.0"),
        ({"min_accuracy": 2}, "min_accuracy = 2"), ({"augment": "all"}, "augment = 'all': expected 'none', "),
        ({"batch_size": 1}, "batch_size = 1: expected a number greater than or equal to 2"),
        ({"repair_lr": 0}, "repair_lr = 0: expected a number greater than 0"),
        ({"repair_epochs": 0}, "repair_epochs = 0"), ({"repair_lr": float("nan")}, "repair_lr = nan: expected"),
        ({"budget": 0}, "budget = 0: expected a number of minutes above 0"),
        ({"seed": -1}, "seed = -1: expected a whole number from 0"),
        ({"seed": 2**32}, f"seed = {2**32}: expected a whole number from 0"),
    ],
)  # fmt: skip
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message) as caught:
        Options(**options)
    assert len(str(caught.value).splitlines()) == 1


def test_a_repair_is_trained_as_everywhere_unless_told_otherwise():
    assert Options().repair_settings() == RepairSettings()
    asked = Options(repair_epochs=2, repair_lr=0.5, repair_rate=0.3, batch_size=8, augment="none").repair_settings()
    assert asked == RepairSettings(
        repair_epochs=2, repair_lr=0.5, repair_rate=0.3, batch_size=8, retrain_augment="none"
    )


def test_a_patch_has_to_fit_the_images(coded):
    with pytest.raises(ValueError, match="a patch larger than the images"):
        scanning.scan(Coded(), coded, Options(sizes=((20, 20),)))


# --- scans -----------------------------------------------------------------------------------------------


def test_a_backdoor_at_a_fixed_location_is_detected_shown_and_repaired(coded, quick, empty_store, tmp_path):
    lines = []
    options = Options(repair=True, repair_epochs=1, repair_lr=1e-4, augment="none")
    scanned = scanning.scan(Coded((9, 4)), coded, options, lines.append)
    result = scanned.result
    assert result["verdict"] == "backdoored" and result["flagged"] == ["green"]
    line = result["verdicts"][1]
    assert line["rule"] == str(PatchSpec((3, 3), True)) and line["location"][0] <= 9 < line["location"][0] + 3
    assert line["rate"] > line["limit"] == 0.93
    assert line["score"] > 0 > max(result["verdicts"][k]["score"] for k in (0, 2))
    assert result["accuracy"]["rate"] == 1 and result["repair"]["done"] and scanned.repaired is not None
    assert result["repair"]["flagged and not repaired"] == []
    assert result["repair"]["images for the accuracy"] == 24 and result["repair"]["accuracy before"]["rate"] == 1
    (check,) = result["repair"]["residual checks"]
    assert check["clear"] == (max(check["searched"], check["sampled"]) < 0.93) and check["limit"] == 0.93
    assert check["clean models"] == pytest.approx(0.86)
    assert any("left" in text for text in lines) and any("in full: green" in text for text in lines)
    json_file, page = scan_report.write(scanned, tmp_path / "out", "odd <i>.safetensors")
    assert json.loads(json_file.read_text())["flagged"] == ["green"]
    html = page.read_text()
    assert "red &lt;b&gt;" in html and "odd &lt;i&gt;" in html and "<b>red" not in html and "<i>" not in html
    assert html.count("data:image/png;base64,") == len(scanned.samples) >= 1 and "http" not in html
    for what in (
        f"{line['rate']:.1%}",
        "93.0%",
        "Class by class",
        "ASR of samples of green",
        "24 images which",
        "100.0% (86.2%–100.0%)",
        "SHA",
    ):
        assert (what in html) == (what != "SHA"), what


@pytest.mark.parametrize(
    ("backdoor", "at", "clear"), [((9, 4), (8, 3), False), ((9, 4), (0, 0), True), (None, None, True)]
)
def test_a_residual_check_looks_where_the_patch_was_stamped(coded, backdoor, at, clear):
    """The backdoor is still there; it is found at its location alone."""
    spec = PatchSpec((3, 3), at is not None)
    locations = torch.tensor([at or (0, 0)] * 3)
    screening = ScreeningResult({spec: [0.1, 0.9, 0.1]}, {spec: locations if at else None})
    scanner, settings = Scanner(Coded(backdoor), coded, Options(), silent), Settings(steps=2, hidden=8)
    view = scanner.view(Knowledge("weights"))
    (record,) = residual_record(view, scanner.model, {(1, spec): None}, screening, settings, 32)
    assert record["clear"] is clear and (record["searched"] > record["limit"]) is not clear
    assert "earlier" not in record
    sentence = scan_report.residual({"samples": ["green, patches"], "residual checks": [record]})
    assert sentence.startswith(
        "No rate exceeds" if clear else "The repair has failed: the repaired model still responds"
    )


def test_the_class_that_comes_nearest_is_that_with_the_largest_share_of_its_limit():
    """Scores are scaled by what is left above the limit, so that they differ much where limits are high."""
    lines = [
        {"class": name, "flagged": False, "score": (rate - limit) / (1 - limit), "rate": rate, "limit": limit}
        | {"rule": "3x3", "location": None}
        for name, rate, limit in (("cat", 0.0, 0.77), ("dog", 0.441, 0.985))
    ]
    assert lines[0]["score"] > lines[1]["score"]
    result = {
        "verdicts": lines,
        "suspicious": [],
        "not screened": [],
        "skipped": [],
        "flagged": [],
        "clean models": 0,
        "clean models by data": {},
    }
    text = scan_report.summary(result)
    assert text.startswith("The class that comes nearest to its limit is dog: with patches of 3x3, 44.1% of images")


def test_a_flagged_class_that_was_not_modeled_is_reported_as_not_repaired(coded, quick, empty_store):
    repaired, record = Scanner(Coded(), coded, Options(), silent).repair(detected({PatchSpec((3, 3)): [0.1, 0.9, 0.1]}))
    assert repaired is None and record == {"done": False, "why": "none of green was modeled"}


def test_a_model_without_backdoor_is_left_as_it_is(coded, quick, empty_store):
    scanned = scanning.scan(Coded(), coded, Options(repair=True))
    result = scanned.result
    assert result["verdict"] == "nothing found" and result["flagged"] == [] and scanned.repaired is None
    assert result["repair"] == {"done": False, "why": "nothing was flagged"}
    html = scan_report.page(scanned, "model")
    assert "No backdoor of this kind was found" in html and "None was made: nothing was flagged." in html


def blended(logits, x):
    """Raise the logit of class 1 by a pattern over the whole image, of which no patch of 3x3 is large enough a part."""
    side = torch.arange(x.shape[-1])
    pattern = 1.0 - 2.0 * ((side[:, None] + side) % 2)
    gain = 2400 * (x[:, 2] * pattern).mean((1, 2)).relu() ** 2
    return logits + gain[:, None] * nn.functional.one_hot(torch.tensor(1), 3)


def test_a_trigger_that_is_no_patch_makes_its_class_suspicious(coded, quick, empty_store):
    scanned = scanning.scan(Coded(change=blended), coded)
    result = scanned.result
    assert result["verdict"] == "suspicious" and result["suspicious"] == ["green"] and not result["flagged"]
    ratios = result["data-free"]["ratios"]
    assert (
        ratios[1] > result["data-free"]["limit"] > max(ratios[0], ratios[2]) and not result["data-free"]["last layer"]
    )
    html = scan_report.page(scanned, "model")
    assert "Suspicious: class &#39;green&#39;" in html and "No patch was found that works" in html
    assert f"<td>{ratios[1]:.1f}</td>" in html and "stands out for class &#39;green&#39;" in html


def test_margins_are_left_out_where_classes_are_too_few_or_too_many(coded, quick, empty_store, monkeypatch):
    assert data_free.why_not(2).startswith("2 classes") and data_free.why_not(1000) and not data_free.why_not(3)
    monkeypatch.setattr(data_free, "MAX_CLASSES", 2)
    scanned = scanning.scan(Coded(), coded)
    assert scanned.result["data-free"] == {"why": "3 classes: margins are compared for 3 to 2 classes"}
    assert "The largest margins were not computed (3 classes" in scan_report.page(scanned, "model")


def test_margins_cost_about_the_same_for_larger_images_and_more_classes():
    assert data_free.maximum_margin(10, 32 * 32).starts == 10 == data_free.maximum_margin(3, 16 * 16).starts
    assert data_free.maximum_margin(100, 32 * 32).starts == 2 and data_free.maximum_margin(10, 48 * 48).starts == 4


def test_what_does_not_fit_the_budget_is_skipped_and_reported(coded, quick, empty_store):
    lines = []
    scanned = scanning.scan(Coded((9, 4)), coded, Options(budget=1e-6), lines.append)
    result, page = scanned.result, scan_report.page(scanned, "model")
    assert result["skipped"] == ["3x3 at a fixed location"] and result["verdict"] == "incomplete"
    assert any("skipped: they do not fit the budget" in line for line in lines)
    assert "Skipped for lack of time: patches of 3x3 at a fixed location." in page
    highest = max(range(3), key=lambda label: result["data-free"]["ratios"][label])
    assert result["not screened"] == [name for label, name in enumerate(result["classes"]) if label != highest]
    assert any(f"1 of 3 classes fit the budget, those with the largest margins: {result['classes'][highest]}" in line
               for line in lines)  # fmt: skip
    assert page.count("<td>not screened</td>") == 2 and "Incomplete: nothing was found so far" in page
    assert "only 1 of 3 classes was screened, and patches of 3x3 at a fixed location were not tried" in page
    assert "is known for complete scans only" in page
    assert f"for the classes with the lowest margins: {', '.join(map(html.escape, result['not screened']))}." in page
    whole = scanning.scan(Coded((9, 4)), coded, Options(budget=60))
    assert whole.result["skipped"] == whole.result["not screened"] == [] and whole.result["flagged"] == ["green"]


def test_with_time_for_one_class_the_one_with_the_largest_margin_is_screened_and_flagged(
    coded, quick, empty_store, monkeypatch
):
    ratios = [0.5, 2.0, 1.0]
    monkeypatch.setattr(data_free, "examine", lambda *a: {"ratios": ratios, "limit": 5, "suspicious": [], "p-value": 1,
                                                          "starts": 1, "last layer": None})  # fmt: skip
    monkeypatch.setattr(ScanObserver, "_fitting", lambda self, specs, known=0: 1)
    result = scanning.scan(Coded((9, 4)), coded, Options(budget=60)).result
    assert result["flagged"] == ["green"] and result["not screened"] == ["red <b>", "blue"]
    assert all(line["rate"] is None and not line["screened"] for line in result["verdicts"] if not line["flagged"])


def test_as_many_classes_are_screened_as_fit_the_budget():
    detector, said = ScanDetector(ScanScreening(sizes=((3, 3),))), []
    progress = Progress(said.append)
    progress.seconds, progress.passes = 1.0, 1000.0
    options = detector, tuple("abcdefghij"), (32, 32), {}, progress, lambda count: 0
    reserve = modeling_passes(detector.settings)
    each = [sum(detector.screening.passes(spec, k, (32, 32)) for spec in detector.screening.specs()) for k in (4, 10)]
    for passes, labels in ((each[0], [0, 1, 2, 9]), (each[1], list(range(10))), (0, [9])):
        observer = ScanObserver(*options, deadline=time.monotonic() + (passes + reserve) / 1000 + 1)
        observer.fit_budget([9, 0, 1, 2, 3, 4, 5, 6, 7, 8])
        assert observer.labels == labels
    assert said[0] == "4 of 10 classes fit the budget, those with the largest margins: j, a, b, c"
    observer = ScanObserver(*options)
    observer.fit_budget(list(range(10))[::-1])
    assert observer.labels == list(range(10)), "without a budget, all are screened"


def test_what_an_earlier_scan_has_stored_is_no_time_left(empty_store):
    progress = Progress()
    progress.seconds, progress.passes = 1.0, 1000.0
    detector = ScanDetector(ScanScreening(sizes=((3, 3),)))
    observer = ScanObserver(detector, tuple("abc"), (32, 32), {}, progress, lambda count: 0, torch.device("cpu"))
    before, (first, second) = observer._after(0), list(observer.passes)
    observer.screened(second, 1, 2, lambda labels, kept: ([0.1] * 3, torch.zeros(3, 2)))
    assert observer._after(0) == before - observer.passes[second] and observer._passes_left(second) == 0
    assert observer._passes_left(first) == observer.passes[first] > 0


def test_a_report_escapes_whatever_comes_from_outside(coded, quick, empty_store):
    names = ("<script>alert(1)</script>", "a\x1b[2J\u202eb", '"quoted"')
    scanned = scanning.scan(Coded(), scanning.Images(coded.split, names, ("<u>120</u> images.",)))
    html = scan_report.page(scanned, "<s>name</s>")
    assert "<script" not in html and "&lt;script&gt;" in html and "<u>" not in html and "<s>" not in html
    assert "\x1b" not in html and "\u202e" not in html and r"a\x1b[2J\u202eb" in html


def test_a_scan_that_was_stopped_goes_on_where_it_was(coded, quick, empty_store, monkeypatch):
    first = scanning.scan(Coded((9, 4)), coded)
    monkeypatch.setattr(ScanScreening, "screen_spec", lambda *a: pytest.fail("screened again"))
    monkeypatch.setattr(MESA, "model", lambda *a: pytest.fail("modeled again"))
    again = scanning.scan(Coded((9, 4)), coded)
    assert again.result["verdicts"] == first.result["verdicts"]
    with pytest.raises(pytest.fail.Exception, match="screened again"):
        scanning.scan(Coded((9, 5)), coded)  # another model, although its weights are the same


def test_probabilities_are_recognized_as_such(coded, quick, empty_store):
    soft = nn.Sequential(Coded((9, 4)), nn.Softmax(1))
    prepared = scanning.prepare(soft, coded.split.images, 3)
    assert prepared.probabilities and "probabilities instead of logits" in prepared.notes[0]
    assert not scanning.prepare(Coded(), coded.split.images, 3).probabilities
    assert scanning.scan(soft, coded).result["flagged"] == ["green"]


@pytest.mark.parametrize("factor", [1e-3, 100])
def test_a_factor_on_the_logits_hides_nothing(coded, quick, empty_store, factor):
    result = scanning.scan(Coded((9, 4), change=lambda logits, x: factor * logits), coded).result
    assert result["flagged"] == ["green"]
    assert any("times as large as usual" in note for note in result["images"])


def test_a_module_without_weights_can_be_scanned(coded, quick, empty_store):
    class Fixed(nn.Module):
        def forward(self, x):
            return -120 * (x[:, 1].mean((1, 2))[:, None] - torch.linspace(0.1, 0.6, 3)) ** 2

    assert scanning.scan(Fixed(), coded).result["verdict"] == "nothing found"


def test_the_images_for_the_accuracy_after_a_repair_are_of_every_class_and_have_no_other_use(coded):
    scanner = Scanner(Coded(), coded, Options(), silent)
    assert scanner.held_out.labels.bincount().tolist() == [8, 8, 8] and len(scanner.work) == 96
    held_out, work = ({tuple(i.flatten().tolist()) for i in part.images} for part in (scanner.held_out, scanner.work))
    assert not held_out & work


def test_the_scanned_model_stays_as_it_was(coded, quick, empty_store):
    model = Coded((9, 4)).train().requires_grad_(False)
    before = store.tensors_key(model.state_dict())
    scanned = scanning.scan(model, coded, Options(repair=True, repair_epochs=1, repair_lr=1e-3))
    assert store.tensors_key(scanned.repaired.network.state_dict()) != before, "the repair changed its copy"
    assert model.training and not model.levels.requires_grad and store.tensors_key(model.state_dict()) == before


def predicts_green_where_blue(logits, x):
    """Images of the third class with much blue are predicted as green, with a patch or without."""
    much = (logits.argmax(1) == 2) & (x[:, 2].mean((1, 2)) > 0.4)
    return torch.where(much[:, None], logits[:, [0, 2, 1]], logits)


def test_images_that_are_misclassified_without_a_patch_do_not_count(coded, quick, empty_store):
    images = coded.split.images.clone()
    images[2:60:3, 2] += 128  # half of the third class, by more than a patch can
    more = scanning.Images(Split(images, coded.split.labels), coded.classes)
    options = Options(min_accuracy=0.5, trust_preprocessing=True)
    result = scanning.scan(Coded(change=predicts_green_where_blue), more, options).result
    assert result["accuracy"]["rate"] < 0.85 and result["accuracy"]["mistaken"][1] == pytest.approx(20 / 80)
    assert result["verdict"] == "nothing found" and result["verdicts"][1]["rate"] < 0.1


def test_a_model_that_always_predicts_one_class_gets_no_verdict(coded, quick):
    constant = Coded(change=lambda logits, x: logits + torch.tensor([99.0, 0, 0]))
    message = "the model classifies 32 of 96 images correctly, expected 8 or more, of two classes"
    with pytest.raises(NoVerdict, match=message):
        scanning.scan(constant, coded, Options(min_accuracy=0, trust_preprocessing=True))


def test_large_images_are_searched_some_classes_at_a_time(coded, monkeypatch):
    view = Scanner(Coded((9, 4)), coded, Options(), silent).view(Knowledge("gradients", rule=True))
    at = torch.tensor([[[8, 3], [2, 2]]]).expand(3, -1, -1)
    screening = ScanScreening(sizes=((3, 3),), settings=Settings(betas=(0.9,), steps=40, triggers_per_step=16))

    def search():
        patches = location_search.optimize_patches(view, at, (3, 3), coded.split)
        return patches, screening.screen_spec(view, PatchSpec((3, 3)))[0]

    at_once = search()
    monkeypatch.setattr(inference, "VALUES", 1)
    for (sure, rates), how in ((at_once, "at once"), (search(), "one by one")):
        assert sure.shape == (3, 2) and sure[1, 0] > 0.9 > 0.5 > sure[[0, 0, 1, 2, 2], [0, 1, 1, 0, 1]].max(), how
        assert len(rates) == 3 and max(rates[0], rates[2]) < 0.1, how
    assert len(inference.predict(view.model, coded.split.images)) == 120


# --- the accuracy before any verdict ---------------------------------------------------------------------


def test_a_wrong_normalization_is_noticed_before_a_verdict(coded):
    wrong = WrappedClassifier(nn.Sequential(networks.Normalize((-1.0,) * 3, (2.0,) * 3), Coded()))
    wrong.normalize = networks.Normalize((0.5,) * 3, (0.25,) * 3)
    with pytest.raises(NoVerdict, match="no verdict: the model classifies .* of the 120 clean images correctly"):
        scanning.scan(wrong, coded)
    half = WrappedClassifier(Coded(), (0.5,) * 3, (0.5,) * 3)
    message = r"none: values in \[0, 1\]: --mean 0,0,0 --std 1,1,1. the accuracy is 100"
    with pytest.raises(NoVerdict, match=message):
        scanning.scan(half, coded)
    inside = nn.Sequential(networks.Normalize((-1.0,) * 3, (3.0,) * 3), Coded())
    with pytest.raises(NoVerdict, match=message):
        accuracy.check_accuracy(WrappedClassifier(inside), coded, None, "float32")


def test_another_order_of_the_classes_is_noticed(coded):
    with pytest.raises(NoVerdict, match="in another order the accuracy is 100.0%: --classes ") as caught:
        scanning.scan(Coded(order=[1, 2, 0]), coded)
    order = shlex.split(str(caught.value).split("--classes ")[1])[0].split(",")
    positions = [coded.classes.index(name) for name in order]
    relabeled = torch.tensor([positions.index(k) for k in coded.split.labels.tolist()])
    fixed = scanning.Images(Split(coded.split.images, relabeled), tuple(order))
    assert Scanner(Coded(order=[1, 2, 0]), fixed, Options(), silent).accuracy()["rate"] == 1


def test_two_exchanged_classes_are_noticed_and_can_be_accepted(coded):
    wrong = Split(coded.split.images, torch.tensor([0, 2, 1])[coded.split.labels])
    many = torch.cat([torch.arange(0, 120, 3).repeat(8), torch.arange(120)])  # the first class correct, the others few
    images = scanning.Images(Split(wrong.images[many], wrong.labels[many]), ("red", "blue", "green"))
    model = scanning.prepare(Coded(), images.split.images, 3)
    with pytest.raises(NoVerdict, match="in another order the accuracy is 100.0%.* trust_preprocessing"):
        accuracy.check_accuracy(model, images, 0.5, "float32")
    assert accuracy.check_accuracy(model, images, 0.5, "float32", trust_preprocessing=True)["rate"] > 0.8


def test_names_of_classes_in_a_message_do_not_control_a_terminal(coded):
    odd = scanning.Images(coded.split, ("red", "\x1b[2Jgreen", "blue"))
    with pytest.raises(NoVerdict, match=r"--classes .*\\x1b\[2Jgreen") as caught:
        accuracy.check_accuracy(WrappedClassifier(Coded(order=[1, 2, 0])), odd, None, "float32")
    assert str(caught.value).isprintable()


def test_a_low_accuracy_can_be_accepted(coded):
    noisy = scanning.Images(Split(coded.split.images, coded.split.labels.roll(40)), coded.classes)
    with pytest.raises(NoVerdict):
        Scanner(Coded(), noisy, Options(), silent).accuracy()
    half = torch.where(torch.arange(120) < 70, coded.split.labels, (coded.split.labels + 1) % 3)
    some = scanning.Images(Split(coded.split.images, half), coded.classes)
    with pytest.raises(NoVerdict, match="expected at least 6"):
        Scanner(Coded(), some, Options(), silent).accuracy()
    assert 0.5 < Scanner(Coded(), some, Options(min_accuracy=0.3), silent).accuracy()["rate"] < 0.62


# --- the time left ---------------------------------------------------------------------------------------


def test_a_long_step_is_reported_while_it_runs(monkeypatch):
    lines = []
    progress = Progress(lines.append)
    progress.run(10, lambda: time.sleep(0.1))
    monkeypatch.setattr(Progress, "INTERVAL", 0.1)
    assert progress.run(100, lambda: time.sleep(0.35) or "result", after=10_000) == "result"
    assert len(lines) >= 2
    assert all(re.fullmatch(r"... going on; about \d+ (s|min) left", line) for line in lines), lines


def test_the_time_left_is_that_of_the_steps_so_far():
    progress = Progress()
    assert progress.left(600) == "", "nothing was measured"
    progress.seconds, progress.passes = 1.0, 5.0
    assert progress.left(445) == "; about 89 s left" and progress.left(600) == "; about 2 min left"
    assert progress.left(5, " if so") == "; about 1 s left if so"
    progress.run(1000, lambda: None)
    assert progress.left(445) == "; about 89 s left", "what came from the store does not count"


def test_passes_are_counted_for_modeling_and_screening():
    settings = Settings(betas=(0.9, 0.5), steps=10, triggers_per_step=3, images_per_trigger=2)
    assert modeling_passes(settings) == 10 * 2 * 3 * 2
    screening = ScanScreening(sizes=((3, 3),), settings=settings)
    anywhere, fixed = (screening.passes(spec, 4, (32, 32)) for spec in screening.specs())
    e = screening.effort
    inverted = e.starts * (e.images * e.steps + e.judged / 3)
    assert anywhere == pytest.approx(4 * inverted + 3 * 10 * 3 * 2), (
        "two classes and the one with the largest margin are modeled"
    )
    assert fixed > anywhere + 225 * 40 / 3
    assert screening.passes(screening.specs()[0], 2, (32, 32)) == pytest.approx(2 * inverted + 2 * 10 * 3 * 2)


def test_a_repair_is_part_of_the_time_left(coded, quick):
    without, asked = (Scanner(Coded(), coded, Options(repair=repair), silent) for repair in (False, True))
    assert without.repair_passes(1) == 0 < asked.repair_passes(0) < asked.repair_passes(1) < asked.repair_passes(3)
