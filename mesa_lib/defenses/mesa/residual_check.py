"""The residual check: does a repaired model still respond to a patch? (Ours; the paper has none.)

A defender cannot see the attacker's trigger, but can look for triggers again: with a search that starts from random
ones and improves them (forward passes only), with a new generator, and with samples of earlier rounds. A check costs
about as much as modeling one level, and the search as many forward passes as `TriggerSearch` says.
"""

from dataclasses import asdict, dataclass

from torch import Tensor, nn

from mesa_lib import device as devices
from mesa_lib import staircase, success
from mesa_lib.defenses.base import DefenderView
from mesa_lib.defenses.mesa.trigger_search import TriggerSearch, rate_of_best
from mesa_lib.distribution import TriggerDistribution
from mesa_lib.retrain import TriggerSource
from mesa_lib.settings import Settings


@dataclass(frozen=True)
class ResidualCheck:
    """What a defender finds on a repaired model: attack success rates over images of other classes, in [0, 1].

    Attributes:
        searched: of the best trigger of a search, on newly drawn images.
        sampled: mean over the samples of a new generator.
        earlier: mean over the triggers that were stamped so far; None: not measured.
    """

    searched: float
    sampled: float
    earlier: float | None = None

    @property
    def highest(self) -> float:
        """The highest of the rates."""
        return max(self.searched, self.sampled, self.earlier or 0.0)

    def record(self, clear_below: float) -> dict:
        """Return the measured rates, and `clear`: whether all of them are below `clear_below`."""
        measured = {name: rate for name, rate in asdict(self).items() if rate is not None}
        return measured | {"clear": self.highest < clear_below}


@dataclass(frozen=True)
class Found:
    """What the parts of a check found: the distribution of the new generator, and triggers of the search.

    Attributes:
        distribution: of the new generator.
        triggers: the best trigger of the search, and all others with at least half its ASR (k, 3, h, w), best first.
    """

    distribution: TriggerDistribution
    triggers: Tensor


def check(
    view: DefenderView,
    model: nn.Module,
    settings: Settings,
    search: TriggerSearch,
    *,
    target: int,
    size: tuple[int, int],
    location: Tensor | None = None,
    stamped: TriggerSource | None = None,
    number: int = 0,
) -> tuple[ResidualCheck, Found]:
    """Check a repaired model; the new generator is trained for the highest level, with the hinge on log F.

    Args:
        view: its clean images, seed and precision are used.
        model: after the repair.
        settings: of the modeling.
        search: the trigger search.
        target, size: the class that is predicted, and height and width of the triggers.
        location: row and column (2,) at which triggers are stamped; None: random locations.
        stamped: the triggers of all repairs so far; None: they are not tested.
        number: of the check, from 0; each has its own seed.
    """
    images, labels = view.clean.images, view.clean.labels

    def seed(purpose: str) -> int:
        return devices.derive_seed(view.seed, f"residual check: {purpose}", number)

    highest = settings.replace(hinge_scale="log", betas=(max(settings.betas),))
    where = {"precision": view.precision, "location": location}
    distribution = staircase.fit(model, images, labels, target, highest, size=size, seed=seed("modeling"), **where)
    rng = devices.rng(seed("samples"), next(model.parameters()).device)

    def mean_asr(source: TriggerSource) -> float:
        options = {"images_per_trigger": 8, "seed": seed("images"), **where}
        return float(success.asr_of_triggers(model, images, labels, source(128, rng), target, **options).mean())

    sampled, earlier = mean_asr(distribution.sample), None if stamped is None else mean_asr(stamped)
    triggers, rates = search.run(model, images, labels, target, size=size, seed=seed("search"), **where)
    searched = rate_of_best(model, images, labels, target, triggers, seed=seed("best trigger"), **where)
    found = Found(distribution, triggers.cpu()[rates >= rates[0] / 2])
    return ResidualCheck(searched, sampled, earlier), found
