"""The pipeline: which parameter changes which key, train or load, who sees which images, equal bytes on every run."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mesa_lib import distribution, retrain, store
from mesa_lib.defenses.controls import RandomTriggersRepair
from mesa_lib.defenses.mesa.repair import MESARepair
from mesa_lib.defenses.registry import REPAIRERS
from mesa_lib.experiments import params, pipeline
from mesa_lib.experiments.params import Params
from mesa_lib.experiments.pipeline import CONTROLS, Pipeline
from mesa_lib.experiments.trained import REUSED_SECONDS
from mesa_lib.store import paths

TINY = {
    "image_size": 16, "device": "cpu", "width": 4, "batch_size": 64, "clean_epochs": 1, "attack_epochs": 1,
    "repair_epochs": 1, "betas": "0.9,0.5", "steps": 3, "triggers_per_step": 8, "images_per_trigger": 1,
    "critic_steps": 1, "hidden": 8, "noise_dim": 4, "inversion_repeats": 2, "rounds": 2,
    "search_candidates": 64, "search_generations": 1, "inversion_restarts": 4,
}  # fmt: skip


def tiny(**changes) -> Pipeline:
    return Pipeline(params.check(TINY | changes))


def same(first, second) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# --- what a parameter changes ----------------------------------------------------------------------------

#: the stages, in the order in which they are trained
STAGES = {
    "clean": lambda s: s.clean(),
    "attacked": lambda s: s.attacked(),
    "inversion": lambda s: s.inverted_trigger(),
    "distribution": lambda s: s.distribution(),
    "fine-tuning": lambda s: s.repaired("fine-tuning"),
    "best inversion": lambda s: s.repaired("best inversion"),
    "MESA": lambda s: s.repaired("MESA"),
    "rounds": lambda s: s.repaired("MESA rounds"),
    "report": lambda s: s.report(),
}
REPAIRS = {"fine-tuning", "best inversion", "MESA", "rounds", "report"}
ALL = set(STAGES)
AFTER_CLEAN = ALL - {"clean"}
MODELING = {"distribution", "MESA", "rounds", "report"}
ROUNDS = {"rounds", "report"}

#: every parameter: another value, and what has another key then
CHANGES = {
    "image_size": (17, ALL), "split_seed": (1, ALL), "seed": (1, ALL), "device": ("auto", ALL),
    "precision": ("bf16", ALL), "network": ("resnet18", ALL), "width": (5, ALL), "clean_epochs": (2, ALL),
    "clean_lr": (0.2, ALL), "batch_size": (32, ALL), "augment": ("none", ALL),
    "attack": ("corner", AFTER_CLEAN), "trigger": ("bw:1", AFTER_CLEAN), "target": (1, AFTER_CLEAN),
    "start": ("scratch", AFTER_CLEAN),
    "poison_rate": (0.2, AFTER_CLEAN), "attack_epochs": (2, AFTER_CLEAN), "attack_lr": (0.1, AFTER_CLEAN),
    "retrain_augment": ("none", AFTER_CLEAN), "schedule": ("constant", AFTER_CLEAN),
    "alpha": (0.2, MODELING), "betas": ("0.9", MODELING), "steps": (4, MODELING),
    "triggers_per_step": (9, MODELING), "images_per_trigger": (2, MODELING),
    "critic_steps": (2, MODELING), "generator": ("plain", MODELING),
    "hidden": (9, MODELING), "noise_dim": (8, MODELING), "noise": ("uniform", MODELING),
    "critic": ("leaky", MODELING), "hinge": ("image", MODELING), "trigger_noise": (0.0, MODELING),
    "ema_rate": (0.5, MODELING), "placement": ("batch", MODELING), "gamma": ("entropy", MODELING),
    "modeling_lr": (0.1, MODELING), "hinge_scale": ("probability", MODELING), "patience": (2, MODELING),
    "clean_seed": (5, ALL), "weight_decay": (0.1, ALL), "label_smoothing": (0.1, ALL),
    "rounds": (3, ROUNDS), "clear_below": (0.3, ROUNDS),
    "search_candidates": (65, MODELING), "search_generations": (2, MODELING),
    "repair_rate": (0.3, REPAIRS), "repair_epochs": (2, REPAIRS), "repair_lr": (0.1, REPAIRS),
    "repair_loss": ("labels", REPAIRS), "repair_statistics": ("frozen", REPAIRS),
    "inversion_restarts": (5, MODELING | {"best inversion"}),
    "inversion_repeats": (3, {"report"}), "detector_search": ("full", {"report"}), "compare_attack": ("", {"report"}),
    "compare_triggers": ("", {"report"}),
    "defense_kinds": ("filters", {"report"}),
}  # fmt: skip
#: of the covered attack alone: another value
COVERED = {"cover": "near", "cover_rate": 0.2, "more_triggers": "bw:97,color:1"}
TESTED_ELSEWHERE = {"dataset", "data_dir", "checkpoint", *COVERED}


class Asked(Exception):
    pass


@pytest.fixture
def keys(monkeypatch):
    """A function: pipeline -> the key of every stage, without training anything."""

    def ask(kind, config, *rest):
        raise Asked(f"{kind}/{store.config_key(config)}")

    def keys_of(stages: Pipeline, functions=STAGES) -> dict:
        stages.data  # noqa: B018 (looked up while the store still works)
        names = {}
        with monkeypatch.context() as patch:
            patch.setattr(pipeline.store, "train_or_load", ask)
            for name, function in functions.items():
                with pytest.raises(Asked) as asked:
                    function(stages)
                names[name] = str(asked.value)
        return names

    return keys_of


def test_every_parameter_is_tested():
    assert set(CHANGES) | TESTED_ELSEWHERE == set(Params.model_fields)


@pytest.mark.parametrize("name", CHANGES)
def test_a_parameter_changes_the_keys_of_its_stage_and_all_after_it_and_none_before(keys, name):
    value, expected = CHANGES[name]
    assert getattr(tiny().p, name) != getattr(params.check({name: value}), name), "the table names another value"
    before, after = keys(tiny()), keys(tiny(**{name: value}))
    assert {stage for stage in STAGES if before[stage] != after[stage]} == expected


@pytest.mark.parametrize("name", COVERED)
def test_a_parameter_of_cover_samples_changes_the_keys_of_the_attacks_that_have_them_alone(keys, name):
    for attack, expected in (
        ("covered", AFTER_CLEAN),
        ("adaptive", AFTER_CLEAN),
        ("patch", {"report"}),
    ):  # the report holds all parameters
        before, after = (keys(tiny(attack=attack, **changes)) for changes in ({}, {name: COVERED[name]}))
        assert {stage for stage in STAGES if before[stage] != after[stage]} == expected


def test_further_triggers_have_keys_by_their_pixels(keys):
    first, spaced, other = (
        keys(tiny(attack="covered", more_triggers=more)) for more in ("bw:97,bw:1", "bw:97, bw:1,", "bw:1,bw:97,bw:3")
    )
    assert {stage for stage in STAGES if first[stage] != spaced[stage]} == {"report"}
    assert {stage for stage in STAGES if first[stage] != other[stage]} == AFTER_CLEAN


def test_equal_parameters_have_equal_keys_and_different_artifacts_different_ones(keys):
    first = keys(tiny())
    assert first == keys(tiny()) and len(set(first.values())) == len(STAGES)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [({"attack_epochs": 2}, {"report"}), ({"attack_lr": 0.5}, AFTER_CLEAN), ({"schedule": "constant"}, AFTER_CLEAN)],
)
def test_an_attack_from_scratch_has_the_epochs_of_clean_training(keys, changes, expected):
    """Attacks that try something first (`reflection`) do so with the attack's learning rate and schedule."""
    before, after = keys(tiny(start="scratch")), keys(tiny(start="scratch", **changes))
    assert {stage for stage in STAGES if before[stage] != after[stage]} == expected


