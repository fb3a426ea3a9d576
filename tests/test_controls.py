"""The controls of the repair differ in what they stamp, and in nothing else."""

import pytest
import torch

from mesa_lib import inversion, retrain, triggers
from mesa_lib.data.splits import Split
from mesa_lib.defenses.base import DefenderView, StampingRepair, UndeclaredAccess
from mesa_lib.defenses.controls import FineTuning, IdealRepair, RandomTriggersRepair, SingleInversion
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
