from dataclasses import replace

import pytest
import torch

from mesa_lib import retrain
from mesa_lib import staircase
from mesa_lib import triggers
from mesa_lib.defenses.mesa import repair_rounds
from mesa_lib.defenses.mesa import trigger_search
from mesa_lib.settings import Settings

TINY = Settings(betas=(0.9, 0.5), steps=4, batch=8, hidden=8, noise_dim=4, images_per_trigger=1, patience=0)
IMAGES = torch.full((30, 3, 16, 16), 40, dtype=torch.uint8)
LABELS = torch.arange(30) % 3


class Answers(torch.nn.Module):
    """Class 1 wherever a white pixel stands and `open` is set, class 0 elsewhere."""

    def __init__(self, open: bool = True):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(40.0 if open else 0.0))

    def forward(self, x):
        white = self.scale * (x.amin(1).amax((1, 2)) - 0.9)
        return torch.stack([torch.zeros_like(white) + 0.1, white, torch.zeros_like(white)], 1)


def closed(model, source, number):
    return Answers(open=False)


SMALL = {"first": 60, "generations": 2, "parents": 10, "children": 20, "keep": 5, "precision": "float32"}


def test_a_search_finds_what_fires_and_measures_it_again():
    best, rate = trigger_search.search_triggers(Answers(), IMAGES, LABELS, 1, **SMALL)
    assert best.shape == (5, 3, 3, 3) and torch.equal(rate, torch.ones(5))
    assert best.amin(1).amax((1, 2)).min() > 0.9
    again, _ = trigger_search.search_triggers(Answers(), IMAGES, LABELS, 1, **SMALL)
    assert torch.equal(best, again)
    _, nothing = trigger_search.search_triggers(Answers(open=False), IMAGES, LABELS, 1, **SMALL)
    assert torch.equal(nothing, torch.zeros(5))


def test_the_rate_of_the_best_is_that_of_the_first_on_images_drawn_anew():
    """Class 1 is the target and left out: with white the model says 1 for all others, with black for none."""
    white, black = torch.ones(1, 3, 3, 3), torch.zeros(1, 3, 3, 3)
    of = Answers(), IMAGES, LABELS, 1
    known = {"seed": 0, "precision": "float32"}
    assert trigger_search.rate_of_best(*of, torch.cat([white, black]), **known) == 1
    assert trigger_search.rate_of_best(*of, torch.cat([black, white]), **known) == 0


class Hidden(torch.nn.Module):
    """Class 1 the likelier the nearer some window of 3 x 3 pixels comes to a black-white pattern."""

    def __init__(self, number: int):
        super().__init__()
        self.pattern = torch.nn.Parameter(triggers.pattern(number))

    def forward(self, x):
        windows = x.unfold(2, 3, 1).unfold(3, 3, 1)  # (B, 3, rows, columns, 3, 3)
        apart = (windows - self.pattern[:, None, None]).square().mean((1, 4, 5)).amin((1, 2))
        return torch.stack([torch.zeros_like(apart), 4 - 60 * apart, torch.zeros_like(apart) - 9], 1)


def test_generations_come_nearer_to_a_trigger_that_no_random_one_hits():
    """The pattern is in none of the families that are drawn; the first generation stays far from it."""
    target = triggers.pattern(170)
    known = {"children": 96, "parents": 16, "keep": 1, "precision": "float32", "first": 256}

    def distance(generations: int, seed: int) -> float:
        found, _ = trigger_search.search_triggers(Hidden(170), IMAGES, LABELS, 1, generations=generations, seed=seed, **known)
        return float((found[0] - target).square().mean().sqrt())

    assert min(distance(0, seed) for seed in (0, 1)) > 0.2
    assert max(distance(25, seed) for seed in (0, 1)) < 0.1


def test_children_change_a_pixel_or_a_little_of_all_and_favor_the_better():
    parents = torch.tensor([0.2, 0.4, 0.6, 0.8])[:, None, None, None].expand(4, 3, 3, 3)
    young = trigger_search.mutate(parents, 2000, torch.Generator().manual_seed(0))
    assert young.shape == (2000, 3, 3, 3) and young.min() >= 0 and young.max() <= 1
    assert torch.equal(parents[:, 0, 0, 0], torch.tensor([0.2, 0.4, 0.6, 0.8])), "the parents stay as they are"
    middle = young.flatten(1).median(1).values
    nearest = (middle[:, None] - parents[:, 0, 0, 0]).abs().argmin(1).bincount(minlength=4)
    assert nearest[0] > 1.5 * nearest[3] > 0


def test_sources_are_mixed_in_equal_parts():
    sources = [lambda n, rng, v=value: torch.full((n, 3, 3, 3), v) for value in (0.0, 0.5, 1.0)]
    drawn = retrain.mixture(sources)(3000, torch.Generator().manual_seed(0))
    shares = [(drawn[:, 0, 0, 0] == value).float().mean() for value in (0.0, 0.5, 1.0)]
    assert all(abs(share - 1 / 3) < 0.05 for share in shares)


