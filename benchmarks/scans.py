"""Models scanned from their files alone, attacked and clean: what is found and what the repair leaves.

    python benchmarks/scans.py digits --out results/scans.json               # ten attacked, ten clean
    python benchmarks/scans.py cifar10 --width 32 --out results/scans.json   # three and three
    python benchmarks/scans.py resnet --out results/scans.json      # torchvision's ResNet-18 at 64x64, one and one

Every model is written to a safetensors file and the defender's images to class folders; `python -m mesa_lib scan` gets
those and nothing else. What it says is then compared with what was planted, on the evaluation images, which it has not
got, and so is the repair that it offers: beside it stand three others of the same model on the same images, with no
trigger at all, with random ones and with the attacker's own. Triggers are drawn here from seeds. What OUT holds already
is not scanned again; two commands may work on the parts of one list at a time (`--part 0/2`, `--part 1/2`).
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from mesa_lib import data
from mesa_lib import device as devices
from mesa_lib import retrain
from mesa_lib import scan as scanning
from mesa_lib import store
from mesa_lib import triggers
from mesa_lib.evaluation import metrics
from mesa_lib.experiments import params
from mesa_lib.models import networks
from mesa_lib.data import Split
from mesa_lib.defenses.base import Knowledge
from mesa_lib.defenses.mesa.repair import retrained
from mesa_lib.experiments.params import Params
from mesa_lib.scan.options import squares
from mesa_lib.scan.scanner import Scanner
from mesa_lib.experiments.pipeline import Pipeline

#: trigger size, attack, planted from scratch; every one with a target, a trigger and a seed of its own
ATTACKED = {
    "digits": [
        (2, "patch", False), (3, "patch", True), (4, "patch", False), (5, "patch", True), (3, "patch", False),
        (2, "corner", True), (3, "spot", False), (4, "spot", True), (5, "corner", False), (3, "spot", True),
    ],
    "cifar10": [(3, "patch", False), (2, "patch", False), (4, "spot", False)],
    "resnet": [(6, "spot", False)],
}  # fmt: skip
CLEAN = {"digits": 10, "cifar10": 3, "resnet": 1}
PROFILE = {"digits": "digits", "cifar10": "cifar10-cpu", "resnet": "digits"}
#: what the published scans say of each other: known only when all are there
COUNTS = ("clean models", "clean models by data")
#: classes of the digits that the ResNet tells apart
FEW = 4


class OfTorchvision(Pipeline):
    """A ResNet-18 of torchvision on four of the digits, enlarged to 64x64."""

    def __init__(self, p: Params):
        whole = data.load("digits", "", p.split_seed, p.image_size)
        parts = [part[part.labels < FEW] for part in (whole.train, whole.modeling, whole.evaluation)]
        few = dataclasses.replace(
            whole, train=parts[0], modeling=parts[1], evaluation=parts[2], classes=whole.classes[:FEW],
            fingerprint=data.fingerprint(*parts),
        )  # fmt: skip
        super().__init__(p, few)

    def fresh(self, seed: int | None = None) -> nn.Module:
        torch.manual_seed(self.p.seed if seed is None else seed)
        network = torchvision.models.resnet18(num_classes=FEW)
        model = nn.Sequential(networks.Normalize(self.data.mean, self.data.std), network)
        return model.to(self.device, memory_format=torch.channels_last)

    def _clean_config(self) -> dict:
        return super()._clean_config() | {"network": "torchvision:resnet18"}


def cells(dataset: str, folder: Path, width: int | None = None) -> list[Params]:
    """The parameters of all models; width: None, the profile's."""
    base = params.read([Path("params") / f"{PROFILE[dataset]}.yaml"])
    if width:
        base = base.model_copy(update={"width": width})
    if dataset == "resnet":
        few = {"poison_rate": 0.3, "attack_epochs": 20}  # with the 0.1 of the digits 32 images: it is not planted
        own = {"image_size": 64, "clean_epochs": 15, "clean_lr": 0.05, "precision": "auto"}
        base = base.model_copy(update=own | few)
    found = []
    for number, (size, attack, scratch) in enumerate(ATTACKED[dataset]):
        file = folder / f"trigger{number}.png"
        drawn = triggers.random_triggers(1, "binary", devices.rng(900 + number), (size, size))[0]
        Image.fromarray((255 * drawn).byte().permute(1, 2, 0).numpy()).save(file)
        own = {"trigger": f"file:{file}", "attack": attack, "target": number % 10, "seed": 61 + number}
        found.append(own | {"start": "scratch" if scratch else "clean"})
    for n in range(CLEAN[dataset]):
        found.append({"attack": "none", "seed": 81 + n, "start": ("scratch", "clean")[n % 2]})
    if dataset == "cifar10":  # attacked is one clean model; clean are others, one epoch more each
        for own in found:
            alone = {"clean_seed": own["seed"], "start": "clean", "attack_epochs": 1}
            own |= alone if own["attack"] == "none" else {"clean_seed": 0}
    return [params.check(base.model_dump() | own) for own in found]


