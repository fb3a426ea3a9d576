"""MESA as a repair: what is modeled and stamped on models with known answers, what is removed on digits."""

import pytest
import torch
from test_location_search import RedPixel
from test_trigger_search import IMAGES, LABELS, SMALL, WhitePixel
from victims import rates, victim

from mesa_lib import staircase
from mesa_lib.data.splits import Split
from mesa_lib.defenses.base import DefenderView, SearchCache
from mesa_lib.defenses.controls import RestartedInversion
from mesa_lib.defenses.mesa.detector import MESA, DetectionResult
from mesa_lib.defenses.mesa.repair import (
    MESADetected,
    MESARepair,
    any_location_detected,
    any_size_detected,
    stamp_detected,
)
from mesa_lib.defenses.mesa.screening import PatchSpec, ScreeningResult
from mesa_lib.device import rng
from mesa_lib.distribution import Level, TriggerDistribution
from mesa_lib.settings import Settings

TINY = Settings(betas=(0.9, 0.5), steps=3, triggers_per_step=8, hidden=8, noise_dim=4, images_per_trigger=1)
ANYWHERE, FIXED = PatchSpec((2, 2)), PatchSpec((3, 3), True)


class Painted(torch.nn.Module):
    """A generator of triggers of one color."""

    def __init__(self, value: float, size: tuple[int, int]):
        super().__init__()
        self.value, self.size = value, size

    def forward(self, z):
        return torch.full((len(z), 3, *self.size), self.value)


def painted(value: float, size=(3, 3), beta: float = 0.9, success: float | None = None) -> TriggerDistribution:
    return TriggerDistribution([Level(beta, Painted(value, size), 0.0, success=success)], [1.0], TINY)


def view_for(method, cache: SearchCache | None = None, stamped: list | None = None) -> DefenderView:
    """A view whose retraining notes what is stamped on 200 black images, and trains nothing."""
    images = torch.randint(0, 100, (60, 3, 8, 8), generator=rng(0), dtype=torch.uint8)
    clean = Split(images, torch.arange(60) % 2)
    view = DefenderView(method.knowledge, RedPixel(3, 3), clean, 3, target=2, size=(3, 3), cache=cache)

    def retrain(model, transform=None, k=0, label="repair"):
        if stamped is not None:
            stamped.append(transform(torch.zeros(200, 3, 8, 8), rng(0)))
        return [{"epoch": 1}]

    view.retrain = retrain
    return view


def count_fits(monkeypatch) -> list:
    """The options of every modeling from now on."""
    calls, fit = [], staircase.fit

    def counted(*arguments, **options):
        calls.append((arguments[3], options))
        return fit(*arguments, **options)

    monkeypatch.setattr(staircase, "fit", counted)
    return calls


def test_the_target_is_modeled_by_its_size_once_for_equal_settings(monkeypatch):
    calls, cache = count_fits(monkeypatch), SearchCache()
    result = MESARepair(TINY).repair(view_for(MESARepair(), cache))
    ((target, options),) = calls
    assert target == 2 and options["size"] == (3, 3) and options.get("location") is None
    assert result.history == [{"epoch": 1}] and isinstance(result.model, RedPixel)
    MESARepair(TINY, beta=0.5).repair(view_for(MESARepair(), cache))
    assert len(calls) == 1, "one level of the same staircase"
    MESARepair(TINY.replace(steps=2)).repair(view_for(MESARepair(), cache))
    MESARepair(TINY).repair(view_for(MESARepair()))
    assert len(calls) == 3, "other settings, another cache"


def test_a_fitted_distribution_is_stamped_without_modeling(monkeypatch):
    calls, stamped = count_fits(monkeypatch), []
    MESARepair(fitted=painted(0.25)).repair(view_for(MESARepair(), stamped=stamped))
    assert calls == [] and (stamped[0] == 0.25).sum((1, 2, 3)).eq(27).all()


