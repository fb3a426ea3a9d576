"""Ours against the same procedure written plainly, measured in one run on one machine.

    python benchmarks/speed.py --out results/speed.json                 # the victim of params/cifar10-cpu.yaml
    python benchmarks/speed.py -p network=resnet18 -p start=scratch -p clean_epochs=3 -p clean_lr=0.1 \\
        -p batch_size=128 -p poison_rate=0.1 -p weight_decay=5e-4 -p label_smoothing=0 -p repair_lr=0.01 \\
        --quality --compile --out results/speed-resnet18.json           # the paper's network, backdoored quickly

Times are medians over `--repeats` steps. Each rung of the ladder is one change over the rung above. Where the plain
procedure would take an hour its step time is multiplied by its number of steps; the result file says where.
"""

import argparse
import copy
import json
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from mesa_lib import device as devices
from mesa_lib import retrain
from mesa_lib import staircase
from mesa_lib import store
from mesa_lib import training
from mesa_lib.evaluation import metrics
from mesa_lib.experiments import params as parameters
from mesa_lib.models import frozen as frozen_models
from mesa_lib.store import paths
from mesa_lib.experiments.pipeline import Pipeline
from mesa_lib.triggers import random_locations
from mesa_lib.triggers import stamp

sys.path.insert(0, str(Path(__file__).parent))
import plain  # noqa: E402

CPU = torch.device("cpu")
PARTS = ("peak", "ladder", "plain", "ours", "peak again", "plain quality")
LEFT_OUT = "+ images of the target class left out"


def seconds_of(step, repeats: int, warm: int = 1, of=statistics.median) -> float:
    for _ in range(warm):
        step()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return of(seconds)


def matrix_product_peak(dtype: torch.dtype, repeats: int) -> float:
    """Floating point operations a second of a large matrix product: the best of three sizes, two layouts, `repeats`."""
    best = 0.0
    for n in (2048, 4096, 6144):
        a, b = torch.randn(n, n).to(dtype), torch.randn(n, n).to(dtype)
        for right in (b, b.T):
            best = max(best, 2 * n**3 / seconds_of(lambda: a @ right, repeats, of=min))  # noqa: B023
    return best


