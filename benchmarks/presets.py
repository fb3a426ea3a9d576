"""The presets on the same backdoored model, and one switch at a time between the released code and ours.

    python benchmarks/presets.py --out results/presets.json                    # headline attack, bw:170, seed 0
    python benchmarks/presets.py --start scratch --presets-only --out results/presets-scratch.json

For each variant: ASR of the samples on the defender's images, their diversity, mutual information measured with a new
statistics network (the same for all, on samples it was not trained on), ASR of the original trigger and accuracy after
the repair at the published rate of triggered images and at ours, seconds. All models are kept in the store as well.
"""

from common import Results, parameter_values, parser, start

from mesa_lib import device as devices
from mesa_lib import success, triggers
from mesa_lib.experiments import params
from mesa_lib.experiments.pipeline import Pipeline
from mesa_lib.settings import PRESETS

#: name -> what it changes in `official`
SWITCHES = {
    "hinge per trigger, 4 images each": {"hinge": "trigger", "images_per_trigger": 4, "triggers_per_step": 32},
    "linear critic": {"critic": "linear"},
    "4 critic steps": {"critic_steps": 4},
    "gaussian noise": {"noise": "gaussian"},
    "16 noise dimensions": {"noise_dim": 16},
    "no trigger noise": {"trigger_noise": 0.0},
    "moving average 0.01": {"ema_rate": 0.01},
    "a location per image": {"placement": "image"},
    "gamma by entropy": {"gamma": "entropy"},
    "learning rate 1e-3, 150 steps": {"modeling_lr": 1e-3, "steps": 150},
    "hinge on log F": {"hinge_scale": "log"},
    "early stop": {"patience": 2},
}
#: rates of triggered images in the repair; None: that of the parameter file
RATES = {"published": 0.01, "ours": None}


def variants() -> dict[str, dict]:
    """Return name -> changes of the parameter file: the presets, then `official` with one switch each."""
    official, paper = PRESETS["official"].model_dump(), PRESETS["paper"].model_dump()
    presets = {"official": official, "paper": paper, "ours": {}}
    return presets | {f"official + {name}": official | changes for name, changes in SWITCHES.items()}


def measure(base: dict, changes: dict) -> dict:
    """Return everything that is reported of one variant."""
    pipeline = Pipeline(params.check(base | changes))
    p, d, attacked = pipeline.p, pipeline.data.modeling, pipeline.attacked()
    distribution, artifact = pipeline.distribution()
    rng = devices.rng(devices.derive_seed(p.seed, "samples of a variant"), pipeline.device)
    samples = distribution.sample(2000, rng).cpu()
    rate = success.asr_of_triggers(attacked.model, d.images, d.labels, samples[:256], p.target, precision=p.precision)
    result = {
        "samples": float(rate.mean()),
        "information": distribution.measured_information(),
        **triggers.diversity(samples),
        "seconds": artifact.made["seconds"],
        "steps": sum(level.history[-1]["step"] + 1 for level in distribution.levels),
    }
    for name, rate in RATES.items():
        other = Pipeline(params.check(base | changes | ({"repair_rate": rate} if rate else {})))
        for control in ("MESA", "ideal"):
            row = other.measured(other.repaired(control))
            result[f"{control}, {name} rate"] = {"asr": row["asr"], "clean_accuracy": row["clean_accuracy"]["rate"]}
    return result


def main() -> None:
    """Measure every variant that the file does not hold yet."""
    arguments = parser(__doc__, params_file="cifar10-cpu")
    arguments.add_argument("--start", default="clean", choices=["clean", "scratch"])
    arguments.add_argument("--trigger", default="bw:170")
    arguments.add_argument("--target", type=int, default=0)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--presets-only", action="store_true", help="no switches")
    a = arguments.parse_args()
    start(a)
    base = parameter_values(a.params)
    base |= {"start": a.start, "trigger": a.trigger, "target": a.target, "seed": a.seed}
    results = Results(a.out, {"params": base})
    for name, changes in variants().items():
        if name in results.entries("variants") or (a.presets_only and " + " in name):
            continue
        results.keep("variants", name, measure(base, changes))
        print(name, "done", flush=True)


if __name__ == "__main__":
    main()
