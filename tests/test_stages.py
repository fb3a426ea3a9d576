import json
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mesa_lib import store
from mesa_lib.experiments import params
from mesa_lib.experiments import pipeline
from mesa_lib.store import paths
from mesa_lib.experiments.params import Params
from mesa_lib.experiments.pipeline import CONTROLS
from mesa_lib.experiments.pipeline import Pipeline

TINY = {
    "image_size": 16, "device": "cpu", "width": 4, "batch_size": 64, "clean_epochs": 1, "attack_epochs": 1,
    "repair_epochs": 1, "betas": "0.9,0.5", "steps": 3, "triggers_per_step": 8, "images_per_trigger": 1,
    "critic_steps": 1, "hidden": 8, "noise_dim": 4, "point_repeats": 2,
}  # fmt: skip


def tiny(**changes) -> Pipeline:
    return Pipeline(params.check(TINY | changes))


def same(first, second) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# --- what a parameter changes ----------------------------------------------------------------------------

#: what is made, in the order in which it is made
ASKS = {
    "clean": lambda s: s.clean(),
    "attacked": lambda s: s.attacked(),
    "point": lambda s: s.point(),
    "distribution": lambda s: s.distribution(),
    "fine-tune": lambda s: s.repaired("fine-tune only"),
    "MESA": lambda s: s.repaired("MESA"),
    "rounds": lambda s: s.repaired("MESA rounds"),
    "report": lambda s: s.report(),
}
REPAIRS = {"fine-tune", "MESA", "rounds", "report"}
ALL = set(ASKS)
AFTER_CLEAN = ALL - {"clean"}
MODELING = {"distribution", "MESA", "rounds", "report"}

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
    "ema_rate": (0.5, MODELING), "place": ("batch", MODELING), "gamma": ("entropy", MODELING),
    "modeling_lr": (0.1, MODELING), "scale": ("log", MODELING), "patience": (2, MODELING),
    "clean_seed": (5, ALL), "weight_decay": (0.1, ALL), "label_smoothing": (0.1, ALL),
    "rounds": (2, {"rounds", "report"}), "clear_below": (0.3, {"rounds", "report"}),
    "repair_rate": (0.3, REPAIRS), "repair_epochs": (2, REPAIRS), "repair_lr": (0.1, REPAIRS),
    "point_repeats": (3, {"report"}), "compare": ("", {"report"}),
}  # fmt: skip
TESTED_ELSEWHERE = {"dataset", "data_dir", "checkpoint", "kinds"}


class Asked(Exception):
    pass


@pytest.fixture
def keys(monkeypatch):
    """Stages -> the key of everything that can be asked for, without making anything."""

    def ask(kind, config, *rest):
        raise Asked(f"{kind}/{store.config_key(config)}")

    def of(these: Pipeline) -> dict:
        these.data  # noqa: B018 (looked up while the store still works)
        found = {}
        with monkeypatch.context() as patch:
            patch.setattr(pipeline.store, "train_or_load", ask)
            for name, function in ASKS.items():
                with pytest.raises(Asked) as asked:
                    function(these)
                found[name] = str(asked.value)
        return found

    return of


def test_every_parameter_is_looked_at():
    assert set(CHANGES) | TESTED_ELSEWHERE == set(Params.model_fields)


@pytest.mark.parametrize("name", CHANGES)
def test_a_parameter_changes_the_keys_of_its_stage_and_all_after_it_and_none_before(keys, name):
    value, expected = CHANGES[name]
    assert getattr(tiny().p, name) != value, "the table above names another value"
    before, after = keys(tiny()), keys(tiny(**{name: value}))
    assert {stage for stage in ASKS if before[stage] != after[stage]} == expected


def test_equal_parameters_have_equal_keys_and_different_artifacts_different_ones(keys):
    first = keys(tiny())
    assert first == keys(tiny()) and len(set(first.values())) == len(ASKS)


def test_other_images_have_other_keys(keys, class_folder):
    trees = [class_folder(f"tree{seed}", seed=seed) for seed in (0, 1)]
    first, second = (keys(tiny(dataset="folder", data_dir=str(tree))) for tree in trees)
    assert not set(first.values()) & set(second.values())


def test_a_checkpoint_with_other_weights_has_other_keys(keys, tmp_path):
    file = tmp_path / "m.safetensors"
    found = []
    for seed in (0, 1):
        save_file({k: v.contiguous() for k, v in tiny().fresh(seed).state_dict().items()}, file)
        found.append(keys(tiny(checkpoint=str(file))))
    assert {stage for stage in ASKS if found[0][stage] == found[1][stage]} == set(), "the same path, other weights"


def test_a_trigger_file_with_other_pixels_has_other_keys(keys, tmp_path):
    found = []
    for value in (0.0, 1.0):
        np.save(tmp_path / "t.npy", np.full((3, 3, 3), value))
        found.append(keys(tiny(trigger=f"file:{tmp_path}/t.npy")))
    assert {stage for stage in ASKS if found[0][stage] == found[1][stage]} == {"clean"}, "the same path, other pixels"


