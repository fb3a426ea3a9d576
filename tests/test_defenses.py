"""What defenses share: declared knowledge, views, caches, thresholds, and the registry."""

import time

import numpy as np
import pytest
import torch

from mesa_lib.data.splits import Split
from mesa_lib.defenses import base, registry
from mesa_lib.defenses.base import DefenderView, Knowledge, SearchCache
from mesa_lib.defenses.neural_cleanse import InvertedTriggers, NeuralCleanse, Unlearning
from mesa_lib.defenses.squeezing import BitDepth
from mesa_lib.models import networks
from mesa_lib.settings import RepairSettings, Settings


def model():
    return networks.build_network("smallcnn", 4, 4, (0.5,) * 3, (0.5,) * 3, 0).eval()


def clean(n=40):
    rng = torch.Generator().manual_seed(0)
    return Split(torch.randint(0, 256, (n, 3, 16, 16), generator=rng, dtype=torch.uint8), torch.arange(n) % 4)


def view(**knowledge):
    repair = RepairSettings(repair_epochs=1)
    return DefenderView(Knowledge(**knowledge), model(), clean(), 4, target=2, size=(3, 3), repair=repair)


# --- what a defense may know -----------------------------------------------------------------------------


def test_a_method_gets_what_it_declares():
    handed = view(model="weights", images=None, target=True, size=True)
    assert handed.target == 2 and handed.size == (3, 3) and len(handed.clean) == 40
    assert isinstance(handed.model, torch.nn.Module)
    before = handed.model.head.weight.clone()
    (epoch,) = handed.retrain(handed.model)
    assert epoch["epoch"] == 1 and not torch.equal(handed.model.head.weight, before)


@pytest.mark.parametrize("name", ["model", "target", "size", "retrain", "trigger", "attack", "evaluation"])
def test_what_was_not_declared_is_not_there(name):
    with pytest.raises(base.UndeclaredAccess, match=f"{name}: not among what the method declares .outputs"):
        getattr(view(model="outputs"), name)


def test_a_method_that_declares_no_images_gets_none():
    with pytest.raises(base.UndeclaredAccess, match="clean"):
        _ = view(model="gradients", images=0).clean


def test_the_number_of_images_is_kept_and_drawn_by_the_seed():
    knowledge = Knowledge("outputs", images=10)
    first, again, other = (DefenderView(knowledge, model(), clean(), 4, seed=s).clean for s in (0, 0, 1))
    assert len(first) == 10 and torch.equal(first.images, again.images) and not torch.equal(first.images, other.images)


def test_a_method_that_is_part_of_another_gets_what_it_declares_itself():
    outer = view(model="weights", rule=True)
    inner = outer.restricted(Knowledge("gradients", images=10, rule=True))
    alone = DefenderView(Knowledge("gradients", images=10, rule=True), model(), clean(), 4)
    assert torch.equal(inner.clean.images, alone.clean.images) and len(inner.clean) == 10
    with pytest.raises(base.UndeclaredAccess, match="retrain"):
        _ = inner.retrain
    for more in (Knowledge("weights", target=True), Knowledge("weights", size=True)):
        with pytest.raises(base.UndeclaredAccess, match="more than what the method declares"):
            outer.restricted(more)
    with pytest.raises(base.UndeclaredAccess, match="more than"):
        view(model="gradients", images=10).restricted(Knowledge("gradients", images=20))


def test_gradient_access_is_a_function_with_gradients_to_the_images():
    handed, network = view(model="gradients").model, model()
    x = torch.rand(4, 3, 16, 16, requires_grad=True)
    logits = handed(x)
    assert torch.allclose(logits, network(x), atol=1e-5)
    logits.sum().backward()
    assert x.grad.abs().sum() > 0 and list(handed.state_dict()) == ["anchor"] and not hasattr(handed, "represent")


def test_gradients_reach_the_input_and_no_weight():
    handed = view(model="gradients")
    x = torch.rand(2, 3, 16, 16, requires_grad=True)
    handed.model(x).sum().backward()
    assert x.grad is not None and all(w.grad is None for w in handed.model.parameters())


