"""The paper's tables from made-up runs whose figures can be checked by eye."""

import json

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from mesa_lib.experiments import results
from mesa_lib.reporting import plots
from mesa_lib.reporting.tables import paper


def run(trigger="bw:1", point=(0.1, 0.3), mesa=0.02, rounds=1, levels=True, **more):
    """A run as `record.of` has it."""

    def row(name, rate):
        return {"model": name, "asr": {"rate": rate}, "clean_accuracy": {"rate": 0.9}, "target_recall": {"rate": 0.8}}

    rates = {"clean, never attacked": 0.03, "attacked": 0.99, "fine-tune only": 0.98}
    rates |= {f"point {n}": rate for n, rate in enumerate(point, 1)}
    rates |= {"MESA": mesa, "MESA rounds": mesa, "ideal": 0.01, "clean, repaired": 0.015} | more
    rows = [row(name, rate) for name, rate in rates.items()]
    found = {"trigger": trigger, "rows": rows, "rounds": [{}] * rounds, "seconds": {"attack": 10.0, "repair": 2.0}}
    found["levels"] = {"beta 0.9": row("", mesa / 2)} if levels else {}
    found["made"] = {"device_name": "a processor", "threads": 1, "torch": "2"}
    return found


@pytest.fixture
def three():
    return [run(), run("bw:2", point=(0.2, 0.2), mesa=0.04), run("bw:3", point=(0.0, 0.0), mesa=0.03)]


def test_a_rate_has_one_number_a_repeat_and_a_level_is_a_model_of_its_own():
    assert paper.rates(run(), "point baseline") == [10, 30] and paper.rates(run(), "MESA") == [2]
    assert paper.rates(run(), "beta 0.9") == [1] and paper.rates(run(levels=False), "beta 0.9") == []
    assert paper.rates(run(), "MESA rounds") == [2], "not mixed up with MESA"
    assert paper.rates(run(), "attacked", "clean_accuracy") == [90]


def test_the_table_averages_repeats_within_a_trigger_and_takes_the_worst_of_all(three):
    table = paper.table(three, paper.PAPER["cifar10"])
    assert table.loc["point baseline", ["mean", "worst"]].tolist() == pytest.approx([40 / 3, 30])
    assert table.loc["point baseline", "95 % low"] >= 0 and table.loc["point baseline", "95 % high"] <= 20
    assert table.loc["attacked", "worst"] == 99 and table.loc["MESA", "mean"] == pytest.approx(3)
    assert table.loc["beta 0.9", ["paper, mean", "paper, worst"]].tolist() == [3.4, 5.9]
    assert np.isnan(table.loc["fine-tune only", "paper, mean"]) and "beta 0.5" not in table.index
    assert list(table.index) == [name for name in paper.ROWS if name in table.index]


def test_rounds_have_a_row_only_where_a_second_one_ran(three):
    assert "MESA rounds" not in paper.table(three).index
    assert "MESA rounds" in paper.table([*three, run(rounds=2)]).index


def test_color_triggers_have_the_papers_mean_alone(three):
    table = paper.table(three, paper.PAPER_COLOR["cifar100"])
    assert table.loc["MESA", "paper, mean"] == 1.14 and np.isnan(table.loc["MESA", "paper, worst"])


def test_an_interval_holds_the_mean_and_is_the_same_each_time():
    values = [1.0, 2.0, 3.0, 10.0]
    low, high = paper.interval(values)
    assert 1 < low < 4 < high < 10 and (low, high) == paper.interval(values)
    assert all(np.isnan(paper.interval([1.0, 2.0])))


def test_the_interval_covers_the_true_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(60):
        low, high = paper.interval(rng.normal(5, 1, 30), seed)
        hits += low <= 5 <= high
    assert 50 <= hits <= 60


def test_differences_are_taken_run_by_run(three):
    found = paper.differences(three)
    assert found.loc["ASR against the floor", ["mean", "worst"]].tolist() == pytest.approx([0, 1])
    assert found.loc["ASR against the ideal", ["mean", "worst"]].tolist() == pytest.approx([2, 3])
    assert found.loc["ASR against the point", ["mean", "worst"]].tolist() == pytest.approx([-31 / 3, 3])
    assert found.loc["clean accuracy", "mean"] == 0 and "ASR against random mixed" not in found.index
    assert "ASR against the ideal" not in paper.differences(three, "ideal").index