def test_other_images_have_other_keys(keys, class_folder):
    trees = [class_folder(f"tree{seed}", seed=seed) for seed in (0, 1)]
    first, second = (keys(tiny(dataset="folder", data_dir=str(tree))) for tree in trees)
    assert not set(first.values()) & set(second.values())


def test_a_checkpoint_with_other_weights_has_other_keys(keys, tmp_path):
    file = tmp_path / "m.safetensors"
    names = []
    for seed in (0, 1):
        save_file({k: v.contiguous() for k, v in tiny().build_model(seed).state_dict().items()}, file)
        names.append(keys(tiny(checkpoint=str(file))))
    assert {stage for stage in STAGES if names[0][stage] == names[1][stage]} == set(), "the same path, other weights"
    scratch, other = (keys(tiny(checkpoint=str(file), start="scratch", **c)) for c in ({}, {"clean_lr": 0.3}))
    assert {stage for stage in STAGES if scratch[stage] == other[stage]} == {"clean"}, "it trains the attacked model"


def test_a_trigger_file_with_other_pixels_has_other_keys(keys, tmp_path):
    names = []
    for value in (0.0, 1.0):
        np.save(tmp_path / "t.npy", np.full((3, 3, 3), value))
        names.append(keys(tiny(trigger=f"file:{tmp_path}/t.npy")))
    assert {stage for stage in STAGES if names[0][stage] == names[1][stage]} == {"clean"}, "the same path, other pixels"


