"""The tables of docs/results.md and of the README, from made-up runs whose numbers can be checked by eye."""

import json

import matplotlib.pyplot as plt
import pytest

from mesa_lib.reporting import plots
from mesa_lib.reporting.tables import readme, summary


def made_up(trigger="bw:170", seed=0, one_round=0.02, rounds=0.02, checks=(True,), asr=0.99, **params):
    """A run of a sweep through the repair: all rows at 90% accuracy, MESA's rows and the residual checks as given."""

    def row(name, rate):
        measure = {"rate": rate, "low": rate - 0.01, "high": rate + 0.01}
        return {"model": name, "asr": measure} | {m: {"rate": 0.9} for m in readme.MEASURES if m != "asr"}

    rates = {"clean model": 0.03, "attacked": asr, "single inversion 1": 0.1, "single inversion 2": 0.2}
    rates |= {"MESA": one_round, "MESA rounds": rounds, "ideal": 0.01, "clean model, repaired": 0.01}
    rows = [row(name, rate) for name, rate in rates.items()]
    samples = {name: {"asr": 0.9, "information": 1.0, "distance": 0.5} for name in ("beta 0.8", "beta 0.9", "alpha 0")}
    samples["beta 0.8"] = {"asr": 0.0, "information": 0.0, "distance": 0.1}
    made = {"device": "cpu", "device_name": "a processor", "threads": 2, "torch": "2"}
    seconds = {"clean": 1, "attack": 2, "modeling": 3, "repair": 4, "rounds": 10}
    records = [{"round": n + 1, "clear": clear} for n, clear in enumerate(checks)]
    params = {"dataset": "digits", "target": 0, "start": "clean", "clean_seed": -1} | params
    head = {"trigger": trigger, "seed": seed, "made": made, "params": params}
    return head | {"rows": rows, "samples": samples, "seconds": seconds, "rounds": records}


def content(*runs):
    """A published sweep."""
    return {"sweep": "small", "title": "Small", "format": 2, "runs": list(runs)}


def test_worst_is_the_lowest_of_the_attacked_and_the_highest_of_the_others():
    table = readme.markdown(content(made_up(asr=0.9), made_up(seed=1, one_round=0.06)))
    (attacked,) = [line for line in table.splitlines() if line.startswith("| attacked")]
    assert attacked.endswith("| 94.5 ± 6.4% | 90.0% |")
    assert "| MESA | 90.0 ± 0.0% | 4.0 ± 2.8% | 6.0% |" in table
    assert "| single inversion | 90.0 ± 0.0% | 15.0 ± 5.8% | 20.0% |" in table


def test_the_papers_number_stands_beside_ours_where_it_has_one():
    table = readme.markdown(content(made_up(dataset="cifar10"), made_up(seed=1, dataset="cifar10")))
    assert "| MESA | 90.0 ± 0.0% | 2.0 ± 0.0% | 2.0% | 3.6% (8.2) |" in table
    results, _ = table.split("\n\n| detail")
    widths = {line.count("|") for line in results.splitlines() if line.startswith("|")}
    assert widths == {6}
    assert "3.6%" not in readme.markdown(content(made_up(), made_up(seed=1)))
    scratch = {"dataset": "cifar10", "start": "scratch"}
    assert "3.6%" not in readme.markdown(content(made_up(**scratch), made_up(seed=1, **scratch)))


def test_several_triggers_have_a_line_each():
    table = readme.markdown(content(made_up(), made_up("color:0", one_round=0.05)))
    assert "| `bw:170` | 3.0 | 99.0 | 15.0 (20.0) | 2.0 | 1.0 | 1.0 |" in table
    assert "| ASR after MESA, against the clean-model ASR | +0.5 (worst +2.0) points |" in table
    assert "| ASR after MESA, against the repaired clean model | +2.5 (worst +4.0) points |" in table
    assert "| ASR after MESA, against the ideal repair | +2.5 (worst +4.0) points |" in table


def test_the_caption_names_every_number_of_threads():
    other = made_up(seed=1)
    other["made"] = other["made"] | {"threads": 1}
    assert "(a processor, 1 or 2 threads)" in readme.markdown(content(made_up(), other))
    assert "(a processor, 2 threads)" in readme.markdown(content(made_up(), made_up(seed=1)))
    assert "(a processor, 1 thread)" in readme.markdown(content(other))


def test_a_single_run_with_one_repeat_of_the_point_has_intervals_in_brackets():
    run = made_up()
    run["rows"] = [row for row in run["rows"] if row["model"] != "single inversion 2"]
    assert "| single inversion | 90.0% | 10.0% (9.0 to 11.0) |  |" in readme.markdown(content(run))


