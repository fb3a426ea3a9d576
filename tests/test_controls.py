"""The controls of the repair differ in what they stamp, and in nothing else."""

import pytest
import torch
from test_trigger_search import IMAGES, LABELS, WhitePixel

from mesa_lib import inversion, retrain, triggers
from mesa_lib.data.splits import Split
from mesa_lib.defenses import restarted_inversion
from mesa_lib.defenses.base import DefenderView, SearchCache, StampingRepair, UndeclaredAccess
from mesa_lib.defenses.controls import (
    FineTuning,
    IdealRepair,
    RandomTriggersRepair,
    RestartedInversion,
    SingleInversion,
)
from mesa_lib.models import networks
from mesa_lib.settings import RepairSettings

RNG = torch.Generator


def view(method, seed=0, size=(2, 3)):
    network = networks.build_network("smallcnn", 4, 4, (0.5,) * 3, (0.5,) * 3, 0).eval()
    images = torch.randint(0, 256, (32, 3, 16, 16), generator=RNG().manual_seed(0), dtype=torch.uint8)
    repair = RepairSettings(repair_epochs=1, repair_rate=0.5)
    return DefenderView(
        method.knowledge, network, Split(images, torch.arange(32) % 4), 4, target=1, size=size, seed=seed, repair=repair
    )


def stamped(method, view) -> torch.Tensor:
    """Return what the method's transform does to blank images (negative: no trigger has this value)."""
    (transform,), _ = method.transforms(view)
    return transform(torch.full((5, 3, 16, 16), -1.0), RNG().manual_seed(0))


def test_random_triggers_have_the_family_and_the_size_that_the_defender_knows():
    method = RandomTriggersRepair("binary")
    images = stamped(method, view(method))
    patches = images[images >= 0]
    assert len(patches) == 5 * 3 * 2 * 3 and set(patches.tolist()) == {0.0, 1.0}
    with pytest.raises(ValueError, match="family = 'magic'"):
        stamped(RandomTriggersRepair("magic"), view(method))


def test_a_single_inversion_stamps_one_trigger_which_its_repeat_chooses():
    first, second = SingleInversion(), SingleInversion(repeat=1)
    trigger = first.invert(view(first))
    assert trigger.shape == (3, 2, 3)
    assert not torch.equal(trigger, second.invert(view(second))), "another start"
    for image in stamped(first, view(first)):
        assert torch.equal(image[image >= 0], trigger.flatten()), "one trigger for all images, and the same again"


def test_a_single_inversion_gets_the_target_and_the_size_of_the_defender(monkeypatch):
    calls = []

    def invert(model, images, target, **options):
        calls.append((len(images), target, options["size"], options["seed"]))
        return torch.zeros(3, *options["size"])

    monkeypatch.setattr(inversion, "invert_trigger", invert)
    for seed in (0, 1):
        SingleInversion().invert(view(SingleInversion(), seed))
    assert [call[:3] for call in calls] == [(32, 1, (2, 3))] * 2 and calls[0][3] != calls[1][3] not in (0, 1)


@pytest.mark.parametrize(
    ("value", "about"),
    [(1.0, {"inverted": 1.0}),
     (0.5, {"inverted": 0.0, "failed": "no inverted trigger succeeds: the best has an ASR of 0% on clean images"})],
)  # fmt: skip
def test_a_single_inversion_tells_its_success_and_whether_it_failed(monkeypatch, value, about):
    """White succeeds on every image, gray on none."""
    monkeypatch.setattr(inversion, "invert_trigger", lambda *a, **options: torch.full((3, 2, 2), value))
    method = SingleInversion()
    white_pixel = DefenderView(method.knowledge, WhitePixel(), Split(IMAGES, LABELS), 3, target=1, size=(2, 2))
    (transform,), told = method.transforms(white_pixel)
    assert told == about
    shown = transform(torch.full((5, 3, 8, 8), -1.0), RNG().manual_seed(0))
    assert (shown == value).sum((1, 2, 3)).eq(12).all(), "it is stamped in either case"


# --- many inversions -------------------------------------------------------------------------------------