def folders(images: Split, classes: tuple[str, ...], where: Path) -> None:
    """The images as PNG files in a folder a class."""
    for i, (image, label) in enumerate(zip(images.images, images.labels, strict=True)):
        file = where / classes[label] / f"{i:05}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file)


def handed_over(pipeline: Pipeline) -> tuple[dict, dict, str]:
    """The weights of the attacked model as its supplier writes them, what is told with them, and their prefix."""
    weights = {k: t.cpu().contiguous() for k, t in pipeline.attacked().model.state_dict().items()}
    if not isinstance(pipeline, OfTorchvision):
        return weights, {"network": pipeline.p.network}, ""
    told = {"network": "torchvision:resnet18", "image-size": pipeline.p.image_size}
    for what, values in (("mean", pipeline.data.mean), ("std", pipeline.data.std)):
        told[what] = tuple(round(float(value), 4) for value in values)
    return {k.removeprefix("1."): t for k, t in weights.items() if k.startswith("1.")}, told, "1."


def scanned(pipeline: Pipeline, folder: Path, images: Path, threads: int) -> dict:
    """One model: planted or trained, written, scanned by a process of its own, compared."""
    p, attacked = pipeline.p, pipeline.attacked()
    weights, told, prefix = handed_over(pipeline)
    save_file(weights, folder / "model.safetensors")
    out = folder / "scan"
    command = [sys.executable, "-m", "mesa_lib", "scan", str(folder / "model.safetensors"), str(images)]
    for what, value in told.items():
        command += [f"--{what}", ",".join(map(str, value)) if isinstance(value, tuple) else str(value)]
    command += ["--repair", "--out", str(out), "--augment", p.retrain_augment]
    command += ["--device", p.device, "--precision", p.precision]
    cores = os.environ | {"OMP_NUM_THREADS": str(threads)}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=cores)
    found = json.loads((out / "scan.json").read_text())
    for name in COUNTS:
        del found[name]
    for line in found["verdicts"]:
        del line["clean models with such a class"]
    run = {
        "attack": p.attack,
        "network": told["network"] + (f" {p.width}" if not prefix else ""),
        "size": list(pipeline.trigger.shape[-2:]),
        "start": p.start,
        "seed": p.seed,
        "target": p.target,
        "planted": [] if p.attack == "none" else [pipeline.data.classes[p.target]],
        "before": pipeline.measured(attacked),
    }
    if (out / "repaired.safetensors").is_file():
        held = {f"{prefix}{k}": t for k, t in load_file(out / "repaired.safetensors").items()}
        held |= {k: t for k, t in attacked.model.state_dict().items() if k not in held}  # the normalization
        run["after"] = compared(pipeline, networks.load_weights(pipeline.fresh(), held).eval())
    return run | {"scan": found}


