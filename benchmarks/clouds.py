"""Which backdoor answers to whose samples? The published triggers of a sweep on all of its models, and the clean one.

    python benchmarks/clouds.py --sweep paper-cifar10 --out results/clouds.json

Needs the attacked models of the sweep in the store (`runs/`); what is not there is trained again. The triggers are
those of results/NAME.json: samples of the mixture, the attacker's own, and the reversed ones. ASR on modelling images.
"""

import argparse
import json
from pathlib import Path

import torch

from mesa_lib import device as devices
from mesa_lib import metrics, paper, params, record, store
from mesa_lib.stages import Stages

#: samples of each cloud, and images on which each of them is tried
SAMPLES, IMAGES = 60, 16
#: images on which a single trigger is tried
IMAGES_OF_ONE = 500


def rates(model, stages: Stages, run: dict) -> dict[str, float]:
    """How often the triggers of one run fire on one model."""
    kept, d, p = run["triggers"], stages.data, stages.p
    known = {k: record.unpacked(kept[k], kept["shape"]) for k in ("samples", "original", "points")}
    of_images = {"samples": IMAGES} | dict.fromkeys(("original", "points"), IMAGES_OF_ONE)
    return {
        name: float(
            metrics.asr_of_samples(
                model, d.modelling.images, d.modelling.labels, triggers[:SAMPLES], p.target,
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
    runs = paper.runs(a.sweep)
    found = {name: [] for name in ("samples", "original", "points")}  # a row a model, a column a run's triggers
    for number, of_model in enumerate([None, *runs]):
        stages = Stages(params.check((of_model or runs[0])["params"]))
        model = (stages.attacked() if of_model else stages.clean()).model
        rows = [rates(model, stages, run) for run in runs]
        for name, matrix in found.items():
            matrix.append([round(row[name], 4) for row in rows])
        print(f"{number} of {len(runs)}: {of_model['trigger'] if of_model else 'clean'}", flush=True)
    about = {"sweep": a.sweep, "triggers": [run["trigger"] for run in runs], "samples of each": SAMPLES}
    about |= {"models": ["clean", *about["triggers"]], "made": devices.describe(stages.device)}
    lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in (about | {"asr": found}).items()]
    store.write_whole(a.out, "{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
