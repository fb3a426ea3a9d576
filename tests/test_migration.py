"""Result files of format 1 are read in today's names, and no number of them changes."""

import json
import re

import pytest

from mesa_lib.experiments import params, results
from mesa_lib.experiments.migration import FORMAT, migrate
from mesa_lib.experiments.pipeline import CONTROLS
from mesa_lib.experiments.sweep import grid, publish
from mesa_lib.store import paths

RATE = {"rate": 0.25, "low": 0.125, "high": 0.5, "images": 1805}
#: a run as `--publish` wrote it
RUN = {
    "key": "15419f93891a4b52", "own": {"attack": "spot", "trigger": "colour:7", "kinds": "detectors"},
    "notebooks": ["one_victim"],
    "params": {"dataset": "digits", "attack": "spot", "trigger": "colour:7", "place": "image", "scale": "probability",
               "kinds": "detectors", "modelling_lr": 0.001, "point_repeats": 3},
    "trigger": "colour:7", "target": 3, "images": {"train": 800, "modelling": 597},
    "seconds": {"attack": 6.47, "modelling": 24.2}, "attack": "spot", "planted": [3],
    "rows": [
        {"model": "clean, never attacked", "triggers stamped": "", "asr": RATE},
        {"model": "fine-tune only", "triggers stamped": "no trigger at all", "asr": RATE},
        {"model": "random uniform", "triggers stamped": "random colours", "asr": RATE},
        {"model": "point 2", "triggers stamped": "one trigger reversed by SGD", "asr": RATE},
        {"model": "point", "knows": "weights, all clean images", "about": {"pruned": 4}},
        {"model": "Fine-Pruning, 4 points", "knows": "weights"},
        {"model": "MESA, target and place unknown", "about": {"places": [[1, 2]], "rules": ["3x3 at one place"]}},
        {"model": "clean, repaired", "triggers stamped": "samples of MESA, on the model never attacked", "asr": RATE},
    ],
    "point_triggers_asr": [RATE], "triggers": {"shape": [3, 3, 3], "points": "AAAA", "original": "AP8A"},
    "detectors": {"MESA, any size": {"scores": [0.5], "about": {"places": {}}},
                  "MESA, any place or one": {"about": {"places": {"3x3 at one place": [[2, 1]]}}, "knows": "none"}},
}  # fmt: skip
SWEEP = {"sweep": "bench-places", "title": "Digits, one place inside the image", "runs": [RUN]}
#: a file of `repeat`
REPEATS = {
    "params": {"dataset": "cifar10", "target": 0, "start": "clean", "compare": "", "point_repeats": 5},
    "paper": {"point baseline": [10.5, 51.4]},
    "runs": [
        {"trigger": trigger, "seed": 1, "made": {"threads": 2}, "rows": [{"model": "point 1", "asr": RATE}],
         "samples": {"alpha 0": {"asr": 0.75}}, "rounds": [{"best": [0.5], "clear": True}],
         "seconds": {"modelling": 3.5}}
        for trigger in ("bw:170", "colour:0")
    ],
}  # fmt: skip
#: files of `benchmarks/`
COVERAGE = {"params": {"place": "image"}, "never attacked": [{"searched": 0.013}],
            "runs": [{"trigger": "bw:16", "floor": {"asr": 0.5}, "beside": {"best, modelling": 0.821}}]}  # fmt: skip
CLOUDS = {"sweep": "paper-cifar10-colour", "triggers": ["colour:1"], "models": ["clean", "colour:1"],
          "asr": {"points": [[0.0453]]}}  # fmt: skip
PLACES = {"sweep": "bench-places", "runs": [{"own": {"attack": "spot"}, "place": [25, 1], "learnt": {"places": {}}}]}
OLD_FILES = {"sweep": SWEEP, "repeats": REPEATS, "coverage": COVERAGE, "clouds": CLOUDS, "places": PLACES}
#: names that no file has any more (in whole texts: keys and values)
OLD_NAMES = re.compile(
    r".*(modelling|colour|defence|at one place|any place|any size|never attacked).*|knows|places?|floor|spot|learnt"
    r"|point( \d+| baseline)?|points|point_\w+|kinds|scale|compare|fine-tune only|clean, repaired"
)
COMMITTED = sorted(f.stem for f in (paths.root() / "results").glob("*.json"))


def numbers(value):
    """All numbers of a file in order, truth values aside."""
    if isinstance(value, dict | list):
        return [n for part in (value.values() if isinstance(value, dict) else value) for n in numbers(part)]
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else []


def texts(value):
    """All keys and texts of a file, but packed triggers and hashes."""
    if isinstance(value, dict):
        packed = ("original", "samples", "inverted", "key")
        parts = [v for k, v in value.items() if not (k in packed and isinstance(v, str))]
        return {*value, *(text for part in parts for text in texts(part))}
    if isinstance(value, list):
        return {text for part in value for text in texts(part)}
    return {value} if isinstance(value, str) else set()


