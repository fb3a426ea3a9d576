"""Sentences that are computed from results, on runs made up here; and the pages show what the result files hold."""

import shutil

import pandas as pd
import pytest

from mesa_lib.evaluation import intervals
from mesa_lib.experiments import results
from mesa_lib.reporting.tables import findings, readme, scans, summary
from mesa_lib.store import paths

MODELS = ("attacked", "fine-tuning", "random binary", "random mixed", "best inversion", "all inversions", "ideal")


def run(mesa, inversions, seed=0, attack="covered", **rates):
    """A run in which MESA and the single inversions leave these ASRs, the best inversion 2%, and most others 99%."""
    asr = dict.fromkeys(MODELS, 0.99) | {"best inversion": 0.02, "all inversions": 0.02, "ideal": 0.01} | rates
    asr |= {"MESA": mesa, "MESA rounds": mesa} | {f"single inversion {i + 1}": a for i, a in enumerate(inversions)}
    rows = [{"model": name, "asr": {"rate": rate}, "clean_accuracy": {"rate": 0.9}} for name, rate in asr.items()]
    rows[0]["clean_accuracy"] = {"rate": 0.91}
    levels = {name: {"asr": {"rate": mesa}} for name in ("beta 0.9", "beta 0.9, alpha 0")}
    params = {"attack": attack, "inversion_restarts": 32, "poison_rate": 0.1, "cover": "random", "more_triggers": ""}
    return {"seed": seed, "trigger": "bw:170", "params": params, "rows": rows, "levels": levels}


def content(*runs):
    return {"runs": list(runs)}


def test_the_readme_says_how_many_single_inversions_fail_and_what_the_others_leave():
    text = findings.covered_short(content(run(0.01, [0.9, 0.02]), run(0.012, [0.8, 0.51], seed=1)))
    assert "(2 models), 3 of 4 single inversions leave an ASR above 50%" in text.replace("\n", " ")
    assert "MESA leaves at most 1.2%, and the best of 32 inversions at most 2.0%." in text.replace("\n", " ")


def test_models_of_another_attack_are_left_out():
    text = findings.covered_short(content(run(0.01, [0.9]), run(0.5, [0.9], attack="patch")))
    assert "(1 models), 1 of 1" in text and "MESA leaves at most 1.0%" in text


def test_the_results_page_has_seeds_worst_runs_and_what_the_repair_costs():
    lines = findings.covered(content(run(0.01, [0.9]), run(0.03, [0.1], seed=1), run(0.02, [0.9], seed=1))).splitlines()
    assert lines[0] == "- 3 models are done: 1 with seed 0, 2 with seed 1."
    assert lines[1].endswith("leave 99% or more. Of 3 single inversions, 2 leave more than 50%.")
    assert lines[2].startswith("- MESA leaves 2.0% on average and 3.0% at worst. The ideal repair leaves 1.0% at worst")
    low, high = intervals.t_interval([-1, 1, 0])
    assert lines[3] == f"- MESA minus the best inversion: +0.00 points (95% CI {low:+.2f} to {high:+.2f})."
    assert lines[4] == "- MESA costs 1.0 points of accuracy on average and 1.0 at worst."


@pytest.mark.parametrize(
    ("mesa", "says"),
    [
        ((0.010, 0.011), "By the rule, the first of the two is better."),
        ((0.100, 0.101), "By the rule, the first of the two is not better."),
        ((0.010, 0.200), "By the rule, the question is open."),
    ],
)
def test_an_open_question_is_answered_by_its_rule(mesa, says):
    runs = [run(rate, [0.9], **{"best inversion": 0.05}) for rate in mesa]
    lines = findings.hidden(content(*runs)).splitlines()
    assert lines[0] == "- 2 of 54 models are done, of 1 attackers." and says in lines[1]
    assert lines[-1].startswith(f"- One round of MESA leaves more than 5% on {sum(m > 0.05 for m in mesa)} of 2 models")


