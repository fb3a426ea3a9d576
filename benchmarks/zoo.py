"""How often a scan's stages are right: many clean and attacked models, scored by every stage and by rival detectors.

    python benchmarks/zoo.py --out results/zoo-digits.json --part 0/2      # 1/2 beside it
    python benchmarks/zoo.py --out results/zoo-digits.json --kinds limits-clean --count 40

The models are kept as seeds, not as weights. One half of them sets the limits (`limits`), the other half is only
counted (`counted`). The halves differ in architecture, target classes, patch sizes, and in how the models are trained.
Each line has the scores of all classes by every stage, higher is more suspicious; `mesa_lib.evaluation.detection` makes
p-values and rates of them.
"""

import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from common import Results, in_part, parameter_values, parser, start
from PIL import Image

from mesa_lib import device as devices
from mesa_lib import store, triggers
from mesa_lib.defenses.base import Detector, Knowledge, Verdict
from mesa_lib.defenses.df_tnd import DFTND
from mesa_lib.defenses.last_layer import LastLayer
from mesa_lib.defenses.mesa.screening import SearchObserver
from mesa_lib.defenses.neural_cleanse import NeuralCleanse
from mesa_lib.defenses.random_triggers import RandomTriggers
from mesa_lib.defenses.view import DefenderView
from mesa_lib.evaluation import metrics
from mesa_lib.experiments import params
from mesa_lib.experiments.pipeline import Pipeline
from mesa_lib.models.inference import predict
from mesa_lib.scan import data_free, p_values
from mesa_lib.scan.options import Options
from mesa_lib.store import paths

#: the first seed; no other experiment has such seeds
FIRST_SEED = 5000
#: half -> its networks, target classes, sides of the patches, and changes of the training
HALVES = {
    "limits": {
        "networks": (("smallcnn", 16), ("smallcnn", 20), ("smallcnn", 12), ("fastcnn", 8)),
        "targets": (0, 1, 2, 3, 4),
        "sides": (3, 5),
        "training": ({}, {"augment": "none"}),
    },
    "counted": {
        "networks": (("smallcnn", 24), ("smallcnn", 10), ("smallcnn", 14), ("fastcnn", 16)),
        "targets": (5, 6, 7, 8, 9),
        "sides": (2, 4),
        "training": ({}, {"label_smoothing": 0.1}, {"weight_decay": 0.0}),
    },
}
#: what the attacked models carry, in turn
ATTACKS = (
    {"attack": "patch"}, {"attack": "covered"}, {"attack": "fixed-location"}, {"attack": "patch", "poison_rate": 0.05},
    {"attack": "blended"}, {"attack": "warp"}, {"attack": "corner"},
)  # fmt: skip
#: the kinds of models: half, and whether they are attacked
KINDS = tuple(f"{half}-{which}" for half in HALVES for which in ("clean", "attacked"))
#: sides of the patches that a defender tries who does not know the trigger size
TRIED = ((3, 3), (5, 5))


