"""The benchmark scripts: their arithmetic, what they share, and that the plain procedure is what it is compared as."""

import importlib
import json
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from mesa_lib import data
from mesa_lib.experiments import params, results
from mesa_lib.experiments.pipeline import Pipeline
from mesa_lib.reporting.tables import readme
from mesa_lib.scan import p_values
from mesa_lib.settings import PRESETS
from mesa_lib.store import paths

ROOT = paths.root()
SCRIPTS = sorted(file.stem for file in (ROOT / "benchmarks").glob("*.py") if file.stem not in ("common", "plain"))


@pytest.fixture(autouse=True)
def on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 8 * 8, 3))


SPLIT = data.Split(torch.randint(256, (160, 3, 8, 8), dtype=torch.uint8), torch.arange(160) % 3)


def test_the_multiplications_of_a_small_network():
    assert importlib.import_module("speed").multiplications(network(), 8) == 8 * 8 * 4 * 27 + 256 * 3


def test_a_plain_modeling_step_moves_generator_and_critic_and_not_the_classifier():
    plain = importlib.import_module("plain")
    model = network()
    modeling = plain.Modeling(model, 0, 0.9)

    def state(module):
        return [p.detach().clone() for p in module.parameters()]

    before = [state(m) for m in (model, modeling.G, modeling.T)]
    modeling.step(*next(iter(plain.loader(SPLIT))))
    same = [
        all(map(torch.equal, old, state(m))) for old, m in zip(before, (model, modeling.G, modeling.T), strict=True)
    ]
    assert same == [True, False, False]
    plain.Repair(model, [modeling.G]).step(*next(iter(plain.loader(SPLIT))))
    assert not all(map(torch.equal, before[0], state(model)))


def made_up(network: str, bf16: float) -> dict:
    speed = importlib.import_module("speed")
    parts = {
        "peak": {"float32": 100e9, "bfloat16": bf16, "multiply-adds an image": 1e8, "peak memory, GiB": 1.0},
        "ladder": {
            "plain: float32, contiguous, weight gradients on": 2.0, "+ freed memory kept": 1.5, "+ bf16 autocast": 0.5,
            speed.LEFT_OUT: 0.4, "compilation": 30.0, "peak memory, GiB": 1.0,
        },
        "plain": {"modeling": 2.0, "repair": 3.0, "peak memory, GiB": 2.0},
        "ours": {
            "attacked": {"asr": 0.99, "clean accuracy": 0.92}, "repaired": {"asr": 0.01, "clean accuracy": 0.91},
            "three levels": 40.0, "repair": 30.0, "checkpoint to repaired model": 70.0, "peak memory, GiB": 1.5,
            "images a second, modeling": 300.0, "images a second, training": 800.0,
        },
    }  # fmt: skip
    parts["peak again"] = parts["peak"] | {"float32": 90e9}
    about = {"params": {"network": network}, "batch": 128, "repeats": 5}
    made = {"device_name": "a processor", "threads": 2, "torch": "2"}
    return {"about": about, "made": made, "parts": parts, "summary": speed.summary(parts, 128)}


def test_the_speed_table_has_the_ratios_and_predicts_bf16_by_the_ratio_of_the_peaks():
    tables, speed = importlib.import_module("tables"), importlib.import_module("speed")
    slower = 100e9 * tables.ELSEWHERE_RATIO / 1.9
    table = tables.speed(made_up("resnet18", slower))
    assert "| + bf16 autocast | 5.7 | 3.0 | 4.0 | 500 |" in table
    assert f"| {speed.LEFT_OUT} |  |  | 5.0 | 400 |" in table and "Compilation took 30 s" in table
    assert "| peak memory, GiB | 2.0 | 1.5 |  |" in table and "compilation |" not in table
    assert "| + bf16 autocast | 4.0 | 500 |" in tables.speed(made_up("fastcnn", slower))
    figures = made_up("resnet18", slower)["summary"]
    assert figures["one step, plain / ours"] == pytest.approx(5)
    assert figures["fraction of the bf16 peak, one step"] == pytest.approx(4e8 * 128 / 0.5 / slower)