def test_every_repair_repeat_level_and_method_has_a_key_of_its_own(keys):
    functions = {name: lambda s, n=name: s.repaired(n) for name in {*CONTROLS, *REPAIRERS}}
    functions |= {
        "second": lambda s: s.repaired("single inversion", 1),
        "level": lambda s: s.repaired("MESA", beta=0.9),
        "inversion 0": lambda s: s.inverted_trigger(0),
        "inversion 1": lambda s: s.inverted_trigger(1),
        "distribution": lambda s: s.distribution(),
        "alpha": lambda s: s.distribution(alpha=10),
        "other settings": lambda s: s.repaired("MESA", method=MESARepair(s.p.modeling_settings(alpha=10))),
        "other family": lambda s: s.repaired("random mixed", method=RandomTriggersRepair("gray")),
    }
    assert len(set(keys(tiny(), functions).values())) == len(functions)


# --- train or load ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made():
    """The tiny run, trained once: the pipeline and its table."""
    stages = tiny()
    return stages, stages.table()


WEIGHTS = {
    "clean": lambda s: s.clean().artifact,
    "attacked": lambda s: s.attacked().artifact,
    "distribution": lambda s: s.distribution()[1],
    "fine-tuning": lambda s: s.repaired("fine-tuning").artifact,
    "MESA": lambda s: s.repaired("MESA").artifact,
    "single inversion": lambda s: s.repaired("single inversion", 1).artifact,
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_second_call_loads_the_same_weights(made, name):
    first, second = WEIGHTS[name](made[0]), WEIGHTS[name](tiny())
    assert second.loaded and same(first.tensors, second.tensors) and second.tensors


@pytest.mark.parametrize("name", WEIGHTS)
def test_what_was_lost_is_made_again_to_the_bit(made, name):
    before = WEIGHTS[name](made[0])
    shutil.rmtree(before.path)
    after = WEIGHTS[name](tiny())
    assert not after.loaded and same(before.tensors, after.tensors)
    results = [dict(artifact.result) for artifact in (before, after)]
    for result in results:
        result.pop(REUSED_SECONDS, None)  # a search of the modeling that the same process had done
    assert results[0] == results[1]


@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        ("clean", {"seed": 1}), ("clean", {"split_seed": 1}), ("clean", {"clean_lr": 0.2}),
        ("attacked", {"poison_rate": 0.3}), ("attacked", {"trigger": "bw:7"}), ("attacked", {"target": 3}),
        ("attacked", {"start": "scratch"}), ("distribution", {"alpha": 1.0}), ("distribution", {"noise": "uniform"}),
        ("attacked", {"attack": "covered"}), ("attacked", {"attack": "covered", "cover": "near"}),
        ("attacked", {"attack": "covered", "more_triggers": "bw:97"}), ("attacked", {"attack": "adaptive"}),
        ("MESA", {"repair_rate": 0.5}), ("fine-tuning", {"repair_lr": 0.1}),
        ("MESA", {"repair_loss": "labels"}), ("fine-tuning", {"repair_statistics": "frozen"}),
    ],
)  # fmt: skip
def test_a_changed_parameter_trains_anew_and_matters(made, stage, changes):
    before, after = WEIGHTS[stage](made[0]), WEIGHTS[stage](tiny(**changes))
    assert not after.loaded and not same(before.tensors, after.tensors)


@pytest.fixture
def every_level_reached(empty_store, monkeypatch):
    """The tiny generators miss their levels, for which a search would step in; here their samples are stamped."""
    monkeypatch.setattr(distribution, "REACHED", 0.0)