def test_triggers_around_those_found_stay_near_them_and_in_range():
    found = torch.tensor([0.2, 0.8])[:, None, None, None].expand(2, 3, 3, 3)
    drawn = retrain.jitter(found, 0.05)(400, torch.Generator().manual_seed(0))
    nearest = (drawn[:, None] - found).abs().mean((2, 3, 4))
    assert (nearest.min(1).values < 0.1).all() and 150 < int((nearest.argmin(1) == 0).sum()) < 250
    assert float((drawn - drawn.round(decimals=1)).std()) > 0.02
    wide = retrain.jitter(found, 1.0)(100, torch.Generator().manual_seed(0))
    assert wide.min() == 0 and wide.max() == 1


def test_all_clear_after_one_round_when_nothing_is_found():
    numbers = []

    def repair(model, source, number):
        numbers.append(number)
        return closed(model, source, number)

    model, distributions, records = repair_rounds.repair_until_clear(
        Answers(), IMAGES, LABELS, 1, TINY, repair, precision="float32"
    )
    assert numbers == [0] and len(distributions) == 1 and distributions[0].betas == [0.9, 0.5]
    (record,) = records
    assert len(record.pop("best")) == 27
    assert record == {"searched": 0.0, "sampled": 0.0, "earlier": 0.0, "round": 1, "clear": True}
    assert not model.scale.any()


def test_a_repair_that_misses_is_seen_and_followed_by_another():
    """The first repair does nothing, the second one closes the backdoor; it stamps samples of both rounds."""
    sources = []

    def repair(model, source, number):
        sources.append(source)
        return model if number == 0 else closed(model, source, number)

    model, distributions, records = repair_rounds.repair_until_clear(
        Answers(), IMAGES, LABELS, 1, TINY, repair, precision="float32"
    )
    assert [record["clear"] for record in records] == [False, True] and records[0]["searched"] == 1
    assert len(sources) == 2 and [d.betas for d in distributions] == [[0.9, 0.5], [0.9]]
    assert distributions[1].settings.scale == "log" and not model.scale.any()


def test_triggers_that_a_search_found_are_stamped_in_the_next_round(monkeypatch):
    """Two generators, and the white patch that the search found: a third of the second round's triggers."""
    searched = torch.tensor([1.0, 0.6])[:, None, None, None].expand(2, 3, 3, 3), torch.tensor([0.5, 0.05])
    monkeypatch.setattr(repair_rounds, "search", lambda *a, **k: searched)
    # `expand` takes one trigger only: that which works
    monkeypatch.setattr(repair_rounds, "around", lambda found: lambda n, rng: found.expand(n, 3, 3, 3))
    drawn = []

    def repair(model, source, number):
        drawn.append(source(600, torch.Generator().manual_seed(0)))
        return model if number == 0 else closed(model, source, number)

    repair_rounds.repair_until_clear(Answers(), IMAGES, LABELS, 1, TINY, repair, most=2, precision="float32")
    shares = [float((d == 1).flatten(1).all(1).float().mean()) for d in drawn]
    assert shares[0] == 0 and 0.25 < shares[1] < 0.42


@pytest.mark.parametrize("most", [1, 3])
def test_it_ends_after_so_many_rounds_and_does_not_say_clear(most):
    _, distributions, records = repair_rounds.repair_until_clear(
        Answers(), IMAGES, LABELS, 1, replace(TINY, steps=2), lambda model, *_: model, most=most, precision="float32"
    )
    assert len(records) == len(distributions) == most and not any(record["clear"] for record in records)


def test_a_known_first_distribution_is_not_modeled_again(monkeypatch):
    calls, whole = [], staircase.fit
    monkeypatch.setattr(repair_rounds.staircase, "fit", lambda *a, **k: calls.append(1) or whole(*a, **k))
    first = whole(Answers(), IMAGES, LABELS, 1, TINY, precision="float32")
    repair_rounds.repair_until_clear(Answers(), IMAGES, LABELS, 1, TINY, closed, first=first, precision="float32")
    assert len(calls) == 1  # the look


def test_a_search_starts_from_four_families_and_never_an_attackers_black_white_pattern():
    drawn = triggers.random_triggers(500, trigger_search.FAMILY, torch.Generator().manual_seed(0))
    gray = (drawn == drawn[:, :1]).flatten(1).all(1)
    two_valued = ((drawn == 0) | (drawn == 1)).flatten(1).all(1)
    colors = torch.tensor([len(t.flatten(1).T.unique(dim=0)) for t in drawn])
    shares = {
        "uniform": ~gray & ~two_valued & (colors > 2),
        "binary": ~gray & two_valued,
        "gray": gray & ~two_valued & (colors > 2),
        "two": ~gray & ~two_valued & (colors <= 2),
    }
    assert sum(int(share.sum()) for share in shares.values()) == 500
    assert not (gray & two_valued).any()
    assert all(0.17 < float(share.float().mean()) < 0.33 for share in shares.values())