def peak_memory() -> float:
    """The most memory this process has had, in GiB (`ru_maxrss` would count the process that started it, too)."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def multiplications(model: nn.Module, size: int) -> int:
    """Multiply-adds of one forward pass of one image, convolutions and linear layers (the unfolded network)."""
    total = 0

    def count(layer, inputs, output):
        nonlocal total
        per_output = layer.weight[0].numel()
        total += output.numel() * per_output

    hooks = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    model.eval()(torch.rand(1, 3, size, size))
    for hook in hooks:
        hook.remove()
    return total


def ladder(make, images, labels, repeats: int, batch: int, compiled: bool) -> dict[str, float]:
    """Seconds of one modeling step (triggers, stamp, classifier, gradient to the triggers), change by change."""
    raw, everything = torch.rand(batch, 3, 3, 3), images[:batch].float() / 255
    others = everything[labels[:batch] != 0]

    def step(model, layout, precision, x=everything):
        triggers = raw[: len(x)].clone().requires_grad_()
        locations = random_locations(len(x), x.shape[-2:], (3, 3), devices.rng(0))
        stamped = stamp(x, triggers, locations).contiguous(memory_format=layout)
        with devices.autocast(CPU, precision):
            logits = model(stamped)
        F.softmax(logits.float(), 1)[:, 0].mean().backward()

    last, contiguous = torch.channels_last, torch.contiguous_format
    weights = make().eval()
    still = make().eval().requires_grad_(False).to(memory_format=last)
    folded = frozen_models.frozen(make().to(memory_format=last))
    kept = frozen_models.frozen(make().to(memory_format=last), "bf16")
    rungs = {
        "plain: float32, contiguous, weight gradients on": (weights, contiguous, "float32"),
        "channels-last, no weight gradients": (still, last, "float32"),
        "+ bf16 autocast": (still, last, "bf16"),
        "+ BatchNorm folded": (folded, last, "bf16"),
        "+ weights kept in bf16": (kept, last, "bf16"),
    }
    if compiled:
        rungs["+ torch.compile"] = (torch.compile(kept, dynamic=False), last, "bf16")
    seconds = {}
    for number, (name, (model, layout, precision)) in enumerate(rungs.items()):
        if number == len(rungs) - 1 and compiled:
            start = time.perf_counter()
            step(model, layout, precision)
            seconds["compilation"] = time.perf_counter() - start
        seconds[name] = seconds_of(lambda: step(model, layout, precision), repeats)  # noqa: B023
        if number == 0:
            devices.keep_memory()  # from here on, as the library does
            seconds["+ freed memory kept"] = seconds_of(lambda: step(model, layout, precision), repeats)  # noqa: B023
    # the same gradient from fewer images: those of the target class have no part in the loss
    model, layout, precision = rungs[name]
    seconds[LEFT_OUT] = seconds_of(lambda: step(model, layout, precision, others), repeats)
    return seconds


def plain_steps(make, split, repeats: int) -> dict[str, float]:
    """Seconds of one plain modeling step and one plain repair step, DataLoader included."""
    batches = iter(plain.loader(split))
    modeling = plain.Modeling(make(), 0, 0.9)
    one = seconds_of(lambda: modeling.step(*next(batches)), repeats)
    repair = plain.Repair(make(), [modeling.G])
    return {"modeling": one, "repair": seconds_of(lambda: repair.step(*next(batches)), repeats)}


def row_of(model: nn.Module, pipeline: Pipeline) -> dict:
    """ASR of the original trigger and clean accuracy on the evaluation images."""
    row = metrics.evaluate(model, pipeline.data.evaluation, pipeline.trigger, pipeline.p.target, precision=pipeline.p.precision)
    return {"asr": row["asr"]["rate"], "clean accuracy": row["clean_accuracy"]["rate"]}


def ours(pipeline: Pipeline) -> dict:
    """From the backdoored checkpoint to the repaired model by the library, as the parameters say."""
    devices.keep_memory()
    model, m, p = pipeline.attacked().model, pipeline.data.modeling, pipeline.p
    before, settings = row_of(model, pipeline), p.mesa()
    start = time.perf_counter()
    fitted = staircase.fit(model, m.images, m.labels, p.target, settings, precision=p.precision)
    modeling = time.perf_counter() - start
    steps = sum(level.history[-1]["step"] + 1 for level in fitted.levels)
    start = time.perf_counter()
    model, _ = pipeline.repair(model, fitted.sample, "MESA")
    repair = time.perf_counter() - start
    return {
        "attacked": before,
        "repaired": row_of(model, pipeline),
        "three levels": modeling,
        "steps of all levels": steps,
        "images a second, modeling": steps * settings.batch * settings.images_per_trigger / modeling,
        "repair": repair,
        "images a second, training": p.repair_epochs * len(m.images) / repair,
        "checkpoint to repaired model": modeling + repair,
    }


def plain_quality(pipeline: Pipeline) -> dict:
    """What the plain procedure reaches, by the library's faster code: its settings, its steps, its repair."""
    devices.keep_memory()
    model, m, p = pipeline.attacked().model, pipeline.data.modeling, pipeline.p
    settings = replace(plain.OFFICIAL, seed=p.seed)
    fitted = staircase.fit(model, m.images, m.labels, p.target, settings, precision=p.precision)
    training.train(
        model, m.images, m.labels, epochs=10, lr=1e-3, batch_size=plain.OFFICIAL.batch, seed=p.seed, device=CPU,
        precision=p.precision, transform=retrain.STAMPING_OLD(fitted.sample, 0.01),
    )  # fmt: skip
    return {"repaired": row_of(model, pipeline)}


