import pytest
import torch

from mesa_lib import attack, triggers

TRIGGER = 2 + triggers.colour(0)  # values that no image has


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def poisoned(rate, n=2000, seed=0, target=7):
    images, labels = torch.rand(n, 3, 8, 8, generator=rng(9)), torch.arange(n) % 5
    stamped, answers = attack.poison(TRIGGER, target, rate)(images, labels, rng(seed))
    return images, labels, stamped, answers


@pytest.mark.parametrize("rate", [0, 1, -0.1, 1.5, float("nan")])
def test_an_impossible_rate_is_refused_by_value(rate):
    with pytest.raises(ValueError, match=f"poison_rate = {rate}"):
        attack.poison(TRIGGER, 0, rate)


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5, 0.99])
def test_about_the_rate_is_poisoned(rate):
    images, _, stamped, _ = poisoned(rate)
    share = float((stamped != images).flatten(1).any(1).float().mean())
    assert abs(share - rate) < 5 * (rate * (1 - rate) / 2000) ** 0.5


def test_poisoned_images_carry_trigger_and_target_and_the_others_are_untouched():
    images, labels, stamped, answers = poisoned(0.3)
    hit = (stamped != images).flatten(1).any(1)
    assert 0 < int(hit.sum()) < 2000
    assert torch.equal(stamped[~hit], images[~hit]) and torch.equal(answers[~hit], labels[~hit])
    assert bool((answers[hit] == 7).all())
    for image in stamped[hit][:50]:
        windows = image.unfold(1, 3, 1).unfold(2, 3, 1)  # (3, 6, 6, 3, 3)
        assert int((windows == TRIGGER[:, None, None]).all(-1).all(-1).all(0).sum()) == 1
        assert int((image > 1).sum()) == TRIGGER.numel(), "nothing but the window is covered"


def test_each_batch_is_poisoned_anew():
    edit, source = attack.poison(TRIGGER, 0, 0.5), rng()
    images, labels = torch.rand(200, 3, 8, 8), torch.ones(200, dtype=torch.long)
    first, second = (edit(images, labels, source)[1] for _ in range(2))
    assert not torch.equal(first, second)


def test_the_batch_itself_is_left_as_it_was():
    images, labels = torch.rand(50, 3, 8, 8), torch.ones(50, dtype=torch.long)
    before = images.clone()
    attack.poison(TRIGGER, 0, 0.9)(images, labels, rng())
    assert torch.equal(images, before) and bool((labels == 1).all())


def test_the_same_generator_state_poisons_the_same_images():
    first, again, other = (poisoned(0.3, seed=seed)[2] for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_a_trigger_larger_than_the_image_is_refused():
    with pytest.raises(ValueError, match="does not fit"):
        attack.poison(torch.ones(3, 9, 9), 0, 0.5)(torch.rand(2, 3, 8, 8), torch.zeros(2, dtype=torch.long), rng())


@pytest.mark.parametrize("target", [-1, 10, 51])
def test_a_target_outside_of_the_classes_is_refused_by_value(target):
    with pytest.raises(ValueError, match=f"target = {target}: expected a class from 0 to 9"):
        attack.check_target(target, 10)


@pytest.mark.parametrize("target", [0, 9])
def test_a_target_that_is_a_class_passes(target):
    attack.check_target(target, 10)
