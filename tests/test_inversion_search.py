"""The short search by inverted patches, on models with a known answer."""

import pytest
import torch
from test_location_search import RedPixel, view_of
from torch import nn

from mesa_lib.defenses.mesa import inversion_search
from mesa_lib.defenses.mesa.inversion_search import Effort
from mesa_lib.models import inference


class BlueAnywhere(nn.Module):
    """Predicts class 2 where an image has a very blue pixel anywhere, else class 0."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        hit = (12 * (x[:, 2].amax((1, 2)) - 0.7)).sigmoid()
        return torch.stack([1 - hit, torch.zeros_like(hit), hit], 1) * 20 + self.weight


@pytest.mark.parametrize("pixel", [(15, 15), (0, 0), (7, 4)])
def test_the_location_of_the_trigger_is_found_for_its_class(pixel):
    view = view_of(RedPixel(*pixel))
    found, reached = inversion_search.at_best_locations(view, (3, 3), view.clean, range(3), Effort())
    row, column = found[2].tolist()
    assert row <= pixel[0] < row + 3 and column <= pixel[1] < column + 3
    assert reached[2] > 0.9 > 0.5 > reached[1], "no patch makes the model predict class 1"
    assert found.shape == (3, 2) and reached.shape == (3,)


def test_a_patch_as_large_as_the_image_has_one_location():
    view = view_of(RedPixel(3, 3), side=6)
    found, _ = inversion_search.at_best_locations(view, (6, 6), view.clean, range(3), Effort())
    assert found.tolist() == [[0, 0]] * 3


def test_a_class_that_responds_anywhere_is_found_among_some_classes_in_any_order():
    view = view_of(BlueAnywhere())
    reached = inversion_search.at_random_locations(view, (3, 3), view.clean, [2, 1], Effort())
    assert reached.shape == (2,) and reached[0] > 0.9 > 0.1 > reached[1]


def test_large_images_go_some_classes_at_a_time(monkeypatch):
    view = view_of(RedPixel(7, 4))
    monkeypatch.setattr(inference, "VALUES", 1)
    found, reached = inversion_search.at_best_locations(view, (3, 3), view.clean, range(3), Effort())
    row, column = found[2].tolist()
    assert row <= 7 < row + 3 and column <= 4 < column + 3 and reached[2] > 0.9


def test_the_search_can_be_repeated_and_leaves_the_random_state_alone():
    view, state = view_of(RedPixel(7, 4)), torch.get_rng_state()
    first, again = (inversion_search.at_best_locations(view, (3, 3), view.clean, range(3), Effort()) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert torch.equal(state, torch.get_rng_state())


def test_neighbors_stay_inside_the_image():
    near = inversion_search.neighbors(torch.tensor([[0, 0], [13, 5]]), (16, 16), (3, 3))
    assert near.shape == (2, 9, 2) and near.min() == 0 and near.max() == 13
    assert {tuple(at) for at in near[0].tolist()} == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert inversion_search.neighbors(torch.tensor([[5, 5]]), (16, 16), (3, 3), 2).shape == (1, 25, 2)


class RedWindow(nn.Module):
    """Predicts class 2 the more, the more red a 3x3 window is."""

    def __init__(self, row: int, column: int):
        super().__init__()
        self.row, self.column, self.weight = row, column, nn.Parameter(torch.zeros(()))

    def forward(self, x):
        window = x[:, 0, self.row : self.row + 3, self.column : self.column + 3]
        hit = (12 * (window.mean((1, 2)) - 0.8)).sigmoid()
        return torch.stack([1 - hit, torch.zeros_like(hit), hit], 1) * 20 + self.weight


def test_a_location_that_is_two_pixels_off_is_corrected_for_a_class_that_responds(monkeypatch):
    view = view_of(RedWindow(8, 5))
    off, labels = torch.tensor([[6, 3]]), torch.tensor([2])
    found, reached = inversion_search._finest(view, (3, 3), view.clean, labels, off, Effort())
    assert found.tolist() == [[8, 5]] and reached[0] > 0.9
    called = []
    monkeypatch.setattr(inversion_search, "_finest", lambda *a: called.append(a[3].tolist()) or (off, torch.ones(1)))
    inversion_search.at_best_locations(view, (3, 3), view.clean, range(3), Effort(finest=0))
    assert called == [], "none is wanted"
    responding = view_of(RedPixel(8, 5))
    found, _ = inversion_search.at_best_locations(responding, (3, 3), view.clean, [1, 2], Effort(finest=1))
    assert called == [[2]] and found[1].tolist() == [6, 3], "the only one of them that responds"


def test_passes_are_those_of_each_step():
    options = (32, 32), (3, 3), 10, Effort()
    anywhere = inversion_search.passes(*options, fixed_location=False, stride=2)
    fixed = inversion_search.passes(*options, fixed_location=True, stride=2)
    forward = 16 * 16 * 40 + (10 * 6 + 4 * 9) * 32
    assert anywhere == pytest.approx(10 * 4 * (8 * 15 + 32 / 3))
    assert fixed == pytest.approx(forward / 3 + 10 * 24 * 8 * 8 + (10 * 6 + 4 * 9) * 8 * 15)
