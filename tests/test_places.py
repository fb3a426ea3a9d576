"""The search for the place at which a patch works, on a model made up here."""

import pytest
import torch
from torch import nn

from mesa_lib.data import Split
from mesa_lib.defenses.mesa import location_search
from mesa_lib.defenses.base import DefenderView
from mesa_lib.defenses.base import Knowledge
from mesa_lib.defenses.mesa.screening import PatchSpec
from mesa_lib.defenses.mesa.screening import ScreeningResult
from mesa_lib.defenses.mesa.screening import LocationScreening


class Spot(nn.Module):
    """Answers 2 where red at one pixel is high, else 0."""

    def __init__(self, row, column):
        super().__init__()
        self.at, self.weight = (row, column), nn.Parameter(torch.zeros(()))

    def forward(self, x):
        hit = (12 * (x[:, 0, self.at[0], self.at[1]] - 0.6)).sigmoid()
        return torch.stack([1 - hit, torch.zeros_like(hit), hit], 1) * 20 + self.weight


def given(model, n=60, side=16):
    images = torch.randint(0, 100, (n, 3, side, side), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    knows = Knowledge("gradients", images=n, rule=True, size=True)
    return DefenderView(knows, model, Split(images, torch.arange(n) % 2), 3, size=(3, 3))


@pytest.mark.parametrize(("stride", "rows"), [(1, 14), (2, 8), (5, 4)])
def test_the_grid_reaches_the_last_place(stride, rows):
    found = location_search.location_grid((16, 10), (3, 3), stride)
    assert found.min() == 0 and found[:, 0].max() == 13 and found[:, 1].max() == 7
    assert len(found[:, 0].unique()) == rows and len(found) == len(set(map(tuple, found.tolist())))


@pytest.mark.parametrize("spot", [(15, 15), (0, 0), (7, 4)])
def test_the_place_that_counts_is_found_for_its_class(spot):
    row, column = location_search.find_locations(given(Spot(*spot)), (3, 3))[2].tolist()
    assert row <= spot[0] < row + 3 and column <= spot[1] < column + 3


def test_a_patch_as_large_as_the_image_has_one_place():
    assert location_search.find_locations(given(Spot(3, 3), side=6), (6, 6)).tolist() == [[0, 0]] * 3


def test_answers_count_images_of_other_classes_alone():
    found, sure, moved = location_search.probe(given(Spot(15, 15)), torch.tensor([[0, 0], [13, 13]]), (3, 3), 200)
    assert found.shape == sure.shape == moved.shape == (3, 2)
    assert 0 <= sure.min() and sure.max() <= 1 and moved[2, 1] > 4 > 0.1 > moved[2, 0].abs()
    assert found[2, 0] == 0 and 0.4 < found[2, 1] < 0.6, "half of the patches are red there"
    assert found[0, 0] == 1, "all images of class 1, and only these, are turned into 0"


def test_screening_at_places_tries_both_rules():
    own = given(Spot(9, 9))
    method = LocationScreening()
    any_place, one = method.rules(own)
    assert (any_place, one) == (PatchSpec((3, 3)), PatchSpec((3, 3), True)) and str(one) == "3x3 at one place"
    assert method.knows.size and not LocationScreening(sizes=((2, 2),)).knows.size
    found = method.screen(own)
    assert found.locations[any_place] is None and found.locations[one].shape == (3, 2)
    assert found.rates[one][2] > 0.5 > 0.1 > found.rates[any_place][2]
    assert found.highest[2] == found.rates[one][2]


def test_the_place_of_a_class_comes_with_its_rule():
    at, one = PatchSpec((3, 3)), PatchSpec((3, 3), True)
    found = ScreeningResult({at: [0.1], one: [0.2]}, {at: None, one: torch.tensor([[4, 5]])})
    assert found.location(at, 0) is None and found.location(one, 0).tolist() == [4, 5] and found.highest == [0.2]
