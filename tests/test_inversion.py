"""The baselines: inversion of a single trigger, and of many from random starts."""

import pytest
import torch
from torch import nn

from mesa_lib.defenses.restarted_inversion import invert_triggers
from mesa_lib.inversion import invert_trigger
from mesa_lib.models import networks
from mesa_lib.success import asr_of_triggers, held_out_split


class RedMinusGreen(nn.Module):
    """Logit of class 1: how much redder than green the image is. The best trigger is red, without green."""

    def __init__(self):
        super().__init__()
        self.normalize = networks.Normalize((0.5, 0.5, 0.3), (0.25, 0.2, 0.5))
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x):
        x = self.normalize(x) * self.weight
        score = (x[:, 0] - x[:, 1]).mean((1, 2)) * 20
        return torch.stack([torch.zeros_like(score), score], 1)


IMAGES = torch.randint(100, 150, (30, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
OPTIONS = {"precision": "float32", "batch": 20}


@pytest.mark.parametrize(("target", "best"), [(1, (1.0, 0.0)), (0, (0.0, 1.0))])
def test_the_inverted_trigger_has_the_best_colors(target, best):
    trigger = invert_trigger(RedMinusGreen(), IMAGES, target, seed=0, steps=600, **OPTIONS)
    start = invert_trigger(RedMinusGreen(), IMAGES, target, seed=0, steps=0, **OPTIONS)
    assert trigger.shape == (3, 3, 3)
    for channel, value in enumerate(best):
        assert float((trigger[channel] - value).abs().mean()) < 0.6 * float((start[channel] - value).abs().mean())
    assert torch.allclose(trigger[2], start[2], atol=1e-5), "blue plays no part"


@pytest.mark.parametrize("steps", [0, 1, 5, 23])
@pytest.mark.parametrize("size", [(3, 3), (2, 5), (8, 8)])
def test_a_trigger_has_its_size_and_lies_between_0_and_1(steps, size):
    trigger = invert_trigger(RedMinusGreen(), IMAGES, 1, seed=0, steps=steps, size=size, lr=5.0, **OPTIONS)
    assert trigger.shape == (3, *size) and trigger.min() >= 0 and trigger.max() <= 1
    assert not trigger.requires_grad


def test_equal_seeds_give_equal_triggers():
    first, again, other = (invert_trigger(RedMinusGreen(), IMAGES, 1, seed=s, steps=3, **OPTIONS) for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(training):
    model = networks.build_network("smallcnn", 3, 2, (0.5,) * 3, (0.2,) * 3, 0).train(training)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    invert_trigger(model, torch.randint(0, 256, (9, 3, 16, 16), dtype=torch.uint8), 0, seed=0, steps=3, **OPTIONS)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert model.training is training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_a_trigger_larger_than_the_image_is_refused():
    with pytest.raises(ValueError, match="9x3 pixels does not fit an image of 8x8"):
        invert_trigger(RedMinusGreen(), IMAGES, 1, seed=0, size=(9, 3), **OPTIONS)


# --- many starts -----------------------------------------------------------------------------------------

LABELS = torch.arange(30) % 3  # 20 images are not of class 1, and two of them are held out
MANY = {"restarts": 12, "steps": 20, "precision": "float32"}


@pytest.mark.parametrize(("target", "best"), [(1, (1.0, 0.0)), (0, (0.0, 1.0))])
def test_every_start_moves_to_the_best_colors(target, best):
    started, found = (
        invert_triggers(RedMinusGreen(), IMAGES, LABELS, target, seed=0, **MANY | {"steps": steps})[0]
        for steps in (0, 120)
    )
    assert found.shape == (12, 3, 3, 3) and not found.requires_grad and 0 <= found.min() and found.max() <= 1
    for channel, value in enumerate(best):
        far, near = ((part[:, channel] - value).abs().mean((1, 2)) for part in (started, found))
        assert bool((near < far).all()) and near.mean() < 0.6 * far.mean()
    assert torch.pdist(found[:, 2].flatten(1)).min() > 0.1, "blue plays no part: the starts stay apart"


def test_triggers_come_best_first_with_their_rates_on_held_out_images():
    """Random triggers, not optimized: their ASR on two images is measured again on many stamps of these two."""
    model = RedMinusGreen()
    found, rates = invert_triggers(model, IMAGES, LABELS, 1, seed=0, **MANY | {"restarts": 40, "steps": 0})
    assert torch.equal(rates, rates.sort(descending=True).values) and rates[0] > 0.9 > 0.1 > rates[-1]
    _, unseen = held_out_split(IMAGES, LABELS, 1)
    again = asr_of_triggers(model, *unseen, found, 1, images_per_trigger=200, seed=5)
    assert float((again - rates).abs().max()) < 0.3 and float((again - rates).abs().mean()) < 0.05


class Dark(RedMinusGreen):
    """Predicts class 1 on dark images alone, whatever they carry; `fitted` collects the images of passes to fit on."""

    def __init__(self):
        super().__init__()
        self.fitted = []

    def __deepcopy__(self, memo):  # the inversion works on a copy; the test needs its inputs
        return self

    def forward(self, x):
        median = x.flatten(1).median(1).values
        if torch.is_grad_enabled():
            self.fitted.append(median.detach())
        score = 20 * (0.4 - median) * self.weight + 0.01 * x[:, 0].mean((1, 2))
        return torch.stack([-score, score], 1)


def test_held_out_images_are_never_fitted_on_and_decide_the_rates():
    """The images that are held out, 0 and 10, are bright, and the model predicts class 1 on dark ones."""
    model, bright = Dark(), torch.arange(20) % 10 == 0
    images = torch.where(bright, 200, 20).to(torch.uint8)[:, None, None, None].expand(20, 3, 8, 8)
    labels = torch.zeros(20, dtype=torch.long)
    _, rates = invert_triggers(model, images, labels, 1, seed=0, **MANY | {"restarts": 3, "steps": 5})
    assert rates.tolist() == [0.0] * 3
    fitted = torch.cat(model.fitted)
    assert len(fitted) == 5 * 3 * 4 and torch.allclose(fitted, torch.full_like(fitted, 20 / 255))
    _, rates = invert_triggers(Dark(), 220 - images, labels, 1, seed=0, **MANY | {"restarts": 3, "steps": 5})
    assert rates.tolist() == [1.0] * 3


def test_equal_seeds_invert_equal_triggers():
    first, again, other = (invert_triggers(RedMinusGreen(), IMAGES, LABELS, 1, seed=s, **MANY) for s in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True)) and not torch.equal(first[0], other[0])


@pytest.mark.parametrize(("restarts", "group", "size"), [(5, 2, (2, 4)), (1, 64, (3, 3))])
def test_there_are_as_many_triggers_as_starts_in_groups_of_any_size(restarts, group, size):
    options = MANY | {"restarts": restarts, "steps": 2, "size": size}
    found, rates = invert_triggers(RedMinusGreen(), IMAGES, LABELS, 1, seed=0, group=group, **options)
    assert found.shape == (restarts, 3, *size) and rates.shape == (restarts,)
    assert len(found.unique(dim=0)) == restarts


@pytest.mark.parametrize("training", [True, False])
def test_many_inversions_leave_the_model_as_it_was(training):
    model = networks.build_network("smallcnn", 3, 2, (0.5,) * 3, (0.2,) * 3, 0).train(training)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    images = torch.randint(0, 256, (30, 3, 16, 16), dtype=torch.uint8)
    invert_triggers(model, images, LABELS, 0, seed=0, **MANY | {"restarts": 2, "steps": 3})
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert model.training is training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
