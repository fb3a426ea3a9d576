"""Everything that is kept of one run, as plain numbers: what `result.json` of a batch and `results/*.json` hold."""

import base64
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from . import device as devices
from . import metrics, store
from .bench import Bench
from .defenses import catalogue
from .stages import Stages

#: how far a run went that was attacked and put on the bench
BENCH = 9
#: samples of the distribution that a record keeps, for pictures
DRAWN = 120


def of(stages: Stages, last: int = 4) -> dict:
    """What is known of a run after notebook number `last` (1 attack, 2 and 3 modelling, 4 repair; BENCH: see there).

    Whatever is missing is made; nothing that a later notebook would make. All rates are measured on the evaluation
    images but those of the samples, which the defender sees as well (modelling images).
    """
    p = stages.p
    config = {"params": p.content(), "last": last, "run": stages.identity()}
    if last == BENCH:
        config["methods"] = catalogue.settings(p.kinds.split(","))

    def make() -> tuple[dict, dict]:
        d = stages.data
        images = {name: len(getattr(d, name)) for name in ("train", "modelling", "evaluation")}
        found = {"images": images, "classes": len(d.classes), "seconds": {}}
        if last == BENCH:
            return {}, found | Bench(stages).record()
        found["rows"] = stages.table() if last >= 4 else stages.table(controls=())
        if last >= 2:
            found |= _modelled(stages)
        if last >= 4:
            betas = stages.distribution()[0].betas
            found["levels"] = {f"beta {b}": stages.measured(stages.repaired("MESA", beta=b)) for b in betas}
            rounds = stages.repaired("MESA rounds").artifact.result["rounds"]
            found["rounds"] = [{k: v for k, v in r.items() if k != "best"} for r in rounds]
        found["seconds"] = seconds(stages, last)
        return {}, found

    made = store.train_or_load("record", config, make, stages.device)
    about = {k: v for k, v in made.made.items() if k not in ("files", "seconds")}
    trigger = f"file:{Path(p.trigger).name}" if p.trigger.startswith("file:") else p.trigger
    return {"trigger": trigger, "target": p.target, "seed": p.seed, "made": about} | made.result


def _modelled(stages: Stages) -> dict:
    """The samples in numbers, and some of them: of every level and of the mixture."""
    p, d = stages.p, stages.data
    distribution, attacked = stages.distribution()[0], stages.attacked()
    samples = {}
    sources = {f"beta {b}": distribution.at(b) for b in distribution.betas} | {"mixture": distribution}
    for name, source in sources.items():
        drawn = source.sample(2000, devices.rng(p.seed, stages.device)).cpu()
        rate = metrics.asr_of_samples(
            attacked.model, d.modelling.images, d.modelling.labels, drawn[:200], p.target, precision=p.precision
        )
        samples[name] = {"asr": float(rate.mean())} | metrics.diversity(drawn)
        if name != "mixture":  # the network measures one generator
            samples[name]["information"] = source.measured_information()
    points = [stages.point(repeat) for repeat in range(p.point_repeats)]
    fires = [
        metrics.triggered(
            attacked.model, d.evaluation.images, d.evaluation.labels, point, p.target, precision=p.precision
        )["asr"]
        for point in points
    ]
    triggers = {
        "shape": list(stages.trigger.shape),
        "original": packed(stages.trigger[None]),
        "samples": packed(drawn[:DRAWN]),
        "points": packed(torch.stack(points)),
    }
    return {"samples": samples, "point_triggers_asr": fires, "triggers": triggers}


def seconds(stages: Stages, last: int = 4) -> dict[str, float]:
    """What each part of the run took, on its own, wherever and whenever it was made."""
    parts = {"clean": stages.clean().artifact, "attack": stages.attacked().artifact}
    if last >= 2:
        parts["modelling"] = stages.distribution()[1]
    if last >= 4:
        parts |= {"repair": stages.repaired("MESA").artifact, "rounds": stages.repaired("MESA rounds").artifact}
    return {name: artifact.made["seconds"] for name, artifact in parts.items()}


def artifacts(stages: Stages, last: int = 4) -> dict[str, Path]:
    """The folders in the store of what a run made, by the names that a person looks for."""
    found = {"clean": stages.clean().artifact.path, "attacked": stages.attacked().artifact.path}
    if last == BENCH:
        return found
    if last >= 2:
        found["distribution"] = stages.distribution()[1].path
    if last >= 4:
        found["repaired"] = stages.repaired("MESA").artifact.path
    return found


def packed(triggers: Tensor) -> str:
    """Triggers (n, 3, h, w) in [0, 1] -> their bytes on the 8-bit grid, as base64 text."""
    return base64.b64encode((triggers.cpu() * 255).round().to(torch.uint8).numpy().tobytes()).decode()


def unpacked(text: str, shape: list[int]) -> Tensor:
    """The inverse of `packed`, up to rounding: -> (n, *shape) in [0, 1]."""
    values = np.frombuffer(base64.b64decode(text), np.uint8).copy()
    return torch.from_numpy(values).reshape(-1, *shape).float() / 255