def test_other_settings_of_modeling_give_another_repair(every_level_reached):
    first, other = (tiny(**changes).repaired("MESA").artifact for changes in ({}, {"alpha": 1.0}))
    assert not same(first.tensors, other.tensors) and "failed" not in first.result


def test_a_repair_whose_levels_all_miss_says_so_and_rests_on_the_search(empty_store, monkeypatch):
    monkeypatch.setattr(distribution, "REACHED", 2.0)
    for candidates in (64, 65):
        result = tiny(search_candidates=candidates).repaired("MESA").about
        assert result["missed"] == [0.9, 0.5] and "a trigger search found" in result["failed"]


def test_the_success_of_levels_is_stored(made):
    fitted, artifact = tiny().distribution()
    assert [level.success for level in fitted.levels] == [entry["success"] for entry in artifact.result["levels"]]
    assert all(0 <= level.success <= 1 for level in fitted.levels)


def test_controls_differ_in_what_they_stamp_alone(made):
    """All start from the attacked model; other triggers give other weights."""
    controls = [name for name in CONTROLS if name != "MESA rounds"]  # it ends as MESA if nothing is found
    weights = [made[0].repaired(name).artifact.tensors["head.weight"] for name in controls]
    assert all(not torch.equal(a, b) for i, a in enumerate(weights) for b in weights[:i])
    assert not torch.equal(made[0].inverted_trigger(0), made[0].inverted_trigger(1))


def test_a_repair_is_the_retraining_that_anybody_can_call(every_level_reached):
    """What `MESA` and `single inversion` stamp is what the pipeline hands out, with one seed of retraining for all."""
    stages = tiny()
    images = stages.defender_view(MESARepair().knowledge).clean
    sources = {"MESA": stages.distribution()[0].sample, "single inversion": retrain.constant(stages.inverted_trigger())}
    seed = pipeline.devices.derive_seed(stages.defender_seed, "retrain")
    for name, source in sources.items():
        model, history = retrain.repair(
            stages.attacked().model, images.images, images.labels, retrain.stamping(source),
            stages.p.repair_settings(), seed=seed, precision=stages.p.precision,
        )  # fmt: skip
        trained = stages.repaired(name)
        assert same(model.state_dict(), trained.model.state_dict()) and history == trained.history


def test_the_attack_does_not_change_the_clean_model(made):
    stages = tiny(poison_rate=0.7)
    before = {name: tensor.clone() for name, tensor in stages.clean().model.state_dict().items()}
    stages.attacked()
    assert same(before, tiny().clean().model.state_dict())


def test_the_table_has_a_row_for_each_model(made):
    rows = made[1]
    assert [row["model"] for row in rows] == [
        "clean model", "attacked", "fine-tuning", "random uniform", "random binary", "random mixed",
        "single inversion 1", "single inversion 2", "best inversion", "all inversions", "MESA", "MESA rounds", "ideal",
        "clean model, repaired",
    ]  # fmt: skip
    for row in rows:
        assert row["clean_accuracy"]["images"] == 400
        assert row["asr"]["images"] + row["target_recall"]["images"] == 400


def test_a_row_says_whether_its_repair_failed(monkeypatch):
    def repaired(self, name, repeat=0):
        check = {"searched": 0.04, "sampled": 0.125, "earlier": 0.0, "clear": False}
        failed = {"failed": f"nothing {repeat}"} if name in ("MESA", "single inversion") else {}
        return SimpleNamespace(about=failed | ({"rounds": [check]} if name == "MESA rounds" else {}))

    monkeypatch.setattr(Pipeline, "repaired", repaired)
    monkeypatch.setattr(Pipeline, "measured", lambda self, trained: {"asr": 0.5})
    for name in ("clean", "attacked"):
        monkeypatch.setattr(Pipeline, name, lambda self: SimpleNamespace(about={}))
    rows = tiny().table()
    assert {row["model"]: row["failed"] for row in rows if "failed" in row} == {
        "single inversion 1": "nothing 0", "single inversion 2": "nothing 1",
        "MESA": "nothing 0; the residual check finds triggers with an ASR of 12%",
    }  # fmt: skip
    assert len(rows) == 14 and all(row["asr"] == 0.5 for row in rows)
    assert {row["model"]: row["residual_asr"] for row in rows if "residual_asr" in row} == {"MESA": 0.125}


