"""The library against MESA written plainly (`plain.py`), measured in one run on one machine.

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
from collections.abc import Callable
from pathlib import Path

import plain
import torch
import torch.nn.functional as F
from common import Results, parser, start
from torch import Tensor, nn

from mesa_lib import device as devices
from mesa_lib import retrain, staircase, training
from mesa_lib.data import Split
from mesa_lib.evaluation import metrics
from mesa_lib.experiments import params as parameters
from mesa_lib.experiments.pipeline import Pipeline
from mesa_lib.models.frozen import frozen
from mesa_lib.store import paths
from mesa_lib.triggers import random_locations, stamp

CPU = torch.device("cpu")
PARTS = ("peak", "ladder", "plain", "ours", "peak again", "plain quality")
#: names of rungs of the ladder
PLAIN = "plain: float32, contiguous, weight gradients on"
COMPILED = "+ torch.compile"
LEFT_OUT = "+ images of the target class left out"


def seconds_of(
    step: Callable[[], object], repeats: int, warm: int = 1, summarize: Callable = statistics.median
) -> float:
    """Return the seconds of a step, summarized over repeats, after some steps that do not count."""
    for _ in range(warm):
        step()
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - begin)
    return summarize(seconds)


def matrix_product_peak(dtype: torch.dtype, repeats: int) -> float:
    """Return floating point operations a second of a large matrix product: the best of three sizes and two layouts."""
    best = 0.0
    for n in (2048, 4096, 6144):
        a, b = torch.randn(n, n).to(dtype), torch.randn(n, n).to(dtype)
        for right in (b, b.T):
            seconds = seconds_of(lambda left=a, right=right: left @ right, repeats, summarize=min)
            best = max(best, 2 * n**3 / seconds)
    return best


def peak_memory() -> float:
    """Return the most memory this process has had, in GiB (`ru_maxrss` also counts the process that started it)."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def multiplications(model: nn.Module, size: int) -> int:
    """Return the multiply-adds of one forward pass of one image, convolutions and linear layers (not folded)."""
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


# --- the ladder ------------------------------------------------------------------------------------------


class ModelingStep:
    """One modeling step: triggers, stamp, classifier, gradient to the triggers."""

    def __init__(self, images: Tensor, labels: Tensor, batch: int):
        self.raw, self.images = torch.rand(batch, 3, 3, 3), images[:batch].float() / 255
        self.others = self.images[labels[:batch] != 0]

    def run(self, model: nn.Module, layout: torch.memory_format, precision: str, others: bool = False) -> None:
        """Take the step.

        Args:
            model: images -> logits.
            layout: of the images in memory.
            precision: see `device.autocast`.
            others: whether images of the target class are left out; they have no part in the gradient.
        """
        x = self.others if others else self.images
        triggers = self.raw[: len(x)].clone().requires_grad_()
        locations = random_locations(len(x), x.shape[-2:], (3, 3), devices.rng(0))
        stamped = stamp(x, triggers, locations).contiguous(memory_format=layout)
        with devices.autocast(CPU, precision):
            logits = model(stamped)
        F.softmax(logits.float(), 1)[:, 0].mean().backward()


def rungs(make: Callable[[], nn.Module], compiled: bool) -> dict[str, tuple[nn.Module, torch.memory_format, str]]:
    """Return the rungs of the ladder: name -> model, memory layout, precision; each is one change over the last."""
    last, contiguous = torch.channels_last, torch.contiguous_format
    fixed = make().eval().requires_grad_(False).to(memory_format=last)
    in_bf16 = frozen(make().to(memory_format=last), "bf16")
    result = {
        PLAIN: (make().eval(), contiguous, "float32"),
        "channels-last, no weight gradients": (fixed, last, "float32"),
        "+ bf16 autocast": (fixed, last, "bf16"),
        "+ BatchNorm folded": (frozen(make().to(memory_format=last)), last, "bf16"),
        "+ weights kept in bf16": (in_bf16, last, "bf16"),
    }
    return result | ({COMPILED: (torch.compile(in_bf16, dynamic=False), last, "bf16")} if compiled else {})


