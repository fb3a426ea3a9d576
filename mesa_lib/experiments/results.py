"""What is kept of a run, as plain numbers: the `result.json` of a sweep's task and the runs of `results/*.json`."""

import base64
import json
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from mesa_lib import device as devices
from mesa_lib import store, success, triggers
from mesa_lib.defenses import registry
from mesa_lib.distribution import TriggerDistribution
from mesa_lib.evaluation import metrics
from mesa_lib.experiments.benchmark import DefenseEvaluation
from mesa_lib.experiments.migration import migrate
from mesa_lib.experiments.pipeline import Pipeline
from mesa_lib.experiments.repairs import WITHOUT_ENTROPY, describe_modeling
from mesa_lib.store import paths

#: how far a run went; `benchmark`: attacked, and every defense evaluated on it
Through = Literal["attack", "modeling", "repair", "benchmark"]
#: samples of the distribution that a result keeps, for figures
KEPT_SAMPLES = 120
#: samples of each level that are compared, and those of them whose ASR is measured
SAMPLES, TRIED_SAMPLES = 2000, 200
#: the repairs whose seconds a result gives
TIMED_REPAIRS = {"repair": "MESA", "rounds": "MESA rounds"}


def reports(pipeline: Pipeline) -> dict[str, store.Artifact]:
    """Return, by attack, the before/after table of a pipeline, and of the attack that is shown beside it."""
    pipelines = [pipeline, pipeline.compared] if pipeline.compared else [pipeline]
    return {shown.p.attack: shown.report() for shown in pipelines}


# --- one run ---------------------------------------------------------------------------------------------


def collect_results(pipeline: Pipeline, through: Through = "repair") -> dict:
    """Return everything that is kept of a run; whatever is missing is trained, and nothing beyond `through`.

    All rates are measured on the evaluation images but those of samples, which are measured on the modeling images.

    Raises:
        ValueError: if `through` is not one of `attack`, `modeling`, `repair`, `benchmark`.
    """
    if through not in get_args(Through):
        raise ValueError(f"through = {through!r}: expected one of {', '.join(get_args(Through))}")
    p = pipeline.p
    config = {"params": p.content(), "through": through, "run": pipeline.identity()}
    if through in ("modeling", "repair"):
        config |= describe_modeling(p, p.modeling_settings())
    if through == "benchmark":
        config["methods"] = registry.method_settings(p.defense_kinds.split(","), p.detector_search)
    record = store.train_or_load("record", config, lambda: ({}, _measure(pipeline, through)), pipeline.device)
    made = {k: v for k, v in record.made.items() if k not in ("files", "seconds")}
    trigger = f"file:{Path(p.trigger).name}" if p.trigger.startswith("file:") else p.trigger
    return {"trigger": trigger, "target": p.target, "seed": p.seed, "made": made} | record.result


def _measure(pipeline: Pipeline, through: Through) -> dict:
    """Return the parts of a result that belong to the stages up to `through`."""
    d = pipeline.data
    sizes = {name: len(getattr(d, name)) for name in ("train", "modeling", "evaluation")}
    result: dict = {"images": sizes, "classes": len(d.classes)}
    if through == "benchmark":
        return result | DefenseEvaluation(pipeline).record()
    result["rows"] = pipeline.table() if through == "repair" else pipeline.table(controls=())
    if through != "attack":
        result |= _modeling_results(pipeline, without_entropy=through == "repair")
    if through == "repair":
        betas = pipeline.distribution()[0].betas
        result["levels"] = {f"beta {b}": pipeline.measured(pipeline.repaired("MESA", beta=b)) for b in betas}
        result["levels"][f"beta {betas[0]}, alpha 0"] = pipeline.measured(pipeline.repaired(WITHOUT_ENTROPY))
        rounds = pipeline.repaired("MESA rounds").artifact.result["rounds"]
        result["rounds"] = [{k: v for k, v in record.items() if k != "best"} for record in rounds]
    result["seconds"] = {name: artifact.made["seconds"] for name, artifact in _timed(pipeline, through).items()}
    return result


