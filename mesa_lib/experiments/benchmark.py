"""The bench: any defense against any attack, each result made once and kept in the store.

What a defense is handed is made here, from the defender's images (the modeling images) alone; what it achieves is
measured here, on the evaluation images, which no defense gets.
"""

from dataclasses import asdict

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from mesa_lib import device as devices
from mesa_lib import store
from mesa_lib.data import Split
from mesa_lib.defenses import base, registry
from mesa_lib.evaluation import metrics
from mesa_lib.experiments.pipeline import Pipeline, TrainedModel
from mesa_lib.models.inference import predict
from mesa_lib.training import BatchTransform

#: images on which filters and reformers are judged, at most
JUDGED = 500
#: the size that defenders of patches take for granted where the trigger is none
PATCH = (3, 3)
#: fractions of clean images that a filter may flag
FALSE_POSITIVES = (0.05, 0.01)


class DefenseEvaluation:
    """One victim, attacked as its parameters say, and everything that is done to it."""

    def __init__(self, pipeline: Pipeline):
        self.pipeline, self.p, self.data = pipeline, pipeline.p, pipeline.data
        self._memory = base.SearchCache()

    @property
    def planted(self) -> list[int]:
        """The classes that the attacker can have answered; none if nothing was planted."""
        if self.p.attack == "none":
            return []
        wanted = self.pipeline.backdoor.goal(torch.arange(len(self.data.classes)))
        return sorted({*wanted.tolist(), *self.pipeline.attack.answered} - {-1})

    # --- what a method is handed ---------------------------------------------------------------------------

    def given(self, knows: base.Knowledge, clean: Split | None = None, label: str = "") -> base.DefenderView:
        """What the method declares, from the victim and the modeling images (or those that are named)."""
        p, size = self.p, self.pipeline.attack.size or PATCH
        own = (
            int(store.config_key({"defender": p.seed}), 16) % 2**31
        )  # with the attacker's seed a method could draw the trigger

        def train(model: nn.Module, images: Split, transform: BatchTransform | None = None) -> list[dict]:
            return self.pipeline.run_retraining(model, images, transform, label=label)

        return base.DefenderView(
            knows, self.pipeline.attacked().model, clean or self.data.modeling, len(self.data.classes),
            target=p.target, size=size, seed=own, precision=p.precision, rate=p.repair_rate, train=train,
            memory=None if clean else self._memory,
        )  # fmt: skip

    def _config(self, kind: str, name: str, method) -> dict:
        return {"attacked": self.pipeline.identity(), "kind": kind, "name": name, "settings": asdict(method)}

    # --- detectors ---------------------------------------------------------------------------------------

    def verdict(self, name: str, method: base.Detector | None = None) -> store.Artifact:
        """What a detector says of the victim: scores, index and flagged classes in `result`.

        method: one with settings of its own, under any name; None: the one that the catalogue has under this name
        """
        method = method or _named(registry.DETECTORS, "detector", name)()

        def make():
            return {}, method.detect(self.given(method.knows)).as_dict()

        return store.train_or_load("verdict", self._config("detector", name, method), make, self.pipeline.device)

    # --- repairers ---------------------------------------------------------------------------------------

    def repaired(self, name: str, method: base.Repairer | None = None) -> TrainedModel:
        """The victim after a repair; `method` as in `verdict`."""
        method = method or _named(registry.REPAIRERS, "repairer", name)()
        config = self._config("repairer", name, method) | {
            "retraining": self.pipeline.retraining(),
            "rate": self.p.repair_rate,
        }

        def make():
            self._memory.saved = 0.0
            found = method.repair(self.given(method.knows, label=name))
            about = {"history": [], "about": found.about, "seconds of what was found before": self._memory.saved}
            return found.model.state_dict(), about

        artifact = store.train_or_load("bench-repaired", config, make, self.pipeline.device)
        return self.pipeline.restore(artifact, self.pipeline.attack.wrap)

    # --- filters -----------------------------------------------------------------------------------------

    def filtered(self, name: str) -> store.Artifact:
        """How well a filter tells triggered evaluation images from clean ones.

        Fitted on one half of the modeling images, its thresholds taken from the other half. `auroc`; for each allowed
        fraction of false positives what it flags of clean images, of triggered ones, and of those that fire.
        """
        method = _named(registry.FILTERS, "filter", name)()

        def make():
            clean = self.data.modeling
            half = len(clean) // 2
            fitted = method.fit(self.given(method.knows, clean[:half]))
            known = fitted.score(clean.images[half : half + JUDGED])
            harmless, triggered, fires = self.judged()
            scores = {"clean": fitted.score(harmless), "triggered": fitted.score(triggered)}
            return scores, score_separation(known, *scores.values(), fires) | {"thresholds from": len(known)}

        return store.train_or_load("filtered", self._config("filter", name, method), make, self.pipeline.device)

    def judged(self) -> tuple[Tensor, Tensor, Tensor]:
        """Clean and triggered evaluation images in [0, 1], and which of the triggered ones fire (boolean)."""
        p, backdoor = self.p, self.pipeline.backdoor
        images, labels = self.data.evaluation.images.cpu(), self.data.evaluation.labels.cpu()
        wanted = backdoor.goal(labels)
        others = ((wanted >= 0) & (wanted != labels)).nonzero()[:JUDGED, 0]
        clean = images[:JUDGED].float() / 255
        triggered = backdoor.apply(images[others].float() / 255, devices.rng(p.seed))
        answers = predict(self.pipeline.attacked().model, triggered, p.precision)
        return clean, triggered, answers == wanted[others]

    # --- reformers ---------------------------------------------------------------------------------------

    def reformed(self, name: str) -> store.Artifact:
        """Clean accuracy and ASR of the victim when every input is squeezed first."""
        method = _named(registry.REFORMERS, "reformer", name)

        def make():
            model = ReformedModel(self.pipeline.attacked().model, method)
            return {}, metrics.evaluate(
                model, self.data.evaluation[:JUDGED], self.pipeline.backdoor, self.p.target, locations=1,
                precision=self.p.precision,
            )  # fmt: skip

        return store.train_or_load("reformed", self._config("reformer", name, method), make, self.pipeline.device)

    # --- everything --------------------------------------------------------------------------------------

    def record(self) -> dict:
        """All that `kinds` asks for, as plain numbers; a method's seconds and what it knew beside what it achieved.

        `planted`: the attacker's classes. `rows`: `metrics.report` of the clean model, the attacked one and each
        repaired one, two controls among them: `random mixed`, and `ideal`, which no defender has. `detectors`,
        `filters`, `reformers`: by name. `seconds`: of the clean model and the attack.
        """
        pipeline, kinds = self.pipeline, self.p.kinds.split(",")
        clean, attacked = pipeline.clean(), pipeline.attacked()
        found: dict = {"attack": self.p.attack, "planted": self.planted, "rows": []}
        found["seconds"] = {"clean": seconds(clean.artifact), "attack": seconds(attacked.artifact)}

        def row(name: str, made: TrainedModel, **about) -> None:
            found["rows"].append({"model": name, "seconds": seconds(made.artifact), **about, **pipeline.measured(made)})

        row("clean, never attacked", clean)
        row("attacked", attacked)
        if "detectors" in kinds:
            verdicts = {name: (method().knows, self.verdict(name)) for name, method in registry.DETECTORS.items()}
            found["detectors"] = {name: told(*verdict) for name, verdict in verdicts.items()}
        if "repairers" in kinds:
            for name, method in registry.REPAIRERS.items():
                made = self.repaired(name)
                row(name, made, knows=method().knows.words(), about=made.artifact.result["about"])
            for control in ("random mixed", "ideal"):
                row(control, pipeline.repaired(control), knows="")
        if "filters" in kinds:
            filtered = {name: (method().knows, self.filtered(name)) for name, method in registry.FILTERS.items()}
            found["filters"] = {name: told(*judged) for name, judged in filtered.items()}
        if "reformers" in kinds:
            found["reformers"] = {name: told(None, self.reformed(name)) for name in registry.REFORMERS}
        return found


def seconds(artifact: store.Artifact) -> float:
    """What it took to make, wherever and whenever it was made; with a search that a detector had made already."""
    return artifact.made["seconds"] + artifact.result.get("seconds of what was found before", 0.0)


def told(knows: base.Knowledge | None, artifact: store.Artifact) -> dict:
    """A result with its costs."""
    words = knows.words() if knows else "single images"
    if "thresholds from" in artifact.result:
        words += f", {artifact.result['thresholds from']} clean images for the threshold"
    return artifact.result | {"seconds": seconds(artifact), "knows": words}


def _named(known: dict, kind: str, name: str):
    if name not in known:
        raise ValueError(f"{kind} = {name!r}: expected one of {', '.join(known)}")
    return known[name]
