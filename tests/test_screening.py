"""Screening on models with known answers, and on digits."""

import pytest
import torch
from test_location_search import RedPixel, view_of
from victims import TARGET, victim

from mesa_lib.data.splits import Split
from mesa_lib.defenses.base import DefenderView, Knowledge
from mesa_lib.defenses.mesa import screening
from mesa_lib.defenses.mesa.screening import (
    LocationScreening,
    PatchSpec,
    Screening,
    ScreeningResult,
    SearchObserver,
    fit_and_holdout,
)
from mesa_lib.models import inference
from mesa_lib.settings import Settings

QUICK = Settings(betas=(0.9,), steps=40, triggers_per_step=16, hidden=64, modeling_lr=0.003)


def images_of(labels: torch.Tensor) -> DefenderView:
    images = torch.zeros(len(labels), 3, 16, 16, dtype=torch.uint8)
    return DefenderView(Knowledge("gradients"), RedPixel(0, 0), Split(images, labels), 4)


def test_a_screening_with_too_few_images_is_refused_as_such():
    with pytest.raises(ValueError, match="clean images = 3: expected two classes or more in each half; use more"):
        fit_and_holdout(images_of(torch.arange(3)))
    with pytest.raises(ValueError, match="clean images = 10: expected two classes or more"):
        fit_and_holdout(images_of(torch.zeros(10).long()))


def test_fit_and_holdout_have_no_image_in_common():
    view = view_of(RedPixel(0, 0), n=41)
    fitted_on, holdout = ({x.numpy().tobytes() for x in part.images} for part in fit_and_holdout(view))
    assert (len(fitted_on), len(holdout)) == (20, 21) and not fitted_on & holdout


def test_screening_at_locations_tries_both_specs():
    view, method = view_of(RedPixel(9, 9)), LocationScreening()
    anywhere, fixed = method.specs(view)
    assert (anywhere, fixed) == (PatchSpec((3, 3)), PatchSpec((3, 3), True))
    assert str(anywhere) == "3x3" and str(fixed) == "3x3 at a fixed location"
    assert method.knowledge.size and not LocationScreening(sizes=((2, 2),)).knowledge.size
    result = method.screen(view)
    assert result.locations[anywhere] is None and result.locations[fixed].shape == (3, 2)
    assert result.rates[fixed][2] > 0.5 > 0.1 > result.rates[anywhere][2]
    assert result.highest[2] == result.rates[fixed][2]


def test_the_location_of_a_class_comes_with_its_spec():
    anywhere, fixed = PatchSpec((3, 3)), PatchSpec((3, 3), True)
    result = ScreeningResult({anywhere: [0.1], fixed: [0.2]}, {anywhere: None, fixed: torch.tensor([[4, 5]])})
    assert result.location(anywhere, 0) is None and result.location(fixed, 0).tolist() == [4, 5]
    assert result.highest == [0.2]


def test_a_screening_without_locations_says_what_has_them():
    with pytest.raises(NotImplementedError, match="use LocationScreening"):
        Screening(QUICK).screen_spec(view_of(RedPixel(0, 0)), PatchSpec((3, 3), True))


def test_every_spec_is_screened_through_the_observer():
    """Patches as large as the image always cover the pixel; an observer can replace a step by a stored result."""
    view, calls = view_of(RedPixel(3, 3), side=6), []

    class Stored(SearchObserver):
        def screened(self, spec, number, total, run):
            calls.append((str(spec), number, total))
            return run() if number == 0 else ([0.1, 0.2, 0.3], None)

    result = Screening(QUICK, sizes=((6, 6), (2, 2))).screen(view, Stored())
    assert calls == [("6x6", 0, 2), ("2x2", 1, 2)]
    assert result.rates[PatchSpec((6, 6))][2] > 0.5 and result.rates[PatchSpec((2, 2))] == [0.1, 0.2, 0.3]
    verdict = Screening(QUICK, sizes=((6, 6),)).detect(view)
    assert verdict.scores == verdict.about["rates"]["6x6"] == result.rates[PatchSpec((6, 6))]
    assert 2 in verdict.flagged


def test_each_class_has_a_seed_of_its_own_and_large_images_go_in_groups(monkeypatch):
    seeds, fit_levels = [], screening.staircase.fit_levels

    def noted(*arguments, **options):
        seeds.append(options["seeds"])
        return fit_levels(*arguments, **options)

    monkeypatch.setattr(screening.staircase, "fit_levels", noted)
    view, method = view_of(RedPixel(3, 3), side=6), Screening(QUICK, sizes=((6, 6),))
    together = method.screen(view).highest
    monkeypatch.setattr(inference, "VALUES", 2 * 16 * 4 * 3 * 6 * 6)
    groups = method.screen(view).highest
    assert [len(part) for part in seeds] == [3, 2, 1] and seeds[0] == seeds[1] + seeds[2] and len(set(seeds[0])) == 3
    assert groups == pytest.approx(together, abs=0.15) and groups[2] > 0.5


def test_a_short_screening_flags_the_patch_and_no_clean_model():
    assert victim("patch", "short").verdict("MESA screening").result["flagged"] == [TARGET]
    assert victim("none", "short").verdict("MESA screening").result["flagged"] == []
