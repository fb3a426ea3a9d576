"""Repairs on equal terms: the same attacked networks and clean images for all, and what brings a backdoor back.

    python benchmarks/equal_terms.py --out results/equal-terms.json
    python benchmarks/equal_terms.py --params digits --out results/equal-terms-digits.json

Networks are attacked in five ways, three seeds each: on CIFAR-10 networks of half the width at two poison rates, on
digits at one. Every repair gets the same clean images, 2,500 or 500 of CIFAR-10, 500 of the digits. Repairs that train
do so in the same number of steps, with the learning rate of the parameter file. Each line has the clean accuracy, the
ASR, the accuracy of triggered images by their true labels, seconds, and the ASR after the repaired model was fine-tuned
on clean images among which five are poisoned (`evaluation.reactivation`). The clean model stands beside: what it learns
from the five images is no backdoor that returns.
"""

import itertools
import time
from collections.abc import Callable

import torch
from common import Results, in_part, parameter_values, parser, start

from mesa_lib import device as devices
from mesa_lib.defenses.adversarial_pruning import AdversarialPruning
from mesa_lib.defenses.attention_distillation import AttentionDistillation
from mesa_lib.defenses.base import Repairer
from mesa_lib.defenses.controls import FineTuning, IdealRepair, RandomTriggersRepair, RestartedInversion
from mesa_lib.defenses.implicit_hypergradient import ImplicitUnlearning
from mesa_lib.defenses.lipschitz_pruning import LipschitzPruning
from mesa_lib.defenses.mesa.repair import MESARepair, any_location_detected
from mesa_lib.defenses.neural_cleanse import Unlearning
from mesa_lib.defenses.pruning import FinePruning
from mesa_lib.defenses.sharpness import SharpnessAwareFineTuning
from mesa_lib.evaluation import metrics
from mesa_lib.evaluation.reactivation import reactivate
from mesa_lib.experiments import params
from mesa_lib.experiments.pipeline import Pipeline

ATTACKS = {
    "patch, random location": {"attack": "patch"},
    "patch, fixed location": {"attack": "corner"},
    "covered patch": {"attack": "covered"},
    "WaNet": {"attack": "warp"},
    "blended": {"attack": "blended"},
}
SEEDS = (0, 1, 2)
RATES = {"cifar10": (0.1, 0.01), "digits": (0.1,)}
#: clean images -> epochs and batch size: 80 steps either way on CIFAR-10, 192 on digits
BUDGETS = {
    "cifar10": {2500: {"repair_epochs": 8, "batch_size": 250}, 500: {"repair_epochs": 16, "batch_size": 100}},
    "digits": {500: {"repair_epochs": 12, "batch_size": 32}},
}
IDENTITY = ("attacker", "poison_rate", "seed", "images", "repair")


def repairs(pipeline: Pipeline, settings) -> dict[str, Callable[[], Repairer]]:
    """Return all repairs by name, those that train with the epochs, rates and batches of `settings`."""
    training = {
        "epochs": settings.repair_epochs, "lr": settings.repair_lr, "schedule": settings.schedule,
        "batch_size": settings.batch_size, "augment": settings.retrain_augment,
    }  # fmt: skip
    return {
        "fine-tuning": FineTuning,
        "Fine-Pruning": FinePruning,
        "Neural Cleanse": Unlearning,
        "CLP": LipschitzPruning,
        "ANP": AdversarialPruning,
        "I-BAU": ImplicitUnlearning,
        "FT-SAM": lambda: SharpnessAwareFineTuning(**training),
        "NAD": lambda: AttentionDistillation(**training),
        "random mixed": lambda: RandomTriggersRepair("mixed"),
        "best inversion": RestartedInversion,
        "MESA": lambda: MESARepair(pipeline.p.modeling_settings()),
        "MESA, target and location unknown": lambda: any_location_detected(short=True),
        "ideal": lambda: IdealRepair(pipeline.backdoor.apply),
    }


def measured(pipeline: Pipeline, model: torch.nn.Module) -> dict:
    """Return the rates of one model, and its ASR and accuracy after the five poisoned images."""
    p, data = pipeline.p, pipeline.data
    options = {"repeats": 1, "precision": p.precision}
    row = metrics.evaluate(model, data.evaluation, pipeline.backdoor, p.target, **options)
    seed = devices.derive_seed(p.seed, "reactivation")
    tuned = reactivate(model, data.train, pipeline.backdoor, seed=seed, precision=p.precision)
    after = metrics.evaluate(tuned, data.evaluation, pipeline.backdoor, p.target, **options)
    rates = {name: row[name]["rate"] for name in ("clean_accuracy", "asr", "true_label_accuracy")}
    return rates | {"reactivated": {name: after[name]["rate"] for name in ("clean_accuracy", "asr")}}


def measure(pipeline: Pipeline, images: int, name: str) -> dict:
    """Return what one repair with so many clean images leaves; `failed` or `error` if it says that it failed."""
    p, clean = pipeline.p, pipeline.data.modeling
    rng = torch.Generator().manual_seed(devices.derive_seed(p.seed, "clean images of a repair"))
    chosen = clean[torch.randperm(len(clean), generator=rng)[:images]]
    p = p.replace(**BUDGETS[p.dataset][images])
    shorter = Pipeline(p, pipeline.data)
    method = repairs(shorter, p.repair_settings())[name]()
    began = time.perf_counter()
    try:
        view = shorter.defender_view(method.knowledge, model=pipeline.attacked().model, clean=chosen)
        result = method.repair(view)
    except FloatingPointError as error:
        return {"error": str(error)}
    seconds = time.perf_counter() - began
    about = {k: v for k, v in result.about.items() if k in ("failed", "flagged", "pruned", "of")}
    return measured(pipeline, result.model) | {"seconds": round(seconds, 1)} | about


def main() -> None:
    """Measure every repair of every model that the file does not hold yet."""
    a = parser(__doc__, params_file="cifar10-cpu", parts=True).parse_args()
    start(a)
    dataset = parameter_values(a.params)["dataset"]
    base = parameter_values(a.params) | ({"width": 32, "clean_seed": 0, "patience": 0} if dataset == "cifar10" else {})
    results = Results(a.out, {"params": base})
    models = list(itertools.product(SEEDS, RATES[dataset], BUDGETS[dataset], ATTACKS))
    for seed, rate, images, attacker in in_part(models, a.part):
        pipeline = Pipeline(params.check(base | ATTACKS[attacker] | {"poison_rate": rate, "seed": seed}))
        before = {"no repair": pipeline.attacked, "clean model": pipeline.clean}
        for name in [*before, *repairs(pipeline, pipeline.p.repair_settings())]:
            identity = {"attacker": attacker, "poison_rate": rate, "seed": seed, "repair": name}
            identity["images"] = 0 if name in before else images
            if results.find_run(**identity) is None:
                found = measured(pipeline, before[name]().model) if name in before else measure(pipeline, images, name)
                results.keep_run(identity | found, IDENTITY)
                print(identity, flush=True)


if __name__ == "__main__":
    main()
