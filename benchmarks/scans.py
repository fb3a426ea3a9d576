"""Models scanned from their files alone, attacked and clean: what is flagged and what the repair leaves.

    python benchmarks/scans.py digits --out results/scans.json               # ten attacked, ten clean
    python benchmarks/scans.py cifar10 --width 32 --out results/scans.json   # three and three
    python benchmarks/scans.py resnet --out results/scans.json      # torchvision's ResNet-18 at 64x64, one and one

Every model is written to a safetensors file and the defender's images to class folders; `python -m mesa_lib scan` gets
those and nothing else. Its verdict is then compared with what was planted, on the evaluation images, which it does not
get, and so is the repair that it offers: beside it stand three others of the same model on the same images, with no
trigger at all, with random ones and with the attacker's own. Triggers are drawn here from seeds. What OUT holds already
is not scanned again; two commands may work on the parts of one list at a time (`--part 0/2`, `--part 1/2`). The scores
of the clean models in results/scans.json go into the package, which compares every later scan with them.
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

from mesa_lib import data, retrain, store, triggers
from mesa_lib import device as devices
from mesa_lib import scan as scanning
from mesa_lib.data.splits import Split, fingerprint
from mesa_lib.defenses.base import Knowledge
from mesa_lib.evaluation import metrics
from mesa_lib.experiments import params
from mesa_lib.experiments.params import Params
from mesa_lib.experiments.pipeline import Pipeline
from mesa_lib.models import networks
from mesa_lib.scan import false_positives, migration
from mesa_lib.scan.options import squares
from mesa_lib.scan.scanner import Scanner
from mesa_lib.store import paths

#: trigger size, attack, planted from scratch; every model has a target, a trigger and a seed of its own
ATTACKED = {
    "digits": [
        (2, "patch", False), (3, "patch", True), (4, "patch", False), (5, "patch", True), (3, "patch", False),
        (2, "corner", True), (3, "fixed-location", False), (4, "fixed-location", True), (5, "corner", False),
        (3, "fixed-location", True),
    ],
    "cifar10": [(3, "patch", False), (2, "patch", False), (4, "fixed-location", False)],
    "resnet": [(6, "fixed-location", False)],
}  # fmt: skip
CLEAN = {"digits": 10, "cifar10": 3, "resnet": 1}
PROFILE = {"digits": "digits", "cifar10": "cifar10-cpu", "resnet": "digits"}
#: what scans report about the published ones: known only when all are there
COUNTS = ("clean models", "clean models by data", "p-value")
#: number of digits that the ResNet classifies
CLASSES = 4
TORCHVISION = "torchvision:resnet18"


class TorchvisionPipeline(Pipeline):
    """A ResNet-18 of torchvision on four of the digits, enlarged to 64x64."""

    def __init__(self, p: Params):
        every = data.load("digits", "", p.split_seed, p.image_size)
        parts = [part[part.labels < CLASSES] for part in (every.train, every.modeling, every.evaluation)]
        few = dataclasses.replace(
            every, train=parts[0], modeling=parts[1], evaluation=parts[2], classes=every.classes[:CLASSES],
            fingerprint=f"{fingerprint(*parts)} {TORCHVISION}",  # part of all keys, which do not know the network
        )  # fmt: skip
        super().__init__(p, few)

    def build_model(self, seed: int | None = None) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.p.seed if seed is None else seed)
            network = torchvision.models.resnet18(num_classes=CLASSES)
        model = nn.Sequential(networks.Normalize(self.data.mean, self.data.std), network)
        return model.to(self.device, memory_format=torch.channels_last)


def cells(dataset: str, folder: Path, width: int | None = None) -> list[Params]:
    """Return the parameters of all models; width: None, the profile's."""
    base = params.read([paths.root() / "params" / f"{PROFILE[dataset]}.yaml"]).model_dump()
    if width:
        base["width"] = width
    if dataset == "resnet":
        base |= {"poison_rate": 0.3, "attack_epochs": 20}  # the 0.1 of the digits is 32 images: not planted
        base |= {"image_size": 64, "clean_epochs": 15, "clean_lr": 0.05, "precision": "auto"}
    models = []
    for number, (size, attack, scratch) in enumerate(ATTACKED[dataset]):
        file = folder / f"trigger{number}.png"
        rng = devices.rng(devices.derive_seed(900, "trigger of a scanned model", number))
        trigger = triggers.random_triggers(1, "binary", rng, (size, size))[0]
        Image.fromarray((255 * trigger).byte().permute(1, 2, 0).numpy()).save(file)
        changes = {"trigger": f"file:{file}", "attack": attack, "target": number % 10, "seed": 61 + number}
        models.append(changes | {"start": "scratch" if scratch else "clean"})
    for number in range(CLEAN[dataset]):
        models.append({"attack": "none", "seed": 81 + number, "start": ("scratch", "clean")[number % 2]})
    if dataset == "cifar10":  # a single clean model is attacked; the clean ones are others, one epoch more each
        for changes in models:
            alone = {"clean_seed": changes["seed"], "start": "clean", "attack_epochs": 1}
            changes |= alone if changes["attack"] == "none" else {"clean_seed": 0}
    return [params.check(base | changes) for changes in models]


