"""p-values of a scan from clean networks that were scanned alike, on scores made up here, and what the package has."""

import copy
import json

import pytest

from mesa_lib.reporting.html import scan as scan_report
from mesa_lib.scan import p_values
from mesa_lib.store import paths

SETTINGS = p_values.scan_settings()


def networks(clean=40, counted=20, attacked=10):
    """Clean networks with margins and scores of 1 to `clean` / 10; attacked ones stand out by their margin alone."""
    known = [line("limits", False, 1 + n / 10, -3 + n / 20) for n in range(clean)]
    quiet = [line("counted", False, 1.05 + n / 10, -3) for n in range(counted)]
    loud = [line("counted", True, 9.0, -3) for _ in range(attacked)]
    return {"settings": SETTINGS, "networks": known + quiet + loud}


def line(half, attacked, ratio, score):
    return {"half": half, "attacked": attacked, "scores": [ratio, score], "flagged": ratio > 5}


def found(ratio, score, **more):
    return p_values.p_value(SETTINGS["search"], SETTINGS["margins"]["starts"], ratio, score, networks(**more))


def test_a_network_that_stands_out_has_the_smallest_p_value():
    result = found(9.0, 0.5)
    assert result["p-value"] == pytest.approx(1 / 41, abs=1e-4) and result["networks"] == 40
    assert result["of each stage"] == {name: pytest.approx(1 / 41, abs=1e-4) for name in p_values.STAGES}
    assert found(0.5, -9.0)["p-value"] == 1


def test_one_stage_alone_has_a_larger_p_value_than_both():
    """The highest clean network of the other stage stands out as much."""
    assert found(9.0, -9.0)["p-value"] == pytest.approx(2 / 41, abs=1e-4)


def test_the_other_half_says_how_often_p_values_are_right():
    counted = found(9.0, 0.5)["counted"]
    assert (counted["attacked"]["flagged"], counted["attacked"]["of"]) == (10, 10)
    assert (counted["clean"]["flagged"], counted["clean"]["of"]) == (0, 20)
    assert 0 < counted["clean"]["high"] < 0.2 and found(1, 1, counted=0, attacked=0)["counted"] == {}
    assert found(9.0, 0.5)["by limits"] == {"flagged": 0, "of": 60, "low": 0, "high": pytest.approx(0.06, abs=0.01)}


def test_scans_by_other_settings_have_no_p_value():
    other = copy.deepcopy(SETTINGS["search"]) | {"reach": 0.1}
    assert p_values.p_value(other, SETTINGS["margins"]["starts"], 9.0, 0.5, networks()) is None
    assert p_values.p_value(SETTINGS["search"], 3, 9.0, 0.5, networks()) is None
    repaired = SETTINGS["search"] | {"repair_modeling": {"steps": 7}}
    assert p_values.p_value(repaired, SETTINGS["margins"]["starts"], 9.0, 0.5, networks()) is not None


def test_the_report_says_what_a_p_value_means():
    text = scan_report.p_value({"p-value": found(9.0, 0.5), "flagged": ["cat"]})
    assert text.startswith("p = 0.024: of 40 clean networks that were scanned alike, none stands out as much, in")
    assert "0 of 20 clean ones (0%–17%) and 10 of 10 attacked ones (69%–100%) have p ≤ 0.05." in text
    assert "The limits of the scan flag 0 of 60 clean ones (0%–6%)." in text
    assert ", 1 stands out as much" in scan_report.p_value({"p-value": found(9.0, -9.0), "flagged": []})
    assert scan_report.p_value({"p-value": None, "flagged": []}) == ""
    doubtful, unflagged = ({"p-value": found(2.0, -2.0), "flagged": names} for names in (["cat"], []))
    assert scan_report.p_value(doubtful).endswith("So the flag may be false: clean networks stand out as much.")
    assert "may be false" not in text + scan_report.p_value(unflagged)


# --- the published networks ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published():
    return json.loads((paths.root() / "results" / p_values.PUBLISHED).read_text())


def test_a_scan_of_today_is_compared_with_the_published_networks(published):
    assert published["settings"] == json.loads(json.dumps(p_values.scan_settings()))


def test_published_networks_are_of_both_halves_and_the_clean_ones_suffice_for_the_level():
    lines = p_values.packaged()["networks"]
    number = {(half, attacked): sum((one["half"], one["attacked"]) == (half, attacked) for one in lines)
              for half in ("limits", "counted") for attacked in (False, True)}  # fmt: skip
    assert 1 / (number["limits", False] + 1) <= p_values.LEVEL
    assert number["counted", False] and number["counted", True]
