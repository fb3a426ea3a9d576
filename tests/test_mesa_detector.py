"""MESA as a detector: its steps on models with known answers, its verdicts on digits."""

from dataclasses import dataclass, field

import pytest
import torch
from test_location_search import RedPixel, view_of
from victims import TARGET, victim

from mesa_lib.defenses.mesa.detector import MESA, DetectionResult, SearchObserver, any_location, any_size
from mesa_lib.defenses.mesa.screening import SQUARES, LocationScreening, PatchSpec, Screening, ScreeningResult
from mesa_lib.device import rng
from mesa_lib.settings import Settings

QUICK = Settings(betas=(0.9,), steps=40, triggers_per_step=16, hidden=64, modeling_lr=0.003)
#: 6x6 covers the whole image, so its one location holds the pixel
COVERING = MESA(Screening(QUICK, sizes=((6, 6), (2, 2))), QUICK)


@dataclass
class Notes(SearchObserver):
    """Notes every step, and what the steps return."""

    calls: list = field(default_factory=list)
    distributions: list = field(default_factory=list)

    def screened(self, spec, number, total, run):
        self.calls.append(("screened", str(spec), number, total))
        return run()

    def suspects(self, suspects):
        self.calls.append(("suspects", suspects))

    def modeled(self, label, spec, location, number, total, run):
        self.calls.append(("modeled", label, spec, location, number, total))
        result = run()
        self.distributions.append(result[0])
        return result


def screened(**rates: list[float]) -> ScreeningResult:
    """The result of a screening: `a3=[...]` are the rates of 3x3 anywhere, `f3=[...]` at a fixed location."""
    specs = {PatchSpec(2 * (int(name[1]),), name[0] == "f"): values for name, values in rates.items()}
    locations = {spec: torch.zeros(len(v), 2).long() if spec.fixed_location else None for spec, v in specs.items()}
    return ScreeningResult(specs, locations)


def test_an_observer_sees_every_step_and_changes_nothing():
    notes = Notes()
    result = COVERING.search(view_of(RedPixel(3, 3), side=6), notes)
    plain = COVERING.search(view_of(RedPixel(3, 3), side=6))
    suspects = COVERING.suspects(result.screening)
    steps = [(label, spec) for label, specs in suspects.items() for spec in specs]
    assert 2 in suspects and PatchSpec((6, 6)) in suspects[2]
    assert notes.calls[:3] == [("screened", "6x6", 0, 2), ("screened", "2x2", 1, 2), ("suspects", suspects)]
    modeled = [("modeled", label, spec, None, i, len(steps)) for i, (label, spec) in enumerate(steps)]
    assert notes.calls[3:] == modeled
    assert [result.distributions[label][spec] for label, spec in steps] == notes.distributions
    assert plain.rates == result.rates and plain.screening.rates == result.screening.rates


def test_a_search_runs_once_on_a_model():
    view, notes = view_of(RedPixel(3, 3), side=6), Notes()
    first = COVERING.search(view)
    assert COVERING.search(view, notes) is first and notes.calls == []
    assert COVERING.detect(view).scores == COVERING.judge(first).scores


def test_suspects_are_the_highest_classes_with_their_highest_specs():
    result = screened(a3=[0.2, 0.9, 0.05, 0.3, 0.4], f3=[0.0, 0.2, 0.1, 0.5, 0.0], a4=[0.0, 0.95, 0.0, 0.2, 0.0])
    a3, f3, a4 = result.rates
    assert MESA().suspects(result) == {1: [a4, a3], 3: [f3, a3], 4: [a3]}
    assert list(MESA(max_suspects=1).suspects(result)) == [1] and MESA(max_specs=3).suspects(result)[1] == [a4, a3, f3]
    assert MESA(suspect_above=0.96).suspects(result) == {}