def write_folders(images: Split, classes: tuple[str, ...], where: Path) -> None:
    """Write the images as PNG files, a folder for each class."""
    for i, (image, label) in enumerate(zip(images.images, images.labels, strict=True)):
        file = where / classes[label] / f"{i:05}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file)


def handed_over(pipeline: Pipeline) -> tuple[dict, dict, str]:
    """Return the attacked model's weights as its supplier writes them, the flags of the scan, and the names' prefix."""
    weights = {k: t.cpu().contiguous() for k, t in pipeline.attacked().model.state_dict().items()}
    if not isinstance(pipeline, TorchvisionPipeline):
        return weights, {"network": pipeline.p.network}, ""
    flags = {"network": TORCHVISION, "image-size": pipeline.p.image_size}
    for name, values in (("mean", pipeline.data.mean), ("std", pipeline.data.std)):
        flags[name] = tuple(round(float(value), 4) for value in values)
    return {k.removeprefix("1."): t for k, t in weights.items() if k.startswith("1.")}, flags, "1."


def scan_model(pipeline: Pipeline, folder: Path, images: Path, threads: int) -> dict:
    """Return the record of one model: planted or trained, written, scanned by a process of its own, measured."""
    p, attacked = pipeline.p, pipeline.attacked()
    weights, flags, prefix = handed_over(pipeline)
    save_file(weights, folder / "model.safetensors")
    out = folder / "scan"
    command = [sys.executable, "-m", "mesa_lib", "scan", str(folder / "model.safetensors"), str(images)]
    for name, value in flags.items():
        command += [f"--{name}", ",".join(map(str, value)) if isinstance(value, tuple) else str(value)]
    command += ["--repair", "--out", str(out), "--augment", p.retrain_augment]
    command += ["--device", p.device, "--precision", p.precision]
    cores = os.environ | {"OMP_NUM_THREADS": str(threads)}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=cores)
    result = json.loads((out / "scan.json").read_text())
    for name in COUNTS:
        del result[name]
    for line in result["verdicts"]:
        del line["clean models with such a class"]
    run = {
        "attack": p.attack,
        "network": flags["network"] + (f" {p.width}" if not prefix else ""),
        "size": list(pipeline.trigger.shape[-2:]),
        "start": p.start,
        "seed": p.seed,
        "target": p.target,
        "planted": [] if p.attack == "none" else [pipeline.data.classes[p.target]],
        "before": pipeline.measured(attacked),
    }
    if (out / "repaired.safetensors").is_file():
        repaired = {f"{prefix}{k}": t for k, t in load_file(out / "repaired.safetensors").items()}
        repaired |= {k: t for k, t in attacked.model.state_dict().items() if k not in repaired}  # the normalization
        run["after"] = measure(pipeline, networks.load_weights(pipeline.build_model(), repaired).eval())
    return run | {"scan": result}


def measure(pipeline: Pipeline, model: nn.Module) -> dict:
    """Return accuracy and ASR on the evaluation images."""
    p = pipeline.p
    return metrics.evaluate(model, pipeline.data.evaluation, pipeline.backdoor, p.target, precision=p.precision)