def test_every_table_of_the_benchmarks_page_is_that_of_its_result_file():
    tables = importlib.import_module("tables")
    page = (ROOT / "benchmarks" / "README.md").read_text()
    shown = re.findall(r"<!-- table (\S+) -->", page)
    measured = {name for name in tables.TABLES if (ROOT / "results" / f"{name}.json").exists()}
    assert set(shown) == measured and len(shown) >= 6
    for name in shown:
        assert tables.TABLES[name](results.load_content(name)) in page, name


def test_a_page_is_filled_between_its_markers_only(tmp_path):
    page = tmp_path / "README.md"
    page.write_text("before\n<!-- table sweep -->\nold\n<!-- end sweep -->\nafter\n")
    readme.fill_page(page, lambda name, content: f"{name} has {len(content['runs'])} runs")
    lines = page.read_text().splitlines()
    assert lines[0] == "before" and lines[-1] == "after" and re.fullmatch(r"sweep has \d+ runs", lines[2])


def test_the_page_names_every_script():
    page = (ROOT / "benchmarks" / "README.md").read_text()
    assert set(re.findall(r"^\| `(\w+)\.py` \|", page, re.M)) == set(SCRIPTS)


# --- what the scripts share ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(set(SCRIPTS) - {"tables"}))
def test_every_script_says_what_it_measures_and_where_to(name, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit, match="0"):
        importlib.import_module(name).main()
    assert "--out" in capsys.readouterr().out


@pytest.fixture
def common():
    return importlib.import_module("common")


def test_results_are_kept_run_by_run_and_continued(common, tmp_path):
    file = tmp_path / "results.json"
    first = common.Results(file, {"sweep": "a", "pair": (1, 2)}, "cpu")
    first.keep_run({"seed": 1, "asr": 0.5}, ["seed"])
    first.keep_run({"seed": 0, "asr": 0.25}, ["seed"], order=lambda run: run["seed"])
    again = common.Results(file, {"sweep": "a", "pair": (1, 2)}, "cpu")
    assert again.find_run(seed=1) == {"seed": 1, "asr": 0.5} and again.find_run(seed=2) is None
    again.keep_run({"seed": 1, "asr": 0.75}, ["seed"])
    assert again.content()["runs"] == [{"seed": 0, "asr": 0.25}, {"seed": 1, "asr": 0.75}]
    again.keep("parts", "one", {"seconds": 2})
    assert again.entries("parts") == {"one": {"seconds": 2}} and len(again.content()["runs"]) == 2
    assert again.content()["made"]["torch"] == torch.__version__
    lines = file.read_text().splitlines()
    assert '{"seed": 0, "asr": 0.25},' in lines, "a run a line"


def test_a_file_about_something_else_is_not_continued(common, tmp_path):
    file = tmp_path / "results.json"
    common.Results(file, {"sweep": "a"}, "cpu").keep_run({"seed": 1}, ["seed"])
    other = common.Results(file, {"sweep": "b"}, "cpu")
    assert other.find_run(seed=1) is None and "runs" not in other.content()


def test_processes_that_share_a_file_lose_no_run(common, tmp_path):
    file = tmp_path / "results.json"

    def add(number: int) -> None:
        common.Results(file, {"sweep": "a"}, "cpu").keep_run({"seed": number}, ["seed"])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add, range(12)))
    assert sorted(run["seed"] for run in json.loads(file.read_text())["runs"]) == list(range(12))


def test_parts_cover_a_list_once(common):
    parts = [common.in_part("abcdefg", f"{i}/3") for i in range(3)]
    assert parts == [["a", "d", "g"], ["b", "e"], ["c", "f"]] and common.in_part("ab", "0/1") == ["a", "b"]
    for bad in ("3/3", "1", "a/b", "-1/2"):
        with pytest.raises(ValueError, match="part = "):
            common.in_part("abc", bad)


