"""The benchmarks' own arithmetic, and that the plain procedure does what it is compared as."""

import importlib
import json
import re

import pytest
import torch
from torch import nn

from mesa_lib import data
from mesa_lib.reporting.tables import readme
from mesa_lib.store import paths

ROOT = paths.root()


@pytest.fixture(autouse=True)
def on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 8 * 8, 3))


SPLIT = data.Split(torch.randint(256, (160, 3, 8, 8), dtype=torch.uint8), torch.arange(160) % 3)


def test_the_multiplications_of_a_small_network():
    assert importlib.import_module("speed").multiplications(net(), 8) == 8 * 8 * 4 * 27 + 256 * 3


def test_a_plain_modeling_step_moves_generator_and_critic_and_not_the_classifier():
    plain = importlib.import_module("plain")
    model = net()
    modeling = plain.Modeling(model, 0, 0.9)

    def state(module):
        return [p.detach().clone() for p in module.parameters()]

    before = [state(m) for m in (model, modeling.G, modeling.T)]
    modeling.step(*next(iter(plain.loader(SPLIT))))
    same = [
        all(map(torch.equal, old, state(m))) for old, m in zip(before, (model, modeling.G, modeling.T), strict=True)
    ]
    assert same == [True, False, False]
    plain.Repair(model, [modeling.G]).step(*next(iter(plain.loader(SPLIT))))
    assert not all(map(torch.equal, before[0], state(model)))


def made_up(network: str, bf16: float) -> dict:
    speed = importlib.import_module("speed")
    parts = {
        "peak": {"float32": 100e9, "bfloat16": bf16, "multiply-adds an image": 1e8, "peak memory, GiB": 1.0},
        "ladder": {
            "plain: float32, contiguous, weight gradients on": 2.0, "+ freed memory kept": 1.5, "+ bf16 autocast": 0.5,
            speed.LEFT_OUT: 0.4, "compilation": 30.0, "peak memory, GiB": 1.0,
        },
        "plain": {"modeling": 2.0, "repair": 3.0, "peak memory, GiB": 2.0},
        "ours": {
            "attacked": {"asr": 0.99, "clean accuracy": 0.92}, "repaired": {"asr": 0.01, "clean accuracy": 0.91},
            "three levels": 40.0, "repair": 30.0, "checkpoint to repaired model": 70.0, "peak memory, GiB": 1.5,
            "images a second, modeling": 300.0, "images a second, training": 800.0,
        },
    }  # fmt: skip
    parts["peak again"] = parts["peak"] | {"float32": 90e9}
    about = {"params": {"network": network}, "batch": 128, "repeats": 5}
    made = {"device_name": "a processor", "threads": 2, "torch": "2"}
    return {"about": about, "made": made, "parts": parts, "summary": speed.summary(parts, 128)}


def test_the_speed_table_has_the_ratios_and_predicts_bf16_by_the_ratio_of_the_peaks():
    tables, speed = importlib.import_module("tables"), importlib.import_module("speed")
    slower = 100e9 * tables.ELSEWHERE_RATIO / 1.9
    table = tables.speed(made_up("resnet18", slower))
    assert "| + bf16 autocast | 5.7 | 3.0 | 4.0 | 500 |" in table
    assert f"| {speed.LEFT_OUT} |  |  | 5.0 | 400 |" in table and "Compilation took 30 s" in table
    assert "peak memory, GiB | 2.0 | 1.5" in table and "compilation |" not in table
    assert "| + bf16 autocast | 4.0 | 500 |" in tables.speed(made_up("fastcnn", slower))
    found = made_up("resnet18", slower)["summary"]
    assert found["one step, plain / ours"] == pytest.approx(5)
    assert found["fraction of the bf16 peak, one step"] == pytest.approx(4e8 * 128 / 0.5 / slower)


def test_every_table_of_the_benchmarks_page_is_that_of_its_result_file():
    tables = importlib.import_module("tables")
    readme = (ROOT / "benchmarks" / "README.md").read_text()
    shown = re.findall(r"<!-- table (\S+) -->", readme)
    made = {name for name in tables.TABLES if (ROOT / "results" / f"{name}.json").exists()}
    assert set(shown) == made
    for name in shown:
        assert tables.TABLES[name](json.loads((ROOT / "results" / f"{name}.json").read_text())) in readme, name


def test_a_page_is_filled_between_its_markers_only(tmp_path):
    page = tmp_path / "README.md"
    page.write_text("before\n<!-- table sweep -->\nold\n<!-- end sweep -->\nafter\n")
    readme.into_readme(page, lambda name, content: f"{name} has {len(content['runs'])} runs")
    lines = page.read_text().splitlines()
    assert lines[0] == "before" and lines[-1] == "after" and re.fullmatch(r"sweep has \d+ runs", lines[2])