def test_the_verdict_takes_the_modeled_rate_of_a_suspect_and_the_screened_rate_of_any_other_class():
    screening = screened(a3=[0.2, 0.9, 0.05], f3=[0.3, 0.0, 0.0])
    a3, f3 = screening.rates
    result = DetectionResult(screening, {0: {}, 1: {}}, {0: {a3: 0.6, f3: 0.4}, 1: {a3: 0.1}})
    verdict = MESA().judge(result)
    assert verdict.scores == [0.6, 0.1, 0.05] and verdict.flagged == [0] and verdict.on == "scores"
    assert MESA().best(result, 0) == (a3, 0.6) and MESA().firing(result) == [(0, a3)]
    assert verdict.about["suspects"] == {"0": {"3x3": 0.6, "3x3 at a fixed location": 0.4}, "1": {"3x3": 0.1}}
    assert verdict.about["screened"] == {"3x3": [0.2, 0.9, 0.05], "3x3 at a fixed location": [0.3, 0.0, 0.0]}
    assert verdict.about["locations"] == {"3x3 at a fixed location": [[0, 0]] * 3}
    assert screening.highest == [0.3, 0.9, 0.05], "the verdict leaves the screening as it is"


def test_settings_of_one_model_replace_those_of_the_detector():
    view = view_of(RedPixel(3, 3), side=6)
    step = view, 2, PatchSpec((6, 6)), None
    fitted, rate = COVERING.model(*step, settings=QUICK.replace(betas=(0.9, 0.5), steps=10))
    assert fitted.betas == [0.9, 0.5] and 0 <= rate <= 1
    assert COVERING.model(*step)[0].betas == [0.9]


def test_the_factories_know_what_their_names_say():
    assert any_size().screening.sizes == SQUARES and not any_size().knowledge.size
    assert isinstance(any_location().screening, LocationScreening) and any_location().knowledge.size


# --- on digits -------------------------------------------------------------------------------------------


@pytest.mark.long
def test_mesa_flags_the_patch_and_no_clean_model():
    assert victim("patch").verdict("MESA").result["flagged"] == [TARGET]
    assert victim("none").verdict("MESA").result["flagged"] == []


@pytest.mark.long
def test_ten_classes_cost_mesa_at_most_four_times_one():
    """Screening and the full model of the suspects, against the full model of one class."""
    evaluation = victim("patch")
    ten = evaluation.verdict("MESA").made["seconds"]
    assert ten < 4 * evaluation.pipeline.distribution()[1].made["seconds"]


@pytest.mark.long
def test_mesa_finds_a_backdoor_at_a_fixed_location_by_searching_for_the_location():
    evaluation = victim("corner")
    assert evaluation.verdict("MESA").result["flagged"] == []
    result = evaluation.verdict("MESA, location unknown").result
    assert result["flagged"] == [TARGET]
    assert set(result["about"]["suspects"]["0"]) == {"3x3 at a fixed location"}
    row, column = result["about"]["locations"]["3x3 at a fixed location"][TARGET]
    assert min(row, column) >= 26, "near the corner (29, 29)"


@pytest.mark.long
def test_mesa_at_a_fixed_location_flags_no_clean_model():
    result = victim("none").verdict("MESA, location unknown").result
    assert result["flagged"] == [] and max(result["scores"]) < 0.3


@pytest.mark.long
def test_mesa_models_a_suspect_at_every_size_that_succeeds():
    quick = Settings(betas=(0.9,), steps=60, triggers_per_step=16)
    method = MESA(Screening(sizes=((2, 2), (4, 4))), settings=quick)
    assert not method.knowledge.size
    result = method.search(victim("patch").view(method.knowledge))
    assert set(result.distributions) == {TARGET}
    assert set(result.distributions[TARGET]) <= {PatchSpec((2, 2)), PatchSpec((4, 4))}
    larger = result.distributions[TARGET].get(PatchSpec((4, 4)))
    assert larger is not None, "a larger patch can hold the planted one"
    assert larger.sample(2, rng(0)).shape == (2, 3, 4, 4)
    assert method.judge(result).about["suspects"]["0"]["4x4"] > 0.5


@pytest.mark.parametrize("size", [(2, 2), (5, 5)])
def test_the_size_of_a_spec_is_that_of_its_samples(size):
    fitted, _ = COVERING.model(view_of(RedPixel(3, 3), side=6), 2, PatchSpec(size), None, QUICK.replace(steps=2))
    assert fitted.sample(2, rng(0)).shape == (2, 3, *size)
