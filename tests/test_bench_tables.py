"""The benchmark's arithmetic, on runs made up here."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from mesa_lib.defenses import registry
from mesa_lib.defenses.neural_cleanse import InvertedTriggers
from mesa_lib.experiments import results
from mesa_lib.experiments.sweep import grid
from mesa_lib.reporting import plots
from mesa_lib.reporting.tables import benchmark as tables


def verdict(index, above=2.0):
    flagged = [k for k, value in enumerate(index) if value > above]
    return {"scores": index, "index": index, "on": "index", "above": above, "flagged": flagged,
            "knowledge": "outputs", "seconds": 3.0}  # fmt: skip


def run(attack, planted, index, asr=0.9, seed=0):
    rows = [("clean model", 0.02, 0.95), ("attacked", asr, 0.94), ("good", asr / 10, 0.93), ("bad", asr, 0.9)]
    measured = [
        {"model": name, "asr": {"rate": a}, "clean_accuracy": {"rate": c}, "seconds": 1.0, "knowledge": "weights"}
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


def test_a_planted_class_that_is_flagged_is_detected_whatever_else_is_flagged():
    table = tables.detection_table(RUNS).loc["D"]
    assert table["detected"].startswith("2 of 3") and table["ranked first"].startswith("1 of 3")
    assert table["others flagged"].startswith("2 of 3") and table["false positives"].startswith("1 of 2")


def test_a_threshold_is_raised_only_where_clean_models_of_the_same_data_exceed_it():
    assert tables.raised_threshold(0.5, 0.4, "scores") == 0.5 and tables.raised_threshold(
        0.5, 0.7, "scores"
    ) == pytest.approx(0.85)
    assert tables.raised_threshold(3.0, 3.0, "index") == 3.0 and tables.raised_threshold(3.0, 3.6, "index") == 4.0
    assert tables.raised_threshold(3.0, 3.5, "index") == 4.0, "above the highest, not at it"


def test_runs_get_new_verdicts_by_the_thresholds_of_their_data():
    renewed = tables.with_raised_thresholds(RUNS, [run("none", [], [0, 0, 2.6])])
    assert [one["detectors"]["D"]["flagged"] for one in renewed] == [[1], [], [], [], []]
    assert tables.thresholds(renewed) == {"D": 3.0} and tables.thresholds(RUNS) == {"D": 2.0}, (
        "the runs themselves stay"
    )
    assert tables.with_raised_thresholds(RUNS, [run("none", [], [0, 0, 0])]) == RUNS


def test_a_tie_ranks_nobody_first_and_with_all_classes_planted_nothing_is_ranked():
    tied = [run("patch", [0], [0, 0, 0]), run("all-to-all", [0, 1, 2], [5, 0, 0])]
    assert tables.top_class(verdict([1, 1, 0])) is None and tables.detection_table(tied).loc[
        "D", "ranked first"
    ].startswith("0 of 1")


def test_counts_carry_the_exact_interval():
    assert tables.count_text([True] * 9 + [False]) == "9 of 10 (55–100%)"
    assert tables.count_text([False] * 10) == "0 of 10 (0–31%)" and tables.count_text([]) == ""


def test_of_a_clean_model_any_flag_counts():
    rates = tables.detection_rates(RUNS)["D"]
    assert rates.to_dict() == {"patch": 100, "warp": 0, "none": 50} and list(rates.index)[-1] == "none"


def test_each_model_is_one_point():
    assert tables.peak_scores(RUNS) == {"D": {"clean": [2.5, 1], "attacked": [5, 3, 3]}} and tables.thresholds(
        RUNS
    ) == {"D": 2.0}


def test_repairs_are_averaged_over_seeds_and_compared_with_the_attacked_model():
    rates = tables.repair_rates(RUNS)
    assert rates.loc["patch", "good"] == pytest.approx(8) and rates.loc["warp", "bad"] == pytest.approx(50)
    lost = tables.repair_rates(RUNS, "clean_accuracy", "attacked")
    assert list(lost.columns) == ["good", "bad"] and lost.loc["none", "bad"] == pytest.approx(-4)


def test_the_ranking_puts_first_what_leaves_least():
    order = tables.repair_ranking(RUNS, ["patch", "warp"])
    assert list(order.index) == ["good", "bad"] and order.loc["bad", "accuracy, worst run"] == pytest.approx(-4)
    assert order.loc["good", "ASR, mean"] == pytest.approx(6.5) and order.loc["good", "seconds"] == 1
    assert order.loc["bad", "ASR, worst run"] == pytest.approx(90)


def test_controls_state_their_knowledge():
    rows = [
        {"model": name, "knowledge": knowledge}
        for name, knowledge in (("attacked", "x"), ("MESA", "weights"), ("ideal", ""))
    ]
    assert tables.repair_knowledge({"rows": rows}) == {"MESA": "weights", "ideal": tables.CONTROL_KNOWLEDGE["ideal"]}


def test_a_filter_is_evaluated_on_the_seeds_whose_attack_works():
    quiet = run("patch", [1], [0, 0, 0]) | {"filters": {"F": {"auroc": 0.5, "at 0.05": {"clean": 0.05}}}}
    assert tables.filter_tpr([*RUNS, quiet]).loc["patch", "F"] == pytest.approx(50)
    assert np.isnan(tables.filter_tpr([quiet]).loc["patch", "F"])
    assert tables.filter_rates([*RUNS, quiet]).loc["patch", "F"] == pytest.approx(90)
    assert np.isnan(tables.filter_rates([quiet]).loc["patch", "F"])


def test_inputs():
    assert tables.filter_rates(RUNS).to_dict() == {"F": {"patch": 90, "warp": 90}}
    assert tables.reformer_rates(RUNS)["median"].round(6).to_dict() == {"patch": 40, "warp": 25, "none": 1}


def test_a_dot_is_hollow_where_another_class_is_highest():
    verdicts = [verdict([0.1, 3.0]), verdict([3.0, 0.1]), verdict([3.0, 0.1])]
    planted = [[1], [1], []]
    runs = [{"planted": p, "detectors": {"one": v}} for p, v in zip(planted, verdicts, strict=True)]
    assert tables.peak_hits(runs) == {"one": {"clean": [True], "attacked": [True, False]}}
    figure = plots.scores_by_model(tables.peak_scores(runs), tables.thresholds(runs), hits=tables.peak_hits(runs))
    opaque = [c.get_facecolors()[:, 3].tolist() for c in figure.axes[0].collections]
    assert opaque == [[1], [1, 0]]
    plt.close(figure)


def test_figures_are_drawn():
    table = pd.DataFrame(np.eye(3), index=list("abc"), columns=list("xyz"))
    for figure in (
        plots.heatmap(table.where(table > 0), "title"),
        plots.scores_by_model(tables.peak_scores(RUNS), tables.thresholds(RUNS), "digits"),
        plots.scores_by_class({"a": verdict([0, 5, 1.0]), "b": verdict([-3, -2, -9])}, {"a": [1], "b": []}),
    ):
        figure.canvas.draw()
        plt.close(figure)


def test_classes_stand_beside_the_threshold_of_each_way_of_stamping():
    classes = pd.DataFrame(
        {"data": ["a", "a", "b"], "class": ["planted", "other", "clean"], "x": [99, 5, 7], "y": [80, 10, 12]}
    )
    figure = plots.screening_rates(classes, {"x": 77, "y": 93}, "a sentence")
    assert figure.get_suptitle() == "a sentence"
    assert [axis.get_title() for axis in figure.axes] == ["x", "y"]
    assert [axis.lines[-1].get_xdata()[0] for axis in figure.axes] == [77, 93]
    drawn = sorted(x for dots in figure.axes[1].collections for x, _ in dots.get_offsets())
    assert drawn == [10, 12, 80]
    assert [text.get_text() for text in figure.legends[0].texts] == ["planted", "other", "clean", "limit"]
    plt.close(figure)


def test_a_class_without_a_score_has_a_cross_and_every_bar_fits_a_logarithmic_axis():
    verdicts = {"a": {"scores": [3, 40, np.nan], "flagged": []}, "b": {"scores": [5, 700, 9], "flagged": []}}
    figure = plots.scores_by_class(verdicts, {"a": [0], "b": []}, shared_scale=True, log=True)
    low, high = figure.axes[0].get_ylim()
    assert low < 3 and high > 700 and figure.axes[0].get_yscale() == "log"
    assert [[text.get_text() for text in axis.texts] for axis in figure.axes] == [["x"], []]
    plt.close(figure)


@pytest.mark.parametrize("name", ["bench-thresholds", "bench-detect-digits", "bench-fixed-location", "bench-digits"])
def test_the_sweeps_of_the_benchmark_are_about_different_models(name):
    tasks = grid.read(name).tasks()
    assert (
        len({task.key for task in tasks})
        == len(tasks)
        == {"bench-thresholds": 10, "bench-detect-digits": 20, "bench-fixed-location": 15}.get(name, 22)
    )


@pytest.mark.parametrize("name", [name for name in registry.DETECTORS if name not in registry.RECENT])
def test_a_threshold_leaves_the_models_in_peace_on_which_it_was_fixed(name):
    runs, method = results.load_runs("bench-thresholds"), registry.DETECTORS[name]()
    verdicts = [run["detectors"][name] for run in runs]
    if name == "Neural Cleanse":  # found with the index of the norms
        found = [InvertedTriggers(None, None, v["about"]["norms"], v["about"]["success"]) for v in verdicts]
        highest = [max(method.judge(f).index) for f in found]
    else:
        highest = [tables.peak_score(v) for v in verdicts]
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
