"""Figures in sentences, as the notebooks compute them."""

import pytest

from mesa_lib.reporting import prose


def test_text_is_markdown_without_its_indentation():
    shown = prose.text("""
        One **bold** word.

          - a list
    """)
    assert shown.data == "One **bold** word.\n\n  - a list"


def test_rates_are_percentages():
    assert prose.percent(0.0123) == "1.2%" and prose.percent(1.0, 0) == "100%"


def test_differences_have_a_sign_unless_nothing_is_left():
    assert prose.points(0.012) == "+1.2" and prose.points(-0.012) == "-1.2" and prose.points(-0.0001) == "0.0"


def test_a_spread_of_equal_rates_is_one_figure():
    assert prose.spread([0.034, 0.012, 0.02]) == "1.2–3.4%" and prose.spread([0.0121, 0.0119]) == "1.2%"
    with pytest.raises(ValueError):
        prose.spread([])


def test_names_are_listed_as_in_a_sentence():
    assert [prose.listed(names) for names in ([], "a", "ab", "abc")] == ["none", "a", "a and b", "a, b and c"]


def test_a_rate_is_shown_with_its_interval_and_is_not_ranked_where_intervals_overlap():
    low, high = {"rate": 0.003, "low": 0.0, "high": 0.015}, {"rate": 0.025, "low": 0.013, "high": 0.046}
    assert prose.rate(low) == "0.3% (95% CI 0.0–1.5%)"
    assert prose.overlap(low, high) and prose.overlap(high, low)
    assert not prose.overlap(low, high | {"low": 0.016})


def test_claims_of_the_stored_run_hold_or_not(capsys):
    assert prose.holds_here(True, lambda: {"samples work": True})
    assert not prose.holds_here(True, lambda: {"samples work": True, "the mean fails": False})
    shown = ["holds: samples work", "holds: samples work", "does not hold in this run: the mean fails"]
    assert capsys.readouterr().out.splitlines() == shown
    assert prose.holds_here(False, lambda: pytest.fail("not asked")) is False and capsys.readouterr().out == ""
