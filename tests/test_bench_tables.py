"""The benchmark's arithmetic, on runs made up here."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from mesa_lib.defenses import registry
from mesa_lib.experiments.sweep import grid
from mesa_lib.reporting.plots import benchmark as benchmark_plots
from mesa_lib.reporting.tables import benchmark as tables
from mesa_lib.reporting.tables import paper
from mesa_lib.defenses.neural_cleanse import InvertedTriggers


def verdict(index, above=2.0):
    flagged = [k for k, value in enumerate(index) if value > above]
    return {"scores": index, "index": index, "on": "index", "above": above, "flagged": flagged,
            "knows": "outputs", "seconds": 3.0}  # fmt: skip


def run(attack, planted, index, asr=0.9, seed=0):
    rows = [("clean, never attacked", 0.02, 0.95), ("attacked", asr, 0.94), ("good", asr / 10, 0.93), ("bad", asr, 0.9)]
    measured = [
        {"model": name, "asr": {"rate": a}, "clean_accuracy": {"rate": c}, "seconds": 1.0, "knows": "weights"}
        for name, a, c in rows
    ]
    squeezed = {"median": {"asr": {"rate": asr / 2}, "clean_accuracy": {"rate": 0.8}}}
    return {
        "attack": attack, "planted": planted, "seed": seed, "detectors": {"D": verdict(index)}, "rows": measured,
        "filters": {"F": {"auroc of those that fire": 0.9, "at 0.05": {"of those that fire": 0.4 + 0.2 * seed}}},
        "reformers": squeezed,
    }  # fmt: skip


RUNS = [
    run("patch", [1], [0, 5, 0], 0.9),
    run("patch", [1], [3, 2.5, 0], 0.7, seed=1),
    run("warp", [1], [0, 1, 3], 0.5),
    run("none", [], [0, 0, 2.5], 0.02),
    run("none", [], [0, 0, 1], 0.02, seed=1),
]


def test_a_planted_class_that_is_flagged_is_found_whatever_else_is_flagged():
    table = tables.detection(RUNS).loc["D"]
    assert table["found"].startswith("2 of 3") and table["ranked first"].startswith("1 of 3")
    assert table["others flagged"].startswith("2 of 3") and table["false alarms"].startswith("1 of 2")


def test_a_limit_is_raised_only_where_clean_models_of_the_same_data_exceed_it():
    assert tables.raised(0.5, 0.4, "scores") == 0.5 and tables.raised(0.5, 0.7, "scores") == pytest.approx(0.85)
    assert tables.raised(3.0, 3.0, "index") == 3.0 and tables.raised(3.0, 3.6, "index") == 4.0
    assert tables.raised(3.0, 3.5, "index") == 4.0, "above the highest, not at it"


def test_runs_are_judged_anew_by_the_limits_of_their_data():
    judged = tables.with_limits_of(RUNS, [run("none", [], [0, 0, 2.6])])
    assert [one["detectors"]["D"]["flagged"] for one in judged] == [[1], [], [], [], []]
    assert tables.limits(judged) == {"D": 3.0} and tables.limits(RUNS) == {"D": 2.0}, "the runs themselves stay"
    assert tables.with_limits_of(RUNS, [run("none", [], [0, 0, 0])]) == RUNS


def test_a_tie_ranks_nobody_first_and_with_all_classes_planted_nothing_is_ranked():
    tied = [run("patch", [0], [0, 0, 0]), run("all-to-all", [0, 1, 2], [5, 0, 0])]
    assert tables.first(verdict([1, 1, 0])) is None and tables.detection(tied).loc["D", "ranked first"].startswith(
        "0 of 1"
    )


def test_shares_carry_the_exact_interval():
    assert tables.share([True] * 9 + [False]) == "9 of 10 (55 to 100 %)"
    assert tables.share([False] * 10) == "0 of 10 (0 to 31 %)" and tables.share([]) == ""


def test_of_a_clean_model_any_flag_counts():
    found = tables.found(RUNS)["D"]
    assert found.to_dict() == {"patch": 100, "warp": 0, "none": 50} and list(found.index)[-1] == "none"


def test_each_model_is_one_point():
    assert tables.peaks(RUNS) == {"D": {"clean": [2.5, 1], "attacked": [5, 3, 3]}} and tables.limits(RUNS) == {"D": 2.0}


def test_repairs_are_averaged_over_seeds_and_compared_with_the_attacked_model():
    rates = tables.repairs(RUNS)
    assert rates.loc["patch", "good"] == pytest.approx(8) and rates.loc["warp", "bad"] == pytest.approx(50)
    lost = tables.repairs(RUNS, "clean_accuracy", "attacked")
    assert list(lost.columns) == ["good", "bad"] and lost.loc["none", "bad"] == pytest.approx(-4)


def test_the_ordering_puts_first_what_leaves_least():
    order = tables.ordering(RUNS, ["patch", "warp"])
    assert list(order.index) == ["good", "bad"] and order.loc["bad", "accuracy, worst run"] == pytest.approx(-4)
    assert order.loc["good", "ASR, mean"] == pytest.approx(6.5) and order.loc["good", "seconds"] == 1
    assert order.loc["bad", "ASR, worst run"] == pytest.approx(90)


def test_controls_say_what_they_have():
    rows = [{"model": name, "knows": knows} for name, knows in (("attacked", "x"), ("MESA", "weights"), ("ideal", ""))]
    assert tables.told({"rows": rows}) == {"MESA": "weights", "ideal": tables.GIVEN["ideal"]}


def test_a_filter_is_judged_on_the_seeds_that_fire():
    quiet = run("patch", [1], [0, 0, 0]) | {"filters": {"F": {"auroc": 0.5, "at 0.05": {"clean": 0.05}}}}
    assert tables.caught([*RUNS, quiet]).loc["patch", "F"] == pytest.approx(50)
    assert np.isnan(tables.caught([quiet]).loc["patch", "F"])
    assert tables.filters([*RUNS, quiet]).loc["patch", "F"] == pytest.approx(90)
    assert np.isnan(tables.filters([quiet]).loc["patch", "F"])


def test_inputs():
    assert tables.filters(RUNS).to_dict() == {"F": {"patch": 90, "warp": 90}}
    assert tables.reformers(RUNS)["median"].round(6).to_dict() == {"patch": 40, "warp": 25, "none": 1}


def test_a_dot_is_hollow_where_another_class_is_highest():
    verdicts = [verdict([0.1, 3.0]), verdict([3.0, 0.1]), verdict([3.0, 0.1])]
    planted = [[1], [1], []]
    runs = [{"planted": p, "detectors": {"one": v}} for p, v in zip(planted, verdicts, strict=True)]
    assert tables.hits(runs) == {"one": {"clean": [True], "attacked": [True, False]}}
    figure = benchmark_plots.models(tables.peaks(runs), tables.limits(runs), hits=tables.hits(runs))
    opaque = [c.get_facecolors()[:, 3].tolist() for c in figure.axes[0].collections]
    assert opaque == [[1], [1, 0]]
    plt.close(figure)


def test_figures_are_drawn():
    table = pd.DataFrame(np.eye(3), index=list("abc"), columns=list("xyz"))
    for figure in (
        benchmark_plots.heat(table.where(table > 0), "title"),
        benchmark_plots.models(tables.peaks(RUNS), tables.limits(RUNS), "digits"),
        benchmark_plots.verdicts({"a": verdict([0, 5, 1.0]), "b": verdict([-3, -2, -9])}, {"a": [1], "b": []}),
    ):
        figure.canvas.draw()
        plt.close(figure)


def test_classes_stand_beside_the_limit_of_each_way():
    classes = pd.DataFrame(
        {"data": ["a", "a", "b"], "class": ["planted", "other", "clean"], "x": [99, 5, 7], "y": [80, 10, 12]}
    )
    figure = benchmark_plots.against_limits(classes, {"x": 77, "y": 93})
    assert [axis.get_title() for axis in figure.axes] == ["x", "y"]
    assert [axis.lines[-1].get_xdata()[0] for axis in figure.axes] == [77, 93]
    drawn = sorted(x for dots in figure.axes[1].collections for x, _ in dots.get_offsets())
    assert drawn == [10, 12, 80]
    assert [text.get_text() for text in figure.legends[0].texts] == ["planted", "other", "clean"]
    plt.close(figure)


def test_a_class_without_a_score_has_a_cross_and_every_bar_fits_a_logarithmic_axis():
    found = {"a": {"scores": [3, 40, np.nan], "flagged": []}, "b": {"scores": [5, 700, 9], "flagged": []}}
    figure = benchmark_plots.verdicts(found, {"a": [0], "b": []}, one_scale=True, log=True)
    low, high = figure.axes[0].get_ylim()
    assert low < 3 and high > 700 and figure.axes[0].get_yscale() == "log"
    assert [[text.get_text() for text in axis.texts] for axis in figure.axes] == [["x"], []]
    plt.close(figure)


@pytest.mark.parametrize("name", ["bench-thresholds", "bench-detect-digits", "bench-places", "bench-digits"])
def test_the_sweeps_of_the_benchmark_are_about_different_models(name):
    tasks = grid.read(name).tasks()
    assert (
        len({task.key for task in tasks})
        == len(tasks)
        == {"bench-thresholds": 10, "bench-detect-digits": 20, "bench-places": 15}.get(name, 22)
    )


@pytest.mark.parametrize("name", registry.DETECTORS)
def test_a_threshold_leaves_the_models_in_peace_on_which_it_was_fixed(name):
    runs, method = paper.load_runs("bench-thresholds"), registry.DETECTORS[name]()
    verdicts = [run["detectors"][name] for run in runs]
    if name == "Neural Cleanse":  # found with the index of the norms
        found = [InvertedTriggers(None, None, v["about"]["norms"], v["about"]["success"]) for v in verdicts]
        highest = [max(method.judge(f).index) for f in found]
    else:
        highest = [tables.peak(v) for v in verdicts]
    assert len(runs) == 10 and not any(run["planted"] for run in runs)
    assert sum(value > method.above for value in highest) <= 1
    if verdicts[0]["on"] == "scores" and name != "DL-TND":
        assert 6 * max(highest) < method.above, "rates of success stay far below"


def test_no_threshold_was_chosen_on_a_model_that_is_reported():
    seeds = {
        name: {p.seed for _, p in grid.read(name).each()}
        for name in ("bench-thresholds", "bench-detect-digits", "bench-digits")
    }
    assert not seeds["bench-thresholds"] & (seeds["bench-detect-digits"] | seeds["bench-digits"])