@pytest.fixture
def inverted(monkeypatch):
    """A function that fixes the rates of inverted triggers, which are painted 0.0, 0.1, 0.2 ...; -> the calls."""

    def fix(rates: list[float]) -> list[dict]:
        calls = []

        def invert(model, images, labels, target, **options):
            calls.append({"images": len(images), "labels": len(labels), "target": target, **options})
            return torch.stack([torch.full((3, 2, 3), i / 10) for i in range(len(rates))]), torch.tensor(rates)

        monkeypatch.setattr(restarted_inversion, "invert_triggers", invert)
        return calls

    return fix


def colors(method, view) -> set[float]:
    """Return the colors that a method stamps on 200 blank images."""
    (transform,), _ = method.transforms(view)
    shown = transform(torch.full((200, 3, 8, 8), -1.0), RNG().manual_seed(0))
    return {round(value, 3) for value in shown[shown >= 0].unique().tolist()}


def test_the_best_inversion_stamps_the_first_trigger_and_all_inversions_those_that_succeed(inverted):
    inverted([0.9, 0.75, 0.5, 0.49, 0.0])
    best, all_of_them = RestartedInversion(5), RestartedInversion(5, "all")
    assert colors(best, view(best)) == {0.0} and colors(all_of_them, view(all_of_them)) == {0.0, 0.1, 0.2}
    for method in (best, all_of_them):
        about = method.transforms(view(method))[1]
        assert about == {"inverted": pytest.approx(0.9), "restarts": 5, "succeed": 3}


def test_inversions_of_which_none_succeeds_are_reported_and_the_best_is_stamped(inverted):
    inverted([0.31, 0.3, 0.0])
    for method in (RestartedInversion(3), RestartedInversion(3, "all")):
        assert colors(method, view(method)) == {0.0}
        about = method.transforms(view(method))[1]
        assert about["succeed"] == 0 and about["failed"] == (
            "no inverted trigger succeeds: the best has an ASR of 31% on clean images"
        )


def test_many_inversions_get_what_the_defender_knows_and_run_once_for_best_and_all(inverted):
    calls, cache = inverted([0.9]), SearchCache()

    def shared(seed):
        other = view(RestartedInversion(), seed)
        other._cache = cache if seed == 0 else SearchCache()
        return other

    RestartedInversion(7).transforms(shared(0))
    RestartedInversion(7, "all").transforms(shared(0))
    assert len(calls) == 1
    RestartedInversion(8).transforms(shared(0))
    RestartedInversion(7).transforms(shared(1))
    assert [call["restarts"] for call in calls] == [7, 8, 7] and calls[0]["seed"] != calls[2]["seed"] not in (0, 1)
    assert all((call["images"], call["target"], call["size"]) == (32, 1, (2, 3)) for call in calls)


def test_many_inversions_find_triggers_that_succeed_on_a_model_that_they_can_fool():
    method = RestartedInversion(4)
    handed = view(method)
    found, rates = method.invert(handed)
    assert found.shape == (4, 3, 2, 3) and torch.equal(rates, rates.sort(descending=True).values)
    for image in stamped(method, handed):
        assert torch.equal(image[image >= 0], found[0].flatten())


def test_the_ideal_repair_stamps_the_attackers_transform():
    transform = retrain.stamping(retrain.constant(triggers.pattern(170)))
    method = IdealRepair(transform)
    assert method.transforms(view(method)) == ([transform], {})
    with pytest.raises(UndeclaredAccess):
        _ = view(method).target


def test_equal_transforms_give_equal_models_whatever_the_control_is_called():
    class Stamps(StampingRepair):
        knowledge = FineTuning().knowledge

        def __init__(self, transforms):
            self.stamped = transforms

        def transforms(self, view):
            return self.stamped, {"number": len(self.stamped)}

    transform = retrain.stamping(retrain.random_source("uniform", (2, 3)))
    ideal, same, none = IdealRepair(transform), Stamps([transform]), Stamps([])
    results = [
        method.repair(view(method)) for method in (ideal, same, none, Stamps([transform, transform]), FineTuning())
    ]
    weights = [result.model.head.weight for result in results]
    assert torch.equal(weights[0], weights[1]) and results[0].history == results[1].history
    assert torch.equal(weights[2], view(none).model.head.weight) and results[2].history == []
    assert [result.about for result in results[1:4]] == [{"number": 1}, {"number": 0}, {"number": 2}]
    for other in weights[2:]:
        assert not torch.equal(weights[0], other)
    assert len(results[4].history) == 1, "fine-tuning trains, without a trigger"