def compared(pipeline: Pipeline, model: nn.Module) -> dict:
    """Accuracy and ASR on the evaluation images."""
    p = pipeline.p
    return metrics.evaluate(model, pipeline.data.evaluation, pipeline.backdoor, p.target, precision=p.precision)


def controls(pipeline: Pipeline, folder: Path, images: Path) -> dict:
    """The scan's own retraining of the same file on the same images with other triggers: name -> what is left."""
    p, (weights, told, _) = pipeline.p, handed_over(pipeline)
    file, size = folder / "model.safetensors", told.get("image-size")
    save_file(weights, file)
    model = scanning.read_model(file, told["network"], len(pipeline.data.classes), told.get("mean"), told.get("std"))
    options = scanning.Options(repair=True, augment=p.retrain_augment, device=p.device, precision=p.precision)
    scanner = Scanner(model, scanning.read_images(images, size), options, lambda text: None)
    sizes = squares(scanner.images.split.images.shape[-1])
    kinds = {
        "fine-tuning": [],
        "random mixed": [retrain.stamping(retrain.random_source("mixed", size)) for size in sizes],
        "ideal": [pipeline.backdoor.apply],
    }
    found = {}
    for name, changes in kinds.items():
        given = scanner.given(Knowledge("weights", rule=True))
        if changes:
            retrained(given, changes)
        else:
            given.train(given.model, given.clean)
        found[name] = compared(pipeline, given.model.eval())
    return found


def known(file: Path) -> list[dict]:
    return json.loads(file.read_text())["runs"] if file.is_file() else []


def keep(file: Path, run: dict) -> None:
    """Put a run into those of the file, which another command may be adding to as well."""
    with store.lock(f"publish-{file.name}"):
        order = list(ATTACKED)
        others = [old for old in known(file) if (old["dataset"], old["number"]) != (run["dataset"], run["number"])]
        runs = sorted([*others, run], key=lambda run: (order.index(run["dataset"]), run["number"]))
        lines = ",\n".join(json.dumps(run) for run in runs)
        store.write_atomic(file, f'{{"runs": [\n{lines}\n]}}\n')


def todo(a: argparse.Namespace, folder: Path) -> Iterator[tuple[int, Params, dict]]:
    """The numbers and parameters of this part of the list that the file does not hold whole yet, and what it holds."""
    begin, every = map(int, a.part.split("/"))
    for number, p in list(enumerate(cells(a.dataset, folder, a.width)))[begin::every]:
        held = next((run for run in known(a.out) if (run["dataset"], run["number"]) == (a.dataset, number)), {})
        if not held or (held["planted"] and "controls" not in held):
            yield number, p, held


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", choices=tuple(ATTACKED))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--width", type=int, help="of the networks (default: the profile's)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--part", default="0/1", help="0/2: every second model, beginning with the first")
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    with tempfile.TemporaryDirectory() as name:
        images = Path(name) / "images"
        for number, p, run in todo(a, Path(name)):
            pipeline = (OfTorchvision if a.dataset == "resnet" else Pipeline)(p)
            if not images.is_dir():
                some = pipeline.data.modeling
                folders(some if len(some) < 1000 else some[:1000], pipeline.data.classes, images)
            own = Path(name) / str(number)
            own.mkdir()
            if not run:
                run = {"number": number, "dataset": a.dataset} | scanned(pipeline, own, images, a.threads)
                keep(a.out, run)
            if run["planted"]:
                run["controls"] = controls(pipeline, own, images)
                keep(a.out, run)
            left = run.get("after", {}).get("asr", {}).get("rate")
            found, seconds = run["scan"]["flagged"], run["scan"]["made"]["seconds"]
            print(number, run["attack"], run["size"], run["planted"], found, left, f"{seconds} s", flush=True)


if __name__ == "__main__":
    main()
