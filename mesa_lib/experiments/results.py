"""Everything that is kept of one run, as plain numbers: what `result.json` of a batch and `results/*.json` hold."""

import base64
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mesa_lib import device as devices
from mesa_lib import store, success, triggers
from mesa_lib.defenses import registry
from mesa_lib.evaluation import metrics
from mesa_lib.experiments.benchmark import DefenseEvaluation
from mesa_lib.experiments.pipeline import Pipeline

#: how far a run went that was attacked and put on the bench
BENCH = 9
#: samples of the distribution that a record keeps, for pictures
DRAWN = 120


def collect_results(pipeline: Pipeline, last: int = 4) -> dict:
    """What is known of a run after notebook number `last` (1 attack, 2 and 3 modeling, 4 repair; BENCH: see there).

    Whatever is missing is made; nothing that a later notebook would make. All rates are measured on the evaluation
    images but those of the samples, which the defender sees as well (modeling images).
    """
    p = pipeline.p
    config = {"params": p.content(), "last": last, "run": pipeline.identity()}
    if last == BENCH:
        config["methods"] = registry.settings(p.kinds.split(","))

    def make() -> tuple[dict, dict]:
        d = pipeline.data
        images = {name: len(getattr(d, name)) for name in ("train", "modeling", "evaluation")}
        found = {"images": images, "classes": len(d.classes), "seconds": {}}
        if last == BENCH:
            return {}, found | DefenseEvaluation(pipeline).record()
        found["rows"] = pipeline.table() if last >= 4 else pipeline.table(controls=())
        if last >= 2:
            found |= _modeled(pipeline)
        if last >= 4:
            betas = pipeline.distribution()[0].betas
            found["levels"] = {f"beta {b}": pipeline.measured(pipeline.repaired("MESA", beta=b)) for b in betas}
            rounds = pipeline.repaired("MESA rounds").artifact.result["rounds"]
            found["rounds"] = [{k: v for k, v in r.items() if k != "best"} for r in rounds]
        found["seconds"] = seconds(pipeline, last)
        return {}, found

    made = store.train_or_load("record", config, make, pipeline.device)
    about = {k: v for k, v in made.made.items() if k not in ("files", "seconds")}
    trigger = f"file:{Path(p.trigger).name}" if p.trigger.startswith("file:") else p.trigger
    return {"trigger": trigger, "target": p.target, "seed": p.seed, "made": about} | made.result


def _modeled(pipeline: Pipeline) -> dict:
    """The samples in numbers, and some of them: of every level and of the mixture."""
    p, d = pipeline.p, pipeline.data
    distribution, attacked = pipeline.distribution()[0], pipeline.attacked()
    samples = {}
    sources = {f"beta {b}": distribution.at(b) for b in distribution.betas} | {"mixture": distribution}
    for name, source in sources.items():
        drawn = source.sample(2000, devices.rng(p.seed, pipeline.device)).cpu()
        rate = success.asr_of_triggers(
            attacked.model, d.modeling.images, d.modeling.labels, drawn[:200], p.target, precision=p.precision
        )
        samples[name] = {"asr": float(rate.mean())} | triggers.diversity(drawn)
        if name != "mixture":  # the network measures one generator
            samples[name]["information"] = source.measured_information()
    points = [pipeline.point(repeat) for repeat in range(p.inversion_repeats)]
    fires = [
        metrics.patch_asr(
            attacked.model, d.evaluation.images, d.evaluation.labels, point, p.target, precision=p.precision
        )["asr"]
        for point in points
    ]
    triggers = {
        "shape": list(pipeline.trigger.shape),
        "original": pack_triggers(pipeline.trigger[None]),
        "samples": pack_triggers(drawn[:DRAWN]),
        "points": pack_triggers(torch.stack(points)),
    }
    return {"samples": samples, "point_triggers_asr": fires, "triggers": triggers}


def seconds(pipeline: Pipeline, last: int = 4) -> dict[str, float]:
    """What each part of the run took, on its own, wherever and whenever it was made."""
    parts = {"clean": pipeline.clean().artifact, "attack": pipeline.attacked().artifact}
    if last >= 2:
        parts["modeling"] = pipeline.distribution()[1]
    if last >= 4:
        parts |= {"repair": pipeline.repaired("MESA").artifact, "rounds": pipeline.repaired("MESA rounds").artifact}
    return {name: artifact.made["seconds"] for name, artifact in parts.items()}


def artifacts(pipeline: Pipeline, last: int = 4) -> dict[str, Path]:
    """The folders in the store of what a run made, by the names that a person looks for."""
    found = {"clean": pipeline.clean().artifact.path, "attacked": pipeline.attacked().artifact.path}
    if last == BENCH:
        return found
    if last >= 2:
        found["distribution"] = pipeline.distribution()[1].path
    if last >= 4:
        found["repaired"] = pipeline.repaired("MESA").artifact.path
    return found


def pack_triggers(triggers: Tensor) -> str:
    """Triggers (n, 3, h, w) in [0, 1] -> their bytes on the 8-bit grid, as base64 text."""
    return base64.b64encode((triggers.cpu() * 255).round().to(torch.uint8).numpy().tobytes()).decode()


def unpack_triggers(text: str, shape: list[int]) -> Tensor:
    """The inverse of `packed`, up to rounding: -> (n, *shape) in [0, 1]."""
    values = np.frombuffer(base64.b64decode(text), np.uint8).copy()
    return torch.from_numpy(values).reshape(-1, *shape).float() / 255