def test_distances_are_to_the_nearest_sample():
    samples = torch.zeros(4, 3, 1, 1)
    samples[2:] = 1
    samples[3, 0] = 0.8
    triggers = {"shape": [3, 1, 1], "original": results.pack_triggers(torch.full((1, 3, 1, 1), 0.2))}
    triggers |= {"samples": results.pack_triggers(samples), "points": results.pack_triggers(torch.tensor([0.4]).expand(2, 3, 1, 1))}
    found = paper.distances({"triggers": triggers})
    assert found["the original"] == pytest.approx(0.2 * 3**0.5) and found["the point"] == pytest.approx(0.4 * 3**0.5)
    assert found["a sample (median)"] == pytest.approx(0, abs=1e-6)


def cloud(samples, original, points=None):
    """The triggers of a run whose patches are 1x1: values (n, 3)."""
    given = {"original": [original], "samples": samples, "points": points or [original]}
    return {"shape": [3, 1, 1]} | {k: results.pack_triggers(torch.tensor(v).reshape(-1, 3, 1, 1)) for k, v in given.items()}


def test_an_original_is_compared_with_other_clouds_and_with_chance():
    runs = [
        {"trigger": "a", "triggers": cloud([[0.0, 0, 0], [0.2, 0, 0]], [0.4, 0.0, 0])},
        {"trigger": "b", "triggers": cloud([[1.0, 1, 1], [1.0, 1, 0.8]], [0.0, 0.0, 0])},
        {"trigger": "c", "triggers": cloud([[0.0, 0, 0.4]], [0.0, 0.0, 0])},
    ]
    found = paper.nearest_cloud(runs)
    assert found.loc["a", ["to its own cloud", "to the nearest other", "other clouds nearer"]].tolist() == (
        pytest.approx([0.2, 0.32**0.5, 0], abs=0.01)
    )
    assert found.loc["b", "other clouds nearer"] == 2 and found.loc["c", "other clouds nearer"] == 1
    assert found.loc["a", "random patterns nearer (%)"] == pytest.approx(50, abs=4), "black is nearer, white is not"


def test_prices_are_changes_against_the_attacked_model(three):
    three[0]["rows"][-3]["target_recall"] = {"rate": 0.7}
    assert three[0]["rows"][-3]["model"] == "MESA rounds"
    for name, rate in (("MESA", 0.86), ("point 2", 0.8)):
        row = next(row for row in three[1]["rows"] if row["model"] == name)
        row["clean_accuracy"] = {"rate": rate}
    found = paper.accuracy_cost(three)
    assert found.loc["MESA", ["clean accuracy, change", "clean accuracy, worst"]].tolist() == pytest.approx(
        [-4 / 3, -4]
    )
    assert found.loc["point baseline", ["clean accuracy, change", "clean accuracy, worst"]].tolist() == (
        pytest.approx([-5 / 3, -10])
    )
    assert found.loc["attacked", "recall, change"] == 0 and found.loc["MESA rounds", "recall, worst"] == pytest.approx(
        -10
    )


def test_the_point_is_told_repeat_by_repeat(three):
    fires = [{"rate": 0.9}, {"rate": 0.5}]
    found = paper.repeats([run | {"point_triggers_asr": fires} for run in three])
    assert found["left by"].loc["bw:1"].tolist() == [10, 30] and found["fires"].loc["bw:2"].tolist() == [90, 50]


def test_what_samples_of_a_swept_alpha_do():
    def of_seed(seed, samples):
        params = {"betas": "0.9", "alpha": 0.1}
        measured = {"beta 0.9": {"asr": 0.9, "information": 1.0, "distance": 0.4}, "mixture": {}}
        return {"params": params, "seed": seed, "samples": measured, "triggers": cloud(samples, [1.0, 0, 0])}

    line, plane = [[0.0, 0, 0], [1.0, 0, 0], [0.6, 0, 0]], [[1.0, 0, 0], [0.0, 1, 0], [0.0, 0, 1]]
    found = paper.samples_over_seeds([of_seed(0, line), of_seed(1, plane)]).loc[(0.9, 0.1)]
    assert found["first direction", "mean"] == pytest.approx(75, abs=0.1), "all of it, and half"
    assert found["at the trigger", "mean"] == pytest.approx(50) and found["ASR", "std"] == 0