# --- the scripts on a model that is trained in a moment --------------------------------------------------


@pytest.fixture(scope="module")
def tiny():
    values = {"image_size": 16, "width": 4, "clean_epochs": 2, "attack_epochs": 2, "batch_size": 64, "steps": 3}
    values |= {"triggers_per_step": 4, "hidden": 8, "repair_epochs": 1, "rounds": 1, "inversion_repeats": 1}
    return values | {"search_candidates": 32, "search_generations": 1, "betas": "0.9", "device": "cpu"}


def test_every_switch_changes_the_official_preset(tiny):
    presets = importlib.import_module("presets")
    settings = {name: params.check(changes).modeling_settings() for name, changes in presets.variants().items()}
    assert settings["official"] == PRESETS["official"] and settings["paper"] == PRESETS["paper"]
    switched = [name for name in settings if " + " in name]
    assert len(switched) == 12 and all(settings[name] != settings["official"] for name in switched)
    assert presets.variants()["ours"] == {}


def test_a_variant_is_measured_at_both_rates(tiny):
    presets = importlib.import_module("presets")
    variant = presets.measure(tiny, {"noise": "uniform"})
    assert {f"{name}, {rate} rate" for name in ("MESA", "ideal") for rate in ("published", "ours")} < set(variant)
    assert 0 <= variant["samples"] <= 1 and variant["steps"] == 3 and variant["information"] > -1


def test_the_loss_of_a_repair_is_measured_and_a_divergence_is_said(tiny, monkeypatch):
    script, pipeline = importlib.import_module("repair_loss"), Pipeline(params.check(tiny))
    monkeypatch.setattr(script, "IMAGES", {200: {"repair_epochs": 1, "batch_size": 50}})
    changes = {"repair_loss": "labels", "repair_statistics": "updated", "repair_lr": 0.01}
    row = script.measure(pipeline, 200, changes)
    assert set(row) == {"clean_accuracy", "asr"} and row["clean_accuracy"]["images"] == 400
    assert row == script.measure(pipeline, 200, changes) != script.measure(pipeline, 200, changes | {"repair_lr": 0.05})
    assert script.measure(pipeline, 200, changes | {"repair_lr": 1e9}) == {"diverged": True}


def test_residual_checks_of_clean_models_are_measured_for_every_target(tiny, tmp_path, monkeypatch, capsys):
    script, out = importlib.import_module("residual_check"), tmp_path / "checks.json"
    monkeypatch.setattr(script, "parameter_values", lambda name: tiny)
    for part in ("0/5", "0/5", "1/5"):
        monkeypatch.setattr("sys.argv", ["residual_check.py", "--out", str(out), "--models", "1", "--part", part])
        script.main()
    assert len(capsys.readouterr().out.splitlines()) == 4, "what the file holds is not measured again"
    runs = json.loads(out.read_text())["runs"]
    assert [(run["seed"], run["target"]) for run in runs] == [(60, target) for target in (0, 5, 1, 6)]
    for run in runs:
        for name in ("clean model", "clean model, repaired"):
            found = run[name]
            assert found["clear"] == (max(found["searched"], found["sampled"]) < 0.05) and found["seconds"] >= 0


def test_the_authors_procedure_stands_beside_ours_on_the_same_model(tiny, monkeypatch):
    script = importlib.import_module("official")
    few = PRESETS["official"].replace(steps=3, triggers_per_step=4, hidden=8, betas=(0.9, 0.5))
    monkeypatch.setattr(script, "PRESETS", {"official": few})
    run = json.loads(json.dumps(script.measure(tiny | {"attack": "covered", "steps": 4})))
    repaired = ["official, repaired as published", "official, our repair", "ours", "ideal"]
    assert all(set(run[name]) == {"asr", "clean_accuracy"} for name in ["attacked", *repaired])
    assert len({json.dumps(run[name]) for name in repaired[:3]}) > 1
    assert len(run["success"]["official"]) == 2 and len(run["success"]["ours"]) == 1
    own = params.check(tiny).repair_settings().replace(**script.PUBLISHED)
    assert (own.repair_epochs, own.repair_lr, own.schedule, own.repair_loss) == (10, 0.001, "constant", "labels")


