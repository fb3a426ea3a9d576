"""Sweeps for tests: files of tiny tasks, made-up results, and tasks that need no data."""

import json

import torch

from mesa_lib import store
from mesa_lib.experiments.sweep import grid, task

TINY = {
    "image_size": 16, "width": 4, "clean_epochs": 1, "attack_epochs": 1, "steps": 3, "triggers_per_step": 8,
    "repair_epochs": 1, "inversion_repeats": 1, "hidden": 16, "batch_size": 64, "compare_triggers": "",
    "compare_attack": "", "clean_seed": 0, "search_candidates": 32, "search_generations": 1,
}  # fmt: skip


def written(folder, file_name="small", **parts):
    """A sweep file of tiny tasks -> its path."""
    file = folder / f"{file_name}.yaml"
    parts = {"params": ["digits"], "set": TINY, "grid": {"trigger": ["bw:170", "bw:16"]}, "notebooks": ["01"]} | parts
    file.write_text(json.dumps(parts))
    return str(file)


def tasks_of(folder, **parts):
    """The tasks of a sweep file."""
    return grid.read(written(folder, **parts)).tasks()


def named(*names):
    """Tasks with these names, of no data."""
    return [task.Task("s", name, name, {}, {}, ("01",), "/nowhere", "") for name in names]


def made_up(one, asr=0.02, seconds=60.0):
    """A result as a task writes it."""

    def row(name, rate):
        measure = {"rate": rate, "low": rate / 2, "high": min(1, 2 * rate), "images": 1800}
        return {"model": name, "asr": measure} | {m: {"rate": 0.9} for m in ("clean_accuracy", "target_recall")}

    rates = {"clean model": 0.03, "attacked": 0.99, "fine-tuning": 0.98, "random uniform": 0.5}
    rates |= {"single inversion 1": 0.1, "single inversion 2": 0.2, "MESA": asr, "ideal": 0.01}
    rates |= {"clean model, repaired": 0.01}
    rows = [row(name, rate) for name, rate in rates.items()]
    about = {"key": one.key, "sweep": one.sweep, "own": one.cell, "notebooks": list(one.notebooks), "rows": rows}
    about["params"] = {"dataset": "cifar10"}
    about["made"] = {"at": "2026-01-02T03:04:05Z", "device_name": "cpu", "threads": 1, "torch": torch.__version__}
    return about | {"seconds": {"attack": 30.0}, "task_seconds": seconds, "levels": {}, "samples": {}}


def keep(one, **options):
    """Write a made-up result where the task would."""
    store.write_atomic(one.folder / "result.json", json.dumps(made_up(one, **options)))