def test_beta_takes_one_level():
    levels = [painted(0.25).levels[0], painted(0.75, beta=0.5).levels[0]]
    mixed, stamped = TriggerDistribution(levels, [0.5, 0.5], TINY), []
    for beta in (None, 0.9, 0.5):
        MESARepair(beta=beta, fitted=mixed).repair(view_for(MESARepair(), stamped=stamped))
    both, high, low = (set(images.unique().tolist()) - {0.0} for images in stamped)
    assert (both, high, low) == ({0.25, 0.75}, {0.25}, {0.75})
    with pytest.raises(ValueError, match="beta = 0.8: expected one of the modeled levels"):
        MESARepair(beta=0.8, fitted=mixed).repair(view_for(MESARepair()))


# --- modeling that fails ---------------------------------------------------------------------------------


def two_levels(high: float | None, low: float | None) -> TriggerDistribution:
    """Level 0.9 paints 0.25 and level 0.5 paints 0.75; high, low: their success on held-out images."""
    levels = [painted(0.25, success=high).levels[0], painted(0.75, beta=0.5, success=low).levels[0]]
    return TriggerDistribution(levels, [0.5, 0.5], TINY)


class Found:
    """A search with a known result: triggers of one color each, and their rates."""

    def __init__(self, *pairs: tuple[float, float]):
        self.pairs, self.calls = pairs, []

    def run(self, model, images, labels, target, **options):
        self.calls.append((len(images), target, options["size"]))
        values, rates = zip(*self.pairs, strict=True)
        return torch.stack([torch.full((3, 3, 3), value) for value in values]), torch.tensor(rates)


def white_view(stamped: list) -> DefenderView:
    """The view of `WhitePixel`, which white patches fool anywhere and gray ones never; retraining is noted alone."""
    method = MESARepair()
    view = DefenderView(method.knowledge, WhitePixel(), Split(IMAGES, LABELS), 3, target=1, size=(3, 3))
    view.retrain = lambda model, transform: stamped.append(transform(torch.zeros(200, 3, 3, 3), rng(0))) or []
    return view


def colors(images: torch.Tensor) -> set[float]:
    return set(images.unique().tolist())


def test_levels_that_are_reached_are_all_stamped_and_nothing_is_reported():
    stamped, search = [], Found((1.0, 1.0))
    for high, low in ((0.9, 0.5), (None, None)):
        result = MESARepair(fitted=two_levels(high, low), search=search).repair(white_view(stamped))
        assert result.about == {} and colors(stamped[-1]) == {0.25, 0.75}
    assert search.calls == []


def test_a_level_that_misses_is_left_out_and_reported():
    stamped, search = [], Found((1.0, 1.0))
    result = MESARepair(fitted=two_levels(0.2, 0.5), search=search).repair(white_view(stamped))
    assert colors(stamped[0]) == {0.75} and search.calls == []
    assert result.about == {
        "missed": [0.9], "failed": "samples miss their level on held-out images (20% at beta 0.9)",
    }  # fmt: skip


def test_if_all_levels_miss_triggers_near_those_of_a_search_are_stamped():
    """White succeeds; so does a trigger with half its rate or more; the third is not stamped."""
    stamped, search = [], Found((1.0, 0.9), (0.6, 0.45), (0.0, 0.44))
    result = MESARepair(fitted=two_levels(0.2, 0.01), search=search).repair(white_view(stamped))
    assert result.about["missed"] == [0.9, 0.5] and search.calls == [(30, 1, (3, 3))]
    assert result.about["failed"] == (
        "samples miss their level on held-out images (20% at beta 0.9, 1% at beta 0.5); "
        "a trigger search found 100%, what was found is stamped"
    )
    means = stamped[0].mean((1, 2, 3))
    near_white, near_gray = ((means - value).abs() < 0.1 for value in (0.96, 0.6))  # jitter is clipped at 1
    assert bool((near_white | near_gray).all()) and 60 < int(near_white.sum()) < 140