def test_every_control_repeat_and_level_has_a_key_of_its_own(keys, monkeypatch):
    asks = {control: lambda s, c=control: s.repaired(c) for control in CONTROLS}
    asks |= {"second": lambda s: s.repaired("point", 1), "level": lambda s: s.repaired("MESA", beta=0.9)}
    asks |= {"p0": lambda s: s.point(0), "p1": lambda s: s.point(1), "alpha": lambda s: s.distribution(alpha=10)}
    asks |= {"d": lambda s: s.distribution()}
    monkeypatch.setattr(sys.modules[__name__], "ASKS", asks)
    assert len(set(keys(tiny()).values())) == len(asks)


# --- train or load ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made():
    """Everything of the tiny run, made once: the table and the stages."""
    these = tiny()
    return these, these.table()


WEIGHTS = {
    "clean": lambda s: s.clean().artifact,
    "attacked": lambda s: s.attacked().artifact,
    "distribution": lambda s: s.distribution()[1],
    "fine-tune only": lambda s: s.repaired("fine-tune only").artifact,
    "MESA": lambda s: s.repaired("MESA").artifact,
    "point": lambda s: s.repaired("point", 1).artifact,
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
    assert not after.loaded and same(before.tensors, after.tensors) and before.result == after.result


@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        ("clean", {"seed": 1}), ("clean", {"split_seed": 1}), ("clean", {"clean_lr": 0.2}),
        ("attacked", {"poison_rate": 0.3}), ("attacked", {"trigger": "bw:7"}), ("attacked", {"target": 3}),
        ("attacked", {"start": "scratch"}), ("distribution", {"alpha": 1.0}), ("distribution", {"noise": "uniform"}),
        ("MESA", {"repair_rate": 0.5}), ("MESA", {"alpha": 1.0}), ("fine-tune only", {"repair_lr": 0.1}),
    ],
)  # fmt: skip
def test_a_changed_parameter_trains_anew_and_matters(made, stage, changes):
    before, after = WEIGHTS[stage](made[0]), WEIGHTS[stage](tiny(**changes))
    assert not after.loaded and not same(before.tensors, after.tensors)


def test_controls_differ_in_what_they_stamp_alone(made):
    """All start from the attacked model; other triggers give other weights."""
    controls = [control for control in CONTROLS if control != "MESA rounds"]  # it ends as MESA if nothing is found
    weights = [made[0].repaired(control).artifact.tensors["head.weight"] for control in controls]
    assert all(not torch.equal(a, b) for i, a in enumerate(weights) for b in weights[:i])
    assert not torch.equal(made[0].point(0), made[0].point(1))


def test_the_attack_does_not_change_the_clean_model(made):
    these = tiny(poison_rate=0.7)
    before = {name: tensor.clone() for name, tensor in these.clean().model.state_dict().items()}
    these.attacked()
    assert same(before, tiny().clean().model.state_dict())


def test_the_table_has_a_row_for_each_model(made):
    rows = made[1]
    assert [row["model"] for row in rows] == [
        "clean, never attacked", "attacked", "fine-tune only", "random uniform", "random binary", "random mixed",
        "point 1", "point 2", "MESA", "MESA rounds", "ideal", "clean, repaired",
    ]  # fmt: skip
    for row in rows:
        assert row["clean_accuracy"]["images"] == 400
        assert row["asr"]["images"] + row["target_recall"]["images"] == 400


def test_rounds_tell_what_each_look_found_and_begin_with_the_round_of_mesa(made):
    once, rounds = made[0].repaired("MESA").artifact, made[0].repaired("MESA rounds").artifact
    looks = rounds.result["rounds"]
    assert 1 <= len(looks) <= made[0].p.rounds
    assert not any(look["clear"] for look in looks[:-1])
    assert all(look["clear"] == (max(look["searched"], look["sampled"], look["earlier"]) < 0.2) for look in looks)
    assert same(once.tensors, rounds.tensors) == (len(looks) == 1)


def test_models_are_handed_out_ready_for_use(made):
    these = made[0]
    for one in (these.clean(), these.attacked(), these.repaired("MESA")):
        assert not one.model.training and one.history and {"epoch", "loss", "accuracy"} <= set(one.history[0])


# --- what is refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [10, 51])
def test_a_target_outside_of_the_classes_is_refused(target):
    with pytest.raises(ValueError, match=f"target = {target}: expected a class from 0 to 9"):
        tiny(target=target).attacked()


def test_a_trigger_file_larger_than_the_image_is_refused(tmp_path):
    np.save(tmp_path / "large.npy", np.zeros((17, 5, 3)))
    with pytest.raises(ValueError, match="17x5 pixels does not fit an image of 16x16"):
        tiny(trigger=f"file:{tmp_path}/large.npy").attacked()


def test_an_unknown_control_is_refused():
    with pytest.raises(ValueError, match="control = 'prayer'"):
        tiny().repaired("prayer")


def test_an_unknown_level_is_refused(made):
    with pytest.raises(ValueError, match=r"beta = 0.7"):
        made[0].repaired("MESA", beta=0.7)


