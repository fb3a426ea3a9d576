"""The pipeline: data -> clean model -> attacked model -> trigger distribution -> repaired models.

A notebook asks for a stage, which is trained, or loaded if the artifact store has it. The key of a stage holds all that
it depends on (`experiments.keys`), so a changed parameter never loads an old result.
"""

import copy
from collections.abc import Callable, Iterable
from functools import cached_property

import torch
from torch import Tensor, nn

from mesa_lib import attacks, store, training, triggers
from mesa_lib import data as datasets
from mesa_lib import device as devices
from mesa_lib.data import trigger_spec
from mesa_lib.defenses.base import DefenderView, Knowledge, Repairer, SearchCache, describe_method
from mesa_lib.defenses.controls import SingleInversion
from mesa_lib.distribution import TriggerDistribution
from mesa_lib.evaluation import metrics
from mesa_lib.experiments import keys, repairs
from mesa_lib.experiments.params import Params
from mesa_lib.experiments.repairs import CONTROLS
from mesa_lib.experiments.trained import REUSED_SECONDS, TrainedModel
from mesa_lib.models import networks
from mesa_lib.training import BatchTransform

__all__ = ["CONTROLS", "Pipeline", "TrainedModel"]

PATCH_SIZE = (3, 3)  # what defenders assume where the trigger is not a patch