def test_the_model_under_test_cannot_be_changed():
    network = model()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    handed = DefenderView(Knowledge("weights"), network, clean(), 4)
    with torch.no_grad():
        for weight in handed.model.parameters():
            weight.zero_()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


# --- the registry ----------------------------------------------------------------------------------------

#: what tables say that each method knows: the threat models that are compared
DECLARED = {
    "DETECTORS": {
        "random triggers": "outputs, 500 clean images, stamping rule, trigger size",
        "MESA screening": "gradients, 2000 clean images, stamping rule, trigger size",
        "MESA": "gradients, 2000 clean images, stamping rule, trigger size",
        "MESA, size unknown": "gradients, 2000 clean images, stamping rule",
        "MESA, location unknown": "gradients, 2000 clean images, stamping rule, trigger size",
        "Neural Cleanse": "gradients, 300 clean images",
        "DeepInspect": "gradients",
        "DL-TND": "weights, 200 clean images",
        "DF-TND": "weights",
        "MM-BD": "gradients",
        "last layer": "weights",
    },
    "REPAIRERS": {
        "fine-tuning": "weights, all clean images",
        "random uniform": "weights, all clean images, stamping rule, trigger size",
        "random binary": "weights, all clean images, stamping rule, trigger size",
        "random mixed": "weights, all clean images, stamping rule, trigger size",
        "single inversion": "weights, all clean images, target class, stamping rule, trigger size",
        "best inversion": "weights, all clean images, target class, stamping rule, trigger size",
        "all inversions": "weights, all clean images, target class, stamping rule, trigger size",
        "MESA": "weights, all clean images, target class, stamping rule, trigger size",
        "MESA rounds": "weights, all clean images, target class, stamping rule, trigger size",
        "pruning": "weights, all clean images",
        "Fine-Pruning, 4 points": "weights, all clean images",
        "Fine-Pruning": "weights, all clean images",
        "Neural Cleanse": "weights, all clean images",
        "MESA, target unknown": "weights, all clean images, stamping rule, trigger size",
        "MESA, target and size unknown": "weights, all clean images, stamping rule",
        "MESA, target and location unknown": "weights, all clean images, stamping rule, trigger size",
        "CLP": "weights",
        "ANP": "weights, all clean images",
        "I-BAU": "weights, all clean images",
        "FT-SAM": "weights, all clean images",
        "NAD": "weights, all clean images",
    },
    "FILTERS": {
        "STRIP, sums": "outputs, 500 clean images",
        "STRIP": "outputs, 500 clean images",
        "Feature Squeezing": "outputs",
    },
}


@pytest.mark.parametrize("kind", list(DECLARED))
def test_every_method_declares_its_knowledge(kind):
    methods = {name: build() for name, build in getattr(registry, kind).items()}
    assert {name: method.knowledge.text() for name, method in methods.items()} == DECLARED[kind]
    assert kind != "DETECTORS" or not any(method.knowledge.target for method in methods.values()), "to be detected"


def test_the_settings_of_all_methods_are_plain_values_and_tell_methods_apart():
    settings = registry.method_settings(["detectors", "repairers", "reformers"])
    assert settings["detectors"]["Neural Cleanse"]["above"] == 3.0
    assert settings["repairers"]["random binary"]["family"] == "binary"
    assert settings["repairers"]["best inversion"]["keep"] == "best"
    assert settings["repairers"]["all inversions"] == settings["repairers"]["best inversion"] | {"keep": "all"}
    assert settings["repairers"]["Fine-Pruning"] != settings["repairers"]["Fine-Pruning, 4 points"]
    assert settings["reformers"]["4 bits"] == {"bits": 4} and "filters" not in settings


def test_a_short_search_changes_the_settings_of_mesa_s_detectors_and_nothing_else():
    full, short = (registry.method_settings(["detectors", "repairers"], search) for search in ("full", "short"))
    changed = {name for kind in full for name in full[kind] if full[kind][name] != short[kind][name]}
    detecting = {name for kind in full for name in full[kind] if "unknown" in name}
    assert changed == detecting | {"MESA", "MESA screening"}
    assert full["repairers"]["MESA"] == short["repairers"]["MESA"], "the repair with a known target does not search"
    knowledge = {name: registry.detectors("short")[name]().knowledge.text() for name in registry.DETECTORS}
    assert knowledge == DECLARED["DETECTORS"]