# --- a trigger of one's own, a checkpoint of one's own ---------------------------------------------------


def test_a_trigger_of_another_shape_goes_through_all_stages(tmp_path):
    np.save(tmp_path / "wide.npy", np.random.RandomState(0).rand(2, 5, 3))
    these = tiny(trigger=f"file:{tmp_path}/wide.npy", inversion_repeats=1)
    assert these.point().shape == (3, 2, 5)
    samples = these.distribution()[0].sample(4, torch.Generator().manual_seed(0))
    assert samples.shape == (4, 3, 2, 5) and len(these.table()) == 11


def checkpoint(file, **changes):
    weights = tiny(**changes).clean().artifact.tensors
    save_file(weights, file)
    return weights


def test_a_checkpoint_is_taken_for_the_clean_model(made, tmp_path):
    weights = checkpoint(tmp_path / "m.safetensors")
    these = tiny(checkpoint=str(tmp_path / "m.safetensors"), seed=7)
    clean = these.clean()
    assert same(clean.model.state_dict(), weights) and clean.history == []
    assert these.attacked().history and not same(these.attacked().model.state_dict(), weights)


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
    """In place of a split: any look at it fails."""

    def __getattribute__(self, name):
        raise AssertionError(f"forbidden images were looked at: {name}")


def without(*splits, **changes) -> Pipeline:
    these = tiny(**changes)
    these.__dict__["data"] = replace(these.data, **{split: Forbidden() for split in splits})
    return these


@pytest.fixture
def fresh_store(empty_store):
    """Nothing made before: what is asked for is made now."""


DEFENDER = {
    "distribution": lambda s: s.distribution(),
    "point": lambda s: s.point(),
    **{control: lambda s, c=control: s.repaired(c) for control in CONTROLS},
}


@pytest.mark.parametrize("name", DEFENDER)
def test_the_defender_never_sees_evaluation_images(fresh_store, name):
    DEFENDER[name](without("evaluation"))


def test_the_attacker_sees_training_images_alone(fresh_store):
    without("evaluation", "modeling").attacked()


@pytest.mark.parametrize("name", ["distribution", "point", "MESA"])
def test_the_defender_never_sees_training_images(fresh_store, name):
    tiny().attacked()
    DEFENDER[name](without("evaluation", "train"))


def test_the_measures_see_evaluation_images(fresh_store):
    """The tripwire works."""
    these = without("evaluation")
    with pytest.raises(AssertionError, match="forbidden images"):
        these.measured(these.clean())


# --- the same again --------------------------------------------------------------------------------------

SERIES = """
import json, sys
from mesa_lib import params, stages
stages.Stages(params.check(json.loads(sys.argv[1]))).report()
"""


def test_two_processes_with_empty_stores_write_the_same_bytes(tmp_path):
    stores = [tmp_path / "first", tmp_path / "second"]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", SERIES, json.dumps(TINY)],
            env=os.environ | {"MESA_RUNS": str(where), "OMP_NUM_THREADS": "1"},
            cwd=paths.root(), stderr=subprocess.PIPE, text=True,
        )
        for where in stores
    ]  # fmt: skip
    for process in running:
        assert process.wait() == 0, process.stderr.read()
        process.stderr.close()
    first, second = (
        {
            f.relative_to(where).as_posix(): f.read_bytes()
            for f in sorted(where.rglob("*"))
            if f.is_file() and ".locks" not in f.parts
        }
        for where in stores
    )
    assert first.keys() == second.keys()
    kinds = {name.split("/")[0] for name in first}
    assert kinds == {"clean", "attacked", "distribution", "point", "repaired", "measured", "report"}
    differ = [name for name in first if not name.endswith("made.json") and first[name] != second[name]]
    assert not differ
    assert sum(name.endswith("tensors.safetensors") for name in first) == 1 + 1 + 1 + 2 + 10


# --- every parameter file, end to end --------------------------------------------------------------------


@pytest.mark.parametrize("file", sorted((paths.root() / "params").glob("*.yaml")), ids=lambda f: f.stem)
def test_every_parameter_file_runs_to_the_table(small_tree, file):
    small = {"dataset": "folder", "data_dir": small_tree, "device": "cpu", "width": 2, "batch_size": 16, "target": 0,
             "hidden": 16, "steps": 2, "triggers_per_step": 8, "point_repeats": 1, "clean_epochs": 1,
             "attack_epochs": 1, "repair_epochs": 1}  # fmt: skip
    these = Pipeline(params.read([file], [f"{name}={value}" for name, value in small.items()]))
    rows = these.table()
    assert [row["model"] for row in rows[2:]] == [name.replace("point", "point 1") for name in CONTROLS]
    assert len(rows) == 2 + 9
    for row in rows:
        for name in ("clean_accuracy", "target_recall", "asr", "true_label_accuracy"):
            assert 0 <= row[name]["low"] <= row[name]["rate"] <= row[name]["high"] <= 1
        assert row["clean_accuracy"]["images"] == 12
