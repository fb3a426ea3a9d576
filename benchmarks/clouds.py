"""Which backdoor answers to whose samples? The published triggers of a sweep on all of its models, and the clean one.

    python benchmarks/clouds.py --sweep paper-cifar10 --out results/clouds.json

Needs the attacked models of the sweep in the store (`runs/`); what is not there is trained again. The triggers are
those of results/NAME.json: samples of the mixture, the attacker's own, and the reversed ones. ASR on modeling images.
"""

import argparse
import json
from pathlib import Path

import torch

from mesa_lib import device as devices
from mesa_lib import store
from mesa_lib import success
from mesa_lib.experiments import params
from mesa_lib.experiments import results
from mesa_lib.reporting.tables import paper
from mesa_lib.experiments.pipeline import Pipeline

#: samples of each cloud, and images on which each of them is tried
SAMPLES, IMAGES = 60, 16
#: images on which a single trigger is tried
IMAGES_OF_ONE = 500


def rates(model, pipeline: Pipeline, run: dict) -> dict[str, float]:
    """How often the triggers of one run fire on one model."""
    kept, d, p = run["triggers"], pipeline.data, pipeline.p
    known = {k: results.unpack_triggers(kept[k], kept["shape"]) for k in ("samples", "original", "points")}
    of_images = {"samples": IMAGES} | dict.fromkeys(("original", "points"), IMAGES_OF_ONE)
    return {
        name: float(
            success.asr_of_triggers(
                model, d.modeling.images, d.modeling.labels, triggers[:SAMPLES], p.target,
                images_per_trigger=of_images[name], precision=p.precision,
            ).mean()
        )
        for name, triggers in known.items()
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweep", default="paper-cifar10")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    runs = paper.load_runs(a.sweep)
    found = {name: [] for name in ("samples", "original", "points")}  # a row a model, a column a run's triggers
    for number, of_model in enumerate([None, *runs]):
        pipeline = Pipeline(params.check((of_model or runs[0])["params"]))
        model = (pipeline.attacked() if of_model else pipeline.clean()).model
        rows = [rates(model, pipeline, run) for run in runs]
        for name, matrix in found.items():
            matrix.append([round(row[name], 4) for row in rows])
        print(f"{number} of {len(runs)}: {of_model['trigger'] if of_model else 'clean'}", flush=True)
    about = {"sweep": a.sweep, "triggers": [run["trigger"] for run in runs], "samples of each": SAMPLES}
    about |= {"models": ["clean", *about["triggers"]], "made": devices.describe(pipeline.device)}
    lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in (about | {"asr": found}).items()]
    store.write_atomic(a.out, "{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
