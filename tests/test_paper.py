"""The paper's tables from made-up runs whose figures can be checked by eye."""

import json

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from mesa_lib.evaluation import intervals
from mesa_lib.experiments import results
from mesa_lib.reporting import plots
from mesa_lib.reporting.tables import paper


def run(trigger="bw:1", inversions=(0.1, 0.3), mesa=0.02, rounds=1, levels=True, **more):
    """A run as `collect_results` has it."""

    def row(name, rate):
        return {"model": name, "asr": {"rate": rate}, "clean_accuracy": {"rate": 0.9}, "target_recall": {"rate": 0.8}}

    rates = {"clean model": 0.03, "attacked": 0.99, "fine-tuning": 0.98}
    rates |= {f"single inversion {n}": rate for n, rate in enumerate(inversions, 1)}
    rates |= {"MESA": mesa, "MESA rounds": mesa, "ideal": 0.01, "clean model, repaired": 0.015} | more
    rows = [row(name, rate) for name, rate in rates.items()]
    result = {"trigger": trigger, "rows": rows, "rounds": [{}] * rounds, "seconds": {"attack": 10.0, "repair": 2.0}}
    result["levels"] = {"beta 0.9": row("", mesa / 2)} if levels else {}
    result["made"] = {"device_name": "a processor", "threads": 1, "torch": "2"}
    return result


@pytest.fixture
def three():
    return [run(), run("bw:2", inversions=(0.2, 0.2), mesa=0.04), run("bw:3", inversions=(0.0, 0.0), mesa=0.03)]


def test_a_rate_has_one_number_a_repeat_and_a_level_is_a_model_of_its_own():
    assert paper.rates(run(), "single inversion") == [10, 30] and paper.rates(run(), "MESA") == [2]
    assert paper.rates(run(), "beta 0.9") == [1] and paper.rates(run(levels=False), "beta 0.9") == []
    assert paper.rates(run(), "MESA rounds") == [2], "not mixed up with MESA"
    assert paper.rates(run(), "attacked", "clean_accuracy") == [90]


def test_the_table_averages_repeats_within_a_trigger_and_takes_the_worst_of_all(three):
    table = paper.table(three, paper.PAPER["cifar10"])
    assert table.loc["single inversion", ["mean", "worst"]].tolist() == pytest.approx([40 / 3, 30])
    assert table.loc["single inversion", "95% CI, low"] >= 0 and table.loc["single inversion", "95% CI, high"] <= 20
    assert table.loc["attacked", "worst"] == 99 and table.loc["MESA", "mean"] == pytest.approx(3)
    assert table.loc["beta 0.9", ["paper, mean", "paper, worst"]].tolist() == [3.4, 5.9]
    assert np.isnan(table.loc["fine-tuning", "paper, mean"]) and "beta 0.5" not in table.index
    assert list(table.index) == [name for name in paper.ROWS if name in table.index]


def test_rounds_have_a_row_only_where_a_second_one_ran(three):
    assert "MESA rounds" not in paper.table(three).index
    assert "MESA rounds" in paper.table([*three, run(rounds=2)]).index


def test_color_triggers_have_the_papers_mean_alone(three):
    table = paper.table(three, paper.PAPER_COLOR["cifar100"])
    assert table.loc["MESA", "paper, mean"] == 1.14 and np.isnan(table.loc["MESA", "paper, worst"])


def test_an_interval_holds_the_mean_and_is_the_same_each_time():
    values = [1.0, 2.0, 3.0, 10.0]
    low, high = intervals.bootstrap_interval(values)
    assert 1 < low < 4 < high < 10 and (low, high) == intervals.bootstrap_interval(values)
    assert all(np.isnan(intervals.bootstrap_interval([1.0, 2.0])))


def test_the_interval_covers_the_true_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(60):
        low, high = intervals.bootstrap_interval(rng.normal(5, 1, 30), seed)
        hits += low <= 5 <= high
    assert 50 <= hits <= 60


def test_differences_are_taken_run_by_run(three):
    table = paper.differences(three)
    assert table.loc["ASR, against the clean model", ["mean", "worst"]].tolist() == pytest.approx([0, 1])
    assert table.loc["ASR, against ideal", ["mean", "worst"]].tolist() == pytest.approx([2, 3])
    assert table.loc["ASR, against single inversion", ["mean", "worst"]].tolist() == pytest.approx([-31 / 3, 3])
    assert table.loc["clean accuracy", "mean"] == 0 and "ASR, against random mixed" not in table.index
    assert "ASR, against ideal" not in paper.differences(three, "ideal").index


