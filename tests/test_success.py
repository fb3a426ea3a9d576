"""F: the success of triggers on stamped images."""

import math

import pytest
import torch

from mesa_lib.settings import Settings
from mesa_lib.success import asr_of_triggers, held_out_split, log_success, success_function


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


class Recorder(torch.nn.Module):
    """Gives class 1 the value of the brightest pixel as its logit, and records its inputs."""

    def __init__(self):
        super().__init__()
        self.dummy, self.seen = torch.nn.Parameter(torch.zeros(1)), []

    def forward(self, x):
        self.seen.append(x.detach())
        peak = x.amax((1, 2, 3))
        return torch.stack([torch.zeros_like(peak), peak], 1) + 0 * self.dummy


@pytest.mark.parametrize("m", [1, 5])
@pytest.mark.parametrize("placement", ["image", "batch"])
def test_success_is_the_softmax_of_the_target_on_stamped_images(placement, m):
    model, settings = Recorder(), Settings(placement=placement, images_per_trigger=m)
    images = torch.zeros(7, 3, 16, 16, dtype=torch.uint8)
    values = torch.linspace(0.2, 1, 30)
    F = success_function(model, images, torch.zeros(7), [1], settings, size=(1, 1), precision="float32")
    scores = F(values.reshape(30, 1, 1, 1).expand(30, 3, 1, 1), rng())
    assert torch.allclose(scores, torch.sigmoid(values)[:, None].expand(30, m))
    (shown,) = model.seen
    where = set(shown[:, 0].flatten(1).argmax(1).tolist())
    assert len(shown) == 30 * m and (len(where) == 1 if placement == "batch" else len(where) > 15)


# --- locations and targets --------------------------------------------------------------------------------


class Window(torch.nn.Module):
    """The classes' logits are means of red in three windows of 4x4."""

    at = ((0, 0), (4, 4), (0, 4))

    def forward(self, x):
        return torch.stack([x[:, 0, r : r + 4, c : c + 4].mean((1, 2)) for r, c in self.at], 1)


def test_triggers_are_stamped_at_the_location_of_the_testing_function():
    images, white = torch.zeros(5, 3, 8, 8, dtype=torch.uint8), torch.ones(2, 3, 4, 4)
    settings, labels = Settings(images_per_trigger=3), torch.zeros(5)
    full, empty = math.e / (math.e + 2), 1 / (math.e + 2)
    for location, value in (((4, 4), full), ((0, 0), empty)):
        options = {"size": (4, 4), "precision": "float32", "locations": torch.tensor([location])}
        F = success_function(Window(), images, labels, [1], settings, **options)
        assert torch.allclose(F(white, rng()), torch.full((2, 3), value))


def test_every_target_can_have_a_location_of_its_own():
    images, labels = torch.zeros(6, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 2] * 2)
    options = {"size": (4, 4), "precision": "float32", "locations": torch.tensor([[4, 4], [0, 0]])}
    F = success_function(Window(), images, labels, [1, 2], Settings(images_per_trigger=2), **options)
    success = F(torch.ones(4, 3, 4, 4), rng())  # the first two are judged by class 1, at its window
    full, empty = math.e / (math.e + 2), 1 / (math.e + 2)
    assert torch.allclose(success, torch.tensor([full, full, empty, empty])[:, None].expand(4, 2))


def test_a_target_without_images_of_other_classes_is_refused():
    images, labels = torch.zeros(3, 3, 8, 8, dtype=torch.uint8), torch.tensor([1, 1, 1])
    with pytest.raises(ValueError, match="target = 1: no image of another class"):
        success_function(Window(), images, labels, [0, 1], Settings(), size=(4, 4), precision="float32")


def test_a_trigger_larger_than_the_image_is_refused():
    images, labels = torch.zeros(3, 3, 8, 8, dtype=torch.uint8), torch.zeros(3)
    with pytest.raises(ValueError, match="9x3 pixels does not fit an image of 8x8"):
        success_function(Window(), images, labels, [1], Settings(), size=(9, 3))


def test_images_of_each_target_are_left_out_for_this_target_alone():
    """Images show their class as brightness; triggers of target 1 must not meet class 1, those of target 0 not 0."""
    model, labels = Recorder(), torch.tensor([0, 1, 2] * 4)
    images = (20 + 60 * labels).to(torch.uint8)[:, None, None, None].expand(12, 3, 8, 8)
    options = {"size": (1, 1), "precision": "float32"}
    F = success_function(model, images, labels, [1, 0], Settings(images_per_trigger=8), **options)
    F(torch.zeros(40, 3, 1, 1), rng())
    classes = ((model.seen[0].flatten(1).median(1).values * 255 - 20) / 60).round().int()
    assert set(classes[:160].tolist()) == {0, 2} and set(classes[160:].tolist()) == {1, 2}


