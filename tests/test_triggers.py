"""Patterns, random families, diversity, stamping."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mesa_lib import triggers

PUBLISHED = [
    0, 1, 2, 3, 5, 7, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 21, 23, 26, 27, 28, 29, 30, 40, 41, 42, 43, 45, 56, 57,
    58, 59, 61, 68, 69, 70, 78, 84, 85, 86, 94, 97, 98, 99, 101, 106, 108, 113, 114, 170, 186,
]  # fmt: skip


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def number_of(grid: torch.Tensor) -> int:
    return int("".join(str(int(v)) for v in grid.flatten()), 2)


# --- patterns and orbits ----------------------------------------------------------------------------------


def test_there_are_51_disjoint_orbits_that_cover_all_patterns():
    orbits = triggers.orbits()
    assert len(orbits) == 51
    assert sorted(number for orbit in orbits for number in orbit) == list(range(512))


def test_each_orbit_is_named_by_its_least_member():
    assert triggers.representatives() == [min(orbit) for orbit in triggers.orbits()] == PUBLISHED


@pytest.mark.parametrize(
    "move",
    [
        pytest.param(lambda grid: torch.rot90(grid), id="rotation"),
        pytest.param(lambda grid: grid.flip(1), id="flip"),
        pytest.param(lambda grid: 1 - grid, id="inversion"),
    ],
)
def test_orbits_are_closed(move):
    for orbit in triggers.orbits():
        assert {number_of(move(triggers.pattern(number)[0])) for number in orbit} == set(orbit)


def test_a_pattern_is_read_row_by_row_from_the_highest_bit():
    expected = torch.tensor([[0, 1, 0], [1, 0, 1], [0, 1, 0]])  # 170 = 010101010
    assert torch.equal(triggers.pattern(170), expected.float().expand(3, 3, 3))
    assert torch.equal(triggers.pattern(1)[:, 2, 2], torch.ones(3)) and triggers.pattern(1).sum() == 3


@pytest.mark.parametrize("number", range(0, 512, 37))
def test_a_pattern_has_its_number(number):
    assert number_of(triggers.pattern(number)[0]) == number


# --- colors -----------------------------------------------------------------------------------------------


def test_colors_repeat_and_differ_by_number():
    assert torch.equal(triggers.color(3), triggers.color(3))
    assert not torch.equal(triggers.color(3), triggers.color(4))


def test_colors_lie_on_the_8_bit_grid():
    levels = triggers.color(5, size=7) * 255
    assert levels.shape == (3, 7, 7)
    assert torch.allclose(levels, levels.round(), atol=1e-4) and levels.max() <= 255 and levels.min() >= 0


@pytest.mark.parametrize("number", [-1, 512])
def test_a_pattern_number_out_of_range_is_refused(number):
    with pytest.raises(ValueError, match=str(number)):
        triggers.pattern(number)


# --- random triggers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", triggers.FAMILIES)
def test_random_triggers_follow_their_family(family):
    drawn = triggers.random_triggers(2000, family, rng(), (2, 5))
    assert drawn.shape == (2000, 3, 2, 5) and drawn.min() >= 0 and drawn.max() <= 1
    assert abs(float(drawn.mean()) - 0.5) < 0.02
    binary = bool(((drawn == 0) | (drawn == 1)).all())
    gray = torch.equal(drawn[:, 0], drawn[:, 1]) and torch.equal(drawn[:, 0], drawn[:, 2])
    assert (binary, gray) == {
        "uniform": (False, False), "binary": (True, False), "bw": (True, True), "gray": (False, True),
        "two": (False, False), "mixed": (False, False), "unpaired": (False, False),
    }[family]  # fmt: skip
    assert torch.equal(drawn, triggers.random_triggers(2000, family, rng(), (2, 5)))


def test_an_unknown_family_is_refused():
    with pytest.raises(ValueError, match="family = 'gaussian': expected one of uniform"):
        triggers.random_triggers(1, "gaussian", rng())


# --- diversity --------------------------------------------------------------------------------------------


def test_identical_triggers_have_no_diversity():
    assert triggers.diversity(torch.rand(1, 3, 3, 3).expand(20, 3, 3, 3)) == {"distance": 0, "std": 0}


def test_diversity_of_known_families():
    rng = torch.Generator().manual_seed(0)
    uniform = triggers.diversity(torch.rand(200, 3, 10, 10, generator=rng))
    binary = triggers.diversity(torch.rand(200, 3, 10, 10, generator=rng).round())
    assert uniform["distance"] == pytest.approx(math.sqrt(1 / 6), abs=0.01)
    assert uniform["std"] == pytest.approx(math.sqrt(1 / 12), abs=0.01)
    assert binary["distance"] == pytest.approx(math.sqrt(1 / 2), abs=0.01)
    two = triggers.diversity(torch.tensor([[0.0, 0.0], [0.6, 0.8]]))
    assert two["distance"] == pytest.approx(math.sqrt(0.5))


# --- stamping ---------------------------------------------------------------------------------------------


def test_every_location_is_hit_equally_often():
    counts = torch.zeros(32 * 32)
    white, source = torch.ones(3, 3, 3), rng()
    for _ in range(5):
        stamped = triggers.stamp_random(torch.zeros(9000, 3, 32, 32), white, source)
        counts += stamped[:, 0].flatten(1).argmax(1).bincount(minlength=32 * 32)
    counts = counts.reshape(32, 32)
    inner = counts[:30, :30]
    assert inner.sum() == 45000, "no corner beyond the last location that fits"
    assert inner.min() > 0, "the last row and column are hit as well"
    chi_square = float(((inner - 50) ** 2 / 50).sum())  # 899 degrees of freedom, sd sqrt(2 * 899) = 42
    assert chi_square < 899 + 5 * 42
    assert abs(float(inner[-1].sum()) - 1500) < 5 * 1500**0.5
    assert abs(float(inner[:, -1].sum()) - 1500) < 5 * 1500**0.5


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_stamping_changes_the_window_and_nothing_else(data):
    height, width = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 12))
    h, w = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    row, column = data.draw(st.integers(0, height - h)), data.draw(st.integers(0, width - w))
    images = torch.rand(2, 3, height, width, generator=rng())
    before, trigger = images.clone(), 2 + torch.rand(3, h, w, generator=rng(1))  # no value of the images
    stamped = triggers.stamp(images, trigger, torch.tensor([row, column]))
    assert torch.equal(images, before), "the input is left as it was"
    assert int((stamped != images).sum()) == 2 * 3 * h * w
    for one in stamped:
        assert torch.equal(one[:, row : row + h, column : column + w], trigger)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(3, 12), st.integers(3, 12), st.integers(1, 3), st.integers(1, 3), st.integers(0, 1000))
def test_random_locations_all_fit(height, width, h, w, seed):
    locations = triggers.random_locations(50, (height, width), (h, w), rng(seed))
    possible = {tuple(location) for location in triggers.all_locations((height, width), (h, w)).tolist()}
    assert len(possible) == (height - h + 1) * (width - w + 1)
    assert {tuple(location) for location in locations.tolist()} <= possible


def test_each_image_gets_its_own_trigger_and_location():
    trigger = torch.arange(4.0).reshape(4, 1, 1, 1).expand(4, 3, 2, 2) + 1
    locations = torch.tensor([[0, 0], [0, 6], [6, 0], [6, 6]])
    stamped = triggers.stamp(torch.zeros(4, 3, 8, 8), trigger, locations)
    for i, (row, column) in enumerate(locations.tolist()):
        expected = torch.zeros(3, 8, 8)
        expected[:, row : row + 2, column : column + 2] = i + 1
        assert torch.equal(stamped[i], expected)


def test_a_shared_trigger_equals_one_copy_per_image():
    images, trigger = torch.rand(5, 3, 9, 7, generator=rng()), torch.rand(3, 2, 3, generator=rng(1))
    shared = triggers.stamp_random(images, trigger, rng(2))
    copies = triggers.stamp_random(images, trigger.expand(5, 3, 2, 3), rng(2))
    assert torch.equal(shared, copies)


def test_stamping_is_differentiable():
    images = torch.zeros(6, 3, 8, 8, requires_grad=True)
    trigger = torch.rand(3, 3, 3, generator=rng()).requires_grad_()
    triggers.stamp_random(images, trigger, rng()).sum().backward()
    assert torch.equal(trigger.grad, torch.full((3, 3, 3), 6.0)), "each image passes the trigger on once"
    assert float(images.grad.sum()) == 6 * 3 * (64 - 9), "covered pixels have no gradient"


def test_a_trigger_may_be_as_large_as_the_image():
    trigger = torch.rand(3, 8, 6, generator=rng())
    stamped = triggers.stamp_random(torch.zeros(3, 3, 8, 6), trigger, rng())
    assert torch.equal(stamped, trigger.expand(3, 3, 8, 6))


@pytest.mark.parametrize("size", [(9, 3), (3, 7), (9, 7)])
def test_a_trigger_larger_than_the_image_is_refused(size):
    with pytest.raises(ValueError, match=f"{size[0]}x{size[1]} pixels does not fit an image of 8x6"):
        triggers.stamp_random(torch.zeros(1, 3, 8, 6), torch.ones(3, *size), rng())
    with pytest.raises(ValueError, match="does not fit"):
        triggers.stamp(torch.zeros(1, 3, 8, 6), torch.ones(3, *size), torch.tensor([0, 0]))
