"""What repairs leave of several attackers' triggers, from made-up runs whose numbers can be checked by eye."""

import math

import pytest

from mesa_lib.evaluation.intervals import t_interval
from mesa_lib.reporting.tables import attackers


def made_up(mesa=0.01, best=0.02, every=0.02, without=0.01, rounds=0.01, clear=(True,), failed=(), **params):
    """A run with these ASR after the repairs; all others leave 1%, the attacked model has 98%."""
    rates = dict.fromkeys(attackers.ROWS, 0.01) | {"attacked": 0.98, "MESA": mesa, "MESA rounds": rounds}
    rates |= {"best inversion": best, "all inversions": every}
    levels = {"beta 0.9": {"asr": {"rate": 0.01}}, "beta 0.9, alpha 0": {"asr": {"rate": without}}}
    rows = [{"model": name, "asr": {"rate": rate}} for name, rate in rates.items() if name not in levels]
    (single,) = [row for row in rows if row["model"] == "single inversion"]
    rows.remove(single)
    rows += [{"model": f"single inversion {k}", "asr": {"rate": rate}} for k, rate in ((1, 0.1), (2, 0.3))]
    for row in rows:
        row |= {"failed": "it says why"} if row["model"] in failed else {}
    p = {"attack": "covered", "cover": "mixed", "more_triggers": "", "poison_rate": 0.1} | params
    return {"params": p, "rows": rows, "levels": levels, "rounds": [{"clear": said} for said in clear]}


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"attack": "patch"}, "as in the paper"), ({}, "cover: random patches"),
        ({"cover": "near"}, "cover: near misses"),
        ({"more_triggers": "bw:1,bw:2,"}, "cover: random patches, 3 triggers"),
        ({"poison_rate": 0.03}, "cover: random patches, 3% poison"), ({"attack": "adaptive"}, "cover: MESA's samples"),
    ],
)  # fmt: skip
def test_an_attacker_is_told_in_words(params, expected):
    assert attackers.attacker(made_up(**params)) == expected


def test_what_is_left_has_mean_worst_and_the_number_of_models_on_which_the_backdoor_survives():
    table = attackers.left([made_up(mesa=0.02), made_up(mesa=0.06), made_up(mesa=0.2, attack="patch")])
    assert list(table) == ["cover: random patches (2)", "as in the paper (1)", "models above 5%"]
    assert table.loc["MESA"].tolist() == ["4.0 (6.0)", "20.0 (20.0)", 2]
    assert table.loc["single inversion"].tolist() == ["20.0 (20.0)", "20.0 (20.0)", 3], "the mean of the repeats"
    assert table.loc["attacked"].tolist() == ["98.0 (98.0)", "98.0 (98.0)", 3]


def test_differences_are_paired_and_their_intervals_are_students():
    runs = [made_up(mesa=0.01, best=best) for best in (0.02, 0.04, 0.06)]
    low, high = t_interval([-1, -3, -5])
    cell = attackers.differences(runs).loc["MESA - best inversion", "all attackers (3)"]
    assert cell == f"-3.00 ({low:+.2f} to {high:+.2f})" == "-3.00 (-7.97 to +1.97)"


@pytest.mark.parametrize(
    ("best", "expected"),
    [((0.06, 0.061, 0.062), "better"), ((0.01, 0.011, 0.012), "not better"), ((0.01, 0.05, 0.02), "undecided")],
)
def test_the_answer_follows_the_rule(best, expected):
    assert attackers.answer([made_up(best=rate) for rate in best], "MESA - best inversion") == expected


def test_a_difference_and_its_answer_in_words():
    runs = [made_up(mesa=0.01, best=0.01), made_up(mesa=0.01, best=0.02)]
    low, high = t_interval([0, -1])
    text = attackers.difference_in_words(runs, "MESA - best inversion")
    assert text == f"-0.50 points (95% CI {low:+.2f} to {high:+.2f})"
    assert attackers.answer_in_words(runs, "MESA - best inversion") == "open"


def test_residual_checks_are_counted_by_what_they_should_have_said():
    runs = [
        made_up(mesa=0.5, clear=(False, True)),  # missed and noticed
        made_up(mesa=0.5, rounds=0.4, clear=(True,)),  # missed and not noticed
        made_up(mesa=0.5, rounds=0.4, clear=(True,), failed=("MESA", "MESA rounds")),  # missed, and both rows say so
        made_up(clear=(False, True)),  # a false alarm
        made_up(),
    ]
    expected = {"models": 5, "missed by one round": 3, "said so": 2, "false alarms": 1, "false all-clear": 1}
    assert attackers.checks(runs).loc["all attackers"].to_dict() == expected


def test_a_table_as_markdown():
    text = attackers.markdown(attackers.checks([made_up()]), "attacker")
    assert text.splitlines()[0].startswith("| attacker | models | missed by one round |")
    assert text.splitlines()[2] == "| all attackers | 1 | 0 | 0 | 0 | 0 |"


def test_an_interval_of_too_few_values_is_unknown():
    assert all(map(math.isnan, t_interval([1.0]))) and t_interval([2, 2, 2]) == (2, 2)
