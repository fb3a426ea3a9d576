"""Attacked models that several test files share: trained once in a process, and kept in the store of the test run."""

from functools import cache

from mesa_lib.experiments import params
from mesa_lib.experiments.benchmark import DefenseEvaluation
from mesa_lib.experiments.pipeline import Pipeline, TrainedModel

TARGET = 0


@cache
def victim(attack: str, search: str = "full") -> DefenseEvaluation:
    """Return the evaluation of defenses on digits, attacked by this attack; search: of MESA's detectors."""
    return DefenseEvaluation(Pipeline(params.check({"attack": attack, "clean_seed": 0, "detector_search": search})))


def rates(evaluation: DefenseEvaluation, trained: TrainedModel | None = None) -> tuple[float, float]:
    """Return clean accuracy and ASR of a model (None: the attacked one)."""
    row = evaluation.pipeline.measured(trained or evaluation.pipeline.attacked())
    return row["clean_accuracy"]["rate"], row["asr"]["rate"]