def ladder(make: Callable[[], nn.Module], split: Split, repeats: int, batch: int, compiled: bool) -> dict[str, float]:
    """Return the seconds of one modeling step, change by change."""
    step, seconds = ModelingStep(split.images, split.labels, batch), {}
    for name, rung in rungs(make, compiled).items():
        if name == COMPILED:
            begin = time.perf_counter()
            step.run(*rung)
            seconds["compilation"] = time.perf_counter() - begin
        seconds[name] = seconds_of(lambda rung=rung: step.run(*rung), repeats)
        if name == PLAIN:
            devices.keep_memory()  # from here on, as the library's commands do
            seconds["+ freed memory kept"] = seconds_of(lambda rung=rung: step.run(*rung), repeats)
    seconds[LEFT_OUT] = seconds_of(lambda: step.run(*rung, others=True), repeats)
    return seconds


# --- the whole way ---------------------------------------------------------------------------------------


def plain_steps(make: Callable[[], nn.Module], split: Split, repeats: int) -> dict[str, float]:
    """Return the seconds of one plain modeling step and one plain repair step, DataLoader included."""
    batches = iter(plain.loader(split))
    modeling = plain.Modeling(make(), 0, 0.9)
    seconds = seconds_of(lambda: modeling.step(*next(batches)), repeats)
    repair = plain.Repair(make(), [modeling.G])
    return {"modeling": seconds, "repair": seconds_of(lambda: repair.step(*next(batches)), repeats)}


def rates(model: nn.Module, pipeline: Pipeline) -> dict[str, float]:
    """Return ASR of the original trigger and clean accuracy on the evaluation images."""
    p = pipeline.p
    row = metrics.evaluate(model, pipeline.data.evaluation, pipeline.trigger, p.target, precision=p.precision)
    return {"asr": row["asr"]["rate"], "clean accuracy": row["clean_accuracy"]["rate"]}


def ours(pipeline: Pipeline) -> dict:
    """Go from the backdoored checkpoint to the repaired model by the library, as the parameters say."""
    devices.keep_memory()
    model, m, p = pipeline.attacked().model, pipeline.data.modeling, pipeline.p
    before, settings = rates(model, pipeline), p.modeling_settings()
    begin = time.perf_counter()
    options = {"seed": devices.derive_seed(p.seed, "speed"), "precision": p.precision}
    fitted = staircase.fit(model, m.images, m.labels, p.target, settings, size=pipeline.patch_size, **options)
    modeling = time.perf_counter() - begin
    steps = sum(level.history[-1]["step"] + 1 for level in fitted.levels)
    begin = time.perf_counter()
    transform = retrain.stamping(fitted.sample)
    model, _ = retrain.repair(model, m.images, m.labels, transform, p.repair_settings(), **options)
    repair = time.perf_counter() - begin
    return {
        "attacked": before,
        "repaired": rates(model, pipeline),
        "three levels": modeling,
        "steps of all levels": steps,
        "images a second, modeling": steps * settings.triggers_per_step * settings.images_per_trigger / modeling,
        "repair": repair,
        "images a second, training": p.repair_epochs * len(m.images) / repair,
        "checkpoint to repaired model": modeling + repair,
    }


def plain_quality(pipeline: Pipeline) -> dict:
    """Return what the plain procedure reaches, by the library's faster code: its settings, its steps, its repair."""
    devices.keep_memory()
    model, m, p = pipeline.attacked().model, pipeline.data.modeling, pipeline.p
    options = {"seed": devices.derive_seed(p.seed, "speed"), "precision": p.precision}
    fitted = staircase.fit(model, m.images, m.labels, p.target, plain.OFFICIAL, size=pipeline.patch_size, **options)
    training.train(
        model, m.images, m.labels, epochs=10, lr=1e-3, batch_size=plain.OFFICIAL.triggers_per_step, device=CPU,
        transform=retrain.on_fraction(retrain.stamping(fitted.sample), 0.01), **options,
    )  # fmt: skip
    return {"repaired": rates(model, pipeline)}