def test_distances_are_to_the_nearest_sample():
    samples = torch.zeros(4, 3, 1, 1)
    samples[2:] = 1
    samples[3, 0] = 0.8
    triggers = {"shape": [3, 1, 1], "original": results.pack_triggers(torch.full((1, 3, 1, 1), 0.2))}
    triggers |= {
        "samples": results.pack_triggers(samples),
        "inverted": results.pack_triggers(torch.tensor([0.4]).expand(2, 3, 1, 1)),
    }
    table = paper.distances_to_samples({"triggers": triggers})
    assert table["original"] == pytest.approx(0.2 * 3**0.5) and table["single inversion"] == pytest.approx(0.4 * 3**0.5)
    assert table["sample (median)"] == pytest.approx(0, abs=1e-6)


def saved(samples, original, inverted=None):
    """The triggers of a run whose patches are 1x1: values (n, 3)."""
    values = {"original": [original], "samples": samples, "inverted": inverted or [original]}
    return {"shape": [3, 1, 1]} | {
        k: results.pack_triggers(torch.tensor(v).reshape(-1, 3, 1, 1)) for k, v in values.items()
    }


def test_an_original_is_compared_with_samples_of_other_runs_and_with_chance():
    runs = [
        {"trigger": "a", "triggers": saved([[0.0, 0, 0], [0.2, 0, 0]], [0.4, 0.0, 0])},
        {"trigger": "b", "triggers": saved([[1.0, 1, 1], [1.0, 1, 0.8]], [0.0, 0.0, 0])},
        {"trigger": "c", "triggers": saved([[0.0, 0, 0.4]], [0.0, 0.0, 0])},
    ]
    table = paper.nearest_cloud(runs)
    assert table.loc["a", ["to its samples", "to the nearest other run's", "other runs nearer"]].tolist() == (
        pytest.approx([0.2, 0.32**0.5, 0], abs=0.01)
    )
    assert table.loc["b", "other runs nearer"] == 2 and table.loc["c", "other runs nearer"] == 1
    assert table.loc["a", "random patterns nearer (%)"] == pytest.approx(50, abs=4), "black is nearer, white is not"


def test_costs_in_accuracy_are_changes_against_the_attacked_model(three):
    three[0]["rows"][-3]["target_recall"] = {"rate": 0.7}
    assert three[0]["rows"][-3]["model"] == "MESA rounds"
    for name, rate in (("MESA", 0.86), ("single inversion 2", 0.8)):
        row = next(row for row in three[1]["rows"] if row["model"] == name)
        row["clean_accuracy"] = {"rate": rate}
    table = paper.accuracy_cost(three)
    assert table.loc["MESA", ["clean accuracy, change", "clean accuracy, worst"]].tolist() == pytest.approx(
        [-4 / 3, -4]
    )
    assert table.loc["single inversion", ["clean accuracy, change", "clean accuracy, worst"]].tolist() == (
        pytest.approx([-5 / 3, -10])
    )
    assert table.loc["attacked", "recall, change"] == 0 and table.loc["MESA rounds", "recall, worst"] == pytest.approx(
        -10
    )


def test_the_single_inversion_is_reported_repeat_by_repeat(three):
    fires = [{"rate": 0.9}, {"rate": 0.5}]
    table = paper.inversion_repeats([run | {"inverted_triggers_asr": fires} for run in three])
    assert table["after the repair"].loc["bw:1"].tolist() == [10, 30] and table["inverted trigger"].loc[
        "bw:2"
    ].tolist() == [90, 50]


def test_samples_of_a_swept_alpha():
    def of_seed(seed, samples):
        params = {"betas": "0.9", "alpha": 0.1}
        measured = {"beta 0.9": {"asr": 0.9, "information": 1.0, "distance": 0.4}, "mixture": {}}
        return {"params": params, "seed": seed, "samples": measured, "triggers": saved(samples, [1.0, 0, 0])}

    line, plane = [[0.0, 0, 0], [1.0, 0, 0], [0.6, 0, 0]], [[1.0, 0, 0], [0.0, 1, 0], [0.0, 0, 1]]
    table = paper.samples_over_seeds([of_seed(0, line), of_seed(1, plane)]).loc[(0.9, 0.1)]
    assert table["first direction", "mean"] == pytest.approx(75, abs=0.1), "all of it, and half"
    assert table["near the trigger", "mean"] == pytest.approx(50) and table["ASR", "std"] == 0