class Pipeline:
    """All stages for one set of parameters."""

    def __init__(self, p: Params, data: datasets.Dataset | None = None):
        """Prepare the stages; nothing is trained yet.

        Args:
            p: the checked parameters.
            data: the data set of these parameters, if it is loaded already; it is checked in any case.
        """
        self.p = p
        self.device = devices.pick_device(p.device)
        self.trigger = trigger_spec.parse_trigger(p.trigger)
        self.more_triggers = [trigger_spec.parse_trigger(spec.strip()) for spec in p.more_triggers.split(",") if spec]
        self._loaded, self._searches = data, SearchCache()

    @cached_property
    def data(self) -> datasets.Dataset:
        """The data set; ValueError if target or trigger do not fit it."""
        p = self.p
        data = self._loaded or datasets.load(p.dataset, p.data_dir, p.split_seed, p.image_size)
        attacks.check_target(p.target, len(data.classes))
        triggers.check_fits(tuple(self.trigger.shape[-2:]), data.image_size)
        for name in ("modeling", "evaluation"):
            labels = getattr(data, name).labels
            count = int((labels == p.target).sum())
            if count in (0, len(labels)):
                raise ValueError(
                    f"target = {p.target}: {count} of the {len(labels)} {name} images are of this class; "
                    "expected some, and some of other classes"
                )
        return data

    @cached_property
    def attack(self) -> attacks.Attack:
        """The attack, ready to be planted."""
        p, size = self.p, (self.p.image_size, self.p.image_size)
        spec = attacks.AttackSpec(
            self.trigger, p.target, len(self.data.classes), size, p.poison_rate, p.seed, p.cover, p.cover_rate,
            self.more_triggers,
        )  # fmt: skip
        attack = attacks.build_attack(p.attack, spec)
        if attack.trained_start and p.start == "scratch":
            raise ValueError(
                f"start = {p.start!r}: the attack {p.attack} starts from a trained model; expected 'clean'"
            )
        return attack

    @property
    def backdoor(self) -> attacks.Backdoor:
        """The trigger and the attacker's goal; of an attack that chooses its trigger while planting, the chosen one."""
        backdoor = self.attack.backdoor
        return backdoor(self.attacked().artifact.result) if callable(backdoor) else backdoor

    @property
    def patch_size(self) -> tuple[int, int]:
        """Height and width that the defender assumes: those of the planted patch, else `PATCH_SIZE`."""
        return tuple(self.attack.size or PATCH_SIZE)

    def check(self) -> datasets.Dataset:
        """Return the data; ValueError for everything that can be refused before anything is trained."""
        _ = self.attack
        if self.p.checkpoint:
            networks.load_weights(self.build_model(), store.load_checkpoint(self.p.checkpoint), self.p.checkpoint)
        return self.data

    def identity(self) -> dict:
        """Return what the run is about, by content: images, trigger, checkpoint, all settings up to the attack."""
        triggers = [self.trigger, *self.more_triggers]
        return keys.attack_config(self.p, self.data.fingerprint, triggers, self.attack.revision)

    @cached_property
    def compared(self) -> "Pipeline | None":
        """The pipeline of `compare_attack`, with all else equal; None if there is none, or if it is this attack."""
        other = self.p.compare_attack
        return None if other in ("", self.p.attack) else Pipeline(self.p.replace(attack=other), self.data)

    # --- models ------------------------------------------------------------------------------------------

    def build_model(self, seed: int | None = None) -> nn.Module:
        """Return an untrained network of the configured architecture; seed: of its weights, None: `p.seed`."""
        d, p = self.data, self.p
        seed = p.seed if seed is None else seed
        model = networks.build_network(p.network, len(d.classes), p.width, d.mean, d.std, seed)
        return model.to(self.device, memory_format=torch.channels_last)

    def restore(self, artifact: store.Artifact, wrap: Callable[[nn.Module], nn.Module] | None = None) -> TrainedModel:
        """Return the network with an artifact's weights; wrap: what an untrained one becomes before they fit."""
        model = self.build_model() if wrap is None else wrap(self.build_model())
        return TrainedModel(networks.load_weights(model, artifact.tensors).eval(), artifact)

    def train(self, model: nn.Module, split: datasets.Split, *, seed: int, label: str, **settings) -> list[dict]:
        """Train in place by `training.train`, with device, batch size and precision of the parameters."""
        p = self.p
        return training.train(
            model, split.images, split.labels, batch_size=p.batch_size, seed=seed,
            device=self.device, precision=p.precision, label=label, **settings,
        )  # fmt: skip

    def _train_from_scratch(self, model: nn.Module, *, seed: int, label: str, **settings) -> list[dict]:
        """Train in place with the schedule of the clean model, which an attack from scratch shares."""
        p, images = self.p, self.data.train.images
        if isinstance(model, networks.FastCNN):
            model.whiten(images[:: max(1, len(images) // 5000)])
        return self.train(
            model, self.data.train, epochs=p.clean_epochs, lr=p.clean_lr, schedule="onecycle",
            weight_decay=p.weight_decay, label_smoothing=p.label_smoothing,
            bias_rate=getattr(model, "bias_rate", 1.0), seed=seed, label=label, **settings,
        )  # fmt: skip

    def clean(self) -> TrainedModel:
        """Return the clean model, trained on the training images or given as a checkpoint."""
        p, seed = self.p, keys.clean_seed(self.p)

        def make():
            model, history = self.build_model(seed), []
            if p.checkpoint:
                networks.load_weights(model, store.load_checkpoint(p.checkpoint), p.checkpoint)
            else:
                batches = devices.derive_seed(seed, "clean training")
                history = self._train_from_scratch(model, seed=batches, augment=p.augment, label="clean training")
            return model.state_dict(), {"history": history}

        config = keys.clean_config(p, self.data.fingerprint)
        return self.restore(store.train_or_load("clean", config, make, self.device))

    def attacked(self) -> TrainedModel:
        """Return the attacked model: the clean one trained on poisoned images, or one trained on them from scratch.

        (TrojanNet is added to the clean model without any training of it.)
        """
        p, seed = self.p, devices.derive_seed(self.p.seed, "attack")

        def start() -> nn.Module:
            return copy.deepcopy(self.clean().model) if p.start == "clean" else self.build_model()

        def train(model: nn.Module, transform: BatchTransform | None, epochs: int = 0) -> list[dict]:
            options = {"augment": p.retrain_augment, "transform": transform, "seed": seed}
            if p.start == "scratch" and not epochs:
                return self._train_from_scratch(model, label="attack from scratch", **options)
            options |= {"epochs": epochs or p.attack_epochs, "lr": p.attack_lr, "schedule": p.schedule}
            return self.train(model, self.data.train, label="attack", **options)

        def make():
            result = self.attack.plant(attacks.AttackerContext(self.data.train, start, train))
            return result.model.state_dict(), {"history": result.history} | result.about

        artifact = store.train_or_load("attacked", self.identity(), make, self.device)
        return self.restore(artifact, self.attack.wrap)

    # --- the defender ------------------------------------------------------------------------------------

    def defender_view(
        self, knowledge: Knowledge, *, model: nn.Module | None = None, clean: datasets.Split | None = None
    ) -> DefenderView:
        """Return what a method with this knowledge gets.

        Args:
            knowledge: what the method declares.
            model: the model under test; None: the attacked one.
            clean: the defender's clean images; None: the modeling images.
        """
        p, cached = self.p, model is None and clean is None
        return DefenderView(
            knowledge, model or self.attacked().model, clean or self.data.modeling, len(self.data.classes),
            target=p.target, size=self.patch_size, seed=self.defender_seed, precision=p.precision,
            repair=p.repair_settings(), cache=self._searches if cached else None,
        )  # fmt: skip

    @property
    def defender_seed(self) -> int:
        """The defender's seed: with the attacker's, a method could draw the trigger."""
        return devices.derive_seed(self.p.seed, "defender")

    def defender_config(self) -> dict:
        """Return the configuration of every result of a defender: the attacked model, and what all methods share."""
        return {"attacked": self.identity(), "size": list(self.patch_size), "seed": self.defender_seed}

    def distribution(self, **changes) -> tuple[TriggerDistribution, store.Artifact]:
        """Return the trigger distribution of the attacked model; `changes` override settings (`alpha=10`)."""
        method = repairs.mesa_repair(self.p, self.p.modeling_settings(**changes))
        config = self.defender_config() | repairs.describe_modeling(self.p, method.settings)

        def make():
            distribution = method.model(self.defender_view(method.knowledge))
            return distribution.tensors(), distribution.summary()

        artifact = store.train_or_load("distribution", config, make, self.device)
        shape = (3, *self.patch_size)
        return TriggerDistribution.restore(artifact.tensors, artifact.result, shape, method.settings), artifact

    def inverted_trigger(self, repeat: int = 0) -> Tensor:
        """Return the baseline's trigger (3, h, w), inverted on the attacked model; repeat: counts the inversions."""
        method = SingleInversion(repeat)
        config = self.defender_config() | {"repeat": repeat}

        def make():
            return {"trigger": method.invert(self.defender_view(method.knowledge))}, {}

        return store.train_or_load("inversion", config, make, self.device).tensors["trigger"]

    def repaired(
        self, name: str, repeat: int = 0, beta: float | None = None, method: Repairer | None = None
    ) -> TrainedModel:
        """Return the attacked model after a repair (of `clean model, repaired`: the clean model after it).

        All repairs get the modeling images, and all that retrain do so with equal settings and seed.

        Args:
            name: one of `CONTROLS` or of `defenses.registry.REPAIRERS`.
            repeat: counts the inversions of `single inversion`.
            beta: the level of the staircase that `MESA` samples; None: the mixture.
            method: a repair with other settings, under any name; None: the one of this name.
        """
        if method is None:
            repairs.check_name(name)
        described = {"method": describe_method(method)} if method else repairs.describe(self.p, name, repeat, beta)
        config = self.defender_config() | {"name": name, "retraining": self.p.repair_settings().model_dump()}

        def make():
            repairer = method or repairs.build(self, name, repeat, beta)
            model = self.clean().model if name == repairs.ON_CLEAN_MODEL else None
            self._searches.saved = 0.0
            result = repairer.repair(self.defender_view(repairer.knowledge, model=model))
            saved = {REUSED_SECONDS: self._searches.saved} if self._searches.saved else {}
            return result.model.state_dict(), {"history": result.history} | result.about | saved

        artifact = store.train_or_load("repaired", config | described, make, self.device)
        repairs.warn_if_failed(repairs.row_name(name, repeat), artifact.result)
        return self.restore(artifact, None if name == repairs.ON_CLEAN_MODEL else self.attack.wrap)

    # --- what is measured --------------------------------------------------------------------------------

    def measured(self, trained: TrainedModel) -> dict:
        """Return `metrics.evaluate` of a model on the evaluation images; stored like the models."""
        p = self.p
        # a patch depends on the trigger alone; what other attacks stamp depends on seed, rate and more
        backdoor = keys.trigger_config(self.trigger) if p.attack == "patch" else self.identity()
        config = {"model": trained.config, "backdoor": backdoor, "target": p.target}

        def make():
            model, evaluation = trained.model, self.data.evaluation
            return {}, metrics.evaluate(model, evaluation, self.backdoor, p.target, precision=p.precision)

        return store.train_or_load("measured", config, make, self.device).result

    def table(self, controls: Iterable[str] = CONTROLS) -> list[dict]:
        """Return the before/after table: a row for each model, and one for each repeat of the single inversion.

        A text `failed` says that nothing stamped succeeds, or that the residual check of `MESA` still finds a trigger.
        """
        return repairs.table_rows(self, controls)

    def report(self) -> store.Artifact:
        """Return the artifact of the table with all parameters: the result of the series of notebooks."""
        config = {"params": self.p.model_dump(), "attacked": self.identity(), "rows": [*CONTROLS, "residual check"]}
        config |= repairs.describe_modeling(self.p, self.p.modeling_settings())
        report = store.train_or_load("report", config, lambda: ({}, {"rows": self.table()}), self.device)
        repairs.warn_of_rows(report.result["rows"])
        return report
