"""Every switch of the modeling, one at a time, on the paper's attack and on backdoors that hide, with repeats.

    python benchmarks/ablation.py --out results/ablation.json

Each variant is today's default with one change, beside the presets `official` and `paper`; the repair is today's in all
of them. The triggers, the target and the seeds are those on which defaults may be fixed: no table reports them.

Each line has F of the samples of every level on held-out images, the mutual information of the highest level (measured
with a new statistics network), and ASR and clean accuracy of the model after the repair, on the evaluation images.
"""

from dataclasses import replace

from common import Results, in_part, parameter_values, parser, start

from mesa_lib.defenses.mesa.repair import MESARepair
from mesa_lib.evaluation import metrics
from mesa_lib.experiments import params, repairs
from mesa_lib.experiments.pipeline import Pipeline
from mesa_lib.settings import PRESETS

#: attackers: changes of the parameter file
ATTACKS = {
    "as in the paper": {"attack": "patch"},
    "cover: random patches": {"attack": "covered"},
    "cover: near misses, 30% poison": {"attack": "covered", "cover": "near", "poison_rate": 0.3, "attack_epochs": 80},
}
#: trigger and seed of the attacked models
REPEATS = (("bw:5", 10), ("bw:85", 11), ("bw:341", 12))
#: the target class of all of them
TARGET = 3
#: name -> what it changes in today's settings
SWITCHES = {
    "ours": {},
    "one start": {},
    "hinge on F": {"hinge_scale": "probability"},
    "alpha 0": {"alpha": 0.0},
    "hinge per image": {"hinge": "image"},
    "uniform noise": {"noise": "uniform"},
    "64 noise dimensions": {"noise_dim": 64},
    "leaky critic": {"critic": "leaky"},
    "1 critic step": {"critic_steps": 1},
    "plain generator": {"generator": "plain"},
    "no trigger noise": {"trigger_noise": 0.0},
    "a location per batch": {"placement": "batch"},
    "300 steps": {"steps": 300},
}
VARIANTS = SWITCHES | {name: preset.model_dump() for name, preset in PRESETS.items()}
IDENTITY = ("attacker", "trigger", "seed", "variant")


class OneStart(MESARepair):
    """The repair whose levels do not start again where they miss."""

    starts_again = False


def measure(pipeline: Pipeline, variant: str) -> dict:
    """Return what is reported of one variant on one attacked model."""
    p = pipeline.p
    settings = p.modeling_settings(**VARIANTS[variant])
    kind = OneStart if variant == "one start" else MESARepair
    method = kind(settings, search=repairs.trigger_search(p), restarts=p.inversion_restarts)
    view = pipeline.defender_view(method.knowledge, model=pipeline.attacked().model)
    distribution = method.model(view)
    repaired = replace(method, fitted=distribution).repair(view)
    row = metrics.evaluate(
        repaired.model, pipeline.data.evaluation, pipeline.backdoor, p.target, precision=p.precision
    )  # fmt: skip
    return {
        "F": [level.success for level in distribution.levels],
        "started again": sum(level.started_around is not None for level in distribution.levels),
        "information": distribution.measured_information(),
        "failed": repaired.about.get("failed", ""),
        "asr": row["asr"]["rate"],
        "clean_accuracy": row["clean_accuracy"]["rate"],
    }


def main() -> None:
    """Measure every variant on every model that the file does not hold yet."""
    a = parser(__doc__, params_file="digits", parts=True).parse_args()
    start(a)
    base = parameter_values(a.params) | {"clean_seed": 0, "target": TARGET}
    results = Results(a.out, {"params": base})
    models = [(attacker, trigger, seed) for trigger, seed in REPEATS for attacker in ATTACKS]
    for attacker, trigger, seed in in_part(models, a.part):
        pipeline = Pipeline(params.check(base | ATTACKS[attacker] | {"trigger": trigger, "seed": seed}))
        for variant in VARIANTS:
            identity = dict(zip(IDENTITY, (attacker, trigger, seed, variant), strict=True))
            if results.find_run(**identity) is None:
                results.keep_run(identity | measure(pipeline, variant), IDENTITY)
                print(identity, flush=True)


if __name__ == "__main__":
    main()
