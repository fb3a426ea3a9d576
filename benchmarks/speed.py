"""Ours against the same procedure written plainly, measured in one run on one machine.

    python benchmarks/speed.py --network resnet18 --width 64 --out results/speed-resnet18.json

Times are medians over `--repeats` steps. Each rung of the ladder is one change over the rung above. Where the plain
procedure would take an hour its step time is multiplied by its number of steps; the result file says where.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from mesa_lib import classifiers, data, paths, retrain, staircase, training
from mesa_lib import device as devices
from mesa_lib import params as parameters
from mesa_lib.triggers import random_places, stamp

sys.path.insert(0, str(Path(__file__).parent))
import plain  # noqa: E402

CPU = torch.device("cpu")
LEFT_OUT = "+ images of the target class left out"


def median_seconds(step, repeats: int, warm: int = 1) -> float:
    for _ in range(warm):
        step()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def matrix_product_peak(dtype: torch.dtype, repeats: int, n: int = 4096) -> float:
    """Floating point operations a second of a large matrix product."""
    a, b = torch.randn(n, n).to(dtype), torch.randn(n, n).to(dtype)
    return 2 * n**3 / median_seconds(lambda: a @ b, repeats)


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
    """Seconds of one modelling step (triggers, stamp, classifier, gradient to the triggers), change by change."""
    raw, everything = torch.rand(batch, 3, 3, 3), images[:batch].float() / 255
    others = everything[labels[:batch] != 0]

    def step(model, layout, precision, x=everything):
        triggers = raw[: len(x)].clone().requires_grad_()
        places = random_places(len(x), x.shape[-2:], (3, 3), devices.rng(0))
        stamped = stamp(x, triggers, places).contiguous(memory_format=layout)
        with devices.autocast(CPU, precision):
            logits = model(stamped)
        F.softmax(logits.float(), 1)[:, 0].mean().backward()

    last, contiguous = torch.channels_last, torch.contiguous_format
    weights = make().eval()
    still = make().eval().requires_grad_(False).to(memory_format=last)
    folded = classifiers.frozen(make().to(memory_format=last))
    kept = classifiers.frozen(make().to(memory_format=last), "bf16")
    rungs = {
        "plain: float32, contiguous, weight gradients on": (weights, contiguous, "float32"),
        "channels-last, no weight gradients": (still, last, "float32"),
        "+ bf16 autocast": (still, last, "bf16"),
        "+ BatchNorm folded": (folded, last, "bf16"),
        "+ weights kept in bf16": (kept, last, "bf16"),
    }
    if compiled:
        rungs["+ torch.compile"] = (torch.compile(kept), last, "bf16")
    seconds = {}
    for number, (name, (model, layout, precision)) in enumerate(rungs.items()):
        if number == len(rungs) - 1 and compiled:
            start = time.perf_counter()
            step(model, layout, precision)
            seconds["compilation"] = time.perf_counter() - start
        seconds[name] = median_seconds(lambda: step(model, layout, precision), repeats)  # noqa: B023
        if number == 0:
            devices.keep_memory()  # from here on, as the library does
            seconds["+ freed memory kept"] = median_seconds(lambda: step(model, layout, precision), repeats)  # noqa: B023
    # the same gradient from fewer images: those of the target class have no part in the loss
    seconds[LEFT_OUT] = median_seconds(lambda: step(kept, last, "bf16", others), repeats)
    return seconds


def plain_steps(make, split, repeats: int) -> dict[str, float]:
    """Seconds of one plain modelling step and one plain repair step, DataLoader included."""
    batches = iter(plain.loader(split))
    modelling = plain.Modelling(make(), 0, 0.9)
    one = median_seconds(lambda: modelling.step(*next(batches)), repeats)
    repair = plain.Repair(make(), [modelling.G])
    return {"modelling": one, "repair": median_seconds(lambda: repair.step(*next(batches)), repeats)}


def ours(make, d, p, target: int) -> dict[str, float]:
    """Seconds of the library: three levels, the repair, training images a second, as the parameters say."""
    devices.keep_memory()
    model, m = make().to(memory_format=torch.channels_last), d.modelling
    settings = p.mesa()
    start = time.perf_counter()
    fitted = staircase.fit(model, m.images, m.labels, target, settings, precision=p.precision)
    modelling = time.perf_counter() - start
    steps = sum(level.history[-1]["step"] + 1 for level in fitted.levels)
    start = time.perf_counter()
    training.train(
        model, m.images, m.labels, epochs=p.repair_epochs, lr=p.repair_lr, schedule=p.schedule, seed=0, device=CPU,
        batch_size=p.batch_size, augment=p.retrain_augment, precision=p.precision,
        edit=retrain.stamping(fitted.sample, p.repair_rate),
    )  # fmt: skip
    repair = time.perf_counter() - start
    stamped = settings.batch * settings.images_per_trigger
    return {
        "three levels": modelling,
        "steps of all levels": steps,
        "images a second, modelling": steps * stamped / modelling,
        "repair": repair,
        "images a second, training": p.repair_epochs * len(m.images) / repair,
        "checkpoint to repaired model": modelling + repair,
    }


def measure(part: str, a) -> dict:
    p = parameters.read([paths.root() / "params" / f"{a.params}.yaml"])
    d = data.load("cifar10", "", 0, 32)

    def make():
        model = classifiers.build(a.network, len(d.classes), a.width, d.mean, d.std, 0)
        if a.checkpoint:
            from mesa_lib import store

            classifiers.load_weights(model, store.load_checkpoint(a.checkpoint), a.checkpoint)
        return model

    if part == "peak":
        found = {
            str(t).removeprefix("torch."): matrix_product_peak(t, a.repeats) for t in (torch.float32, torch.bfloat16)
        }
        found["multiply-adds an image"] = multiplications(make(), 32)
    elif part == "ladder":
        found = ladder(make, d.modelling.images, d.modelling.labels, a.repeats, a.batch, a.compile)
    elif part == "plain":
        found = plain_steps(make, d.modelling, a.repeats)
    else:
        found = ours(make, d, p, 0)
    return found | {"peak memory, GiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet18", choices=list(classifiers.NETWORKS))
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--params", default="cifar10-cpu", help="a file of params/: what ours does")
    parser.add_argument("--checkpoint", default="", help="a backdoored model (safetensors); empty: fresh weights")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="the last rung of the ladder, torch.compile")
    parser.add_argument("--out", type=Path, default=None, help="JSON file of the results")
    parser.add_argument("--part", choices=["peak", "ladder", "plain", "ours"], help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.part:  # a process of its own, so that its peak memory is its own
        print(json.dumps(measure(a.part, a)))
        return
    parts = {}
    for part in ("peak", "ladder", "plain", "ours"):
        done = subprocess.run([sys.executable, *sys.argv, "--part", part], capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stderr)
        parts[part] = json.loads(done.stdout.strip().splitlines()[-1])
        print(part, json.dumps(parts[part], indent=1), flush=True)
    s, peak = plain.OFFICIAL, parts["peak"]
    steps, repairs = s.steps * len(s.betas), 10 * (8000 // s.batch)
    plain_total = steps * parts["plain"]["modelling"] + repairs * parts["plain"]["repair"]
    steps_of = {k: v for k, v in parts["ladder"].items() if k != "compilation" and not k.startswith("peak")}
    least, best = min(steps_of.values()), min(v for k, v in steps_of.items() if k != LEFT_OUT)
    operations = 2 * 2 * peak["multiply-adds an image"]  # forward and input gradient, a multiply-add counts two
    summary = {
        "one step, plain / ours": parts["ladder"]["plain: float32, contiguous, weight gradients on"] / least,
        "fraction of the bf16 peak, one step": operations * a.batch / best / peak["bfloat16"],
        "fraction of the bf16 peak, modelling": operations
        * parts["ours"]["images a second, modelling"]
        / peak["bfloat16"],
        "plain, checkpoint to repaired model (step times x steps)": plain_total,
        "checkpoint to repaired model, plain / ours": plain_total / parts["ours"]["checkpoint to repaired model"],
    }
    print(json.dumps(summary, indent=1))
    if a.out:
        about = {"network": a.network, "width": a.width, "batch": a.batch, "repeats": a.repeats, "params": a.params}
        content = {"about": about, "made": devices.describe(CPU), **parts, "summary": summary}
        a.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
