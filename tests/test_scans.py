"""The list of models that are scanned from their files: what is in it, and what was published of it."""

import importlib.util
import json
from dataclasses import asdict

import pytest
import torch

from mesa_lib.scan import false_positives
from mesa_lib.store import paths
from mesa_lib.scan.options import Options


@pytest.fixture(scope="module")
def scans():
    spec = importlib.util.spec_from_file_location("scans", paths.root() / "benchmarks" / "scans.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_ten_attacked_and_ten_clean_models_on_digits(scans, tmp_path, monkeypatch):
    monkeypatch.chdir(paths.root())
    every = scans.cells("digits", tmp_path)
    attacked, clean = every[:10], every[10:]
    assert all(p.attack != "none" for p in attacked) and all(p.attack == "none" for p in clean) and len(clean) == 10
    assert {p.target for p in attacked} == set(range(10)) and len({p.seed for p in every}) == 20
    assert sorted(p.start for p in attacked) == 5 * ["clean"] + 5 * ["scratch"]
    assert {size for size, *_ in scans.ATTACKED["digits"]} == {2, 3, 4, 5}
    assert len({(tmp_path / f"trigger{n}.png").read_bytes() for n in range(10)}) == 10


def test_each_model_is_listed_once_and_what_is_missing_is_asked_for(scans, tmp_path, monkeypatch):
    monkeypatch.chdir(paths.root())
    out = tmp_path / "scans.json"
    asked = scans.argparse.Namespace(dataset="digits", width=None, out=out, part="0/5")
    assert [number for number, *_ in scans.todo(asked, tmp_path)] == [0, 5, 10, 15]
    for number, planted, more in ((5, ["5"], {}), (0, ["0"], {"controls": {}}), (10, [], {}), (5, ["5"], {"a": 1})):
        scans.keep(out, {"dataset": "digits", "number": number, "planted": planted} | more)
    assert [run["number"] for run in scans.known(out)] == [0, 5, 10] and scans.known(out)[1]["a"] == 1
    assert [(number, held.get("a")) for number, _, held in scans.todo(asked, tmp_path)] == [(5, 1), (15, None)]


def test_a_scan_of_today_is_compared_with_the_published_ones():
    """Its settings are theirs: otherwise a report could not say how often clean models are flagged."""
    settings = json.loads(json.dumps(asdict(Options().detector(32)), default=str)) | {"images": "answered rightly"}
    known = false_positives.clean_scores(settings)
    assert {name: len(scores) for name, scores in known.items()} == {"digits": 10, "cifar10": 3}


def test_flagged_is_what_lies_above_its_limit_and_every_repair_has_its_controls():
    runs = json.loads((paths.root() / "results" / false_positives.PUBLISHED).read_text())["runs"]
    for run in runs:
        lines = run["scan"]["verdicts"]
        assert run["scan"]["flagged"] == [line["class"] for line in lines if line["score"] > 0]
        assert bool(run["planted"]) == ("controls" in run)
        if run["planted"] and "after" in run:
            rates = torch.tensor([model["asr"]["rate"] for model in (run["after"], *run["controls"].values())])
            assert len(rates) == 4 and bool(((rates >= 0) & (rates <= 1)).all())
