"""The benchmark as a whole: what methods get, one repair for pipeline and benchmark, what a record holds."""

import json

import pytest
import torch
from victims import victim

from mesa_lib.defenses import registry
from mesa_lib.defenses.controls import FineTuning, RandomTriggersRepair
from mesa_lib.defenses.mesa.screening import Screening
from mesa_lib.defenses.neural_cleanse import NeuralCleanse
from mesa_lib.device import rng
from mesa_lib.experiments import params
from mesa_lib.experiments.benchmark import DefenseEvaluation
from mesa_lib.experiments.pipeline import Pipeline
from mesa_lib.experiments.trained import seconds
from mesa_lib.settings import Settings

TINY = {
    "image_size": 16, "device": "cpu", "width": 4, "batch_size": 64, "clean_epochs": 1, "attack_epochs": 1,
    "repair_epochs": 1, "betas": "0.9,0.5", "steps": 3, "triggers_per_step": 8, "images_per_trigger": 1,
    "critic_steps": 1, "hidden": 8, "noise_dim": 4, "inversion_repeats": 1, "rounds": 1, "search_candidates": 32,
    "search_generations": 0, "clean_seed": 0,
}  # fmt: skip
QUICK = Settings(betas=(0.9,), steps=3, triggers_per_step=8, hidden=8, noise_dim=4)


def tiny(**changes) -> DefenseEvaluation:
    return DefenseEvaluation(Pipeline(params.check(TINY | changes)))


# --- what a method gets ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["DETECTORS", "REPAIRERS", "FILTERS"])
def test_a_method_gets_modeling_images_and_no_others(kind):
    evaluation = tiny()
    as_bytes = {
        part: {x.numpy().tobytes() for x in getattr(evaluation.data, part).images}
        for part in ("modeling", "evaluation")
    }
    for name, build in getattr(registry, kind).items():
        knowledge = build().knowledge
        if knowledge.images == 0:
            continue
        images = [x.numpy().tobytes() for x in evaluation.view(knowledge).clean.images]
        assert images and set(images) <= as_bytes["modeling"] and not set(images) & as_bytes["evaluation"], name
        assert knowledge.images is None or len(images) <= knowledge.images, name


def test_the_defenders_seed_is_not_the_attackers():
    evaluation = tiny(attack="blended")
    seed = evaluation.view(NeuralCleanse().knowledge).seed
    assert seed != evaluation.p.seed

    def drawn(seed: int) -> torch.Tensor:
        return torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(seed))

    trigger = evaluation.pipeline.backdoor.apply(torch.zeros(1, 3, 16, 16), rng(0))[0] / 0.2
    assert not torch.allclose(drawn(seed), trigger, atol=0.01)


@pytest.mark.parametrize(("attack", "size"), [("patch", (3, 3)), ("one-pixel", (1, 1)), ("blended", (3, 3))])
def test_random_patches_have_the_size_of_the_planted_patch(attack, size):
    evaluation, method = tiny(attack=attack), RandomTriggersRepair("mixed")
    view = evaluation.view(method.knowledge)
    assert view.size == evaluation.pipeline.patch_size == size
    (stamping,), _ = method.transforms(view)
    images = torch.full((20, 3, 16, 16), -1.0)
    changed = (stamping(images, rng(0)) != images).any(1).flatten(1).sum(1)
    assert torch.equal(changed, torch.full((20,), size[0] * size[1]))


def test_the_planted_classes_are_those_that_the_attacker_can_have():
    expected = {"trojannet": list(range(10)), "all-to-all": list(range(10)), "patch": [3], "none": []}
    assert {name: tiny(attack=name, target=3).planted for name in expected} == expected


@pytest.mark.parametrize("ask", ["verdict", "repaired", "filtered", "reformed"])
def test_an_unknown_method_is_refused_with_the_names(ask):
    with pytest.raises(ValueError, match="= 'magic': expected one of"):
        getattr(tiny(), ask)("magic")


# --- results ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["MESA", "single inversion", "best inversion", "random mixed", "fine-tuning", "MESA rounds"]
)
def test_a_repair_of_the_benchmark_is_that_of_the_pipeline(name):
    evaluation = tiny()
    first, second = evaluation.pipeline.repaired(name).artifact, evaluation.repaired(name).artifact
    assert first.path == second.path and second.loaded