def test_gradients_reach_the_triggers():
    images, labels = torch.zeros(6, 3, 8, 8, dtype=torch.uint8), torch.zeros(6)
    triggers = torch.full((5, 3, 2, 2), 0.5, requires_grad=True)
    F = success_function(Recorder(), images, labels, [1], Settings(), size=(2, 2), precision="float32")
    F(triggers, rng()).sum().backward()
    assert bool((triggers.grad.flatten(1).sum(1) > 0).all())


@pytest.mark.parametrize("value", [0.9, 1e-6, 1e-30])
def test_the_logarithm_of_success_has_a_gradient_next_to_0(value):
    F = torch.tensor([value], requires_grad=True)
    log = log_success(F)
    log.backward()
    assert float(log.detach()) == pytest.approx(math.log(value), rel=1e-5)
    assert math.isfinite(float(F.grad)) and float(F.grad) == pytest.approx(1 / value, rel=1e-5)


def test_the_logarithm_of_no_success_at_all_is_finite():
    F = torch.zeros(1, requires_grad=True)
    log_success(F).backward()
    assert math.isfinite(float(log_success(F.detach()))) and math.isfinite(float(F.grad))


# --- images that are held out ----------------------------------------------------------------------------


def numbered(n: int) -> torch.Tensor:
    """Images that show their number."""
    return torch.arange(n, dtype=torch.uint8)[:, None, None, None].expand(n, 3, 4, 4)


def test_a_tenth_of_the_images_of_other_classes_is_held_out():
    labels = torch.arange(100) % 4
    (fitted, fitted_labels), (unseen, unseen_labels) = held_out_split(numbered(100), labels, 3)
    first, second = (images[:, 0, 0, 0].tolist() for images in (fitted, unseen))
    assert len(second) == 8 and sorted(first + second) == [i for i in range(100) if i % 4 != 3]
    assert fitted_labels.tolist() == [i % 4 for i in first] and unseen_labels.tolist() == [i % 4 for i in second]
    assert set(unseen_labels.tolist()) == {0, 1, 2}


def test_of_fewer_than_ten_images_both_parts_have_all():
    for part, labels in held_out_split(numbered(12), torch.tensor([0] * 9 + [1] * 3), 1):
        assert part[:, 0, 0, 0].tolist() == list(range(9)) and labels.tolist() == [0] * 9


def test_a_split_without_images_of_other_classes_is_refused():
    with pytest.raises(ValueError, match="target = 2: no image of another class"):
        held_out_split(numbered(20), torch.full((20,), 2), 2)


# --- the attack success rate of single triggers ----------------------------------------------------------


class WhitePixel(torch.nn.Module):
    """Predicts class 0 where a white pixel shows in one of the columns, else the class that the image's gray names."""

    def __init__(self, columns=range(6), active=True):
        super().__init__()
        self.dummy, self.columns, self.active = torch.nn.Parameter(torch.zeros(1)), list(columns), active

    def forward(self, x):
        label = (x.amin((1, 2, 3)) * 25.5).round().long()
        white = (x > 0.99).all(1)[:, :, self.columns].flatten(1).any(1) & self.active
        return torch.nn.functional.one_hot(torch.where(white, 0, label), 10).float() + 0 * self.dummy


GRAYS = torch.arange(60) % 10
PICTURES = (GRAYS * 10).to(torch.uint8)[:, None, None, None].expand(60, 3, 6, 6)
WHITE = torch.ones(3, 1, 1)


def test_each_trigger_has_a_success_rate_of_its_own():
    triggers = torch.stack([WHITE, 0.98 * WHITE, WHITE] * 20)
    rates = asr_of_triggers(WhitePixel(), PICTURES, GRAYS, triggers, 0, images_per_trigger=16)
    assert torch.equal(rates, torch.tensor([1.0, 0.0, 1.0] * 20))  # 960 stamped images cross the batch of 500


def test_triggers_are_tried_on_other_classes_only():
    rates = asr_of_triggers(WhitePixel(active=False), PICTURES, GRAYS, WHITE.expand(10, 3, 1, 1), 0)
    assert torch.equal(rates, torch.zeros(10))
    with pytest.raises(ValueError, match="target = 3: no image of another class"):
        asr_of_triggers(WhitePixel(), PICTURES, torch.full((60,), 3), WHITE[None], 3)


def test_the_location_of_the_triggers_can_be_fixed():
    triggers, model = WHITE.expand(40, 3, 1, 1), WhitePixel(columns=[2])
    for column, rate in ((2, 1.0), (3, 0.0)):
        rates = asr_of_triggers(model, PICTURES, GRAYS, triggers, 0, location=torch.tensor([1, column]))
        assert torch.equal(rates, torch.full((40,), rate))
    anywhere = asr_of_triggers(model, PICTURES, GRAYS, triggers, 0, images_per_trigger=50)
    assert abs(float(anywhere.mean()) - 1 / 6) < 5 * (5 / 36 / 2000) ** 0.5


def test_rates_follow_their_seed():
    triggers, model = WHITE.expand(20, 3, 1, 1), WhitePixel(columns=[0, 1, 2])
    first, again, other = (asr_of_triggers(model, PICTURES, GRAYS, triggers, 0, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