def test_whose_samples_fire_on_whom(tmp_path, monkeypatch):
    monkeypatch.setenv("MESA_ROOT", str(tmp_path))
    assert paper.cross_trigger_asr() == {}
    (tmp_path / "results").mkdir()
    about = {"models": ["clean", "a"], "triggers": ["a"], "asr": {"samples": [[0.1], [0.9]]}}
    (tmp_path / "results" / "clouds.json").write_text(json.dumps(about))
    assert paper.cross_trigger_asr()["samples"].loc["clean", "a"] == 10


def test_triggers_are_sorted_by_what_the_baseline_leaves(three):
    table = paper.by_trigger(three)
    assert list(table.index) == ["bw:3", "bw:1", "bw:2"]
    assert table.loc["bw:1", ["point, best", "point, worst"]].tolist() == [10, 30]


def test_what_still_fires_is_named(three):
    assert paper.missed(three) == [] and paper.missed(three, "point baseline") == ["bw:1", "bw:2"]
    assert paper.missed(three, above=3.5) == ["bw:2"]


def test_a_panel_has_the_samples_and_the_single_triggers():
    triggers = {"shape": [3, 2, 2], "original": results.pack_triggers(torch.ones(1, 3, 2, 2))}
    triggers |= {"samples": results.pack_triggers(torch.rand(7, 3, 2, 2)), "points": results.pack_triggers(torch.zeros(2, 3, 2, 2))}
    groups, marks = paper.panel({"triggers": triggers})
    assert groups["samples of MESA"].shape == (7, 3, 2, 2) and set(marks) <= set(plots.MARKS)
    assert float(marks["original"].mean()) == 1 and float(marks["point"].mean()) == 0


def test_a_sweep_that_is_not_published_has_no_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("MESA_ROOT", str(tmp_path))
    assert paper.load_runs("nothing") == []


def test_costs_and_machines_are_told_in_a_line(three):
    three[0]["made"] = three[0]["made"] | {"threads": 2}
    assert paper.costs(three).to_dict() == {"attack": 10, "repair": 2}
    assert paper.machines(three) == "a processor, 1 thread, torch 2; a processor, 2 threads, torch 2"


def test_the_figure_by_trigger_has_a_band_and_a_line_a_repair(three):
    figure = plots.by_trigger(paper.by_trigger(three))
    (axis,) = figure.axes
    assert len(axis.collections) == 1 and len(axis.lines) == 5
    assert [t.get_text() for t in axis.get_xticklabels()] == ["3", "1", "2"]
    assert list(axis.lines[2].get_ydata()) == [3, 2, 4], "MESA, in the order of the columns"
    plt.close(figure)


def test_the_figure_beside_the_paper_has_a_panel_a_data_set():
    ours = {"CIFAR-10": {"MESA": [1.0, 2.0], "ideal": [1.0, 1.0]}, "CIFAR-100": {"MESA": [3.0]}}
    figure = plots.beside_the_paper(ours, {"CIFAR-10": {"MESA": 1.9}})
    first, second = figure.axes
    assert [a.get_title() for a in figure.axes] == list(ours) and len(first.lines) == 5 and len(second.lines) == 2
    assert list(first.lines[2].get_ydata()) == [1.9]
    plt.close(figure)


def test_the_figure_of_a_batch_has_a_column_a_task():
    figure = plots.per_task(["a-1", "b-2"], {"attacked": [99, 98], "MESA": [1, 2]})
    (axis,) = figure.axes
    assert [list(line.get_ydata()) for line in axis.lines] == [[99, 98], [1, 2]]
    assert [t.get_text() for t in axis.get_xticklabels()] == ["a", "b"]
    plt.close(figure)
