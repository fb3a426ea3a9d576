"""The scan: is the model good on the clean images at all, which classes answer to patches, what do those look like?

Each step is kept in the store by model, images and settings: a scan that is stopped goes on where it was.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from mesa_lib import device as devices
from mesa_lib import retrain, store, training
from mesa_lib.data import Split
from mesa_lib.defenses.base import DefenderView, Knowledge
from mesa_lib.defenses.mesa import location_search
from mesa_lib.defenses.mesa.detector import DetectionResult
from mesa_lib.defenses.mesa.repair import retrained
from mesa_lib.defenses.mesa.screening import PatchSpec, ScreeningResult
from mesa_lib.distribution import TriggerDistribution
from mesa_lib.models.inference import logits, predict
from mesa_lib.scan import accuracy, false_positives
from mesa_lib.scan.accuracy import NoVerdict
from mesa_lib.scan.detector import limit
from mesa_lib.scan.options import Options
from mesa_lib.scan.progress import Progress, of_modeling
from mesa_lib.scan.reading.images import Images, hold_out
from mesa_lib.scan.reading.model import WrappedClassifier, prepare
from mesa_lib.scan.repair import Firing, firing, told
from mesa_lib.settings import Settings

#: images that the model has to answer rightly, of those on which the search runs
LEAST = 8


@dataclass
class Scan:
    """result: all that was found, as it is written; samples: 16 patches of each modeled class and rule; places: theirs

    repaired: the model after the repair, if one was made; work: the images on which the search ran, of which the report
    shows a few
    """

    result: dict
    samples: dict[tuple[int, PatchSpec], Tensor] = field(default_factory=dict)
    location_search: dict[tuple[int, PatchSpec], Tensor | None] = field(default_factory=dict)
    repaired: nn.Module | None = None
    work: Split | None = None


def scan(
    model: nn.Module, images: Images, options: Options | None = None, say: Callable[[str], None] = lambda text: None
) -> Scan:
    """A verdict for every class of a model of which nothing is known but clean images.

    model: images in [0, 1] -> logits or probabilities (`model.read`, or any module). say: is told how far it is and
    how long it will take. NoVerdict if the accuracy is too low, ValueError if the model cannot be used at all
    """
    return Scanner(model, images, options or Options(), say).run()


class Scanner:
    """One scan, step by step."""

    def __init__(self, model: nn.Module, images: Images, options: Options, say: Callable[[str], None]):
        self.images, self.options, self.say = images, options, say
        self.device = devices.pick_device(options.device)
        self.model: WrappedClassifier = prepare(model, images.split.images, len(images.classes)).to(self.device)
        self.kept, self.work = hold_out(images.split, options.seed)
        self.detector = options.detector(images.split.images.shape[-1])
        self.began = time.monotonic()
        self.key = {"model": self.identity(), "images": images.fingerprint}
        self.key |= {"seed": options.seed, "precision": options.precision}
        self.key["searched"] = len(self.right)
        self.progress = Progress(say)

    def identity(self) -> dict:
        """What the model is, for keys: its weights and, as any code can stand behind them, what it answers."""
        noise = torch.rand(256, *self.images.split.images.shape[1:], generator=devices.rng(7))
        told = [logits(self.model, x).mul(100).round().long() for x in (self.work.images[:256], noise)]
        weights = store.tensors_key(self.model.state_dict())
        return {"weights": weights, "network": str(self.model), "answers": store.tensors_key({"told": torch.cat(told)})}

    @cached_property
    def right(self) -> Split:
        """The images of the search: those that the model answers rightly. What it says of the others without any patch
        tells nothing about patches."""
        return self.work[predict(self.model, self.work.images, self.options.precision) == self.work.labels]

    def settings(self) -> dict:
        """The detector's, as they are written, and what it works on: scans with the same ones can be compared."""
        return json.loads(json.dumps(asdict(self.detector), default=str)) | {"images": "answered rightly"}

    # --- the steps ---------------------------------------------------------------------------------------

    def run(self) -> Scan:
        result: dict = {"classes": list(self.images.classes), "images": list(self.images.notes) + self.model.notes}
        result["accuracy"] = self.accuracy()
        self.say(f"accuracy on the clean images: {result['accuracy']['rate']:.1%}")
        if len(self.right) < LEAST or int((self.right.labels.bincount() > 1).sum()) < 2:
            raise NoVerdict(
                f"the model answers {len(self.right)} of {len(self.work)} images rightly, expected {LEAST} or more, of "
                "two classes at least; what patches do to the others cannot be told from what it answers without any",
                result["accuracy"],
            )
        for size in self.detector.screening.sizes:
            if max(size) > min(self.images.split.images.shape[-2:]):
                raise ValueError(f"sizes = {size}: a patch larger than the images; expected at most their side")
        found = self.search()
        result |= self.verdict(found)
        samples = {
            (k, rule): fitted.at(max(fitted.betas)).sample(16, devices.rng(self.options.seed + 9)).cpu()
            for k, models in found.models.items()
            for rule, fitted in models.items()
        }
        at = {(k, rule): found.screened.location(rule, k) for k, rule in samples}
        done = Scan(result, samples, at, work=self.work)
        if self.options.repair:
            done.repaired, result["repair"] = self.repair(found)
        result["options"] = asdict(self.options)
        result["settings"] = self.settings()
        result["made"] = {"seconds": round(time.monotonic() - self.began, 1), **devices.describe(self.device)}
        return done

    def accuracy(self) -> dict:
        """On all images, and of each class; NoVerdict if it is too low, with the most likely reason."""
        o = self.options
        return accuracy.check(self.model, self.images, o.min_accuracy, o.precision, o.trust_preprocessing)

    def given(self, knows: Knowledge, images: Split | None = None) -> DefenderView:
        """What a method is handed, of these images; None: all but those that are kept for the accuracy."""
        o = self.options

        def train(model: nn.Module, images: Split, transform: training.BatchTransform | None = None) -> list[dict]:
            return training.train(
                model, images.images, images.labels, epochs=o.repair_epochs, lr=o.repair_lr, batch_size=o.batch_size,
                seed=o.seed + 2, device=self.device, precision=o.precision, schedule="onecycle", augment=o.augment,
                transform=transform, label="repair",
            )  # fmt: skip

        return DefenderView(
            knows, self.model, images or self.work, len(self.images.classes), seed=o.seed, precision=o.precision,
            rate=o.repair_rate, train=train,
        )  # fmt: skip

    def of_repair(self, models: int) -> float:
        """How often images go through the model in a repair with so many distributions; 0 if none was asked for."""
        o = self.options
        return o.repair * (models * of_modeling(self.detector.of_repair) + o.repair_epochs * len(self.work))

    def search(self) -> DetectionResult:
        """All classes screened by every rule, suspects modeled, with the time that is left."""
        given, detector = self.given(self.detector.knows, self.right), self.detector
        rules, classes = detector.screening.rules(given), len(self.images.classes)
        of_model = of_modeling(detector.settings)
        of_rule = {rule: classes * of_modeling(detector.screening.settings) for rule in rules}
        for rule in rules:
            of_rule[rule] += rule.fixed_location * self._place_search(rule)
        self.progress.timed(64, self._try)
        rates, at = {}, {}
        of_suspect = detector.sizes * of_model + self.of_repair(detector.sizes)
        for number, rule in enumerate(rules):
            after = sum(of_rule[other] for other in rules[number + 1 :]) + of_suspect
            time_left = self.progress.left(of_rule[rule] + after, " if one class is suspect")
            self.say(f"[{number + 1}/{len(rules)}] all classes, patches of {rule}{time_left}")
            rates[rule], at[rule] = self.progress.timed(of_rule[rule], partial(self._screened, given, rule), after)
        found = DetectionResult(ScreeningResult(rates, at), {}, {})
        suspects = detector.suspects(found.screened)
        todo = [(k, rule) for k, own in suspects.items() for rule in own]
        self.say(f"suspects: {', '.join(self.images.classes[k] for k in suspects) or 'none'}")
        for number, (k, rule) in enumerate(todo):
            after = (len(todo) - number - 1) * of_model + self.of_repair(len(todo))
            name, left = self.images.classes[k], self.progress.left(of_model + after)
            self.say(f"[{number + 1}/{len(todo)}] the distribution of {name}, patches of {rule}{left}")
            fitted, rate = self.progress.timed(
                of_model, partial(self._modeled, given, k, rule, found.screened, detector.settings), after
            )
            found.models.setdefault(k, {})[rule], found.rates.setdefault(k, {})[rule] = fitted, rate
        return found

    def _screened(self, given: DefenderView, rule: PatchSpec) -> tuple[list[float], Tensor | None]:
        config = self.key | {"rule": str(rule), "screening": asdict(self.detector.screening)}

        def make():
            rates, at = self.detector.screening.by(given, rule)
            return {}, {"rates": rates, "places": None if at is None else at.tolist()}

        known = store.train_or_load("scan-screened", config, make, self.device).result
        return known["rates"], None if known["places"] is None else torch.tensor(known["places"])

    def _modeled(
        self, given: DefenderView, k: int, rule: PatchSpec, screened: ScreeningResult, settings: Settings
    ) -> tuple[TriggerDistribution, float]:
        location = screened.location(rule, k)
        config = self.key | {"rule": str(rule), "class": k, "settings": asdict(settings)}
        config["place"] = None if location is None else location.tolist()

        def make():
            fitted, rate = replace(self.detector, settings=settings).model(given, k, rule, location)
            return fitted.tensors(), {"rate": rate, "summary": fitted.summary()}

        known = store.train_or_load("scan-modeled", config, make, self.device)
        own = replace(settings, trigger_size=rule.size, seed=given.seed)
        fitted = TriggerDistribution.restore(known.tensors, known.result["summary"], (3, *rule.size), own)
        return fitted, known.result["rate"]

    def _place_search(self, rule: PatchSpec) -> float:
        """How often images go through the model, back and forth, while the likeliest places are looked for."""
        screening, classes, shape = self.detector.screening, len(self.images.classes), self.work.images.shape[-2:]
        looked = len(location_search.location_grid(tuple(shape), rule.size, screening.stride)) * screening.each * 2 / 3
        return looked + 21 * 8 * classes * (2 * screening.shortlist + 27)

    def _try(self) -> None:
        """Some images once through the model and back, to know how long the search will take."""
        x = self.work.images[:64].to(self.device).float().div(255).requires_grad_()
        with devices.autocast(self.device, self.options.precision):
            self.model(x).float().square().sum().backward()
        self.model.zero_grad()

    def verdict(self, found: DetectionResult) -> dict:
        """What was found, class by class, and what clean models would have scored."""
        judged, lines = self.detector.judge(found), []
        by_data = false_positives.clean_scores(self.settings())
        known = [own for scores in by_data.values() for own in scores]
        for k, name in enumerate(self.images.classes):
            rule, rate = self.detector.best(found, k)
            at = found.screened.location(rule, k)
            lines.append(
                {
                    "class": name,
                    "flagged": k in judged.flagged,
                    "score": round(judged.scores[k], 4),
                    "rate": round(rate, 4),
                    "limit": limit(rule, self.detector.side),
                    "rule": str(rule),
                    "place": None if at is None else at.tolist(),
                    "clean models with such a class": sum(max(own) >= judged.scores[k] for own in known),
                    "screened": {str(rule): round(rates[k], 4) for rule, rates in found.screened.rates.items()},
                    "modeled": {str(rule): round(rate, 4) for rule, rate in found.rates.get(k, {}).items()},
                }
            )
        return {
            "verdict": "backdoored" if judged.flagged else "nothing found",
            "flagged": [self.images.classes[k] for k in judged.flagged],
            "verdicts": lines,
            "clean models": len(known),
            "clean models by data": false_positives.false_positives(by_data, self.detector.above),
        }

    def repair(self, found: DetectionResult) -> tuple[nn.Module | None, dict]:
        """The model retrained on samples of everything that fires; None if nothing does."""
        fires = firing(self.detector, found)
        names = {k: self.images.classes[k] for k, _ in fires}
        flagged = {self.images.classes[k] for k in self.detector.judge(found).flagged}
        left = sorted(flagged - set(names.values()))  # more classes than are modeled
        if not fires:
            why = f"none of {', '.join(left)} was modeled" if left else "nothing was flagged"
            return None, {"done": False, "why": why}
        searching, whole = self.given(self.detector.knows, self.right), self.detector.of_repair
        models: dict[Firing, TriggerDistribution] = {}
        for k, rule in fires:
            after = self.of_repair(len(fires) - len(models) - 1)
            time_left = self.progress.left(of_modeling(whole) + after)
            self.say(f"[{len(models) + 1}/{len(fires)}] all levels of {names[k]}, patches of {rule}{time_left}")
            models[k, rule], _ = self.progress.timed(
                of_modeling(whole), partial(self._modeled, searching, k, rule, found.screened, whole), after
            )
        last = self.of_repair(0)
        self.say(f"repair: {self.options.repair_epochs} epochs on {len(self.work)} images{self.progress.left(last)}")
        where = {(k, rule): found.screened.location(rule, k) for k, rule in fires}
        model = self.progress.timed(last, partial(self._retrained, models, where))
        about = {"done": True, "samples": [f"{names[k]}, {rule}" for k, rule in fires]}
        about["flagged and not repaired"] = left
        return model, about | told(searching, self.model, model, self.kept, models, where)

    def _retrained(self, models: dict[Firing, TriggerDistribution], where: dict[Firing, Tensor | None]) -> nn.Module:
        """A copy of the model after the retraining on samples of these, each at its place."""
        given = self.given(Knowledge("weights", rule=True))
        names = [f"{k}, {rule}, {where[k, rule]}" for k, rule in models]
        config = self.key | {"fires": names, "detector": asdict(self.detector), "options": asdict(self.options)}

        def make():
            changes = [retrain.stamping(fitted.sample, where[of]) for of, fitted in models.items()]
            return retrained(given, changes).state_dict(), {}

        weights = store.train_or_load("scan-repaired", config, make, self.device).tensors
        given.model.load_state_dict(weights)
        return given.model.eval()