def test_every_switch_is_measured_on_the_same_attacked_model(tiny):
    script, tables = importlib.import_module("ablation"), importlib.import_module("tables")
    pipeline, runs = Pipeline(params.check(tiny | {"steps": 4, "betas": "0.9,0.5"})), []
    for variant in ("ours", "one start", "alpha 0"):
        measured = json.loads(json.dumps(script.measure(pipeline, variant)))
        assert len(measured["F"]) == 2 and 0 <= measured["asr"] <= 1
        runs.append({"attacker": "a", "trigger": "bw:1", "seed": 0, "variant": variant} | measured)
    assert runs[1]["started again"] == 0, "a tiny generator misses its levels, and this one does not start again"
    assert runs[0]["F"] != runs[2]["F"]
    runs.append(runs[1] | {"seed": 1, "asr": 1.0, "F": [0.5, 0.5]})
    text = tables.ablation({"runs": runs, "made": {"device_name": "a processor", "torch": "2"}})
    assert "| variant | a (2): F, again, ASR mean (worst) |" in text and "0 of 4, " in text and "(100.0%)" in text


def test_all_repairs_get_the_same_images_and_are_measured_before_and_after_poisoned_ones(tiny, monkeypatch):
    script, tables = importlib.import_module("equal_terms"), importlib.import_module("tables")
    monkeypatch.setattr(script, "BUDGETS", {"digits": {60: {"repair_epochs": 1, "batch_size": 16}}})
    seen, pipeline = [], Pipeline(params.check(tiny | {"steps": 4}))
    view = Pipeline.defender_view

    def recorded(self, knowledge, *, model=None, clean=None):
        if clean is not None:
            seen.append(clean.labels.tolist())
        return view(self, knowledge, model=model, clean=clean)

    monkeypatch.setattr(Pipeline, "defender_view", recorded)
    model = {"attacker": "a", "poison_rate": 0.1, "seed": 0}
    runs = [model | {"images": 0, "repair": "no repair"} | script.measured(pipeline, pipeline.attacked().model)]
    for name in ("fine-tuning", "CLP", "FT-SAM", "ideal"):
        runs.append(model | {"images": 60, "repair": name} | script.measure(pipeline, 60, name))
    assert len(seen) == 4 and all(len(labels) == 60 and labels == seen[0] for labels in seen)
    assert all(0 <= run["reactivated"]["asr"] <= 1 and run["seconds"] >= 0 for run in runs[1:])
    runs.append(model | {"images": 60, "repair": "NAD", "error": "no finite loss"})
    text = tables.equal_terms({"runs": json.loads(json.dumps(runs)), "made": {"device_name": "p", "torch": "2"}})
    assert "| 60 clean images | models | accuracy lost |" in text and text.count("\n| ") == 6
    assert "| NAD | 1 (all diverged) |" in text
    trained = {"fine-tuning", "FT-SAM", "NAD"}
    assert trained < set(script.repairs(pipeline, pipeline.p.repair_settings()))


def test_every_round_has_the_check_beside_the_truth(tiny):
    script = importlib.import_module("repair_rounds")
    pipeline = Pipeline(params.check(tiny | {"rounds": 2, "clear_below": 1e-6}))
    run = json.loads(json.dumps(script.series(pipeline)))
    assert len(run["rounds"]) == 2 and {"attacked", "clean model"} < set(run)
    for record in run["rounds"]:
        assert {"searched", "sampled", "earlier", "clear", "asr", "clean_accuracy", "distance"} < set(record)
    first = pipeline.measured(pipeline.repaired("MESA"))
    assert run["rounds"][0]["asr"] == pytest.approx(first["asr"]["rate"], abs=0.02)
    beside = script.after_a_miss(pipeline, run["rounds"][0]["best"])
    assert {f"{name}, {part}" for name in ("unpaired", "best", "attacker's") for part in ("modeling", "evaluation")} < (
        set(beside)
    )
    assert 0 <= script.on_clean_model(pipeline) <= 1