def controls(pipeline: Pipeline, folder: Path, images: Path) -> dict:
    """Return, by name, what the scan's own retraining leaves with other triggers, of one model and on equal images."""
    p, (weights, flags, _) = pipeline.p, handed_over(pipeline)
    file, size = folder / "model.safetensors", flags.get("image-size")
    save_file(weights, file)
    inputs = flags.get("mean"), flags.get("std")
    model = scanning.read_model(file, flags["network"], len(pipeline.data.classes), *inputs)
    options = scanning.Options(repair=True, augment=p.retrain_augment, device=p.device, precision=p.precision)
    scanner = Scanner(model, scanning.read_images(images, size), options, lambda text: None)
    sizes = squares(scanner.images.split.images.shape[-1])
    stamps = [retrain.stamping(retrain.random_source("mixed", size)) for size in sizes]
    transforms = {
        "fine-tuning": None,
        "random mixed": retrain.one_of(stamps),
        "ideal": pipeline.backdoor.apply,
    }
    measured = {}
    for name, transform in transforms.items():
        view = scanner.view(Knowledge("weights", rule=True))
        view.retrain(view.model, transform)
        measured[name] = measure(pipeline, view.model.eval())
    return measured


# --- what is kept ----------------------------------------------------------------------------------------


def keep(file: Path, run: dict) -> None:
    """Put a run into those of the file, which another command may be adding to as well."""
    with store.lock(f"publish-{file.name}"):
        others = [
            old for old in false_positives.load_scans(file)
            if (old["dataset"], old["number"]) != (run["dataset"], run["number"])
        ]  # fmt: skip
        write(file, [*others, run])


def write(file: Path, runs: list[dict]) -> None:
    """Write the runs, a line each and in the order of the lists above."""
    order = list(ATTACKED)
    runs = sorted(runs, key=lambda run: (order.index(run["dataset"]), run["number"]))
    lines = ",\n".join(json.dumps(run) for run in runs)
    store.write_atomic(file, f'{{"format": {migration.FORMAT}, "runs": [\n{lines}\n]}}\n')


def package_clean_models(runs: list[dict]) -> str:
    """Return the file of the package with the scores of the clean models among these runs."""
    return json.dumps(false_positives.clean_models(runs), indent=1) + "\n"


def publish(file: Path) -> None:
    """Write the scores of the clean models into the package, if the file is the published one."""
    if file.resolve() == (paths.root() / "results" / false_positives.PUBLISHED).resolve():
        packaged = Path(false_positives.__file__).with_name(false_positives.CLEAN_MODELS)
        store.write_atomic(packaged, package_clean_models(false_positives.load_scans(file)))


def todo(a: argparse.Namespace, folder: Path) -> Iterator[tuple[int, Params, dict]]:
    """Yield numbers and parameters of this part of the list that the file does not hold complete, and what it holds."""
    first, step = map(int, a.part.split("/"))
    for number, p in list(enumerate(cells(a.dataset, folder, a.width)))[first::step]:
        runs = false_positives.load_scans(a.out)
        kept = next((run for run in runs if (run["dataset"], run["number"]) == (a.dataset, number)), {})
        if not kept or (kept["planted"] and "controls" not in kept):
            yield number, p, kept


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
            pipeline = (TorchvisionPipeline if a.dataset == "resnet" else Pipeline)(p)
            if not images.is_dir():
                write_folders(pipeline.data.modeling[:1000], pipeline.data.classes, images)
            folder = Path(name) / str(number)
            folder.mkdir()
            if not run:
                run = {"number": number, "dataset": a.dataset} | scan_model(pipeline, folder, images, a.threads)
                keep(a.out, run)
            if run["planted"]:
                run["controls"] = controls(pipeline, folder, images)
                keep(a.out, run)
            left = run.get("after", {}).get("asr", {}).get("rate")
            flagged, seconds = run["scan"]["flagged"], run["scan"]["made"]["seconds"]
            print(number, run["attack"], run["size"], run["planted"], flagged, left, f"{seconds} s", flush=True)
    publish(a.out)


if __name__ == "__main__":
    main()
