"""The models of the playground: for each attack the clean, the attacked and the repaired ones, trained or loaded."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mesa_lib import device as devices
from mesa_lib.data import Dataset
from mesa_lib.distribution import TriggerDistribution
from mesa_lib.experiments.params import Params
from mesa_lib.experiments.pipeline import Pipeline
from mesa_lib.models import inference
from mesa_lib.progress import progress_bar

#: the repairs that are shown, in this order
REPAIRS = ("fine-tuning", "random mixed", "best inversion", "MESA", "ideal")
#: how the two attacks of the series are called
TITLES = {"patch": "plain attack", "covered": "covered attack"}


@dataclass(frozen=True)
class AttackedModels:
    """What one attack left: models by name, the attacker's trigger, and the modeled distribution.

    Attributes:
        attack: the attack's name.
        models: `clean model`, `attacked`, then the repairs.
        data: the data set.
        target: the attacker's target class.
        trigger: the attacker's trigger (3, h, w).
        distribution: the trigger distribution that MESA modeled on the attacked model.
        precision: see `device.autocast`.
    """

    attack: str
    models: dict[str, nn.Module]
    data: Dataset
    target: int
    trigger: Tensor
    distribution: TriggerDistribution
    precision: str = "float32"

    @property
    def title(self) -> str:
        """The attack's name in prose."""
        return TITLES.get(self.attack, self.attack)

    def probabilities(self, image: Tensor) -> dict[str, Tensor]:
        """Return by model the class probabilities (classes,) of one image (3, H, W) in [0, 1]."""
        with devices.one_thread():
            return {
                name: inference.logits(model, image[None], self.precision)[0].softmax(0)
                for name, model in self.models.items()
            }

    def samples(self, n: int, seed: int) -> Tensor:
        """Return n samples (n, 3, h, w) of the distribution, on the CPU."""
        device = next(self.models["attacked"].parameters()).device
        return self.distribution.sample(n, devices.rng(devices.derive_seed(seed, "playground"), device)).cpu()


def load_models(p: Params) -> list[AttackedModels]:
    """Return the models of the attack and of the attack shown beside it; what the store lacks is trained.

    On two cores the training takes about four minutes, after `make run` nothing is trained. A bar shows how many models
    are ready (`progress.progress_bar`).
    """
    first = Pipeline(p)
    pipelines = [first, first.compared] if first.compared else [first]
    stages = [(pipeline, name) for pipeline in pipelines for name in ("clean model", "attacked", *REPAIRS)]
    models: dict[str, dict[str, nn.Module]] = {pipeline.p.attack: {} for pipeline in pipelines}
    for pipeline, name in progress_bar(stages, "models of the playground: load or train"):
        models[pipeline.p.attack][name] = _model(pipeline, name)
    return [
        AttackedModels(
            pipeline.p.attack, models[pipeline.p.attack], pipeline.data, p.target, pipeline.trigger,
            pipeline.distribution()[0], p.precision,
        )
        for pipeline in pipelines
    ]  # fmt: skip


def _model(pipeline: Pipeline, name: str) -> nn.Module:
    """Return one of the models of a pipeline, trained or loaded."""
    stages = {"clean model": pipeline.clean, "attacked": pipeline.attacked}
    return stages[name]().model if name in stages else pipeline.repaired(name).model


def examples(data: Dataset, skip: int = 0) -> list[int]:
    """Return the indices of evaluation images: of every class, in the order of the labels, the one after `skip` others.

    Where a class has fewer images, counting starts again at its first.
    """
    labels = data.evaluation.labels
    found = []
    for label in range(len(data.classes)):
        indices = torch.nonzero(labels == label).flatten().tolist()
        found += [indices[skip % len(indices)]] if indices else []
    return found