@pytest.mark.parametrize("succeeds", [True, False])
def test_if_a_search_finds_nothing_inversions_from_many_starts_follow(monkeypatch, succeeds):
    """The search takes gray for a success, which it is not. If inversions fail as well, samples are stamped."""
    starts = []

    def invert(self, view):
        starts.append(self.restarts)
        return torch.tensor([1.0, 0.5])[:, None, None, None].expand(2, 3, 3, 3), torch.tensor([0.9 * succeeds, 0.2])

    monkeypatch.setattr(RestartedInversion, "invert", invert)
    stamped, search = [], Found((0.5, 0.9))
    result = MESARepair(fitted=two_levels(0.2, 0.01), search=search, restarts=7).repair(white_view(stamped))
    said = result.about["failed"].partition("; ")[2]
    assert starts == [7] and len(search.calls) == 1 and result.about["found"] is succeeds
    if succeeds:
        assert said == "a trigger search found 0%, inversions from 7 starts found 90%, what was found is stamped"
        assert float(stamped[0].mean((1, 2, 3)).min()) > 0.85, "near white, which succeeds; gray is not stamped"
    else:
        assert said == "a trigger search found 0%, inversions from 7 starts found 0%: nothing that succeeds is known"
        assert colors(stamped[0]) == {0.25, 0.75}


def test_the_search_of_the_repair_finds_what_modeling_misses():
    """A real search, with few candidates, on a model that any white pixel fools."""
    stamped = []
    MESARepair(fitted=painted(0.25, success=0.0), search=SMALL).repair(white_view(stamped))
    whitest = stamped[0].amin(1).amax((1, 2))
    assert float(whitest.min()) > 0.5 and float(whitest.mean()) > 0.8, "a pixel near white in every trigger"


def test_a_level_asked_for_alone_that_misses_is_searched_for_although_another_is_reached():
    stamped, search = [], Found((1.0, 1.0))
    MESARepair(beta=0.5, fitted=two_levels(0.2, 0.5), search=search).repair(white_view(stamped))
    assert colors(stamped[0]) == {0.75} and search.calls == []
    result = MESARepair(beta=0.9, fitted=two_levels(0.2, 0.5), search=search).repair(white_view(stamped))
    assert len(search.calls) == 1 and result.about["missed"] == [0.9] and float(stamped[1].mean()) > 0.9


@pytest.mark.parametrize(
    ("scale", "search", "again"),
    [("log", Found((1.0, 0.9)), True), ("log", Found((0.5, 0.9)), False), ("probability", Found((1.0, 0.9)), False)],
    ids=["with our hinge", "nothing found", "with the paper's hinge"],
)
def test_levels_that_miss_start_again_around_the_best_trigger_found(monkeypatch, scale, search, again):
    """Level 0.9 misses at first, and has 0.8 the second time; level 0.5 is reached at once, and kept."""
    fits = []

    def fit(model, images, labels, target, settings, *, start, seed, **options):
        fits.append((settings.betas, start, seed))
        high = painted(0.75, success=0.8) if start is not None else painted(0.25, success=0.2)
        low = painted(0.5, beta=0.5, success=0.4)
        levels = [v for v in (*high.levels, *low.levels) if v.beta in settings.betas]
        return TriggerDistribution(levels, [1 / len(levels)] * len(levels), settings)

    monkeypatch.setattr(staircase, "fit", fit)
    monkeypatch.setattr(RestartedInversion, "invert", lambda self, view: (torch.zeros(1, 3, 3, 3), torch.zeros(1)))
    method = MESARepair(TINY.replace(hinge_scale=scale), search=search)
    distribution = method.model(white_view([]))
    assert method.starts_again is (scale == "log") and len(fits) == 1 + again
    assert distribution.missed == ([] if again else [0.9]) and distribution.betas == [0.9, 0.5]
    assert [level.started_around for level in distribution.levels] == ["a trigger search" if again else None, None]
    if again:
        assert fits[1][0] == (0.9,) and bool((fits[1][1] == 1).all()) and fits[1][2] != fits[0][2]


# --- classes and sizes that were detected ----------------------------------------------------------------


def detected(monkeypatch, rates_of: dict[int, dict[PatchSpec, float]]) -> None:
    """Let every detector return these rates, with white 2x2 anywhere, and gray 3x3 at (4, 5)."""
    locations = {ANYWHERE: None, FIXED: torch.tensor([[0, 0], [0, 0], [4, 5]])}
    screening = ScreeningResult({spec: [0.0, 0.2, 0.7] for spec in locations}, locations)
    kinds = {ANYWHERE: painted(1.0, (2, 2)), FIXED: painted(0.5)}
    distributions = {label: {spec: kinds[spec] for spec in by_spec} for label, by_spec in rates_of.items()}
    monkeypatch.setattr(MESA, "search", lambda self, view: DetectionResult(screening, distributions, rates_of))


