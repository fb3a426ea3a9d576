"""False alarms: what the residual check finds on models without a backdoor, before and after MESA's repair.

    python benchmarks/residual_check.py --out results/residual-check.json
    python benchmarks/residual_check.py --params cifar10-cpu --models 1 --width 32 --out results/residual-cifar.json

Each class of each clean model is taken for the target once. The check is that of `MESA rounds`: a search, and a new
generator. Whether it notices what a repair missed is in the runs of the sweeps, which have a backdoor
(`reporting.tables.attackers.checks`).
"""

import time

from common import Results, in_part, parameter_values, parser, start
from torch import nn

from mesa_lib.defenses.mesa.repair import MESARepair
from mesa_lib.defenses.mesa.residual_check import check
from mesa_lib.experiments import params, repairs
from mesa_lib.experiments.pipeline import Pipeline

#: seeds of the clean models; no table reports them
FIRST_SEED = 60


def residual_check(pipeline: Pipeline, model: nn.Module) -> dict:
    """Return the record of a residual check for the target of the pipeline, with its seconds."""
    p, began = pipeline.p, time.monotonic()
    view = pipeline.defender_view(MESARepair().knowledge, model=model)
    residual, _ = check(
        view, model, p.modeling_settings(), repairs.trigger_search(p), target=p.target, size=pipeline.patch_size
    )
    return residual.record(p.clear_below) | {"seconds": round(time.monotonic() - began, 1)}


def measure(pipeline: Pipeline) -> dict:
    """Return the checks of the clean model, and of the same model after the repair of a defender who suspects it."""
    p, clean = pipeline.p, pipeline.clean().model
    method = MESARepair(p.modeling_settings(), search=repairs.trigger_search(p))
    repaired = method.repair(pipeline.defender_view(method.knowledge, model=clean))
    checks = {"clean model": clean, "clean model, repaired": repaired.model}
    return {"missed": repaired.about.get("missed", [])} | {k: residual_check(pipeline, v) for k, v in checks.items()}


def main() -> None:
    """Measure every model and target that the file does not hold yet."""
    arguments = parser(__doc__, params_file="digits", parts=True)
    arguments.add_argument("--models", type=int, default=2, help="clean models (default: %(default)s)")
    arguments.add_argument("--width", type=int, help="of the network (default: that of the parameter file)")
    a = arguments.parse_args()
    start(a)
    base = parameter_values(a.params) | ({"width": a.width} if a.width else {})
    results = Results(a.out, {"params": base})
    seeds = [FIRST_SEED + number for number in range(a.models)]
    classes = len(Pipeline(params.check(base)).data.classes)
    for seed, target in in_part([(seed, target) for seed in seeds for target in range(classes)], a.part):
        if results.find_run(seed=seed, target=target) is None:
            pipeline = Pipeline(params.check(base | {"clean_seed": seed, "seed": seed, "target": target}))
            identity = {"seed": seed, "target": target}
            results.keep_run(identity | measure(pipeline), list(identity))
            print(identity, flush=True)


if __name__ == "__main__":
    main()
