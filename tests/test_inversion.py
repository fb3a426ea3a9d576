"""The baseline: inversion of a single trigger."""

import pytest
import torch
from torch import nn

from mesa_lib.inversion import invert_trigger
from mesa_lib.models import networks


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
