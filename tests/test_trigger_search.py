import torch

from mesa_lib import triggers
from mesa_lib.defenses.mesa import trigger_search
from mesa_lib.defenses.mesa.trigger_search import TriggerSearch

IMAGES = torch.full((30, 3, 16, 16), 40, dtype=torch.uint8)
LABELS = torch.arange(30) % 3
SMALL = TriggerSearch(candidates=60, generations=2, parents=10, children=20, keep=5)
OPTIONS = {"size": (3, 3), "precision": "float32"}


class WhitePixel(torch.nn.Module):
    """Predicts class 1 wherever a white pixel stands and `open` is set, class 0 elsewhere."""

    def __init__(self, open: bool = True):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(40.0 if open else 0.0))

    def forward(self, x):
        white = self.scale * (x.amin(1).amax((1, 2)) - 0.9)
        return torch.stack([torch.zeros_like(white) + 0.1, white, torch.zeros_like(white)], 1)


class Hidden(torch.nn.Module):
    """Class 1 is the likelier the nearer some window of 3 x 3 pixels comes to a black-white pattern."""

    def __init__(self, number: int):
        super().__init__()
        self.pattern = torch.nn.Parameter(triggers.pattern(number))

    def forward(self, x):
        windows = x.unfold(2, 3, 1).unfold(3, 3, 1)  # (B, 3, rows, columns, 3, 3)
        distance = (windows - self.pattern[:, None, None]).square().mean((1, 4, 5)).amin((1, 2))
        return torch.stack([torch.zeros_like(distance), 4 - 60 * distance, torch.zeros_like(distance) - 9], 1)


def test_a_search_finds_triggers_that_succeed_and_measures_them_again():
    best, rates = SMALL.run(WhitePixel(), IMAGES, LABELS, 1, seed=0, **OPTIONS)
    assert best.shape == (5, 3, 3, 3) and torch.equal(rates, torch.ones(5))
    assert best.amin(1).amax((1, 2)).min() > 0.9
    again, _ = SMALL.run(WhitePixel(), IMAGES, LABELS, 1, seed=0, **OPTIONS)
    other, _ = SMALL.run(WhitePixel(), IMAGES, LABELS, 1, seed=1, **OPTIONS)
    assert torch.equal(best, again) and not torch.equal(best, other)
    _, none = SMALL.run(WhitePixel(open=False), IMAGES, LABELS, 1, seed=0, **OPTIONS)
    assert torch.equal(none, torch.zeros(5))


def test_a_search_returns_the_best_first():
    _, rates = TriggerSearch(candidates=60, generations=0, keep=20).run(
        Hidden(170), IMAGES, LABELS, 1, seed=0, **OPTIONS
    )
    assert torch.equal(rates, rates.sort(descending=True).values)


def test_the_rate_of_the_best_is_that_of_the_first_on_newly_drawn_images():
    """Class 1 is the target and left out: with white the model predicts 1 for all others, with black for none."""
    white, black = torch.ones(1, 3, 3, 3), torch.zeros(1, 3, 3, 3)
    model = WhitePixel(), IMAGES, LABELS, 1
    options = {"seed": 0, "precision": "float32"}
    assert trigger_search.rate_of_best(*model, torch.cat([white, black]), **options) == 1
    assert trigger_search.rate_of_best(*model, torch.cat([black, white]), **options) == 0


def test_generations_approach_a_trigger_that_no_random_one_hits():
    """The pattern is in none of the families that are drawn; the first generation stays far from it.

    Its corners are white and the images dark, so that no shifted copy does nearly as well.
    """
    target = triggers.pattern(341)

    def distance(generations: int, seed: int) -> float:
        search = TriggerSearch(candidates=128, generations=generations, children=48, parents=16, keep=1)
        best, _ = search.run(Hidden(341), IMAGES, LABELS, 1, seed=seed, **OPTIONS)
        return float((best[0] - target).square().mean().sqrt())

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


def test_a_search_starts_from_four_families_and_never_an_attackers_black_white_pattern():
    drawn = triggers.random_triggers(500, TriggerSearch().family, torch.Generator().manual_seed(0))
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