def test_rounds_tell_what_each_check_found_and_begin_with_the_round_of_mesa(made):
    stages, once, rounds = made[0], made[0].repaired("MESA").artifact, made[0].repaired("MESA rounds").artifact
    checks = rounds.result["rounds"]
    assert 1 <= len(checks) <= stages.p.rounds
    assert not any(check["clear"] for check in checks[:-1])
    for check in checks:
        assert check["clear"] == (max(check["searched"], check["sampled"], check["earlier"]) < stages.p.clear_below)
    assert same(once.tensors, rounds.tensors) == (len(checks) == 1)
    assert rounds.result["history"][: len(once.result["history"])] == once.result["history"]


def test_models_are_handed_out_ready_for_use(made):
    stages = made[0]
    for trained in (stages.clean(), stages.attacked(), stages.repaired("MESA")):
        assert not trained.model.training and trained.history
        assert {"epoch", "loss", "accuracy"} <= set(trained.history[0])


# --- what is refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [10, 51])
def test_a_target_outside_of_the_classes_is_refused(target):
    with pytest.raises(ValueError, match=f"target = {target}: expected a class from 0 to 9"):
        tiny(target=target).attacked()


def test_a_trigger_file_larger_than_the_image_is_refused(tmp_path):
    np.save(tmp_path / "large.npy", np.zeros((17, 5, 3)))
    with pytest.raises(ValueError, match="17x5 pixels does not fit an image of 16x16"):
        tiny(trigger=f"file:{tmp_path}/large.npy").attacked()


def test_further_triggers_of_another_size_are_refused_before_anything_is_trained(tmp_path):
    np.save(tmp_path / "wide.npy", np.zeros((2, 5, 3)))
    stages = tiny(trigger=f"file:{tmp_path}/wide.npy", attack="covered", more_triggers="bw:97")
    with pytest.raises(ValueError, match=r"more_triggers = patches of \(3, 3\): expected \(2, 5\)"):
        stages.check()


def test_an_unknown_repair_is_refused_with_the_names():
    with pytest.raises(ValueError, match="repair = 'prayer': expected one of fine-tuning, .*ideal, .*pruning"):
        tiny().repaired("prayer")


def test_an_unknown_level_is_refused(made):
    with pytest.raises(ValueError, match=r"beta = 0.7"):
        made[0].repaired("MESA", beta=0.7)


# --- a trigger of one's own, a checkpoint of one's own ---------------------------------------------------


def test_a_trigger_of_another_shape_goes_through_all_stages(tmp_path):
    np.save(tmp_path / "wide.npy", np.random.RandomState(0).rand(2, 5, 3))
    stages = tiny(trigger=f"file:{tmp_path}/wide.npy", inversion_repeats=1)
    assert stages.inverted_trigger().shape == (3, 2, 5)
    samples = stages.distribution()[0].sample(4, torch.Generator().manual_seed(0))
    assert samples.shape == (4, 3, 2, 5) and len(stages.table()) == 13


def checkpoint(file, **changes):
    weights = tiny(**changes).clean().artifact.tensors
    save_file(weights, file)
    return weights


def test_a_checkpoint_is_the_clean_model(made, tmp_path):
    weights = checkpoint(tmp_path / "m.safetensors")
    stages = tiny(checkpoint=str(tmp_path / "m.safetensors"), seed=7)
    clean = stages.clean()
    assert same(clean.model.state_dict(), weights) and clean.history == []
    assert stages.attacked().history and not same(stages.attacked().model.state_dict(), weights)


@pytest.mark.parametrize("changes", [{"width": 5}, {"network": "resnet18"}])
def test_a_checkpoint_of_another_architecture_is_refused(made, tmp_path, changes):
    checkpoint(tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match="m.safetensors: another architecture than"):
        tiny(checkpoint=str(tmp_path / "m.safetensors"), **changes).clean()


@pytest.mark.parametrize("write", [torch.save, lambda v, f: f.write_bytes(pickle.dumps(v))], ids=["torch", "pickle"])
def test_a_checkpoint_that_is_a_pickle_is_refused(made, tmp_path, write):
    write(made[0].clean().artifact.tensors, tmp_path / "m.pt")
    with pytest.raises(ValueError, match="checkpoint = 'm.pt' is a pickle"):
        tiny(checkpoint=str(tmp_path / "m.pt")).clean()


# --- who sees which images -------------------------------------------------------------------------------


