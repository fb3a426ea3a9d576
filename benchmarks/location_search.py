"""Are the second and third step of the location search worth it? The sweep bench-fixed-location with and without them.

    python benchmarks/location_search.py --out results/location-search.json

`drawn` searches nothing and takes a random location for each class; `forward` takes the location at which random
patches succeed most often, by forward passes alone (the search as it was when these models were first looked at);
`learned` is the search of the benchmark.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from common import Results, in_part, parser, start
from torch import Tensor

from mesa_lib import device as devices
from mesa_lib.defenses.base import DefenderView
from mesa_lib.defenses.mesa.detector import MESA
from mesa_lib.defenses.mesa.screening import LocationScreening, PatchSpec
from mesa_lib.experiments.benchmark import DefenseEvaluation
from mesa_lib.experiments.pipeline import Pipeline
from mesa_lib.experiments.sweep import grid
from mesa_lib.triggers import random_locations


@dataclass
class RandomLocationScreening(LocationScreening):
    """A control: random locations instead of a search."""

    random: bool = True

    def locations(self, view: DefenderView, spec: PatchSpec, labels: Sequence[int]) -> Tensor:
        """Return a random location for each class -> (classes, 2)."""
        rng = devices.rng(devices.derive_seed(view.seed, "random locations"))
        return random_locations(view.classes, view.image_size, spec.size, rng)[list(labels)]


#: name in the file -> name of the method, and the method; None: the registry's of this name
VARIANTS = {
    "drawn": ("MESA, location drawn", lambda: MESA(RandomLocationScreening())),
    "forward": ("MESA, location by forward passes", lambda: MESA(LocationScreening(shortlist=0))),
    "learned": ("MESA, location unknown", lambda: None),
}


def planted_location(victim: DefenseEvaluation) -> list[int]:
    """Return the row and column at which the attacker's patch begins: where it changes a gray image."""
    gray = torch.full((1, 3, *victim.data.image_size), 0.5)
    changed = (victim.pipeline.backdoor.apply(gray, devices.rng(0))[0] != 0.5).any(0)
    return changed.nonzero().amin(0).tolist()


def measure(victim: DefenseEvaluation) -> dict:
    """Return scores, flagged classes and locations of every variant on one model."""
    run = {"planted": victim.planted, "location": planted_location(victim) if victim.planted else [0, 0]}
    for variant, (name, method) in VARIANTS.items():
        verdict = victim.verdict(name, method())
        run[variant] = {key: verdict.result[key] for key in ("scores", "flagged", "above")}
        run[variant] |= {"locations": verdict.result["about"]["locations"], "seconds": verdict.made["seconds"]}
    return run


def main() -> None:
    """Measure every model of the sweep that the file does not hold yet."""
    arguments = parser(__doc__, sweep="bench-fixed-location", parts=True).parse_args()
    start(arguments)
    cells = list(grid.read(arguments.sweep).each())
    order = [json.dumps(cell) for cell, _ in cells]
    results = Results(arguments.out, {"sweep": arguments.sweep})
    for cell, p in in_part(cells, arguments.part):
        if results.find_run(own=cell):
            continue
        run = {"own": cell} | measure(DefenseEvaluation(Pipeline(p)))
        results.keep_run(run, ["own"], lambda run: order.index(json.dumps(run["own"])))
        print(cell, run["planted"], {variant: run[variant]["flagged"] for variant in VARIANTS}, flush=True)


if __name__ == "__main__":
    main()
