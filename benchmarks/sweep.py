"""How our defaults on CIFAR-10 were fixed: a small sweep on models that no result is reported of.

    python benchmarks/sweep.py --out results/sweep.json

Other targets, other seeds of the attack and of the clean model, other colors than in any table. The defender's images
are cut in two: 6,000 to model and repair with, 2,000 to judge by. The evaluation images are never looked at.
"""

import argparse
import copy
import json
from pathlib import Path

import torch

from mesa_lib import data
from mesa_lib import device as devices
from mesa_lib import retrain
from mesa_lib import staircase
from mesa_lib import store
from mesa_lib import training
from mesa_lib.evaluation import metrics
from mesa_lib.experiments import params
from mesa_lib.store import paths
from mesa_lib.experiments.pipeline import Pipeline

MODELS = [
    {"start": "clean", "trigger": "bw:16", "target": 4, "seed": 11, "clean_seed": 11},
    {"start": "scratch", "trigger": "bw:97", "target": 5, "seed": 12, "clean_seed": 0},
    {"start": "scratch", "trigger": "color:101", "target": 7, "seed": 13, "clean_seed": 0},
]
TRIED = [(0.2, 0.05, 2), (0.1, 0.05, 2), (0.2, 0.02, 2), (0.1, 0.03, 3), (0.1, 0.05, 3)]  # rate, learning rate, epochs
REPAIRS = [{"repair_rate": rate, "repair_lr": lr, "repair_epochs": epochs} for rate, lr, epochs in TRIED]


def fit_and_holdout(split: data.Split, seed: int = 0, held: int = 2000) -> tuple[data.Split, data.Split]:
    """The defender's images in two parts: to work with, and to judge by."""
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))
    work, judge = order[held:], order[:held]
    return data.Split(split.images[work], split.labels[work]), data.Split(split.images[judge], split.labels[judge])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--params", default="cifar10-cpu")
    a = parser.parse_args()
    file = params.read_yaml(paths.root() / "params" / f"{a.params}.yaml")
    content = {"params": file, "made": devices.describe(devices.pick_device("auto")), "runs": []}
    for model_of in MODELS:
        pipeline = Pipeline(params.check(file | model_of))
        p, attacked = pipeline.p, pipeline.attacked().model
        work, judge = fit_and_holdout(pipeline.data.modeling)
        fitted = staircase.fit(attacked, work.images, work.labels, p.target, p.mesa(), precision=p.precision)

        def record(name: str, model, changes: dict) -> None:
            row = metrics.evaluate(model, judge, pipeline.trigger, p.target, locations=2, precision=p.precision)  # noqa: B023
            content["runs"].append(
                model_of | {"repair": name} | changes | {k: v["rate"] for k, v in row.items()}  # noqa: B023
            )
            store.write_atomic(a.out, json.dumps(content, indent=1) + "\n")
            print(json.dumps(content["runs"][-1]), flush=True)

        record("attacked", attacked, {})
        for changes in REPAIRS:
            for name, source in (("MESA", fitted.sample), ("fine-tune only", None)):
                if source is None and changes is not REPAIRS[0]:
                    continue
                model, c = copy.deepcopy(attacked), changes
                training.train(
                    model, work.images, work.labels, epochs=c["repair_epochs"], lr=c["repair_lr"], seed=p.seed,
                    batch_size=p.batch_size, device=pipeline.device, schedule=p.schedule, precision=p.precision,
                    augment=p.retrain_augment, transform=retrain.STAMPING_OLD(source, c["repair_rate"]),
                )  # fmt: skip
                record(name, model, changes)


if __name__ == "__main__":
    main()