def test_rounds_have_a_line_only_where_a_second_one_ran():
    assert "MESA rounds" not in readme.markdown(content(made_up(), made_up(seed=1)))
    assert "| MESA rounds |" in readme.markdown(content(made_up(), made_up(seed=1, checks=(False, True))))


def test_a_clean_model_that_all_runs_share_has_no_spread():
    runs = content(made_up(), made_up(seed=1))
    assert "| clean model | 90.0 ± 0.0% |" in readme.markdown(runs)
    for run in runs["runs"]:
        run["params"]["clean_seed"] = 0
    assert "| clean model | 90.0% |" in readme.markdown(runs)
    assert (
        "| values | mean ± standard deviation over 2 runs; 2 repeats of the single inversion in each |"
        in readme.markdown(runs)
    )


@pytest.mark.parametrize(
    ("run", "says"),
    [
        (made_up(), "in 0 of 1 runs. Rounds until clear: 1.0"),
        (made_up(one_round=0.5, checks=(False, True)), "in 1 of 1 runs, of which the residual check notices 1."),
        (made_up(checks=(False, True)), "asks for another round in 1 others. Rounds until clear: 2.0 (most 2)"),
        (made_up(one_round=0.5, rounds=0.5), "notices 0. Rounds"),
        (made_up(one_round=0.5, rounds=0.5), "false all-clears at the end: 1."),
        (made_up(one_round=0.5, rounds=0.5, checks=(False, False)), "false all-clears at the end: 0."),
        (made_up(checks=(True,)), "10 s beyond the first model and repair"),
    ],
)
def test_misses_and_false_all_clears_are_counted(run, says):
    assert says in readme.rounds_line([run])


def test_samples_are_those_of_the_highest_level_with_and_without_entropy():
    rows = readme.samples([made_up()])
    line = "ASR 90.0%, mutual information 1.00 nats, mean distance 0.500"
    assert rows["samples of MESA, beta 0.9"] == rows["samples of MESA, beta 0.9, alpha 0"] == line
    assert rows["mean distance, with against without entropy"] == "ratio 1.00"
    without = made_up()
    del without["samples"]["alpha 0"]
    assert list(readme.samples([without])) == ["samples of MESA, beta 0.9"]


def seeds(attack, *asr):
    """Runs of one attack, one per seed, in which MESA leaves the given ASR and the other rows of the README."""
    runs = [made_up(seed=seed, one_round=rate, attack=attack) for seed, rate in enumerate(asr)]
    for run in runs:
        run["rows"] += [row | {"model": name} for row in run["rows"][:1] for name in ("fine-tuning", "random mixed")]
    return runs


def test_the_small_table_has_six_rows_and_both_attacks_side_by_side():
    table = summary.markdown(content(*seeds("patch", 0.02, 0.03, 0.04), *seeds("covered", 0.06, 0.06, 0.06)))
    lines = table.splitlines()
    assert lines[0].startswith("| model | ASR, plain attack | ASR, covered attack |") and len(lines) == 8
    cells = lines[-1].split(" | ")
    assert cells[0] == "| MESA" and cells[1].startswith("3.0% (2.") and cells[2] == "6.0% (6.0–6.0)"


def test_repeats_of_one_run_count_once():
    rate = summary.measured(seeds("patch", 0.02, 0.02, 0.02), "single inversion")
    assert rate["values"] == pytest.approx([15, 15, 15]) and rate["low"] == pytest.approx(rate["high"])


def test_the_figure_has_a_panel_per_attack_and_a_row_per_model():
    attacks = summary.by_attack(content(*seeds("patch", 0.02, 0.03, 0.04), *seeds("covered", 0.06, 0.06, 0.06)))
    rows = {title: {m: summary.measured(runs, m) for m in summary.ROWS} for title, runs in attacks.items()}
    figure = plots.before_and_after(rows, summary.ROWS, "a message")
    assert [axis.get_title() for axis in figure.axes] == list(attacks)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == list(summary.ROWS.values())
    plt.close(figure)


def test_the_tables_are_written_between_their_markers(tmp_path, monkeypatch):
    for name in ("notebooks", "results"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("MESA_ROOT", str(tmp_path))
    (tmp_path / "results" / "small.json").write_text(json.dumps(content(made_up(), made_up(seed=1))))
    file = tmp_path / "README.md"
    file.write_text("before\n<!-- table small -->\nold\n<!-- end small -->\nafter\n<!-- table other -->\n")
    readme.fill_page(file, lambda name, content: readme.markdown(content))
    text = file.read_text()
    assert text.startswith("before\n<!-- table small -->\n| model |") and "old" not in text
    assert text.endswith("\n<!-- end small -->\nafter\n<!-- table other -->\n")
    readme.fill_page(file, lambda name, content: readme.markdown(content))
    assert file.read_text() == text