def test_the_location_search_stands_beside_a_random_location_and_forward_passes(tiny):
    script = importlib.import_module("location_search")
    view = Pipeline(params.check(tiny)).defender_view(script.MESA(script.RandomLocationScreening()).knowledge)
    spec = script.PatchSpec((3, 3), True)
    drawn, again = (script.RandomLocationScreening().locations(view, spec, range(10)) for _ in range(2))
    assert drawn.shape == (10, 2) and bool((drawn == again).all()) and bool((drawn <= 13).all())
    assert len(drawn.unique(dim=0)) > 1
    assert set(script.VARIANTS) == {"drawn", "forward", "learned"}


def test_the_planted_location_is_where_a_gray_image_changes(tiny):
    script = importlib.import_module("location_search")
    pipeline = Pipeline(params.check(tiny | {"attack": "corner"}))
    victim = script.DefenseEvaluation(pipeline)
    assert script.planted_location(victim) == [13, 13]


def test_triggers_are_tried_on_the_models_of_others(tiny):
    script = importlib.import_module("cross_trigger_asr")
    pipeline = Pipeline(params.check(tiny))
    triggers = {kind: results.pack_triggers(torch.rand(2, 3, 3, 3)) for kind in script.IMAGES}
    rates = script.rates(pipeline.clean().model, pipeline, {"triggers": triggers | {"shape": [3, 3, 3]}})
    assert set(rates) == {"samples", "original", "inverted"} and all(0 <= rate <= 1 for rate in rates.values())


def test_defaults_are_judged_on_images_that_no_repair_sees(tiny):
    script = importlib.import_module("sweep")
    split = data.Split(torch.arange(60, dtype=torch.uint8).reshape(60, 1, 1, 1), torch.arange(60))
    work, judge = script.split_modeling(split, judged=20)
    assert len(work) == 40 and len(judge) == 20
    assert sorted([*work.labels.tolist(), *judge.labels.tolist()]) == list(range(60))


def test_the_halves_of_the_zoo_share_no_target_side_or_network(tmp_path):
    script = importlib.import_module("zoo")
    made = {half: [m.changes(tmp_path) for m in script.models(50) if m.half == half] for half in script.HALVES}
    for key in ("target", "network", "seed"):
        values = [
            {(c[key], c["width"]) if key == "network" else c[key] for c in made[half] if key in c} for half in made
        ]
        assert values[0] and not values[0] & values[1]
    assert not {*script.HALVES["limits"]["sides"]} & {*script.HALVES["counted"]["sides"]}
    assert len(made["limits"]) == len(made["counted"]) == 100
    assert len({c["seed"] for changes in made.values() for c in changes}) == 200


def test_a_model_of_the_zoo_is_scored_by_its_stages(tiny, monkeypatch):
    script = importlib.import_module("zoo")
    pipeline = Pipeline(params.check(tiny))
    wanted = {name: script.stages()[name] for name in ("last layer", "random patches")}
    found = {name: script.scored(detectors, pipeline, pipeline.clean().model) for name, detectors in wanted.items()}
    assert all(len(stage["scores"]) == 10 and stage["seconds"] >= 0 for stage in found.values())
    assert 0 <= max(found["random patches"]["scores"]) <= 1


def test_the_package_carries_the_scores_of_the_published_networks():
    published = json.loads((ROOT / "results" / p_values.PUBLISHED).read_text())
    packaged = (ROOT / "mesa_lib" / "scan" / p_values.PACKAGED).read_text()
    assert packaged == importlib.import_module("zoo").package_networks(published)
