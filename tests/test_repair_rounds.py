import copy

import pytest
import torch
from test_trigger_search import IMAGES, LABELS, SMALL, WhitePixel

from mesa_lib import retrain, staircase
from mesa_lib.data.splits import Split
from mesa_lib.defenses.base import DefenderView, RepairResult
from mesa_lib.defenses.mesa import repair_rounds
from mesa_lib.defenses.mesa.repair import MESARepair
from mesa_lib.defenses.mesa.repair_rounds import RepairRounds, ResidualCheck
from mesa_lib.distribution import Level, TriggerDistribution
from mesa_lib.models import networks
from mesa_lib.settings import Settings

TINY = Settings(
    betas=(0.9, 0.5), steps=4, triggers_per_step=8, hidden=8, noise_dim=4, images_per_trigger=1, patience=0,
    hinge_scale="probability",
)  # fmt: skip


def view_with(closes_in: int = 0, stamped: list | None = None) -> DefenderView:
    """A view of `WhitePixel` whose k-th retraining closes the backdoor if k is `closes_in`.

    `stamped` collects what each retraining stamps on 600 black images.
    """
    view = DefenderView(RepairRounds().knowledge, WhitePixel(), Split(IMAGES, LABELS), 3, target=1, size=(3, 3))

    def noted(model, transform=None, k=0, label="repair"):
        if stamped is not None:
            stamped.append(transform(torch.zeros(600, 3, 3, 3), torch.Generator().manual_seed(0)))
        if k == closes_in:
            torch.nn.init.zeros_(model.scale)
        return [{"epoch": 1, "round": k}]

    view.retrain = noted
    return view


def modeled_betas(monkeypatch) -> list:
    """The settings' levels and hinge scale of every modeling from now on."""
    calls, fit = [], staircase.fit

    def counted(model, images, labels, target, settings, **options):
        calls.append((settings.betas, settings.hinge_scale))
        return fit(model, images, labels, target, settings, **options)

    monkeypatch.setattr(staircase, "fit", counted)
    return calls


def test_the_model_is_clear_after_one_round_when_nothing_is_found(monkeypatch):
    calls = modeled_betas(monkeypatch)
    result = RepairRounds(TINY, search=SMALL).repair(view_with(closes_in=0))
    assert calls == [((0.9, 0.5), "probability"), ((0.9,), "log")] and result.history == [{"epoch": 1, "round": 0}]
    (record,) = result.about["rounds"]
    assert len(record.pop("best")) == 27
    assert record == {"searched": 0.0, "sampled": 0.0, "earlier": 0.0, "round": 1, "clear": True}
    assert not result.model.scale.any()


def test_a_repair_that_misses_is_seen_and_followed_by_another(monkeypatch):
    """The first repair does nothing, the second one closes the backdoor; it stamps samples of both rounds."""
    calls, stamped = modeled_betas(monkeypatch), []
    result = RepairRounds(TINY, search=SMALL).repair(view_with(closes_in=1, stamped=stamped))
    records = result.about["rounds"]
    assert [record["clear"] for record in records] == [False, True] and records[0]["searched"] == 1
    assert [record["round"] for record in records] == [1, 2] and [h["round"] for h in result.history] == [0, 1]
    assert len(stamped) == 2 and calls == [((0.9, 0.5), "probability"), ((0.9,), "log"), ((0.9,), "log")]
    assert not result.model.scale.any()


def test_triggers_that_a_search_found_are_stamped_in_the_next_round(monkeypatch):
    """The white patch that the search found is half of the second round's triggers: the new generator found nothing."""

    class Searched:
        """White works, gray does not: only white is stamped."""

        def run(self, *arguments, **options):
            return torch.tensor([1.0, 0.6])[:, None, None, None].expand(2, 3, 3, 3), torch.tensor([0.5, 0.05])

    # `expand` takes a single trigger only: the one that works
    monkeypatch.setattr(repair_rounds, "jitter", lambda triggers: lambda n, rng: triggers.expand(n, 3, 3, 3))
    stamped = []
    RepairRounds(TINY, rounds=2, search=Searched()).repair(view_with(closes_in=1, stamped=stamped))
    shares = [float((images == 1).flatten(1).all(1).float().mean()) for images in stamped]
    assert shares[0] == 0 and 0.42 < shares[1] < 0.58


def test_levels_that_missed_are_not_stamped_in_later_rounds():
    """Level 0.9 paints white and missed, level 0.5 paints black: the second round stamps no sample in white."""

    class Painted(torch.nn.Module):
        def __init__(self, value):
            super().__init__()
            self.value = value

        def forward(self, z):
            return torch.full((len(z), 3, 3, 3), self.value)

    levels = [Level(0.9, Painted(1.0), 0.0, success=0.1), Level(0.5, Painted(0.0), 0.0, success=0.5)]
    stamped = []
    method = RepairRounds(TINY, rounds=2, search=SMALL, first=TriggerDistribution(levels, [0.5, 0.5], TINY))
    method.repair(view_with(closes_in=1, stamped=stamped))
    first, second = ((images == 1).flatten(1).all(1).sum() for images in stamped)
    assert first == second == 0 and bool((stamped[0] == 0).all())
    assert int((stamped[1] == 0).flatten(1).all(1).sum()) > 100, "samples of the level that was reached"