def test_every_flagged_class_and_spec_is_stamped_at_its_location(monkeypatch):
    detected(monkeypatch, {2: {ANYWHERE: 0.8, FIXED: 0.9}, 1: {ANYWHERE: 0.3}})
    method, stamped = MESADetected(), []
    result = method.repair(view_for(method, stamped=stamped))
    assert result.about["flagged"] == [2] and result.about["flagged and not repaired"] == []
    assert result.about["specs"] == ["2x2", "3x3 at a fixed location"] and result.history
    white, gray = ((stamped[0] == value).all(1) for value in (1.0, 0.5))
    assert white.any((1, 2)).sum() + gray.any((1, 2)).sum() == 200 and 60 < white.any((1, 2)).sum() < 140
    assert gray.any(0).nonzero().tolist() == [[row, column] for row in (4, 5, 6) for column in (5, 6, 7)]
    assert len(white.any(0).nonzero()) > 40, "at random locations"


def test_a_model_of_which_nothing_is_flagged_is_left_as_it_is(monkeypatch):
    detected(monkeypatch, {2: {ANYWHERE: 0.4, FIXED: 0.1}})
    method, stamped = MESADetected(), []
    view = view_for(method, stamped=stamped)
    result = method.repair(view)
    assert result.model is view.model and stamped == [] and result.history == []
    assert result.about == {"flagged": [], "specs": [], "flagged and not repaired": []}


def test_a_flagged_class_that_was_not_modeled_is_named(monkeypatch):
    """Class 2 was screened at 70%, and its place among the suspects taken by class 1."""
    detected(monkeypatch, {1: {ANYWHERE: 0.9}})
    result = MESADetected().repair(view_for(MESADetected()))
    assert result.about["flagged"] == [1] and result.about["flagged and not repaired"] == [2]


def test_transforms_come_from_any_distributions_of_classes_and_specs():
    screening = ScreeningResult({FIXED: [0.0, 0.0]}, {FIXED: torch.tensor([[0, 0], [1, 2]])})
    (transform,) = stamp_detected({(1, FIXED): painted(0.5)}, screening)
    shown = transform(torch.zeros(5, 3, 8, 8), rng(0))
    assert (shown[:, :, 1:4, 2:5] == 0.5).all() and int((shown != 0).sum()) == 5 * 27


def test_what_a_repair_needs_to_know_is_what_its_detector_does_and_the_weights():
    assert MESARepair().knowledge.text() == "weights, all clean images, target class, stamping rule, trigger size"
    assert MESADetected().knowledge.size and any_location_detected().knowledge.size
    assert not any_size_detected().knowledge.size and not any_size_detected().knowledge.target


# --- on digits -------------------------------------------------------------------------------------------


@pytest.mark.long
def test_mesa_removes_its_own_kind_and_fine_tuning_does_not():
    evaluation = victim("patch")
    assert rates(evaluation, evaluation.repaired("fine-tuning"))[1] > 0.4
    accuracy, asr = rates(evaluation, evaluation.repaired("MESA"))
    assert accuracy > 0.95 and asr < 0.05


@pytest.mark.long
def test_mesa_repairs_a_class_that_it_detected_itself():
    evaluation = victim("patch")
    accuracy, asr = rates(evaluation, evaluation.repaired("MESA, target unknown"))
    assert accuracy > 0.95 and asr < 0.05


@pytest.mark.long
def test_mesa_repairs_a_backdoor_at_a_fixed_location_by_searching_for_the_location():
    evaluation = victim("corner")
    accuracy, asr = rates(evaluation, evaluation.repaired("MESA, target and location unknown"))
    left = {name: rates(evaluation, evaluation.repaired(name))[1] for name in ("fine-tuning", "MESA")}
    assert accuracy > 0.95 and asr < 0.1 < 0.5 < left["fine-tuning"], left
    assert asr < left["MESA"], "with the class known, and random locations: 15 to 97%, by seed and number of threads"
