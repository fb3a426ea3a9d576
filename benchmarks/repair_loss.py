"""What a repair costs: labels or distillation, statistics updated or frozen, two learning rates, few or many images.

    python benchmarks/repair_loss.py --out results/repair-loss.json

Every variant repairs the same attacked model with the same samples of MESA; only `RepairSettings` differ.
The models are CIFAR-10 networks of half the width with triggers that no table reports. Each line has the ASR of the
attacker's trigger and the clean accuracy on the evaluation images, beside those of the attacked model.
"""

import itertools

import torch
from common import Results, parameter_values, parser, start

from mesa_lib import device as devices
from mesa_lib import retrain
from mesa_lib.evaluation import metrics
from mesa_lib.experiments import params
from mesa_lib.experiments.pipeline import Pipeline

#: attacked models: the changes of the parameter file
MODELS = [
    {"attack": "covered", "trigger": "bw:5", "target": 3, "seed": 7},
    {"attack": "covered", "trigger": "bw:341", "target": 3, "seed": 7},
    {"attack": "covered", "trigger": "bw:85", "target": 3, "seed": 8},
]
#: clean images -> epochs and batch size, so that the steps of both are of the same order
IMAGES = {800: {"repair_epochs": 10, "batch_size": 100}, 8000: {"repair_epochs": 3, "batch_size": 500}}
LOSSES = ("labels", "distillation")
STATISTICS = ("updated", "frozen")
RATES = (0.03, 0.01)
IDENTITY = ("trigger", "images", "repair_loss", "repair_statistics", "repair_lr")


def measure(pipeline: Pipeline, images: int, changes: dict) -> dict:
    """Return accuracy and ASR after one repair; `diverged` if it ended in NaN."""
    p, clean, distribution = pipeline.p, pipeline.data.modeling, pipeline.distribution()[0]
    rng = torch.Generator().manual_seed(devices.derive_seed(p.seed, "clean images of a repair"))
    chosen = torch.randperm(len(clean), generator=rng)[:images]
    settings = p.repair_settings().replace(**IMAGES[images], **changes)
    try:
        model, _ = retrain.repair(
            pipeline.attacked().model, clean.images[chosen], clean.labels[chosen],
            retrain.stamping(distribution.reached().sample), settings,
            seed=devices.derive_seed(p.seed, "repair"), precision=p.precision,
        )  # fmt: skip
    except FloatingPointError:
        return {"diverged": True}
    row = metrics.evaluate(model, pipeline.data.evaluation, pipeline.backdoor, p.target, precision=p.precision)
    return {name: row[name] for name in ("clean_accuracy", "asr")}


def main() -> None:
    """Measure every variant that the file does not hold yet."""
    arguments = parser(__doc__, params_file="cifar10-cpu").parse_args()
    start(arguments)
    base = parameter_values(arguments.params) | {"width": 32, "clean_seed": 0, "patience": 0}
    results = Results(arguments.out, {"params": base})
    for rate, model in itertools.product(RATES, MODELS):
        pipeline = Pipeline(params.check(base | model))
        attacked = pipeline.measured(pipeline.attacked())
        before = {name: attacked[name] for name in ("clean_accuracy", "asr")}
        for images, loss, statistics in itertools.product(IMAGES, LOSSES, STATISTICS):
            changes = {"repair_loss": loss, "repair_statistics": statistics, "repair_lr": rate}
            identity = {"trigger": model["trigger"], "images": images} | changes
            if results.find_run(**identity) is None:
                run = model | identity | {"before": before} | measure(pipeline, images, changes)
                results.keep_run(run, IDENTITY)
                print(identity, flush=True)


if __name__ == "__main__":
    main()
