"""The authors' procedure against ours on the same attacked models: modeling as released, with its repair and with ours.

    python benchmarks/official.py --out results/official.json

The models are those of the sweep `readme-cifar10-covered`: cheap where the artifact store has them. *As published* is
the modeling of `params/official.yaml` and a repair of ten epochs at a constant learning rate of 0.001, labels as
targets, no augmentation, triggers on 1% of the images. Each line has the ASR of the attacker's trigger and the clean
accuracy on the evaluation images, and how often samples of each level succeed on held-out images.
"""

from common import Results, in_part, parser, start

from mesa_lib import device as devices
from mesa_lib import retrain
from mesa_lib.evaluation import metrics
from mesa_lib.experiments import params
from mesa_lib.experiments.pipeline import Pipeline
from mesa_lib.experiments.sweep import grid
from mesa_lib.settings import PRESETS, RepairSettings

#: the repair of the released code
PUBLISHED = {
    "repair_rate": 0.01, "repair_epochs": 10, "repair_lr": 0.001, "repair_loss": "labels", "schedule": "constant",
    "retrain_augment": "none",
}  # fmt: skip
IDENTITY = ("attack", "trigger", "seed")


def measure(values: dict) -> dict:
    """Return accuracy and ASR of the model before and after each repair, and F of each level on held-out images."""
    ours = Pipeline(params.check(values))
    official = Pipeline(params.check(values | PRESETS["official"].model_dump()))
    p = ours.p
    own: RepairSettings = p.repair_settings().replace(**PUBLISHED)

    def rates(model) -> dict:
        row = metrics.evaluate(model, ours.data.evaluation, ours.backdoor, p.target, precision=p.precision)
        return {name: row[name]["rate"] for name in ("asr", "clean_accuracy")}

    distribution, artifact = official.distribution()
    clean, attacked = ours.data.modeling, ours.attacked().model
    seed = devices.derive_seed(p.seed, "repair as published")
    stamped = retrain.stamping(distribution.sample)  # all levels: the released code does not ask whether one succeeds
    published, _ = retrain.repair(attacked, clean.images, clean.labels, stamped, own, seed=seed, precision=p.precision)
    mine, mine_artifact = ours.distribution()
    return {
        "attacked": rates(attacked),
        "official, repaired as published": rates(published),
        "official, our repair": rates(official.repaired("MESA").model),
        "ours": rates(ours.repaired("MESA").model),
        "ideal": rates(ours.repaired("ideal").model),
        "success": {name: [v.success for v in d.levels] for name, d in (("official", distribution), ("ours", mine))},
        "seconds": {"official": artifact.made["seconds"], "ours": mine_artifact.made["seconds"]},
    }


def main() -> None:
    """Measure every model that the file does not hold yet."""
    arguments = parser(__doc__, sweep="readme-cifar10-covered", parts=True)
    arguments.add_argument("--attack", default="covered", help="which of the sweep's attacks (default: %(default)s)")
    a = arguments.parse_args()
    start(a)
    tasks = [task for task in grid.read(a.sweep).tasks() if task.params.attack == a.attack]
    results = Results(a.out, {"sweep": a.sweep})
    for task in in_part(tasks, a.part):
        identity = {name: getattr(task.params, name) for name in IDENTITY}
        if results.find_run(**identity) is None:
            results.keep_run(identity | measure(task.params.model_dump()), IDENTITY)
            print(identity, flush=True)


if __name__ == "__main__":
    main()