def test_the_asr_of_triggers_on_the_models_of_others(tmp_path, monkeypatch):
    monkeypatch.setenv("MESA_ROOT", str(tmp_path))
    assert paper.cross_trigger_asr() == {}
    (tmp_path / "results").mkdir()
    about = {"models": ["clean model", "a"], "triggers": ["a"], "asr": {"samples": [[0.1], [0.9]]}}
    (tmp_path / "results" / "cross-trigger-asr.json").write_text(json.dumps(about))
    assert paper.cross_trigger_asr()["samples"].loc["clean model", "a"] == 10


def test_triggers_are_sorted_by_what_the_baseline_leaves(three):
    table = paper.asr_by_trigger(three)
    assert list(table.index) == ["bw:3", "bw:1", "bw:2"]
    assert table.loc["bw:1", ["single inversion, best", "single inversion, worst"]].tolist() == [10, 30]


def test_triggers_above_the_threshold_are_named(three):
    assert paper.missed_triggers(three) == [] and paper.missed_triggers(three, "single inversion") == ["bw:1", "bw:2"]
    assert paper.missed_triggers(three, above=3.5) == ["bw:2"]


def test_a_panel_has_the_samples_and_the_single_triggers():
    triggers = {"shape": [3, 2, 2], "original": results.pack_triggers(torch.ones(1, 3, 2, 2))}
    triggers |= {
        "samples": results.pack_triggers(torch.rand(7, 3, 2, 2)),
        "inverted": results.pack_triggers(torch.zeros(2, 3, 2, 2)),
    }
    groups, marks = paper.map_panel({"triggers": triggers})
    assert groups["samples of MESA"].shape == (7, 3, 2, 2) and set(marks) <= set(plots.MARKS)
    assert float(marks["original"].mean()) == 1 and float(marks["single inversion"].mean()) == 0


def test_a_sweep_that_is_not_published_has_no_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("MESA_ROOT", str(tmp_path))
    assert results.load_runs("nothing") == []


def test_seconds_and_machines_are_reported_in_a_line(three):
    three[0]["made"] = three[0]["made"] | {"threads": 2}
    assert paper.median_seconds(three).to_dict() == {"attack": 10, "repair": 2}
    assert paper.machines(three) == "a processor, 1 thread, torch 2; a processor, 2 threads, torch 2"


def test_the_figure_by_trigger_has_a_band_and_a_line_for_each_repair(three):
    figure = plots.asr_by_trigger(paper.asr_by_trigger(three))
    (axis,) = figure.axes
    assert len(axis.collections) == 1 and len(axis.lines) == 5
    assert [t.get_text() for t in axis.get_xticklabels()] == ["3", "1", "2"]
    assert list(axis.lines[2].get_ydata()) == [3, 2, 4], "MESA, in the order of the columns"
    plt.close(figure)


def test_the_figure_of_means_has_an_interval_a_worst_run_and_the_papers_mean():
    columns = {"mean": [1.0, 2.0], "95% CI, low": [0.5, np.nan], "95% CI, high": [1.5, np.nan], "worst": [4.0, 5.0]}
    table = pd.DataFrame(columns | {"paper, mean": [3.6, np.nan]}, index=["MESA", "ideal"])
    figure = plots.means_with_intervals(table, xlabel="ASR (%)", title="A sentence", line=(2.5, "clean"), symlog=True)
    (axis,) = figure.axes
    assert [t.get_text() for t in axis.get_yticklabels()] == ["MESA", "ideal"] and axis.get_xlabel() == "ASR (%)"
    drawn = [list(line.get_xdata()) for line in axis.lines]
    assert drawn == [[0.5, 1.5], [1.0], [4.0], [3.6], [2.0], [5.0], [2.5, 2.5]]
    labels = [t.get_text() for t in figure.legends[0].get_texts()]
    assert labels == ["mean, 95% CI", "worst run", "the paper, mean", "clean"]
    plt.close(figure)


def test_the_figure_of_a_sweep_has_a_column_for_each_task():
    figure = plots.asr_by_task(["a-1", "b-2"], {"attacked": [99, 98], "MESA": [1, 2]})
    (axis,) = figure.axes
    assert [list(line.get_ydata()) for line in axis.lines] == [[99, 98], [1, 2]]
    assert [t.get_text() for t in axis.get_xticklabels()] == ["a", "b"]
    plt.close(figure)
