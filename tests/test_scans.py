"""The published scans of models from files: the list of them, the results, and what the package carries of these."""

import importlib.util
import json

import pytest

from mesa_lib.defenses.base import describe_method
from mesa_lib.defenses.mesa.screening import PatchSpec
from mesa_lib.scan import false_positives, migration
from mesa_lib.scan.detector import limit, margin
from mesa_lib.scan.options import Options
from mesa_lib.store import paths


@pytest.fixture(scope="module")
def scans():
    spec = importlib.util.spec_from_file_location("scans", paths.root() / "benchmarks" / "scans.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def todays_settings(side=32):
    return describe_method(Options().detector(side)) | {"images": "classified correctly"}


# --- the list --------------------------------------------------------------------------------------------


def test_ten_attacked_and_ten_clean_models_on_digits(scans, tmp_path):
    every = scans.cells("digits", tmp_path)
    attacked, clean = every[:10], every[10:]
    assert all(p.attack != "none" for p in attacked) and all(p.attack == "none" for p in clean) and len(clean) == 10
    assert {p.target for p in attacked} == set(range(10)) and len({p.seed for p in every}) == 20
    assert sorted(p.start for p in attacked) == 5 * ["clean"] + 5 * ["scratch"]
    assert {size for size, *_ in scans.ATTACKED["digits"]} == {2, 3, 4, 5}
    assert len({(tmp_path / f"trigger{n}.png").read_bytes() for n in range(10)}) == 10


def test_each_model_is_listed_once_and_missing_ones_are_still_to_do(scans, tmp_path):
    out = tmp_path / "scans.json"
    arguments = scans.argparse.Namespace(dataset="digits", width=None, out=out, part="0/5")
    assert [number for number, *_ in scans.todo(arguments, tmp_path)] == [0, 5, 10, 15]
    for number, planted, more in ((5, ["5"], {}), (0, ["0"], {"controls": {}}), (10, [], {}), (5, ["5"], {"a": 1})):
        scans.keep(out, {"dataset": "digits", "number": number, "planted": planted} | more)
    runs = false_positives.load_scans(out)
    assert [run["number"] for run in runs] == [0, 5, 10] and runs[1]["a"] == 1
    assert [(number, kept.get("a")) for number, _, kept in scans.todo(arguments, tmp_path)] == [(5, 1), (15, None)]
    scans.publish(out)  # another file than the published one leaves the package as it is
    assert false_positives.published_clean_models() == false_positives.clean_models(false_positives.load_scans())


# --- the published results -------------------------------------------------------------------------------


def test_a_scan_of_today_is_compared_with_the_published_ones():
    """Its settings are theirs: otherwise a report could not say how often clean models are flagged."""
    scores = false_positives.clean_scores(todays_settings())
    assert {name: len(models) for name, models in scores.items()} == {"digits": 10}, "others had a longer search"
    assert false_positives.clean_scores(todays_settings(40)) == {}


def test_the_package_carries_the_scores_of_the_published_clean_models(scans):
    packaged = (paths.root() / "mesa_lib" / "scan" / false_positives.CLEAN_MODELS).read_text()
    assert packaged == scans.package_clean_models(false_positives.load_scans())


def test_published_verdicts_follow_from_rates_and_limits():
    """Scores are recomputed: a limit that is moved shows as a difference from what was published."""
    specs = {
        str(spec): spec for side in range(3, 11) for spec in (PatchSpec((side, side)), PatchSpec((side, side), True))
    }
    runs = false_positives.load_scans()
    assert len(runs) == 28
    for run in runs:
        scan, side = run["scan"], run["scan"]["settings"]["side"]
        for line in scan["verdicts"]:
            bound = limit(specs[line["rule"]], side)
            assert line["limit"] == bound
            assert line["score"] == pytest.approx((line["rate"] - bound) / (1 - bound), abs=0.005)
            modeled = line["modeled"] or line["screened"]
            highest = max(margin(specs[name], rate, side) for name, rate in modeled.items())
            assert highest == pytest.approx(line["score"], abs=0.005)
            assert (line["location"] is not None) == specs[line["rule"]].fixed_location
        assert scan["flagged"] == [line["class"] for line in scan["verdicts"] if line["score"] > 0]
        stands_out = "suspicious" if scan.get("suspicious") else "nothing found"
        assert scan["verdict"] == ("backdoored" if scan["flagged"] else stands_out)


def test_no_wrong_class_of_a_published_backdoor_is_flagged_and_every_repair_has_its_controls():
    for run in false_positives.load_scans():
        number = run["dataset"], run["number"]
        assert ("after" in run) == bool(run["scan"]["flagged"]) == run["scan"]["repair"]["done"], number
        if not run["planted"]:
            assert "controls" not in run, number
            continue
        assert run["scan"]["flagged"] in (run["planted"], []), number
        assert list(run["controls"]) == ["fine-tuning", "random mixed", "ideal"], number
        fine_tuned, ideal = run["controls"]["fine-tuning"], run["controls"]["ideal"]
        after = run.get("after", ideal)
        for model in (run["before"], after, fine_tuned, ideal):
            asr = model["asr"]
            assert asr["low"] - 1e-9 <= asr["rate"] <= asr["high"] + 1e-9, number
            assert asr["images"] == run["before"]["asr"]["images"], number
        assert max(after["asr"]["rate"], ideal["asr"]["rate"]) < 0.05, number
        planted = run["before"]["asr"]["rate"] > 0.5
        assert planted == (fine_tuned["asr"]["rate"] > 0.5) == (number != ("digits", 0)), "one trigger hardly took"


def test_clean_models_are_grouped_by_the_settings_of_their_scans():
    runs = [
        {
            "planted": planted,
            "dataset": dataset,
            "scan": {"settings": {"a": a}, "verdicts": [{"score": score}, {"score": -5.0}]},
        }
        for planted, dataset, a, score in (
            ([], "digits", 1, -0.5), ([], "digits", 2, 0.5), (["x"], "digits", 1, 0.9), ([], "cifar10", 1, 0.1),
        )
    ]  # fmt: skip
    groups = false_positives.clean_models(runs)
    scores = false_positives.clean_scores({"a": 1}, groups)
    assert scores == {"digits": [[-0.5, -5.0]], "cifar10": [[0.1, -5.0]]}
    assert false_positives.clean_scores({"a": 3}, groups) == {} and false_positives.clean_models([]) == []
    rates = false_positives.false_positives(scores, 0.0)
    assert {name: (rate["rate"], rate["images"]) for name, rate in rates.items()} == {
        "digits": (0, 1),
        "cifar10": (1, 1),
    }


# --- results of earlier versions -------------------------------------------------------------------------


def test_a_scan_of_an_earlier_version_is_read_in_the_names_of_today():
    old_settings = {"betas": [0.9, 0.5], "batch": 16, "lr": 0.001, "trigger_size": [3, 3], "seed": 0, "place": "image",
                    "scale": "probability"}  # fmt: skip
    old = {
        "attack": "spot",
        "scan": {
            "classes": ["seen at one place"],
            "flagged": ["seen at one place"],
            "accuracy": {"lowest": 0.5},
            "verdicts": [
                {"rule": "3x3 at one place", "place": [1, 2], "screened": {"3x3 at one place": 1.0}, "modelled": {}}
            ],
            "repair": {"samples": ["7, 3x3 at one place"], "samples fire before": [1.0], "samples fire after": [0.0]},
            "options": {"lowest": None, "as_told": False},
            "settings": {
                "screening": {
                    "settings": old_settings, "sizes": [[3, 3]], "knows": {"images": 2000}, "each": 40, "largest": 4,
                },
                "settings": old_settings, "suspect": 0.1, "most": 3, "sizes": 3, "of_repair": old_settings, "side": 32,
                "images": "answered rightly",
            },
        },
    }  # fmt: skip
    content = migration.migrate_scans({"runs": [old]})
    (run,), fixed = content["runs"], str(PatchSpec((3, 3), True))
    assert content["format"] == 2 and migration.migrate_scans(content) is content and run["attack"] == "fixed-location"
    scan = run["scan"]
    assert scan["classes"] == scan["flagged"] == ["seen at one place"], "names of classes are not ours"
    assert scan["verdicts"] == [{"rule": fixed, "location": [1, 2], "screened": {fixed: 1.0}, "modeled": {}}]
    assert scan["repair"] == {"samples": [f"7, {fixed}"], "sample ASR before": [1.0], "sample ASR after": [0.0]}
    assert scan["options"] == {"min_accuracy": None, "trust_preprocessing": False}
    new_settings = {
        "betas": "0.9,0.5", "triggers_per_step": 16, "modeling_lr": 0.001, "placement": "image",
        "hinge_scale": "probability",
    }  # fmt: skip
    assert scan["accuracy"] == {"min_accuracy": 0.5}
    assert scan["settings"] == {
        "screening": {
            "settings": new_settings, "sizes": [[3, 3]], "knowledge": {"images": 2000}, "patches_per_location": 40,
            "largest_fixed": 4,
        },
        "settings": new_settings, "suspect_above": 0.1, "max_suspects": 3, "max_specs": 3,
        "repair_modeling": new_settings, "side": 32, "images": "classified correctly",
    }  # fmt: skip
    assert json.loads(json.dumps(content)) == content