@pytest.mark.parametrize(("closes_in", "failed"), [(0, False), (1, False), (99, True)])
def test_rounds_fail_if_the_last_check_still_finds_a_trigger(closes_in, failed):
    result = RepairRounds(TINY.replace(steps=2), rounds=2, search=SMALL).repair(view_with(closes_in=closes_in))
    assert ("failed" in result.about) is failed and result.about["rounds"][-1]["clear"] is not failed
    assert not failed or result.about["failed"] == "the last residual check still finds a trigger"


def test_a_clear_check_after_a_modeling_that_found_nothing_is_no_all_clear():
    """The backdoor cannot be found: every level misses, the search finds nothing, and so does the check."""
    view = view_with(closes_in=0)
    torch.nn.init.zeros_(view.model.scale)
    levels = [Level(0.9, torch.nn.Identity(), 0.0, success=0.0)]
    first = TriggerDistribution(levels, [1.0], TINY)
    first.sample = lambda n, rng: torch.zeros(n, 3, 3, 3)
    result = RepairRounds(TINY, search=SMALL, first=first).repair(view)
    assert [record["clear"] for record in result.about["rounds"]] == [True]
    assert result.about["failed"] == repair_rounds.NOTHING_KNOWN
    found = TriggerDistribution([Level(0.9, torch.nn.Identity(), 0.0, success=0.9)], [1.0], TINY)
    found.sample = first.sample
    assert "failed" not in RepairRounds(TINY, search=SMALL, first=found).repair(view).about


@pytest.mark.parametrize("rounds", [1, 3])
def test_it_ends_after_so_many_rounds_and_does_not_report_clear(monkeypatch, rounds):
    calls = modeled_betas(monkeypatch)
    method = RepairRounds(TINY.replace(steps=2), rounds=rounds, search=SMALL)
    records = method.repair(view_with(closes_in=99)).about["rounds"]
    assert len(records) == rounds and len(calls) == rounds + 1 and not any(record["clear"] for record in records)


def test_a_known_first_distribution_is_not_modeled_again(monkeypatch):
    first = MESARepair(TINY, search=SMALL).model(view_with())
    calls = modeled_betas(monkeypatch)
    RepairRounds(TINY, search=SMALL, first=first).repair(view_with())
    assert calls == [((0.9,), "log")], "the residual check alone"


def test_a_known_first_repair_is_neither_repeated_nor_changed():
    """The first round's model, still open, comes with its history; the second round repairs a copy of it."""
    first, stamped = MESARepair(TINY, search=SMALL).model(view_with()), []
    known = RepairResult(WhitePixel(), [{"epoch": 1, "round": "first"}])
    before = copy.deepcopy(known.model.state_dict())
    method = RepairRounds(TINY, search=SMALL, first=first, first_repair=known)
    result = method.repair(view_with(closes_in=1, stamped=stamped))
    assert len(stamped) == 1 and [h["round"] for h in result.history] == ["first", 1]
    assert known.history == [{"epoch": 1, "round": "first"}] and not result.model.scale.any()
    assert all(torch.equal(value, before[name]) for name, value in known.model.state_dict().items())


def test_the_first_round_is_the_repair_by_mesa():
    """Trained for real: one round leaves exactly the weights and the history of `MESARepair`."""
    model = networks.build_network("smallcnn", 3, 4, (0.5,) * 3, (0.5,) * 3, 0).eval()
    rng = torch.Generator().manual_seed(0)
    clean = Split(torch.randint(0, 256, (30, 3, 16, 16), generator=rng, dtype=torch.uint8), LABELS)

    def view():
        return DefenderView(RepairRounds().knowledge, model, clean, 3, target=1, size=(3, 3))

    plain = MESARepair(TINY, search=SMALL).repair(view())
    method = RepairRounds(TINY, rounds=1, search=SMALL)
    rounds = method.repair(view())
    assert rounds.history == plain.history
    for name, value in plain.model.state_dict().items():
        assert torch.equal(value, rounds.model.state_dict()[name]), name


def test_sources_are_mixed_in_equal_parts():
    sources = [lambda n, rng, v=value: torch.full((n, 3, 3, 3), v) for value in (0.0, 0.5, 1.0)]
    drawn = retrain.mixture(sources)(3000, torch.Generator().manual_seed(0))
    shares = [(drawn[:, 0, 0, 0] == value).float().mean() for value in (0.0, 0.5, 1.0)]
    assert all(abs(share - 1 / 3) < 0.05 for share in shares)


def test_triggers_near_those_of_a_search_stay_near_them_and_in_range():
    searched = torch.tensor([0.2, 0.8])[:, None, None, None].expand(2, 3, 3, 3)
    drawn = retrain.jitter(searched, 0.05)(400, torch.Generator().manual_seed(0))
    nearest = (drawn[:, None] - searched).abs().mean((2, 3, 4))
    assert (nearest.min(1).values < 0.1).all() and 150 < int((nearest.argmin(1) == 0).sum()) < 250
    assert float((drawn - drawn.round(decimals=1)).std()) > 0.02
    wide = retrain.jitter(searched, 1.0)(100, torch.Generator().manual_seed(0))
    assert wide.min() == 0 and wide.max() == 1


def test_the_highest_rate_of_a_residual_check_decides():
    assert ResidualCheck(0.1, 0.2, 0.3).highest == 0.3 and ResidualCheck(0.4, 0.2, 0.3).highest == 0.4