def _modeling_results(pipeline: Pipeline, without_entropy: bool) -> dict:
    """Return the sample statistics of every level and of the mixture, and the triggers that figures show.

    without_entropy: also those of the highest level modeled with alpha 0 (`alpha 0`)
    """
    p, d, attacked = pipeline.p, pipeline.data, pipeline.attacked().model
    distribution = pipeline.distribution()[0]
    sources = {f"beta {b}": distribution.at(b) for b in distribution.betas} | {"mixture": distribution}
    if without_entropy:
        sources["alpha 0"] = pipeline.distribution(alpha=0.0, betas=(max(distribution.betas),))[0]
    samples = {name: _sample_statistics(pipeline, source) for name, source in sources.items()}
    inverted = [pipeline.inverted_trigger(repeat).cpu() for repeat in range(p.inversion_repeats)]
    split = d.evaluation
    asr = [
        metrics.patch_asr(attacked, split.images, split.labels, trigger, p.target, precision=p.precision)["asr"]
        for trigger in inverted
    ]
    shown = {
        "shape": list(pipeline.trigger.shape),
        "original": pack_triggers(pipeline.trigger[None]),
        "samples": pack_triggers(_draw(pipeline, distribution)[:KEPT_SAMPLES]),
        "inverted": pack_triggers(torch.stack(inverted)),
    }
    return {"samples": samples, "inverted_triggers_asr": asr, "triggers": shown}


def _draw(pipeline: Pipeline, source: TriggerDistribution) -> Tensor:
    """Return the samples (SAMPLES, 3, h, w) of which a result speaks, on the CPU."""
    seed = devices.derive_seed(pipeline.p.seed, "samples of the results")
    return source.sample(SAMPLES, devices.rng(seed, pipeline.device)).cpu()


def _sample_statistics(pipeline: Pipeline, source: TriggerDistribution) -> dict[str, float]:
    """Return the samples' ASR on the modeling images, their diversity, and (of a single level) the mutual information.

    This is the only definition of a sample ASR in results: the mean over 200 of 2,000 samples.
    """
    p, split = pipeline.p, pipeline.data.modeling
    samples = _draw(pipeline, source)
    rates = success.asr_of_triggers(
        pipeline.attacked().model, split.images, split.labels, samples[:TRIED_SAMPLES], p.target,
        precision=p.precision, seed=devices.derive_seed(p.seed, "sample ASR"),
    )  # fmt: skip
    statistics = {"asr": float(rates.mean())} | triggers.diversity(samples)
    if len(source.levels) == 1:  # a statistics network measures one generator
        statistics["information"] = source.measured_information()
    return statistics


def _timed(pipeline: Pipeline, through: Through) -> dict[str, store.Artifact]:
    """Return the artifacts whose seconds a result gives."""
    timed = {"clean": pipeline.clean().artifact, "attack": pipeline.attacked().artifact}
    if through != "attack":
        timed["modeling"] = pipeline.distribution()[1]
    if through == "repair":
        timed |= {name: pipeline.repaired(control).artifact for name, control in TIMED_REPAIRS.items()}
    return timed


def artifact_folders(pipeline: Pipeline, through: Through = "repair") -> dict[str, Path]:
    """Return the folders in the artifact store of what a run trained, by readable names."""
    folders = {"clean": pipeline.clean().artifact.path, "attacked": pipeline.attacked().artifact.path}
    if through in ("modeling", "repair"):
        folders["distribution"] = pipeline.distribution()[1].path
    if through == "repair":
        folders["repaired"] = pipeline.repaired("MESA").artifact.path
    return folders


def pack_triggers(triggers: Tensor) -> str:
    """Return triggers (n, 3, h, w) in [0, 1] as their bytes on the 8-bit grid, in base64."""
    return base64.b64encode((triggers.cpu() * 255).round().to(torch.uint8).numpy().tobytes()).decode()


def unpack_triggers(text: str, shape: list[int]) -> Tensor:
    """Return the triggers (n, *shape) in [0, 1] that `pack_triggers` packed, up to rounding."""
    values = np.frombuffer(base64.b64decode(text), np.uint8).copy()
    return torch.from_numpy(values).reshape(-1, *shape).float() / 255


# --- the committed files ---------------------------------------------------------------------------------


def load_content(name: str) -> dict:
    """Return the content of results/NAME.json in today's format; {} if there is no such file."""
    file = paths.root() / "results" / f"{name}.json"
    return migrate(json.loads(file.read_text()), name) if file.is_file() else {}


def load_runs(name: str) -> list[dict]:
    """Return the published runs of results/NAME.json; none if the sweep was not published yet."""
    return load_content(name).get("runs", [])
