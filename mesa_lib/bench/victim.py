"""The bench: any defence against any attack, each result made once and kept in the store.

What a defence is handed is made here, from the defender's images (the modelling images) alone; what it achieves is
measured here, on the evaluation images, which no defence gets.
"""

from dataclasses import asdict

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from .. import device as devices
from .. import metrics, store
from ..data import Split
from ..defenses import base, catalogue
from ..inference import predict
from ..stages import Made, Stages
from ..training import Edit

#: images on which filters and reformers are judged, at most
JUDGED = 500
#: the size that defenders of patches take for granted where the trigger is none
PATCH = (3, 3)
#: fractions of clean images that a filter may flag
FALSE_POSITIVES = (0.05, 0.01)


class Bench:
    """One victim, attacked as its parameters say, and everything that is done to it."""

    def __init__(self, stages: Stages):
        self.stages, self.p, self.data = stages, stages.p, stages.data
        self._memory = base.Memory()

    @property
    def planted(self) -> list[int]:
        """The classes that the attacker can have answered; none if nothing was planted."""
        if self.p.attack == "none":
            return []
        wanted = self.stages.backdoor.goal(torch.arange(len(self.data.classes)))
        return sorted({*wanted.tolist(), *self.stages.attack.answered} - {-1})

    # --- what a method is handed ---------------------------------------------------------------------------

    def given(self, knows: base.Knowledge, clean: Split | None = None, label: str = "") -> base.Given:
        """What the method declares, from the victim and the modelling images (or those that are named)."""
        p, size = self.p, self.stages.attack.size or PATCH
        own = (
            int(store.key({"defender": p.seed}), 16) % 2**31
        )  # with the attacker's seed a method could draw the trigger

        def train(model: nn.Module, images: Split, edit: Edit | None = None) -> list[dict]:
            return self.stages.run_retraining(model, images, edit, label=label)

        return base.Given(
            knows, self.stages.attacked().model, clean or self.data.modelling, len(self.data.classes),
            target=p.target, size=size, seed=own, precision=p.precision, rate=p.repair_rate, train=train,
            memory=None if clean else self._memory,
        )  # fmt: skip

    def _config(self, kind: str, name: str, method) -> dict:
        return {"attacked": self.stages.identity(), "kind": kind, "name": name, "settings": asdict(method)}

    # --- detectors ---------------------------------------------------------------------------------------

    def verdict(self, name: str, method: base.Detector | None = None) -> store.Artifact:
        """What a detector says of the victim: scores, index and flagged classes in `result`.

        method: one with settings of its own, under any name; None: the one that the catalogue has under this name
        """
        method = method or _named(catalogue.DETECTORS, "detector", name)()

        def make():
            return {}, method.detect(self.given(method.knows)).as_dict()

        return store.train_or_load("verdict", self._config("detector", name, method), make, self.stages.device)

    # --- repairers ---------------------------------------------------------------------------------------

    def repaired(self, name: str, method: base.Repairer | None = None) -> Made:
        """The victim after a repair; `method` as in `verdict`."""
        method = method or _named(catalogue.REPAIRERS, "repairer", name)()
        config = self._config("repairer", name, method) | {
            "retraining": self.stages.retraining(),
            "rate": self.p.repair_rate,
        }

        def make():
            self._memory.saved = 0.0
            found = method.repair(self.given(method.knows, label=name))
            about = {"history": [], "about": found.about, "seconds of what was found before": self._memory.saved}
            return found.model.state_dict(), about

        artifact = store.train_or_load("bench-repaired", config, make, self.stages.device)
        return self.stages.as_made(artifact, self.stages.attack.wrap)

    # --- filters -----------------------------------------------------------------------------------------

    def filtered(self, name: str) -> store.Artifact:
        """How well a filter tells triggered evaluation images from clean ones.

        Fitted on one half of the modelling images, its thresholds taken from the other half. `auroc`; for each allowed
        fraction of false positives what it flags of clean images, of triggered ones, and of those that fire.
        """
        method = _named(catalogue.FILTERS, "filter", name)()

        def make():
            clean = self.data.modelling
            half = len(clean) // 2
            fitted = method.fit(self.given(method.knows, clean[:half]))
            known = fitted.score(clean.images[half : half + JUDGED])
            harmless, triggered, fires = self.judged()
            scores = {"clean": fitted.score(harmless), "triggered": fitted.score(triggered)}
            return scores, separation(known, *scores.values(), fires) | {"thresholds from": len(known)}

        return store.train_or_load("filtered", self._config("filter", name, method), make, self.stages.device)

    def judged(self) -> tuple[Tensor, Tensor, Tensor]:
        """Clean and triggered evaluation images in [0, 1], and which of the triggered ones fire (boolean)."""
        p, backdoor = self.p, self.stages.backdoor
        images, labels = self.data.evaluation.images.cpu(), self.data.evaluation.labels.cpu()
        wanted = backdoor.goal(labels)
        others = ((wanted >= 0) & (wanted != labels)).nonzero()[:JUDGED, 0]
        clean = images[:JUDGED].float() / 255
        triggered = backdoor.apply(images[others].float() / 255, devices.rng(p.seed))
        answers = predict(self.stages.attacked().model, triggered, p.precision)
        return clean, triggered, answers == wanted[others]

    # --- reformers ---------------------------------------------------------------------------------------

    def reformed(self, name: str) -> store.Artifact:
        """Clean accuracy and ASR of the victim when every input is squeezed first."""
        method = _named(catalogue.REFORMERS, "reformer", name)

        def make():
            model = Behind(self.stages.attacked().model, method)
            return {}, metrics.report(
                model, self.data.evaluation[:JUDGED], self.stages.backdoor, self.p.target, places=1,
                precision=self.p.precision,
            )  # fmt: skip

        return store.train_or_load("reformed", self._config("reformer", name, method), make, self.stages.device)

    # --- everything --------------------------------------------------------------------------------------

    def record(self) -> dict:
        """All that `kinds` asks for, as plain numbers; a method's seconds and what it knew beside what it achieved.

        `planted`: the attacker's classes. `rows`: `metrics.report` of the clean model, the attacked one and each
        repaired one, two controls among them: `random mixed`, and `ideal`, which no defender has. `detectors`,
        `filters`, `reformers`: by name. `seconds`: of the clean model and the attack.
        """
        stages, kinds = self.stages, self.p.kinds.split(",")
        clean, attacked = stages.clean(), stages.attacked()
        found: dict = {"attack": self.p.attack, "planted": self.planted, "rows": []}
        found["seconds"] = {"clean": seconds(clean.artifact), "attack": seconds(attacked.artifact)}

        def row(name: str, made: Made, **about) -> None:
            found["rows"].append({"model": name, "seconds": seconds(made.artifact), **about, **stages.measured(made)})

        row("clean, never attacked", clean)
        row("attacked", attacked)
        if "detectors" in kinds:
            verdicts = {name: (method().knows, self.verdict(name)) for name, method in catalogue.DETECTORS.items()}
            found["detectors"] = {name: told(*verdict) for name, verdict in verdicts.items()}
        if "repairers" in kinds:
            for name, method in catalogue.REPAIRERS.items():
                made = self.repaired(name)
                row(name, made, knows=method().knows.words(), about=made.artifact.result["about"])
            for control in ("random mixed", "ideal"):
                row(control, stages.repaired(control), knows="")
        if "filters" in kinds:
            filtered = {name: (method().knows, self.filtered(name)) for name, method in catalogue.FILTERS.items()}
            found["filters"] = {name: told(*judged) for name, judged in filtered.items()}
        if "reformers" in kinds:
            found["reformers"] = {name: told(None, self.reformed(name)) for name in catalogue.REFORMERS}
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


