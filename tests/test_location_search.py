"""The search for the location at which a patch works, on a model with a known answer."""

import pytest
import torch
from torch import nn

from mesa_lib.data.splits import Split
from mesa_lib.defenses.base import DefenderView, Knowledge
from mesa_lib.defenses.mesa import location_search
from mesa_lib.models import inference


class RedPixel(nn.Module):
    """Predicts class 2 where red is high at one pixel, else class 0."""

    def __init__(self, row: int, column: int):
        super().__init__()
        self.row, self.column, self.weight = row, column, nn.Parameter(torch.zeros(()))

    def forward(self, x):
        hit = (12 * (x[:, 0, self.row, self.column] - 0.6)).sigmoid()
        return torch.stack([1 - hit, torch.zeros_like(hit), hit], 1) * 20 + self.weight


def view_of(model: nn.Module, n: int = 60, side: int = 16) -> DefenderView:
    """The view of a detector that knows the size, with dark images of classes 0 and 1."""
    images = torch.randint(0, 100, (n, 3, side, side), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    knowledge = Knowledge("gradients", images=n, rule=True, size=True)
    return DefenderView(knowledge, model, Split(images, torch.arange(n) % 2), 3, size=(3, 3))


@pytest.mark.parametrize(("stride", "rows"), [(1, 14), (2, 8), (5, 4)])
def test_the_grid_reaches_the_last_location(stride, rows):
    grid = location_search.location_grid((16, 10), (3, 3), stride)
    assert grid.min() == 0 and grid[:, 0].max() == 13 and grid[:, 1].max() == 7
    assert len(grid[:, 0].unique()) == rows and len(grid) == len(set(map(tuple, grid.tolist())))


@pytest.mark.parametrize("pixel", [(15, 15), (0, 0), (7, 4)])
def test_the_location_of_the_trigger_is_found_for_its_class(pixel):
    row, column = location_search.find_locations(view_of(RedPixel(*pixel)), (3, 3))[2].tolist()
    assert row <= pixel[0] < row + 3 and column <= pixel[1] < column + 3


def test_forward_passes_alone_find_a_location_of_the_grid():
    row, column = location_search.find_locations(view_of(RedPixel(7, 4)), (3, 3), shortlist=0)[2].tolist()
    assert row <= 7 < row + 3 and column <= 4 < column + 3 and row % 2 == column % 2 == 0


def test_a_patch_as_large_as_the_image_has_one_location():
    assert location_search.find_locations(view_of(RedPixel(3, 3), side=6), (6, 6)).tolist() == [[0, 0]] * 3


def test_the_probe_counts_images_of_other_classes_alone():
    corners = torch.tensor([[0, 0], [13, 13]])
    hits, probability, change = location_search.probe(view_of(RedPixel(15, 15)), corners, (3, 3), 200)
    assert hits.shape == probability.shape == change.shape == (3, 2)
    assert 0 <= probability.min() and probability.max() <= 1 and change[2, 1] > 4 > 0.1 > change[2, 0].abs()
    assert hits[2, 0] == 0 and 0.4 < hits[2, 1] < 0.6, "half of the patches are red there"
    assert hits[0, 0] == 1, "all images of class 1, and only these, are predicted as 0"


def test_patches_are_optimized_where_they_can_work_and_large_images_go_in_groups(monkeypatch):
    view = view_of(RedPixel(15, 15))
    locations = torch.tensor([[0, 0], [13, 13]]).expand(3, 2, 2)
    scores = location_search.optimize_patches(view, locations, (3, 3), view.clean)
    assert scores.shape == (3, 2) and scores[2, 1] > 0.9 and scores[2, 0] < 0.1 and scores[0].min() > 0.9
    monkeypatch.setattr(inference, "VALUES", 2 * 8 * 3 * 16 * 16)
    groups = location_search.optimize_patches(view, locations, (3, 3), view.clean)
    assert groups.shape == (3, 2) and torch.allclose(groups, scores, atol=0.1)
    assert not torch.equal(groups[1:], scores[1:]), "each group has its own seed"