def test_a_method_with_other_settings_is_another_result():
    evaluation = tiny()
    named = evaluation.verdict("MESA screening", Screening(settings=QUICK))
    other = evaluation.verdict("MESA screening", Screening(settings=QUICK.replace(steps=4)))
    again = tiny().verdict("MESA screening", Screening(settings=QUICK))
    assert named.path == again.path != other.path and again.loaded and len(named.result["scores"]) == 10


def test_a_repair_that_reuses_a_search_has_its_seconds():
    """A trigger that was inverted before is not inverted again; the repair counts the seconds nevertheless."""
    evaluation = tiny(seed=1)
    evaluation.pipeline.inverted_trigger()
    trained = evaluation.repaired("single inversion")
    assert seconds(trained.artifact) > trained.artifact.made["seconds"]
    assert set(trained.about) <= {"inverted", "failed"}, "the seconds of the search are no result"


def test_a_record_holds_every_kind_with_seconds_and_knowledge(monkeypatch):
    kept = {
        "DETECTORS": {"MESA screening": lambda: Screening(settings=QUICK)},
        "REPAIRERS": {name: registry.REPAIRERS[name] for name in ("fine-tuning", "MESA", "MESA rounds")},
        "FILTERS": {"STRIP": registry.FILTERS["STRIP"]},
        "REFORMERS": {"4 bits": registry.REFORMERS["4 bits"]},
    }
    for kind, methods in kept.items():
        monkeypatch.setattr(registry, kind, methods)
    evaluation = tiny()
    record = json.loads(json.dumps(evaluation.record(), allow_nan=False))
    assert record["attack"] == "patch" and record["planted"] == [0] and set(record["seconds"]) == {"clean", "attack"}
    rows = {row["model"]: row for row in record["rows"]}
    assert list(rows) == ["clean model", "attacked", "fine-tuning", "MESA", "ideal"], "rounds are the pipeline's"
    assert all(row["asr"]["images"] > 300 and row["seconds"] >= 0 for row in rows.values())
    assert rows["fine-tuning"]["knowledge"] == FineTuning().knowledge.text() and rows["ideal"]["knowledge"] == ""
    assert set(rows["MESA"]["about"]) == {"missed", "failed", "found"}, "a tiny generator misses its levels"
    stages = evaluation.pipeline
    modeling, repair = stages.distribution()[1].made["seconds"], stages.repaired("MESA").artifact.made["seconds"]
    assert rows["MESA"]["seconds"] == pytest.approx(modeling + repair)
    assert record["detectors"]["MESA screening"]["knowledge"] == Screening(settings=QUICK).knowledge.text()
    assert record["filters"]["STRIP"]["knowledge"].endswith(", 299 clean images for the threshold")
    assert record["reformers"]["4 bits"]["knowledge"] == "single images"
    assert record["reformers"]["4 bits"]["asr"]["rate"] <= 1


def test_a_record_holds_the_kinds_that_are_asked_for():
    record = tiny(defense_kinds="reformers").record()
    assert {"detectors", "filters"} & set(record) == set() and len(record["reformers"]) == len(registry.REFORMERS)
    assert [row["model"] for row in record["rows"]] == ["clean model", "attacked"]


def test_a_record_adds_recent_methods_to_those_of_their_group(monkeypatch):
    kept = {
        "DETECTORS": {name: registry.DETECTORS[name] for name in ("random triggers", "last layer")},
        "REPAIRERS": {name: registry.REPAIRERS[name] for name in ("fine-tuning", "CLP")},
    }
    for kind, methods in kept.items():
        monkeypatch.setattr(registry, kind, methods)
    record = tiny(defense_kinds="detectors,recent-detectors,recent-repairers").record()
    assert list(record["detectors"]) == ["random triggers", "last layer"]
    assert [row["model"] for row in record["rows"]] == ["clean model", "attacked", "CLP"], "no control beside it"
    assert record["rows"][-1]["about"]["of"] > 0 and record["rows"][-1]["knowledge"] == "weights"


def test_a_reformer_is_judged_by_accuracy_and_success():
    evaluation = victim("patch")
    median, bits = (evaluation.reformed(name).result for name in ("median 3x3", "4 bits"))
    assert median["asr"]["images"] > 300 and median["asr"]["rate"] < 0.1 < 0.9 < bits["asr"]["rate"]
    assert median["clean_accuracy"]["rate"] > 0.95
