"""Which model predicts the target class for whose triggers? Those of a published sweep on all of its models.

    python benchmarks/cross_trigger_asr.py --out results/cross-trigger-asr.json

Needs the attacked models of the sweep in the store (`runs/`); missing ones are trained again. The triggers are those of
results/NAME.json: samples of the mixture, the attacker's own, and the inverted ones. ASR on the modeling images, a row
for each model (the clean one first), a column for the triggers of each run.
"""

from common import Results, parser, start
from torch import nn

from mesa_lib.experiments import params
from mesa_lib.experiments.pipeline import Pipeline
from mesa_lib.experiments.results import load_runs
from mesa_lib.reporting.tables.paper import saved_triggers
from mesa_lib.success import asr_of_triggers

#: samples of each run, at most
SAMPLES = 60
#: images that each trigger of a kind is stamped on
IMAGES = {"samples": 16, "original": 500, "inverted": 500}


def rates(model: nn.Module, pipeline: Pipeline, run: dict) -> dict[str, float]:
    """Return the mean ASR of one run's triggers on a model, by kind."""
    images, p = pipeline.data.modeling, pipeline.p
    return {
        kind: float(
            asr_of_triggers(
                model, images.images, images.labels, saved_triggers(run, kind)[:SAMPLES], p.target,
                images_per_trigger=number, precision=p.precision,
            ).mean()
        )
        for kind, number in IMAGES.items()
    }  # fmt: skip


def main() -> None:
    """Measure every model of the sweep that the file does not hold yet."""
    arguments = parser(__doc__, sweep="paper-cifar10").parse_args()
    start(arguments)
    runs = load_runs(arguments.sweep)
    names = [run["trigger"] for run in runs]
    models = ["clean model", *names]
    about = {"sweep": arguments.sweep, "triggers": names, "samples of each": SAMPLES, "models": models}
    results = Results(arguments.out, about)
    done = len(results.entries("asr").get("samples", []))
    for name, victim in list(zip(models, [None, *runs], strict=True))[done:]:
        pipeline = Pipeline(params.check((victim or runs[0])["params"]))
        model = (pipeline.attacked() if victim else pipeline.clean()).model
        measured = [rates(model, pipeline, run) for run in runs]
        matrices = results.entries("asr") or {kind: [] for kind in IMAGES}
        for kind, matrix in matrices.items():
            matrix.append([round(row[kind], 4) for row in measured])
        results.update(lambda content, matrices=matrices: content.update(asr=matrices))
        print(name, flush=True)


if __name__ == "__main__":
    main()