def measure(part: str, a) -> dict:
    keep = devices.keep_memory
    devices.keep_memory = lambda: None  # `Stages` calls it, and the plain rung has to do without
    pipeline = Pipeline(parameters.read([paths.root() / "params" / f"{a.params}.yaml"], a.parameter))
    devices.keep_memory = keep
    d = pipeline.data

    def make():
        return copy.deepcopy(pipeline.attacked().model)

    if part.startswith("peak"):
        found = {
            str(t).removeprefix("torch."): matrix_product_peak(t, a.repeats) for t in (torch.float32, torch.bfloat16)
        }
        found["multiply-adds an image"] = multiplications(make(), 32)
    elif part == "ladder":
        found = ladder(make, d.modeling.images, d.modeling.labels, a.repeats, a.batch, a.compile)
    elif part == "plain":
        found = plain_steps(make, d.modeling, a.repeats)
    else:
        found = ours(pipeline) if part == "ours" else plain_quality(pipeline)
    return found | {"peak memory, GiB": peak_memory()}


def best_rates(parts: dict) -> dict[str, float]:
    """The matrix products' rates, the better of two measurements: what others do on the same hardware changes them."""
    return {name: max(parts[p][name] for p in ("peak", "peak again")) for name in parts["peak"]}


def summary(parts: dict, batch: int) -> dict:
    """The figures of the README, from those measured."""
    s = plain.OFFICIAL
    peak = best_rates(parts)
    steps, repairs = s.steps * len(s.betas), 10 * (8000 // s.batch)
    plain_total = steps * parts["plain"]["modeling"] + repairs * parts["plain"]["repair"]
    steps_of = {k: v for k, v in parts["ladder"].items() if k != "compilation" and not k.startswith("peak")}
    least, best = min(steps_of.values()), min(v for k, v in steps_of.items() if k != LEFT_OUT)
    operations = 2 * 2 * peak["multiply-adds an image"]  # forward and input gradient, a multiply-add counts two
    return {
        "one step, plain / ours": parts["ladder"]["plain: float32, contiguous, weight gradients on"] / least,
        "fraction of the bf16 peak, one step": operations * batch / best / peak["bfloat16"],
        "fraction of the bf16 peak, modeling": operations
        * parts["ours"]["images a second, modeling"]
        / peak["bfloat16"],
        "plain, checkpoint to repaired model (step times x steps)": plain_total,
        "checkpoint to repaired model, plain / ours": plain_total / parts["ours"]["checkpoint to repaired model"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", default="cifar10-cpu", help="a file of params/: the victim, and what ours does")
    parser.add_argument("-p", dest="parameter", action="append", default=[], metavar="NAME=VALUE", help="over the file")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="the last rung of the ladder, torch.compile")
    parser.add_argument("--quality", action="store_true", help="what the plain procedure reaches, too (long)")
    parser.add_argument("--out", type=Path, required=True, help="JSON file of the results; gone on with if it exists")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.part:  # a process of its own, so that its peak memory is its own
        print(json.dumps(measure(a.part, a)))
        return
    pipeline = Pipeline(parameters.read([paths.root() / "params" / f"{a.params}.yaml"], a.parameter))
    pipeline.attacked()  # the victim is made before anything is timed
    about = {"params": pipeline.p.model_dump(exclude={"data_dir"}), "batch": a.batch, "repeats": a.repeats}
    content = {"about": about, "made": devices.describe(CPU), "parts": {}}
    if a.out.exists() and json.loads(a.out.read_text())["about"] == about:
        content["parts"] = json.loads(a.out.read_text())["parts"]
    for part in PARTS if a.quality else PARTS[:-1]:
        if part in content["parts"]:
            continue
        done = subprocess.run([sys.executable, *sys.argv, "--part", part], capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stderr)
        content["parts"][part] = json.loads(done.stdout.strip().splitlines()[-1])
        print(part, json.dumps(content["parts"][part], indent=1), flush=True)
        if set(PARTS[:5]) <= set(content["parts"]):
            content["summary"] = summary(content["parts"], a.batch)
        store.write_atomic(a.out, json.dumps(content, indent=1) + "\n")
    print(json.dumps(content["summary"], indent=1))


if __name__ == "__main__":
    main()
