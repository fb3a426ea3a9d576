"""False all-clears: how often the attacker's trigger survives a round, and whether the look afterward notices.

    python benchmarks/coverage.py --out results/coverage.json

The models of the sweep (no table reports them), repaired at several learning rates, far too small ones first. After
every round the original trigger is measured on the evaluation images, beside what the defender's look found, the best
trigger of its search and how far that is from the attacker's; and what a search finds on models that were never
attacked. The repair's defaults were fixed before, by `sweep.py`. Earlier runs of this file, on these very models and
with the evaluation images, are why a look searches (random triggers alone passed over a trigger of 29 %) and is clear
below 5 % (10 % passed over one of 11 %), so that the figures are no independent test of either; those of the proof
(`repeat`), on other models, are. A file that exists is gone on with.
"""

import argparse
import itertools
import json
from pathlib import Path

import torch
from sweep import MODELS

from mesa_lib import device as devices
from mesa_lib import retrain
from mesa_lib import store
from mesa_lib.defenses.mesa import repair_rounds
from mesa_lib.defenses.mesa import trigger_search
from mesa_lib.evaluation import metrics
from mesa_lib.experiments import params
from mesa_lib.store import paths
from mesa_lib.reporting.tables.readme import MISSED
from mesa_lib.experiments.pipeline import Pipeline

RATES = (0.003, 0.01, 0.02, 0.03)


def series(pipeline: Pipeline) -> dict:
    """Rounds of one model at one learning rate: what the look found, and what the attacker's trigger really does."""
    p, images, truth = pipeline.p, pipeline.data.modeling, []

    def asr(model) -> dict:
        found = metrics.evaluate(model, pipeline.data.evaluation, pipeline.trigger, p.target, precision=p.precision)
        return {name: found[name]["rate"] for name in ("asr", "clean_accuracy")}

    def repair(model, source, number):
        model, _ = pipeline.repair(model, source, f"round {number + 1}", number)
        truth.append(asr(model))
        return model

    attacked = pipeline.attacked().model
    _, _, looks = repair_rounds.repair_until_clear(
        attacked, images.images, images.labels, p.target, p.mesa(), repair, most=p.rounds,
        clear_below=p.clear_below, first=pipeline.distribution()[0], precision=p.precision,
    )  # fmt: skip
    for look, row in zip(looks, truth, strict=True):
        best = torch.tensor(look["best"]).reshape(pipeline.trigger.shape)
        look |= row | {"distance": float((best - pipeline.trigger).square().mean().sqrt())}
    return {"attacked": asr(attacked), "floor": asr(pipeline.clean().model), "rounds": looks}


def beside_a_miss(pipeline: Pipeline, best: list[float]) -> dict:
    """Two questions to the model after a first round that missed.

    Did the search only succeed since one in 256 of the two-colored patches it starts from has the layout of the
    attacker's? A second search starts without them. And does the look flatter, since its images were trained on? The
    attacker's trigger and the best of the look on the defender's images and on those for evaluation.
    """
    p, d, e = pipeline.p, pipeline.data.modeling, pipeline.data.evaluation
    source = retrain.mixture([pipeline.distribution()[0].sample])
    model, _ = pipeline.repair(pipeline.attacked().model, source, "round 1", 0)
    known = {"precision": p.precision}
    found, _ = trigger_search.search_triggers(model, d.images, d.labels, p.target, family="unpaired", seed=p.seed + 7919, **known)
    of = {
        "unpaired": found,
        "attacker's": pipeline.trigger[None].cpu(),
        "best": torch.tensor(best).reshape(1, *pipeline.trigger.shape),
    }
    return {"distance": float((found[0].cpu() - of["attacker's"]).square().mean().sqrt())} | {
        f"{name}, {where}": trigger_search.rate_of_best(model, some.images, some.labels, p.target, t, seed=0, **known)
        for name, t in of.items()
        for where, some in {"modeling": d, "evaluation": e}.items()
    }


def never_attacked(pipeline: Pipeline) -> float:
    """The best trigger of a search on the clean model: what a look finds where there is nothing to find."""
    p, d = pipeline.p, pipeline.data.modeling
    of = pipeline.clean().model, d.images, d.labels
    found, _ = trigger_search.search_triggers(*of, p.target, seed=p.seed, precision=p.precision)
    return trigger_search.rate_of_best(*of, p.target, found, seed=p.seed, precision=p.precision)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--params", default="cifar10-cpu")
    a = parser.parse_args()
    file = params.read_yaml(paths.root() / "params" / f"{a.params}.yaml")
    whole = params.check(file).model_dump(exclude={"data_dir"})
    content = {"params": whole, "made": devices.describe(devices.pick_device("auto")), "never attacked": [], "runs": []}
    if a.out.exists() and json.loads(a.out.read_text())["params"] == whole:
        content = json.loads(a.out.read_text())
    for model_of in MODELS if not content["never attacked"] else ():
        own = {name: model_of[name] for name in ("target", "clean_seed")}
        content["never attacked"].append(own | {"searched": never_attacked(Pipeline(params.check(file | own)))})
    done = [(run["trigger"], run["repair_lr"]) for run in content["runs"]]
    for lr, model_of in itertools.product(RATES, MODELS):
        if (model_of["trigger"], lr) in done:
            continue
        own = model_of | {"repair_lr": lr}
        content["runs"].append(own | series(Pipeline(params.check(file | own))))
        store.write_atomic(a.out, json.dumps(content, indent=1) + "\n")
        print(json.dumps(content["runs"][-1]), flush=True)
    content["runs"].sort(key=lambda run: RATES.index(run["repair_lr"]))
    for run in content["runs"]:
        if run["rounds"][0]["asr"] > MISSED and "beside" not in run:
            own = {name: run[name] for name in (*MODELS[0], "repair_lr")}
            run["beside"] = beside_a_miss(Pipeline(params.check(file | own)), run["rounds"][0]["best"])
            print(json.dumps(run["beside"]), flush=True)
    store.write_atomic(a.out, json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