def test_a_run_has_todays_names():
    migrated = migrate(SWEEP)
    assert list(migrated) == ["sweep", "title", "format", "runs"] and migrated["format"] == FORMAT
    assert (
        migrated["sweep"] == "bench-fixed-location" and migrated["title"] == "Digits, a fixed location inside the image"
    )
    (run,) = migrated["runs"]
    assert run["own"] == {"attack": "fixed-location", "trigger": "color:7", "defense_kinds": "detectors"}
    assert run["params"] == {
        "dataset": "digits", "attack": "fixed-location", "trigger": "color:7", "placement": "image",
        "hinge_scale": "probability", "defense_kinds": "detectors", "modeling_lr": 0.001, "inversion_repeats": 3,
    }  # fmt: skip
    assert run["seconds"] == {"attack": 6.47, "modeling": 24.2} and run["images"] == {"train": 800, "modeling": 597}
    assert run["trigger"] == "color:7" and run["attack"] == "fixed-location" and run["key"] == RUN["key"]
    assert [row["model"] for row in run["rows"]] == [
        "clean model", "fine-tuning", "random uniform", "single inversion 2", "single inversion",
        "Fine-Pruning, 4 points", "MESA, target and location unknown", "clean model, repaired",
    ]  # fmt: skip
    assert {row["triggers stamped"] for row in run["rows"] if row.get("triggers stamped")} <= set(CONTROLS.values())
    assert run["rows"][4]["knowledge"] == "weights, all clean images"
    assert run["rows"][6]["about"] == {"locations": [[1, 2]], "rules": ["3x3 at a fixed location"]}
    assert run["inverted_triggers_asr"] == [RATE] and run["triggers"]["inverted"] == "AAAA"
    assert list(run["detectors"]) == ["MESA, size unknown", "MESA, location unknown"]
    located = run["detectors"]["MESA, location unknown"]
    assert located == {"about": {"locations": {"3x3 at a fixed location": [[2, 1]]}}, "knowledge": "none"}


def test_repeats_are_a_sweep():
    migrated = migrate(REPEATS, "cifar10-cpu")
    assert migrated["sweep"] == "readme-cifar10" and "paper" not in migrated and "params" not in migrated
    first, second = migrated["runs"]
    assert second["own"] == {"trigger": "color:0", "seed": 1} and first["key"] != second["key"]
    assert second["params"] == {
        "dataset": "cifar10", "target": 0, "start": "clean", "inversion_repeats": 5, "trigger": "color:0", "seed": 1,
    }  # fmt: skip
    assert second["notebooks"] == ["04_defending"] and second["target"] == 0
    assert second["rows"] == [{"model": "single inversion 1", "asr": RATE}] and second["seconds"] == {"modeling": 3.5}
    assert migrate(REPEATS, "mine")["sweep"] == "mine"


def test_files_of_benchmarks_have_todays_names():
    coverage = migrate(COVERAGE)
    assert coverage["clean models"] == [{"searched": 0.013}] and coverage["params"] == {"placement": "image"}
    assert coverage["runs"][0]["clean model"] == {"asr": 0.5}
    assert coverage["runs"][0]["beside"] == {"best, modeling": 0.821}
    clouds = migrate(CLOUDS)
    assert clouds["models"] == ["clean model", "color:1"] and clouds["asr"] == {"inverted": [[0.0453]]}
    (place,) = migrate(PLACES)["runs"]
    assert place == {"own": {"attack": "fixed-location"}, "location": [25, 1], "learned": {"locations": {}}}


@pytest.mark.parametrize("kind", OLD_FILES)
def test_migrating_changes_no_number_and_twice_changes_nothing(kind):
    old = json.loads(json.dumps(OLD_FILES[kind]))
    new = migrate(old)
    assert old == OLD_FILES[kind], "the content that was given stays as it is"
    assert migrate(new) == new and new != old
    if kind == "repeats":  # the parameters stand in every run
        pairs = zip(old["runs"], new["runs"], strict=True)
        for before, after in pairs:
            assert numbers(before) == numbers({k: v for k, v in after.items() if k not in ("own", "params", "target")})
        return
    assert numbers(old) == numbers({k: v for k, v in new.items() if k != "format"})


@pytest.mark.parametrize("name", COMMITTED)
def test_no_committed_file_has_an_old_name(name):
    content = json.loads((paths.root() / "results" / f"{name}.json").read_text())
    assert sorted(text for text in texts(content) if OLD_NAMES.fullmatch(text)) == []


@pytest.mark.parametrize("name", [n for n in COMMITTED if n != "scans"])
def test_committed_files_have_todays_format(name):
    content = json.loads((paths.root() / "results" / f"{name}.json").read_text())
    assert content["format"] == FORMAT and results.load_content(name) == content


def test_the_names_of_today_are_not_taken_for_old_ones():
    assert not OLD_NAMES.fullmatch("fixed-location") and not OLD_NAMES.fullmatch("Fine-Pruning, 4 points")
    for old in ("point 3", "clean, never attacked", "3x3 at one place", "colour:1", "modelling_lr", "point_repeats"):
        assert OLD_NAMES.fullmatch(old)


def published_sweeps():
    """The committed files of sweeps that the project has, with their sweeps' names."""
    contents = {name: results.load_content(name) for name in COMMITTED}
    return {name: content["sweep"] for name, content in contents.items() if "title" in content}


@pytest.mark.parametrize(("name", "sweep"), published_sweeps().items())
def test_every_published_run_is_a_cell_of_its_sweep(name, sweep):
    """So that the command that made it still takes it for done, and an old setting is no cell of another name."""
    read = grid.read(sweep)
    assert read.title == results.load_content(name)["title"]
    cells = {publish.same_cell(p.model_dump(), results.load_runs(name)[0]["notebooks"]) for _, p in read.each()}
    for run in results.load_runs(name):
        params.check(run["params"])
        cell = publish.cell_of(run) if run.get("migrated") else publish.same_cell(run["params"], run["notebooks"])
        assert cell in cells, run["own"]
