"""Counts over many models, on runs made up here."""

import pytest

from mesa_lib.reporting.tables import zoo


def run(half, number, attacked, **highest):
    """A run whose class 2 has the highest score of each stage."""
    stages = {name: {"scores": [0.0, 0.0, score], "seconds": 2.0} for name, score in highest.items()}
    about = {"attack": ("patch", "warp")[number % 2], "target": 2, "asr": 0.99} if attacked else {"asr": 0.01}
    network = ("smallcnn", "fastcnn")[number % 2]
    return {"half": half, "number": number, "attacked": attacked, "network": network, "stages": stages} | about


def runs(clean=20):
    known = [run("limits", n, False, **{"largest margin": n, "MESA's search": -n}) for n in range(40)]
    quiet = [run("counted", n, False, **{"largest margin": n, "MESA's search": -n - 1}) for n in range(clean)]
    loud = [run("counted", n, True, **{"largest margin": 99, "MESA's search": -10 + 50 * (n % 2)}) for n in range(6)]
    return known + quiet + loud


def test_attacked_and_clean_models_of_the_counted_half_are_counted():
    table = zoo.rates(runs())
    assert table.loc["largest margin", "attacked, flagged"].startswith("6 of 6 (")
    assert table.loc["largest margin", "clean, flagged"].startswith("0 of 20 (")
    assert table.loc["MESA's search", "attacked, flagged"].startswith("3 of 6 (")
    assert table.loc["largest margin", "AUC"] == "1.000" and table.loc["largest margin", "target first"][:6] == "6 of 6"
    assert zoo.TOGETHER in table.index and table.loc[zoo.TOGETHER, "seconds"] == ""


def test_each_attack_has_a_column():
    table = zoo.by_attack(runs())
    assert list(table.columns) == ["clean (20)", "patch (3)", "warp (3)"]
    assert table.loc["MESA's search"].tolist() == [0, 0, 3]


def test_models_without_a_working_backdoor_are_left_out():
    weak = run("counted", 9, True, **{"largest margin": 0, "MESA's search": 0}) | {"asr": 0.3}
    assert len(zoo.judged([*runs(), weak])[0]) == 26


def test_a_stage_counts_when_every_model_has_it():
    assert zoo.complete([*runs(), run("counted", 7, False, **{"largest margin": 1})]) == ["largest margin"]
    assert zoo.complete([]) == []


@pytest.mark.parametrize("half", ["limits", "counted"])
def test_the_limits_come_from_clean_models_of_the_other_half(half):
    moved = [one | {"half": half} for one in runs()]
    with pytest.raises((ValueError, IndexError)):
        zoo.rates(moved)


def test_clean_networks_that_the_limits_flag_are_counted_by_network():
    known = [run("limits", n, False, **{"largest margin": 1, "MESA's search": n % 2 - 0.5}) for n in range(8)]
    table = zoo.by_network([*known, run("counted", 1, True, **{"largest margin": 9, "MESA's search": 1})])
    assert list(table.index) == ["fastcnn", "smallcnn"]
    assert [text[:6] for text in table["clean, flagged by the limits"]] == ["4 of 4", "0 of 4"]