class Forbidden:
    """In place of a split: any access fails."""

    def __getattribute__(self, name):
        raise AssertionError(f"forbidden images: {name}")

    def __len__(self):
        raise AssertionError("forbidden images: len")


def without(*splits, **changes) -> Pipeline:
    stages = tiny(**changes)
    stages.__dict__["data"] = replace(stages.data, **{split: Forbidden() for split in splits})
    return stages


def test_the_attacker_sees_training_images_alone(empty_store):
    assert not without("evaluation", "modeling").attacked().artifact.loaded


def test_the_defender_sees_modeling_images_alone(empty_store):
    """(The clean model and the attack are trained before, by those who have other images.)"""
    tiny().attacked()
    stages = without("evaluation", "train")
    assert not stages.distribution()[1].loaded and stages.inverted_trigger().shape == (3, 3, 3)
    for name in dict.fromkeys([*CONTROLS, "pruning", "Fine-Pruning"]):
        assert not stages.repaired(name).artifact.loaded, name


@pytest.mark.parametrize("split", ["evaluation", "modeling"])
def test_the_tripwires_work(empty_store, split):
    stages = without(split)
    with pytest.raises(AssertionError, match="forbidden images"):
        stages.measured(stages.clean()) if split == "evaluation" else stages.repaired("fine-tuning")


# --- equal bytes -----------------------------------------------------------------------------------------

SERIES = """
import json, sys
from mesa_lib.experiments import params, pipeline
stages = pipeline.Pipeline(params.check(json.loads(sys.argv[1])))
stages.report()
for repeat in range(2):
    stages.inverted_trigger(repeat)
"""


def test_two_processes_with_empty_stores_write_the_same_bytes(tmp_path):
    stores = [tmp_path / "first", tmp_path / "second"]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", SERIES, json.dumps(TINY)],
            env=os.environ | {"MESA_RUNS": str(folder), "OMP_NUM_THREADS": "1"},
            cwd=paths.root(), stderr=subprocess.PIPE, text=True,
        )
        for folder in stores
    ]  # fmt: skip
    for process in running:
        assert process.wait() == 0, process.stderr.read()
        process.stderr.close()
    first, second = (
        {
            f.relative_to(folder).as_posix(): f.read_bytes()
            for f in sorted(folder.rglob("*"))
            if f.is_file() and ".locks" not in f.parts
        }
        for folder in stores
    )
    assert first.keys() == second.keys()
    kinds = {name.split("/")[0] for name in first}
    assert kinds == {"clean", "attacked", "distribution", "inversion", "repaired", "measured", "report"}
    for written in (first, second):  # a repair that reuses an earlier search tells how long that took
        for name in [name for name in written if name.startswith("repaired/") and name.endswith("result.json")]:
            written[name] = {k: v for k, v in json.loads(written[name]).items() if k != REUSED_SECONDS}
    differ = [name for name in first if not name.endswith("made.json") and first[name] != second[name]]
    assert not differ
    assert sum(name.endswith("tensors.safetensors") for name in first) == 1 + 1 + 1 + 2 + 12


# --- every parameter file, end to end --------------------------------------------------------------------


@pytest.mark.parametrize("file", sorted((paths.root() / "params").glob("*.yaml")), ids=lambda f: f.stem)
def test_every_parameter_file_runs_to_the_table(small_tree, file):
    small = {"dataset": "folder", "data_dir": small_tree, "device": "cpu", "width": 2, "batch_size": 16, "target": 0,
             "hidden": 16, "steps": 2, "triggers_per_step": 8, "inversion_repeats": 1, "clean_epochs": 1,
             "attack_epochs": 1, "repair_epochs": 1, "rounds": 1, "search_candidates": 32,
             "search_generations": 0, "inversion_restarts": 2}  # fmt: skip
    stages = Pipeline(params.read([file], [f"{name}={value}" for name, value in small.items()]))
    rows = stages.table()
    assert [row["model"] for row in rows[2:]] == [
        name.replace("single inversion", "single inversion 1") for name in CONTROLS
    ]
    assert len(rows) == 2 + 11
    for row in rows:
        for name in ("clean_accuracy", "target_recall", "asr", "true_label_accuracy"):
            assert 0 <= row[name]["low"] <= row[name]["rate"] <= row[name]["high"] <= 1
        assert row["clean_accuracy"]["images"] == 12
