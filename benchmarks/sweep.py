"""How our defaults on CIFAR-10 were fixed: a small sweep on models that no result is reported of.

    python benchmarks/sweep.py --out results/sweep.json

Other targets, other seeds of the attack and of the clean model, other colors than in any table. The defender's images
are cut in two: 6,000 to model and repair with, 2,000 to judge by. The evaluation images are never used.
"""

import json

import torch
from common import Results, parameter_values, parser, start
from torch import nn

from mesa_lib import device as devices
from mesa_lib import retrain, staircase
from mesa_lib.data import Split
from mesa_lib.evaluation import metrics
from mesa_lib.experiments import params
from mesa_lib.experiments.pipeline import Pipeline

MODELS = [
    {"start": "clean", "trigger": "bw:16", "target": 4, "seed": 11, "clean_seed": 11},
    {"start": "scratch", "trigger": "bw:97", "target": 5, "seed": 12, "clean_seed": 0},
    {"start": "scratch", "trigger": "color:101", "target": 7, "seed": 13, "clean_seed": 0},
]
TRIED = [(0.2, 0.05, 2), (0.1, 0.05, 2), (0.2, 0.02, 2), (0.1, 0.03, 3), (0.1, 0.05, 3)]  # rate, learning rate, epochs
REPAIRS = [{"repair_rate": rate, "repair_lr": lr, "repair_epochs": epochs} for rate, lr, epochs in TRIED]
#: what is repaired with, in the order of the table: MESA at all settings, fine-tuning at the first
ROWS = [("attacked", {}), ("MESA", REPAIRS[0]), ("fine-tuning", REPAIRS[0])]
ROWS += [("MESA", changes) for changes in REPAIRS[1:]]


def split_modeling(split: Split, judged: int = 2000) -> tuple[Split, Split]:
    """Return the defender's images in two parts: to model and repair with, and `judged` to judge by."""
    order = torch.randperm(len(split), generator=devices.rng(devices.derive_seed(0, "images to judge by")))
    return split[order[judged:]], split[order[:judged]]


def rows_of(pipeline: Pipeline):
    """Return a function (row name, changes of the repair) -> rates on the images to judge by."""
    p, attacked = pipeline.p, pipeline.attacked().model
    work, judge = split_modeling(pipeline.data.modeling)
    seeds = {name: devices.derive_seed(p.seed, f"defaults: {name}") for name in ("modeling", "repair")}
    fitted = []  # once, when a repair first needs it

    def repaired(name: str, changes: dict) -> nn.Module:
        if name == "attacked":
            return attacked
        if name == "MESA" and not fitted:
            fitted.append(
                staircase.fit(
                    attacked, work.images, work.labels, p.target, p.modeling_settings(), size=pipeline.patch_size,
                    seed=seeds["modeling"], precision=p.precision,
                )
            )  # fmt: skip
        transform = retrain.stamping(fitted[0].sample) if name == "MESA" else None
        settings, options = p.repair_settings().replace(**changes), {"seed": seeds["repair"], "precision": p.precision}
        return retrain.repair(attacked, work.images, work.labels, transform, settings, **options)[0]

    def measure(name: str, changes: dict) -> dict:
        options = {"repeats": 2, "precision": p.precision}
        row = metrics.evaluate(repaired(name, changes), judge, pipeline.trigger, p.target, **options)
        return {key: value["rate"] for key, value in row.items()}

    return measure


def main() -> None:
    """Measure every model and repair that the file does not hold yet."""
    arguments = parser(__doc__, params_file="cifar10-cpu").parse_args()
    start(arguments)
    values = parameter_values(arguments.params)
    results = Results(arguments.out, {"params": values})
    for model in MODELS:
        cells = [model | {"repair": name} | changes for name, changes in ROWS]
        missing = [n for n, cell in enumerate(cells) if not results.find_run(**cell)]
        measure = rows_of(Pipeline(params.check(values | model))) if missing else None
        for n in missing:
            run = cells[n] | measure(*ROWS[n])
            results.keep_run(run, [*model, "repair", *REPAIRS[0]])
            print(json.dumps(run), flush=True)


if __name__ == "__main__":
    main()
