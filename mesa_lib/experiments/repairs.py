"""All repairs by name, with the settings of the parameters: the controls of the table, and those of the registry."""

import logging
from collections.abc import Iterable
from typing import Protocol

from mesa_lib import store
from mesa_lib.attacks import Backdoor
from mesa_lib.defenses.base import Repairer, RepairResult, describe_method
from mesa_lib.defenses.controls import (
    FineTuning,
    IdealRepair,
    RandomTriggersRepair,
    RestartedInversion,
    SingleInversion,
)
from mesa_lib.defenses.mesa.repair import MESARepair
from mesa_lib.defenses.mesa.repair_rounds import RepairRounds
from mesa_lib.defenses.mesa.trigger_search import TriggerSearch
from mesa_lib.defenses.registry import REPAIRERS, repairers
from mesa_lib.distribution import TriggerDistribution
from mesa_lib.experiments.params import Params
from mesa_lib.experiments.trained import TrainedModel
from mesa_lib.settings import Settings

#: the rows of the before/after table: the repair, and what it stamps while retraining
CONTROLS = {
    "fine-tuning": "no trigger",
    "random uniform": "random colors",
    "random binary": "every channel 0 or 1",
    "random mixed": "one of four random families each",
    "single inversion": "a single trigger inverted by SGD",
    "best inversion": "the best of many inverted triggers",
    "all inversions": "all of these inverted triggers that succeed",
    "MESA": "samples of the trigger distribution",
    "MESA rounds": "samples of the trigger distribution, until a residual check is clear",
    "ideal": "the attacker's own trigger",
    "clean model, repaired": "samples of the trigger distribution, on the clean model",
}
_warned: set[str] = set()
#: not empty while a table is made, whose rows then warn in their order, as they do when the table is loaded
_rows_warn: list[bool] = []
#: the highest level of MESA, modeled without the entropy term: what the entropy adds to the repair
WITHOUT_ENTROPY = "MESA, highest level, alpha 0"
#: the control that starts from the clean model: what the repair does to a model without a backdoor
ON_CLEAN_MODEL = "clean model, repaired"


def check_name(name: str) -> None:
    """Raise ValueError if there is no repair of this name."""
    names = list(dict.fromkeys([*CONTROLS, *REPAIRERS, WITHOUT_ENTROPY]))
    if name not in names:
        raise ValueError(f"repair = {name!r}: expected one of {', '.join(names)}")


def row_name(name: str, repeat: int) -> str:
    """Return the name of a repair in tables: repeats of the single inversion are counted from 1."""
    return f"{name} {repeat + 1}" if name == "single inversion" else name


def row_head(name: str, repeat: int, about: dict, check: dict | None = None) -> dict:
    """Return the texts of a repair's row in the table.

    Args:
        about: what the repair recorded; its text `failed` is a part of the row.
        check: the record of the residual check of the repaired model, if it was checked. The row has its highest rate
            (`residual_asr`), and says in `failed` if the model is not clear.
    """
    head = {"model": row_name(name, repeat), "triggers stamped": CONTROLS[name]}
    failed = [about["failed"]] if "failed" in about else []
    if check is not None:
        head["residual_asr"] = max(check[part] for part in ("searched", "sampled", "earlier"))
        if not check["clear"]:
            failed.append(f"the residual check finds triggers with an ASR of {head['residual_asr']:.0%}")
    return head | ({"failed": "; ".join(failed)} if failed else {})


def warn_of_rows(rows: list[dict]) -> None:
    """Warn of all rows that say `failed`."""
    for row in rows:
        warn_if_failed(row["model"], row)


def warn_if_failed(name: str, result: dict) -> None:
    """Log a warning, once in a process, if a repair says that it failed, done now or loaded."""
    text = f"{name}: {result.get('failed')}"
    if "failed" in result and text not in _warned and not _rows_warn:
        _warned.add(text)
        logging.getLogger("mesa_lib").warning(text)


def table_rows(pipeline: "Stages", controls: Iterable[str]) -> list[dict]:
    """Return the rows of `Pipeline.table`, and warn of those that say `failed`."""
    models = {"clean model": pipeline.clean(), "attacked": pipeline.attacked()}
    rows = [{"model": name, "triggers stamped": "", **pipeline.measured(model)} for name, model in models.items()]
    _rows_warn.append(True)
    try:
        for name in controls:
            for repeat in range(pipeline.p.inversion_repeats if name == "single inversion" else 1):
                repaired = pipeline.repaired(name, repeat)
                check = pipeline.repaired("MESA rounds").about["rounds"][0] if name == "MESA" else None
                rows.append(row_head(name, repeat, repaired.about, check) | pipeline.measured(repaired))
    finally:
        _rows_warn.pop()
    warn_of_rows(rows)
    return rows


