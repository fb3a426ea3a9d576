"""The presets on the same backdoored model, and one switch at a time between the released code and ours.

    python benchmarks/presets.py --out results/presets.json                    # headline attack, bw:170, seed 0
    python benchmarks/presets.py --start scratch --presets-only --out results/presets-scratch.json

For each variant: ASR of the samples on the defender's images, their diversity, mutual information measured afresh (a
new statistics network, the same for all, on samples it was not trained on), ASR of the original trigger and accuracy
after the repair at the published rate of triggered images and at ours, seconds. Everything is kept in the store, so
that a run that was stopped goes on where it was.
"""

import argparse
import json
from pathlib import Path

from mesa_lib import device as devices
from mesa_lib import store
from mesa_lib import success
from mesa_lib import triggers
from mesa_lib.experiments import params
from mesa_lib.store import paths
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
    "a place per image": {"place": "image"},
    "gamma by entropy": {"gamma": "entropy"},
    "learning rate 1e-3, 150 steps": {"modeling_lr": 1e-3, "steps": 150},
    "hinge on log F": {"scale": "log"},
    "early stop": {"patience": 2},
}
RATES = {"published": 0.01, "ours": None}


def variants() -> dict[str, dict]:
    """Name -> changes of the parameter file: the presets, then `official` with one switch each."""
    official = params.preset_parameters(PRESETS["official"])
    presets = {"official": official, "paper": params.preset_parameters(PRESETS["paper"]), "ours": {}}
    return presets | {f"official + {name}": official | changes for name, changes in SWITCHES.items()}


def measure(base: dict, changes: dict) -> dict:
    """Everything that is reported of one variant."""
    pipeline = Pipeline(params.check(base | changes))
    p, d, attacked = pipeline.p, pipeline.data.modeling, pipeline.attacked()
    fitted, made = pipeline.distribution()
    samples = fitted.sample(2000, devices.rng(p.seed + 77, pipeline.device)).cpu()
    rate = success.asr_of_triggers(attacked.model, d.images, d.labels, samples[:256], p.target, precision=p.precision)
    found = {
        "samples": float(rate.mean()),
        "information": fitted.measured_information(),
        **triggers.diversity(samples),
        "seconds": made.made["seconds"],
        "steps": sum(level.history[-1]["step"] + 1 for level in fitted.levels),
    }
    for name, value in RATES.items():
        other = Pipeline(params.check(base | changes | ({"repair_rate": value} if value else {})))
        for control in ("MESA", "ideal"):
            row = other.measured(other.repaired(control))
            found[f"{control}, {name} rate"] = {"asr": row["asr"], "clean_accuracy": row["clean_accuracy"]["rate"]}
    return found


def markdown(content: dict) -> str:
    """One line a variant."""
    lines = [
        "| variant | sample ASR | information | distance | ASR after repair, 1 % triggered | 10 % (ours) | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, v in content["variants"].items():
        asr = [f"{100 * v[f'MESA, {rate} rate']['asr']['rate']:.1f} %" for rate in RATES]
        lines.append(
            f"| {name} | {100 * v['samples']:.1f} % | {v['information']:.2f} | {v['distance']:.3f} | {' | '.join(asr)} "
            f"| {v['seconds']:.0f} |"
        )
    known = next(iter(content["variants"].values()))
    asr = [f"{100 * known[f'ideal, {rate} rate']['asr']['rate']:.1f} %" for rate in RATES]
    p, made = content["params"], content["made"]
    start = "from scratch" if p["start"] == "scratch" else "fine-tuned"
    lines += [
        f"| the attacker's own trigger | | | | {' | '.join(asr)} | |",
        "",
        f"`{p['trigger']}`, {start}, target {p['target']}, seed {p['seed']}, one run each; {made['device_name']}, "
        f"{made['threads']} threads, torch {made['torch']}.",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", default="cifar10-cpu", help="a file of params/")
    parser.add_argument("--start", default="clean", choices=["clean", "scratch"])
    parser.add_argument("--trigger", default="bw:170")
    parser.add_argument("--target", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--presets-only", action="store_true", help="no switches")
    parser.add_argument("--out", type=Path, required=True)
    a = parser.parse_args()
    chosen = {"start": a.start, "trigger": a.trigger, "target": a.target, "seed": a.seed}
    base = params.read_yaml(paths.root() / "params" / f"{a.params}.yaml") | chosen
    content = {"params": base, "made": devices.describe(devices.pick_device("auto")), "variants": {}}
    for name, changes in variants().items():
        if a.presets_only and " + " in name:
            continue
        content["variants"][name] = measure(base, changes)
        store.write_atomic(a.out, json.dumps(content, indent=1) + "\n")
        print(name, "done", flush=True)
    print(markdown(content))


if __name__ == "__main__":
    main()