def measure(part: str, a: argparse.Namespace, p: parameters.Params) -> dict:
    """Return one part of the results, and the peak memory of this process."""
    pipeline = Pipeline(p)

    def make() -> nn.Module:
        return copy.deepcopy(pipeline.attacked().model)

    if part.startswith("peak"):
        types = {"float32": torch.float32, "bfloat16": torch.bfloat16}
        result = {name: matrix_product_peak(dtype, a.repeats) for name, dtype in types.items()}
        result["multiply-adds an image"] = multiplications(make(), 32)
    elif part == "ladder":
        result = ladder(make, pipeline.data.modeling, a.repeats, a.batch, a.compile)
    elif part == "plain":
        result = plain_steps(make, pipeline.data.modeling, a.repeats)
    else:
        result = ours(pipeline) if part == "ours" else plain_quality(pipeline)
    return result | {"peak memory, GiB": peak_memory()}


def best_rates(parts: dict) -> dict[str, float]:
    """Return the matrix products' rates, the better of two measurements: other work on the machine lowers them."""
    return {name: max(parts[p][name] for p in ("peak", "peak again")) for name in parts["peak"]}


def summary(parts: dict, batch: int) -> dict:
    """Return the figures of the README, from those measured."""
    s = plain.OFFICIAL
    peak = best_rates(parts)
    steps, repairs = s.steps * len(s.betas), 10 * (8000 // s.triggers_per_step)
    plain_total = steps * parts["plain"]["modeling"] + repairs * parts["plain"]["repair"]
    seconds = {k: v for k, v in parts["ladder"].items() if k != "compilation" and not k.startswith("peak")}
    fastest, fastest_full = min(seconds.values()), min(v for k, v in seconds.items() if k != LEFT_OUT)
    operations = 2 * 2 * peak["multiply-adds an image"]  # forward and input gradient, a multiply-add counts two
    modeling_rate = parts["ours"]["images a second, modeling"]
    return {
        "one step, plain / ours": parts["ladder"][PLAIN] / fastest,
        "fraction of the bf16 peak, one step": operations * batch / fastest_full / peak["bfloat16"],
        "fraction of the bf16 peak, modeling": operations * modeling_rate / peak["bfloat16"],
        "plain, checkpoint to repaired model (step times x steps)": plain_total,
        "checkpoint to repaired model, plain / ours": plain_total / parts["ours"]["checkpoint to repaired model"],
    }


def main() -> None:
    """Measure every part that the file does not hold yet, each in a process of its own: it has its own peak memory."""
    arguments = parser(__doc__, params_file="cifar10-cpu")
    arguments.add_argument("-p", dest="parameter", action="append", default=[], metavar="NAME=VALUE", help="override")
    arguments.add_argument("--batch", type=int, default=128)
    arguments.add_argument("--repeats", type=int, default=5)
    arguments.add_argument("--compile", action="store_true", help="the last rung of the ladder, torch.compile")
    arguments.add_argument("--quality", action="store_true", help="what the plain procedure reaches, too (long)")
    arguments.add_argument("--measure", choices=PARTS, help=argparse.SUPPRESS)
    a = arguments.parse_args()
    start(a, keep_memory=False)  # the plain rung has to do without
    p = parameters.read([paths.parameter_file(a.params)], a.parameter)
    if a.measure:
        print(json.dumps(measure(a.measure, a, p)))
        return
    Pipeline(p).attacked()  # the victim is trained before anything is timed
    about = {"params": p.model_dump(exclude={"data_dir"}), "batch": a.batch, "repeats": a.repeats}
    results = Results(a.out, {"about": about}, "cpu")
    for part in PARTS if a.quality else PARTS[:-1]:
        if part in results.entries("parts"):
            continue
        command = [sys.executable, *sys.argv, "--measure", part]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stderr)
        results.keep("parts", part, json.loads(done.stdout.strip().splitlines()[-1]))
        print(part, json.dumps(results.entries("parts")[part], indent=1), flush=True)
    figures = summary(results.entries("parts"), a.batch)
    results.update(lambda content: content.update(summary=figures))
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