def trigger_search(p: Params) -> TriggerSearch:
    """Return the search of the residual checks."""
    return TriggerSearch(candidates=p.search_candidates, generations=p.search_generations)


def without_entropy(p: Params) -> Settings:
    """Return the settings of `WITHOUT_ENTROPY`."""
    return p.modeling_settings(alpha=0.0, betas=p.betas[:1])


def mesa_repair(p: Params, settings: Settings, **options) -> MESARepair:
    """Return MESA's repair with these settings and the search of the parameters."""
    return MESARepair(settings, search=trigger_search(p), restarts=p.inversion_restarts, **options)


def describe_modeling(p: Params, settings: Settings) -> dict:
    """Return what a distribution depends on, besides the attacked model and the defender."""
    described = {"modeling": settings.model_dump()}
    return described | ({"start again": _describe_search(p)} if mesa_repair(p, settings).starts_again else {})


def _describe_search(p: Params) -> dict:
    return {"search": describe_method(trigger_search(p)), "restarts": p.inversion_restarts}


def describe(p: Params, name: str, repeat: int, beta: float | None) -> dict:
    """Return what a repair depends on, besides the attacked model, the defender and the settings of retraining."""
    modeling = describe_modeling(p, p.modeling_settings()) | _describe_search(p)
    if name in ("MESA", ON_CLEAN_MODEL):
        return modeling | {"beta": beta}
    if name == WITHOUT_ENTROPY:
        return describe_modeling(p, without_entropy(p)) | _describe_search(p)
    if name == "MESA rounds":
        return modeling | {"rounds": p.rounds, "clear_below": p.clear_below}
    if name == "single inversion":
        return {"repeat": repeat}
    if name in ("best inversion", "all inversions"):
        return {"restarts": p.inversion_restarts}
    return {} if name in CONTROLS else {"method": describe_method(repairers(p.detector_search)[name]())}


class Stages(Protocol):
    """What a repair takes from the pipeline: its parameters, and the stages that it may start from."""

    p: Params

    @property
    def backdoor(self) -> Backdoor:
        """The attacker's trigger and goal, for the ideal repair."""

    def distribution(self, **changes) -> tuple[TriggerDistribution, store.Artifact]:
        """Return the trigger distribution of the attacked model."""

    def clean(self) -> TrainedModel:
        """Return the clean model."""

    def attacked(self) -> TrainedModel:
        """Return the attacked model."""

    def repaired(self, name: str, repeat: int = 0) -> TrainedModel:
        """Return the attacked model after a repair."""

    def measured(self, trained: TrainedModel) -> dict:
        """Return accuracy and ASR of a model on the evaluation images."""


def build(pipeline: Stages, name: str, repeat: int, beta: float | None) -> Repairer:
    """Return a repair, ready to run; earlier stages that it starts from are trained or loaded.

    Args:
        pipeline: its parameters and stages.
        name: one of `CONTROLS` or of `defenses.registry.REPAIRERS`.
        repeat: of the single inversion.
        beta: the level of the staircase that `MESA` samples; None: the mixture.
    """
    p = pipeline.p
    if name.startswith("random "):
        return RandomTriggersRepair(name.removeprefix("random "))
    if name == WITHOUT_ENTROPY:
        settings = without_entropy(p)
        fitted = pipeline.distribution(alpha=settings.alpha, betas=settings.betas)[0]
        return mesa_repair(p, settings, fitted=fitted)
    match name:
        case "fine-tuning":
            return FineTuning()
        case "single inversion":
            return SingleInversion(repeat)
        case "ideal":
            return IdealRepair(pipeline.backdoor.apply)
        case "best inversion" | "all inversions":
            return RestartedInversion(p.inversion_restarts, "best" if name.startswith("best") else "all")
        case "MESA" | "clean model, repaired":
            fitted = pipeline.distribution()[0]
            return mesa_repair(p, p.modeling_settings(), beta=beta, fitted=fitted)
        case "MESA rounds":
            first = pipeline.repaired("MESA")
            return RepairRounds(
                p.modeling_settings(), p.rounds, p.clear_below, trigger_search(p), p.inversion_restarts,
                first=pipeline.distribution()[0], first_repair=RepairResult(first.model, first.history),
            )  # fmt: skip
    return repairers(p.detector_search)[name]()
