"""A few poisoned images after a repair: which images, what is trained, and that a hidden backdoor returns first."""

import copy

import pytest
import torch
from planted import CHECKERS, Planted, clean
from torch import nn

from mesa_lib.attacks import badnets
from mesa_lib.evaluation import metrics
from mesa_lib.evaluation.reactivation import poisoned_images, reactivate

TRIGGER = CHECKERS.expand(3, 3, 3)
BACKDOOR = badnets.backdoor(TRIGGER, 0)


def test_the_poisoned_images_are_of_other_classes_and_carry_the_trigger():
    split = clean()
    images, labels = poisoned_images(split, BACKDOOR, 7, seed=1)
    assert images.shape == (7, 3, 16, 16) and labels.tolist() == [0] * 7
    original = split.images.float() / 255
    for image in images:
        changed = (original - image).abs().amax(1).flatten(1).gt(0.01).sum(1)
        index = int(changed.argmin())
        assert 0 < int(changed[index]) <= 9 and int(split.labels[index]) != 0, "a patch on an image of another class"
    again, other = poisoned_images(split, BACKDOOR, 7, seed=1)[0], poisoned_images(split, BACKDOOR, 7, seed=2)[0]
    assert torch.equal(images, again) and not torch.equal(images, other)
    with pytest.raises(ValueError, match="number = 65: expected at most 64"):
        poisoned_images(split, BACKDOOR, 65, seed=1)


def test_the_model_stays_and_its_copy_keeps_the_statistics():
    model, split = Planted().eval(), clean()
    before = copy.deepcopy(model.state_dict())
    tuned = reactivate(model, split, BACKDOOR, steps=3, lr=0.1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(tuned.norm.running_mean, model.norm.running_mean) and not tuned.training
    assert not torch.equal(tuned.head.weight, model.head.weight)
    same = reactivate(model, split, BACKDOOR, steps=3, lr=0.1)
    assert torch.equal(tuned.head.weight, same.head.weight)


def test_a_backdoor_that_a_repair_only_weakened_returns_and_one_that_was_never_there_does_not():
    """Weakened: the channel that finds the trigger has a twentieth of its vote, which is too little to win."""
    split, rates = clean(), {}
    for name in ("weakened", "never there"):
        model = Planted().eval()
        with torch.no_grad():
            model.head.weight[0, 7] = 10
            if name == "never there":
                nn.init.zeros_(model.conv.weight[7])
                model.norm.bias[7] = 0
        both = (model, reactivate(model, split, BACKDOOR))
        found = [metrics.attack_success(m, split.images, split.labels, BACKDOOR, repeats=2, seed=3) for m in both]
        rates[name] = [row["asr"]["rate"] for row in found]
    assert rates["weakened"][0] < 0.05 and rates["weakened"][1] > 0.5, rates
    assert max(rates["never there"]) < 0.05, rates