@pytest.mark.parametrize(
    ("mesa", "single", "says"),
    [
        ([3.0, 3.1, 3.2], [9.0, 9.1, 9.3], "holds"),
        ([3.0, 3.1, 3.2], [2.0, 3.2, 9.3], "does not hold for MESA before single inversion"),
        ([1.0, 3.1, 0.2], [1.0, 3.2, 0.3], "does not hold for ideal before MESA and MESA before single inversion"),
        ([3.0, 3.1], [9.0, 9.1], "no order can be established (n = 2, no CI)"),
    ],
)
def test_the_order_of_the_paper_is_claimed_only_where_each_interval_lies_below_zero(mesa, single, says):
    asr = pd.DataFrame({"ideal": [1.0] * len(mesa), "MESA": mesa, "single inversion": single})
    assert findings.order_in_words(asr).endswith(says)


def test_sentences_are_indented_like_their_marker_and_a_marker_without_end_is_refused(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "1. text\n   <!-- findings hidden-digits -->\n   old\n   <!-- end findings hidden-digits -->\nafter\n"
    )
    readme.fill_page(page, lambda name, content: "", {"hidden-digits": lambda content: "one\ntwo"})
    marker = "hidden-digits -->\n"
    assert page.read_text() == f"1. text\n   <!-- findings {marker}   one\n   two\n   <!-- end findings {marker}after\n"
    page.write_text("<!-- findings hidden-digits -->\n")
    with pytest.raises(ValueError, match="no line <!-- end findings hidden-digits --> after it"):
        readme.fill_page(page, lambda name, content: "", findings.FINDINGS)


@pytest.mark.parametrize(("name", "table"), [("README.md", summary.markdown), ("docs/results.md", readme.markdown)])
def test_pages_show_what_the_result_files_hold(name, table, tmp_path):
    page = tmp_path / "page.md"
    shutil.copy(paths.root() / name, page)
    sentences = findings.FINDINGS if name.startswith("docs") else {findings.COVERED: findings.covered_short}
    readme.fill_page(page, lambda _, content: table(content), sentences)
    assert page.read_text() == (paths.root() / name).read_text(), "run python -m mesa_lib tables"
    assert results.load_content("cifar10-covered")["sweep"] == findings.COVERED


def test_the_page_of_scans_shows_the_recorded_ones(tmp_path):
    page = tmp_path / "scan.md"
    shutil.copy(paths.root() / "docs" / "scan.md", page)
    readme.fill_page(page, lambda name, content: scans.TABLES[name](content))
    assert page.read_text() == (paths.root() / "docs" / "scan.md").read_text(), "run python -m mesa_lib tables"


def test_a_table_of_scans_counts_right_verdicts_and_compares_repairs():
    def model(asr, accuracy=0.9):
        return {"asr": {"rate": asr}, "clean_accuracy": {"rate": accuracy}}

    def scan(attack, planted, flagged, **more):
        return {"dataset": "digits", "attack": attack, "planted": planted, "scan": {"flagged": flagged}} | more

    after = {"before": model(1.0), "after": model(0.02, 0.89)}
    controls = {"controls": {"random mixed": model(0.5), "fine-tuning": model(0.9, 0.91)}}
    runs = [scan("patch", ["1"], ["1"], **after, **controls), scan("corner", ["2"], [], **after, **controls)]
    table = scans.markdown([*runs, scan("none", [], ["0"])]).splitlines()
    counts = "1 of 2 (9 to 91%) | 1 of 1 (21 to 100%)"
    assert len(table) == 3 and table[2].startswith(f"| digits | 100% | {counts} | 2.0%, 2.0% |")
    assert "random location 50.0%, 50.0%; fixed location 50.0%, 50.0% | 90.0%, 90.0%" in table[2]
    assert table[2].endswith("| +1.0 to +1.0 points | -1.0 to -1.0 points |")