class Behind(nn.Module):
    """A model that sees images through a reformer."""

    def __init__(self, model: nn.Module, reformer: base.Reformer):
        super().__init__()
        self.model, self.reformer = model, reformer

    def forward(self, x: Tensor) -> Tensor:
        return self.model(self.reformer(x))


def separation(known: Tensor, clean: Tensor, triggered: Tensor, fires: Tensor) -> dict:
    """Figures of a filter from its scores: of the clean images it knew, of clean and triggered ones it did not."""
    truth = torch.cat([torch.zeros(len(clean)), torch.ones(len(triggered))])
    found = {"auroc": float(roc_auc_score(truth, torch.cat([clean, triggered]))), "fire": float(fires.float().mean())}
    firing = triggered[fires]
    if len(firing):
        truth = torch.cat([torch.zeros(len(clean)), torch.ones(len(firing))])
        found["auroc of those that fire"] = float(roc_auc_score(truth, torch.cat([clean, firing])))
    for rate in FALSE_POSITIVES:
        limit = base.threshold(known, rate)
        flagged = {"clean": clean, "triggered": triggered, "of those that fire": firing}
        found[f"at {rate:g}"] = {
            name: float((scores > limit).float().mean()) for name, scores in flagged.items() if len(scores)
        }
    return found


def _named(known: dict, kind: str, name: str):
    if name not in known:
        raise ValueError(f"{kind} = {name!r}: expected one of {', '.join(known)}")
    return known[name]