@dataclass(frozen=True)
class Model:
    """One model of the zoo: the parameters that make it, and what is known of it.

    Attributes:
        half: `limits` or `counted`.
        number: of the models of its half and kind.
        attacked: whether a backdoor is planted.
    """

    half: str
    number: int
    attacked: bool

    @property
    def kind(self) -> str:
        """One of `KINDS`."""
        return f"{self.half}-{'attacked' if self.attacked else 'clean'}"

    def changes(self, folder: Path) -> dict:
        """Return what differs from the parameter file; writes the trigger to a file in `folder`."""
        half, n = HALVES[self.half], self.number
        network, width = half["networks"][n % len(half["networks"])]
        training = half["training"][n // len(half["networks"]) % len(half["training"])]
        seed = FIRST_SEED + 2 * n + 1000 * list(HALVES).index(self.half) + self.attacked
        changes = {"network": network, "width": width, "seed": seed} | training
        if not self.attacked:
            return changes
        side = half["sides"][n // len(ATTACKS) % len(half["sides"])]
        trigger = triggers.random_triggers(1, "binary", devices.rng(devices.derive_seed(seed, "trigger")), (side, side))
        file = folder / f"{self.half}-{n}.png"
        Image.fromarray((255 * trigger[0]).byte().permute(1, 2, 0).numpy()).save(file)
        attack = {"target": half["targets"][n % len(half["targets"])], "trigger": f"file:{file}"}
        return changes | attack | {"start": ("clean", "scratch")[n % 2]} | ATTACKS[n % len(ATTACKS)]


def models(count: int, kinds: Sequence[str] = KINDS) -> list[Model]:
    """Return `count` models of each kind, mixed so that any part has all of them."""
    every = [Model(half, n, attacked) for n in range(count) for half in HALVES for attacked in (False, True)]
    return [one for one in every if one.kind in kinds]


class Keeping(SearchObserver):
    """Has some classes modeled whatever the short search says, as a scan has the one with the largest margin."""

    def __init__(self, kept: list[int]):
        self.kept = kept

    def screened(self, spec, number, total, run):
        """Run the screening of one spec."""
        return run(None, self.kept)


@dataclass
class ScanSearch(Detector):
    """The search of a scan: margins, inverted patches, modeling; a class scores how far it exceeds its limit."""

    knowledge: Knowledge = field(default=Options().detector(32).knowledge, init=False)

    def detect(self, view: DefenderView) -> Verdict:
        """Return the verdict of a scan's search on the view's model."""
        margins = data_free.maximum_margin(view.classes, view.image_size[0] * view.image_size[1])
        ratios = margins.detect(view.restricted(margins.knowledge)).index
        detector = Options().detector(view.image_size[1])
        return detector.judge(detector.search(view, Keeping([int(np.argmax(ratios))])))


def stages() -> dict[str, list[tuple[Detector, tuple[int, int]]]]:
    """Return the stages and rivals: name -> detectors, each with the patch size that it is told."""
    any_size = TRIED[0]
    return {
        "largest margin": [(data_free.maximum_margin(10, 32 * 32), any_size)],
        "last layer": [(LastLayer(), any_size)],
        "random patches": [(RandomTriggers(), size) for size in TRIED],
        "MESA's search": [(ScanSearch(), any_size)],
        "Neural Cleanse": [(NeuralCleanse(), any_size)],
        "DF-TND": [(DFTND(), any_size)],
    }


def scored(detectors: list[tuple[Detector, tuple[int, int]]], pipeline: Pipeline, model) -> dict:
    """Return the score of every class, the highest over patch sizes, and the seconds."""
    began, scores = time.perf_counter(), []
    for detector, size in detectors:
        images = pipeline.data.modeling
        if isinstance(detector, ScanSearch):  # a scan leaves out images that the model misclassifies anyway
            images = images[predict(model, images.images, pipeline.p.precision) == images.labels]
        view = DefenderView(
            detector.knowledge, model, images, len(pipeline.data.classes), size=size,
            seed=pipeline.defender_seed, precision=pipeline.p.precision,
        )  # fmt: skip
        verdict = detector.detect(view)
        scores.append(verdict.index if verdict.on == "index" else verdict.scores)
    highest = np.nan_to_num(np.max(scores, 0), nan=0.0, posinf=1e6, neginf=-1e6)
    return {"scores": [round(float(score), 4) for score in highest], "seconds": round(time.perf_counter() - began, 1)}


def package_networks(content: dict) -> str:
    """Return the file of the package with the highest scores of each network."""
    kept = p_values.reference(content)
    lines = ",\n".join(json.dumps(line) for line in kept["networks"])
    return f'{{"settings": {json.dumps(kept["settings"])},\n"networks": [\n{lines}\n]}}\n'


def publish(results: Results) -> None:
    """Write the highest scores into the package, if the file is the published one."""
    if results.file.resolve() == (paths.root() / "results" / p_values.PUBLISHED).resolve():
        store.write_atomic(Path(p_values.__file__).with_name(p_values.PACKAGED), package_networks(results.content()))


def main() -> None:
    """Score every model by the stages that the file does not hold yet."""
    arguments = parser(__doc__, params_file="digits", parts=True)
    arguments.add_argument("--count", type=int, default=50, help="models of each kind (default: %(default)s)")
    arguments.add_argument("--kinds", default=",".join(KINDS), help="separated by commas (default: %(default)s)")
    arguments.add_argument("--stages", default=",".join(stages()), help="separated by commas (default: %(default)s)")
    a = arguments.parse_args()
    start(a)
    base = parameter_values(a.params)
    results = Results(a.out, {"params": base, "settings": p_values.scan_settings()})
    wanted = {name: detectors for name, detectors in stages().items() if name in a.stages.split(",")}
    with tempfile.TemporaryDirectory() as folder:
        for one in in_part(models(a.count, a.kinds.split(",")), a.part):
            identity = {"half": one.half, "number": one.number, "attacked": one.attacked}
            run = results.find_run(**identity) or identity
            missing = [name for name in wanted if name not in run.get("stages", {})]
            if not missing:
                continue
            changes = one.changes(Path(folder))
            pipeline = Pipeline(params.check(base | changes))
            model = (pipeline.attacked if one.attacked else pipeline.clean)().model
            if "clean_accuracy" not in run:
                row = metrics.evaluate(model, pipeline.data.evaluation, pipeline.backdoor, pipeline.p.target, repeats=1)
                run |= {name: row[name]["rate"] for name in ("clean_accuracy", "asr")}
                run |= {k: v for k, v in changes.items() if k != "trigger"} | {"side": pipeline.patch_size[0]}
            found = {name: scored(wanted[name], pipeline, model) for name in missing}
            results.keep_run(run | {"stages": run.get("stages", {}) | found}, list(identity))
            publish(results)
            print(identity, flush=True)


if __name__ == "__main__":
    main()
