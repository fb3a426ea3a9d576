"""Twenty models scanned from their files alone: ten attacked, ten clean, what is found and what the repair leaves.

    python benchmarks/scans.py --dataset digits --out results/scans.json

Every model is written to a safetensors file and the defender's images to class folders; `python -m mesa_lib scan` gets
those and nothing else. What it says is then compared with what was planted, on the evaluation images, which it has not
got. Triggers of 2x2, 4x4 and 5x5 pixels are drawn here from seeds.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from mesa_lib import classifiers, metrics, params, store, triggers
from mesa_lib import device as devices
from mesa_lib.data import Split
from mesa_lib.stages import Stages

#: trigger size, attack, planted from scratch; every one with a target, a trigger and a seed of its own
ATTACKED = [
    (2, "patch", False), (3, "patch", True), (4, "patch", False), (5, "patch", True), (3, "patch", False),
    (2, "corner", True), (3, "spot", False), (4, "spot", True), (5, "corner", False), (3, "spot", True),
]  # fmt: skip
CIFAR = [(3, "patch", False), (2, "patch", False), (4, "spot", False)]


def cells(dataset: str, folder: Path, width: int | None = None) -> list[dict]:
    """The parameters of all models; width: None, the profile's."""
    base = params.read([Path("params") / ("digits.yaml" if dataset == "digits" else "cifar10-cpu.yaml")])
    if width:
        base = base.model_copy(update={"width": width})
    found = []
    for number, (size, attack, scratch) in enumerate(ATTACKED if dataset == "digits" else CIFAR):
        file = folder / f"trigger{number}.png"
        drawn = triggers.random(1, "binary", devices.rng(900 + number), (size, size))[0]
        Image.fromarray((255 * drawn).byte().permute(1, 2, 0).numpy()).save(file)
        own = {"trigger": f"file:{file}", "attack": attack, "target": number % 10, "seed": 61 + number}
        found.append(own | {"start": "scratch" if scratch else "clean"})
    clean = 10 if dataset == "digits" else 3
    found += [{"attack": "none", "seed": 81 + n, "start": ("scratch", "clean")[n % 2]} for n in range(clean)]
    if dataset != "digits":  # from a clean model of their own each, one epoch more
        found = [own | ({"clean_seed": own["seed"], "start": "clean"} if own["attack"] == "none" else {"clean_seed": 0})
                 for own in found]  # fmt: skip
    return [params.check(base.model_dump() | own) for own in found]


def folders(images: Split, classes: tuple[str, ...], where: Path) -> None:
    """The images as PNG files in a folder a class."""
    for i, (image, label) in enumerate(zip(images.images, images.labels, strict=True)):
        file = where / classes[label] / f"{i:05}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file)


def asr(stages: Stages, weights: dict) -> dict:
    """What a repaired file does on the evaluation images."""
    model = classifiers.load_weights(stages.fresh(), weights)
    p = stages.p
    return metrics.report(model, stages.data.evaluation, stages.backdoor, p.target, precision=p.precision)


def scanned(p, folder: Path, images: Path, options: list[str]) -> dict:
    """One model: planted or trained, written, scanned by a process of its own, compared."""
    stages = Stages(p)
    attacked = stages.attacked()
    file = folder / "model.safetensors"
    save_file({k: t.cpu().contiguous() for k, t in attacked.model.state_dict().items()}, file)
    out = folder / "scan"
    command = [sys.executable, "-m", "mesa_lib", "scan", str(file), str(images), "--network", p.network]
    command += ["--repair", "--out", str(out), "--augment", p.retrain_augment, *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    found = json.loads((out / "scan.json").read_text())
    planted = [] if p.attack == "none" else [stages.data.classes[p.target]]
    run = {
        "attack": p.attack,
        "network": f"{p.network} {p.width}",
        "size": list(stages.trigger.shape[-2:]),
        "start": p.start,
        "seed": p.seed,
    }
    run |= {"target": p.target, "planted": planted, "before": stages.measured(attacked)}
    if (out / "repaired.safetensors").is_file():
        run["after"] = asr(stages, load_file(out / "repaired.safetensors"))
    return run | {"scan": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=("digits", "cifar10"), default="digits")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--width", type=int, help="of the networks (default: the profile's)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--part", default="0/1", help="0/2: every second model, beginning with the first")
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    begin, every = map(int, a.part.split("/"))
    with tempfile.TemporaryDirectory() as name:
        todo = list(enumerate(cells(a.dataset, Path(name), a.width)))[begin::every]
        data = Stages(todo[0][1]).data
        images = Path(name) / "images"
        some = data.modelling if a.dataset == "digits" else data.modelling[:1000]
        folders(some, data.classes, images)
        kept = a.out.with_name(f"{a.out.stem}.part{begin}of{every}.json") if every > 1 else a.out
        runs = json.loads(kept.read_text())["runs"] if kept.is_file() else []
        for number, p in todo:
            if any(run["number"] == number for run in runs):
                continue
            own = Path(name) / str(number)
            own.mkdir()
            options = ["--device", p.device, "--precision", p.precision]
            runs.append({"number": number, "dataset": a.dataset} | scanned(p, own, images, options))
            run = runs[-1]
            left = run.get("after", {}).get("asr", {}).get("rate")
            found, seconds = run["scan"]["flagged"], run["scan"]["made"]["seconds"]
            print(number, run["attack"], run["size"], run["planted"], found, left, f"{seconds} s", flush=True)
            lines = ",\n".join(json.dumps(run) for run in sorted(runs, key=lambda run: run["number"]))
            store.write_whole(kept, f'{{"runs": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
