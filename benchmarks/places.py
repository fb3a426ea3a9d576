"""Is the search for a place worth its second and third step? The sweep bench-places with and without them.

    python benchmarks/places.py --out results/places.json

`forward` chooses the place at which random patches turn most images, by forward passes alone (the search as it was when
these models were first looked at); `drawn` looks for none and takes any; `learned` is that of the bench.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mesa_lib import device as devices
from mesa_lib import store
from mesa_lib.experiments.sweep import grid
from mesa_lib.experiments.benchmark import DefenseEvaluation
from mesa_lib.defenses.base import DefenderView
from mesa_lib.defenses.mesa.detector import MESA
from mesa_lib.defenses.mesa.screening import PatchSpec
from mesa_lib.defenses.mesa.screening import LocationScreening
from mesa_lib.experiments.pipeline import Pipeline
from mesa_lib.triggers import random_locations


@dataclass
class Drawn(LocationScreening):
    """A control: a place of each class that is drawn."""

    drawn: bool = True

    def locations(self, given: DefenderView, rule: PatchSpec) -> Tensor:
        return random_locations(given.classes, given.image_size, rule.size, devices.rng(given.seed + 8))


VARIANTS = {
    "drawn": ("MESA, any place or a drawn one", lambda: MESA(Drawn())),
    "forward": ("MESA, any place or one, forward passes", lambda: MESA(LocationScreening(shortlist=0))),
    "learned": ("MESA, any place or one", lambda: None),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweep", default="bench-places")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    runs = []
    for own, p in grid.read(a.sweep).each():
        victim = DefenseEvaluation(Pipeline(p))
        found = {}
        for variant, (name, method) in VARIANTS.items():
            verdict = victim.verdict(name, method())
            about = verdict.result["about"]
            found[variant] = {key: verdict.result[key] for key in ("scores", "flagged", "above")}
            found[variant] |= {"places": about["places"], "seconds": verdict.made["seconds"]}
        location = victim.pipeline.backdoor.apply(torch.full((1, 3, *victim.data.image_size), 0.5), devices.rng(0))
        rows, columns = (location[0] != 0.5).any(0).nonzero().T if victim.planted else torch.zeros(2, 1)
        runs.append({"own": own, "planted": victim.planted, "place": [int(rows.min()), int(columns.min())], **found})
        said = {variant: found[variant]["flagged"] for variant in VARIANTS}
        print(own, victim.planted, said, flush=True)
        lines = ",\n".join(json.dumps(run) for run in runs)
        made = json.dumps(devices.describe(victim.pipeline.device))
        store.write_atomic(a.out, f'{{"sweep": "{a.sweep}", "made": {made}, "runs": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