def test_recent_methods_are_kinds_of_their_own():
    """What was published of the other kinds stays complete."""
    usual, recent = (registry.method_settings(kinds) for kinds in (["detectors", "repairers"], ["recent-repairers"]))
    assert not {name for group in usual.values() for name in group} & set(registry.RECENT)
    assert list(recent["repairers"]) == ["CLP", "ANP", "I-BAU", "FT-SAM", "NAD"] and set(recent) == {"repairers"}
    both = registry.method_settings(["detectors", "recent-detectors"])["detectors"]
    assert list(both) == list(registry.DETECTORS) and both["MM-BD"]["starts"] == 30
    assert set(registry.RECENT) < set(registry.DETECTORS) | set(registry.REPAIRERS)


def test_a_method_is_described_by_all_of_its_settings():
    described = base.describe_method(Unlearning(NeuralCleanse(steps=7)))
    assert described["detector"]["steps"] == 7 and described["knowledge"]["model"] == "weights"
    assert base.describe_method([BitDepth(2), (1, None)]) == [{"bits": 2}, [1, None]]
    assert base.describe_method({3: Settings(steps=5)})["3"]["steps"] == 5
    with pytest.raises(TypeError, match="a function has no settings"):
        base.describe_method({"source": lambda n, rng: None})


# --- outliers and thresholds -----------------------------------------------------------------------------


def test_the_anomaly_index_of_known_values():
    values = [1, 2, 3, 4, 100]  # median 3, deviations 2 1 0 1 97, their median 1
    index = base.anomaly_index(values)
    assert np.allclose(index, np.array([2, 1, 0, 1, 97]) / 1.4826)
    assert base.anomaly_index(values, "low")[4] == 0 and base.anomaly_index(values, "high")[0] == 0


def test_the_median_of_an_even_number_is_the_mean_of_the_middle_two():
    assert base.anomaly_index([0, 2, 4, 100])[1] == pytest.approx(1 / (1.4826 * 2))


def test_equal_values_are_no_outliers():
    assert base.anomaly_index([5, 5, 5, 5]).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(("rate", "limit"), [(0.05, 95), (0.01, 99), (0.5, 50)])
def test_a_threshold_flags_at_most_the_rate_of_clean_images(rate, limit):
    scores = torch.arange(1, 101).float()[torch.randperm(100, generator=torch.Generator().manual_seed(0))]
    assert base.threshold(scores, rate) == limit
    assert int((scores > limit).sum()) == round(100 * rate)


@pytest.mark.parametrize("rate", [0, 1, -0.1])
def test_an_impossible_false_positive_rate_is_refused(rate):
    with pytest.raises(ValueError, match="false_positive_rate"):
        base.threshold(torch.rand(10), rate)


# --- searches that are shared ----------------------------------------------------------------------------


def test_a_search_runs_once_and_the_seconds_that_it_saves_are_counted():
    cache, searches = SearchCache(), []

    def search():
        searches.append(1)
        time.sleep(0.05)
        return searches

    assert cache.once("a", search) is cache.once("a", search) and searches == [1] and cache.saved >= 0.05
    cache.once("b", search)
    assert searches == [1, 1]


def test_a_repair_reuses_the_detectors_search(monkeypatch):
    searched = []

    def search(self, view):
        searched.append(view.knowledge)
        return InvertedTriggers(torch.zeros(4, 1, 16, 16), torch.zeros(4, 3, 16, 16), [5.0, 5.0, 5.0, 5.0], [1.0] * 4)

    monkeypatch.setattr(NeuralCleanse, "_search", search)
    cache = SearchCache()

    def handed(method, cache):
        return DefenderView(method.knowledge, model(), clean(), 4, cache=cache)

    NeuralCleanse().detect(handed(NeuralCleanse(), cache))
    Unlearning().repair(handed(Unlearning(), cache))
    assert searched == [NeuralCleanse().knowledge], "once"
    Unlearning(NeuralCleanse(steps=41)).repair(handed(Unlearning(), cache))
    Unlearning().repair(handed(Unlearning(), SearchCache()))
    assert len(searched) == 3, "other settings, another cache"
