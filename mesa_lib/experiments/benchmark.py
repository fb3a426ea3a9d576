"""The benchmark: every defense against one attack, each result trained or loaded.

Methods get the defender's clean images (the modeling images) alone; their results are measured on the evaluation
images, which no method gets.
"""

from collections.abc import Mapping

import torch

from mesa_lib import device as devices
from mesa_lib import store
from mesa_lib.data.splits import Split
from mesa_lib.defenses import registry
from mesa_lib.defenses.base import DefenderView, Detector, Knowledge, Repairer, describe_method
from mesa_lib.evaluation import benchmark, metrics
from mesa_lib.evaluation.benchmark import MAX_IMAGES, ReformedModel
from mesa_lib.experiments.pipeline import Pipeline
from mesa_lib.experiments.trained import TrainedModel, seconds

#: repairs that the benchmark leaves to the pipeline's table: more controls, and rounds, which cost several repairs
PIPELINE_ONLY = ("random uniform", "random binary", "all inversions", "MESA rounds")


class DefenseEvaluation:
    """One attacked model, and every defense that is run against it."""

    def __init__(self, pipeline: Pipeline):
        self.pipeline, self.p, self.data = pipeline, pipeline.p, pipeline.data
        self.detectors = registry.detectors(self.p.detector_search)

    @property
    def planted(self) -> list[int]:
        """The classes that the attacker can have predicted; none if nothing was planted."""
        if self.p.attack == "none":
            return []
        wanted = self.pipeline.backdoor.goal(torch.arange(len(self.data.classes)))
        return sorted({*wanted.tolist(), *self.pipeline.attack.targets} - {-1})

    def view(self, knowledge: Knowledge, clean: Split | None = None) -> DefenderView:
        """Return what a method with this knowledge gets; clean: its images, None: the modeling images."""
        return self.pipeline.defender_view(knowledge, clean=clean)

    # --- each kind of defense ----------------------------------------------------------------------------

    def verdict(self, name: str, method: Detector | None = None) -> store.Artifact:
        """Return a detector's verdict on the attacked model: scores, index and flagged classes in `result`.

        Args:
            name: one of `registry.DETECTORS`, searching as `detector_search` says.
            method: a detector with other settings, under any name; None: the one of this name.
        """
        detector = method or _by_name(self.detectors, "detector", name)()

        def make():
            return {}, detector.detect(self.view(detector.knowledge)).as_dict()

        return store.train_or_load("verdict", self._config(name, detector), make, self.pipeline.device)

    def repaired(self, name: str, method: Repairer | None = None) -> TrainedModel:
        """Return the attacked model after a repair: `Pipeline.repaired`."""
        return self.pipeline.repaired(name, method=method)

    def filtered(self, name: str) -> store.Artifact:
        """Return how well a filter separates triggered evaluation images from clean ones; see `score_separation`.

        It is fitted on one half of the modeling images; its thresholds are taken from the other half.
        """
        method = _by_name(registry.FILTERS, "filter", name)()

        def make():
            clean, half = self.data.modeling, len(self.data.modeling) // 2
            fitted = method.fit(self.view(method.knowledge, clean[:half]))
            held_out = clean.images[half : half + MAX_IMAGES]
            return benchmark.filter_inputs(fitted, held_out, *self.inputs())

        return store.train_or_load("filtered", self._config(name, method), make, self.pipeline.device)

    def inputs(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return clean and triggered evaluation images, and on which of these the attack works."""
        seed = devices.derive_seed(self.p.seed, "triggered inputs")
        return benchmark.triggered_inputs(
            self.pipeline.attacked().model, self.data.evaluation, self.pipeline.backdoor,
            seed=seed, precision=self.p.precision,
        )  # fmt: skip

    def reformed(self, name: str) -> store.Artifact:
        """Return clean accuracy and ASR of the attacked model behind a reformer, as `metrics.evaluate`."""
        reformer = _by_name(registry.REFORMERS, "reformer", name)

        def make():
            model = ReformedModel(self.pipeline.attacked().model, reformer)
            return {}, metrics.evaluate(
                model, self.data.evaluation[:MAX_IMAGES], self.pipeline.backdoor, self.p.target,
                repeats=1, precision=self.p.precision,
            )  # fmt: skip

        return store.train_or_load("reformed", self._config(name, reformer), make, self.pipeline.device)

    def _config(self, name: str, method: object) -> dict:
        return self.pipeline.defender_config() | {"name": name, "method": describe_method(method)}

    # --- everything --------------------------------------------------------------------------------------

    def record(self) -> dict:
        """Return the results of all kinds of defenses that `defense_kinds` names, as plain numbers.

        Returns:
            `attack`; `planted`, the attacker's classes; `seconds` of clean model and attack; `rows`, `metrics.evaluate`
            of the clean model, the attacked one, and each repaired one; `detectors`, `filters` and `reformers` by name.
            Each method has its `seconds` and its `knowledge`.
        """
        pipeline, kinds = self.pipeline, self.p.defense_kinds.split(",")
        clean, attacked = pipeline.clean(), pipeline.attacked()
        record: dict = {"attack": self.p.attack, "planted": self.planted}
        record["seconds"] = {"clean": seconds(clean.artifact), "attack": seconds(attacked.artifact)}
        record["rows"] = [
            {"model": name, "seconds": seconds(trained.artifact), **pipeline.measured(trained)}
            for name, trained in (("clean model", clean), ("attacked", attacked))
        ]
        for kind in kinds:
            if kind != "reformers":
                self._measure_kind(kind, record)
        if "reformers" in kinds:
            record["reformers"] = {name: _with_costs(self.reformed(name)) for name in registry.REFORMERS}
        return record

    def _measure_kind(self, kind: str, record: dict) -> None:
        """Add to the record what detectors, repairs or filters of one kind (`registry.of_kind`) leave or find."""
        group, methods = registry.of_kind(kind, self.p.detector_search)
        if group == "repairers":
            names = [name for name in methods if name not in PIPELINE_ONLY] + ["ideal"] * (kind == group)
            record["rows"] += [self._repair_row(name) for name in names]
            return
        measured = self.verdict if group == "detectors" else self.filtered
        results = {name: _with_costs(measured(name), build().knowledge) for name, build in methods.items()}
        record[group] = record.get(group, {}) | results

    def _repair_row(self, name: str) -> dict:
        """Return the row of a repair; its seconds include those of the stages that it starts from."""
        pipeline, trained = self.pipeline, self.repaired(name)
        took = seconds(trained.artifact)
        if name == "MESA":  # the search that it may reuse is a part of the modeling
            took = trained.artifact.made["seconds"] + pipeline.distribution()[1].made["seconds"]
        row = {"model": name, "seconds": took, **pipeline.measured(trained)}
        if name == "ideal":  # no defender has it
            return row | {"knowledge": ""}
        return row | {"knowledge": registry.REPAIRERS[name]().knowledge.text(), "about": trained.about}


def _with_costs(artifact: store.Artifact, knowledge: Knowledge | None = None) -> dict:
    """Return a result with its seconds and its knowledge (None: that of a reformer, which sees single images)."""
    text = knowledge.text() if knowledge else "single images"
    if "thresholds from" in artifact.result:
        text += f", {artifact.result['thresholds from']} clean images for the threshold"
    return artifact.result | {"seconds": seconds(artifact), "knowledge": text}


def _by_name(methods: Mapping, kind: str, name: str):
    """Return a method; ValueError lists the names."""
    if name not in methods:
        raise ValueError(f"{kind} = {name!r}: expected one of {', '.join(methods)}")
    return methods[name]
