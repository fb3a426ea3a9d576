"""Rounds of modeling and repair until a residual check finds nothing (ours; the paper has one round).

One round may miss the part of the distribution where the attacker's trigger lies. The defender cannot see that trigger,
but can check the repaired model: with a search that starts from random triggers and improves them (forward passes
only), with a new generator, and with samples of earlier rounds. What a check finds is stamped in the next round,
together with samples of all rounds so far.
"""

import copy
from dataclasses import asdict, dataclass, field

from torch import Tensor, nn

from mesa_lib import device as devices
from mesa_lib import staircase, success
from mesa_lib.defenses.base import DefenderView, Knowledge, Repairer, RepairResult
from mesa_lib.defenses.mesa.repair import PAPER_KNOWLEDGE, MESARepair
from mesa_lib.defenses.mesa.trigger_search import TriggerSearch, rate_of_best
from mesa_lib.distribution import TriggerDistribution
from mesa_lib.retrain import TriggerSource, jitter, mixture, stamping
from mesa_lib.settings import Settings


@dataclass(frozen=True)
class ResidualCheck:
    """What a defender finds on a repaired model: attack success rates over images of other classes, in [0, 1].

    Attributes:
        searched: of the best trigger of a search, on newly drawn images.
        sampled: mean over the samples of a new generator.
        earlier: mean over the triggers that were stamped so far.
    """

    searched: float
    sampled: float
    earlier: float

    @property
    def highest(self) -> float:
        """The highest of the three rates."""
        return max(self.searched, self.sampled, self.earlier)


@dataclass
class RepairRounds(Repairer):
    """Repair, check, and repair again with what the check found, until it finds nothing.

    The first round is `MESARepair`. Each check models a new generator for the highest level, with the hinge on log F;
    the next round stamps what the first one did, the samples of new generators that succeed, and triggers near those
    that searches found. (On
    clean models a search finds something, too: results/repair-rounds.json.)

    Attributes:
        settings: of the modeling.
        rounds: how many at most.
        clear_below: the model is clear when no rate of the residual check reaches this.
        search: the search of the residual check.
        first: the distribution of the first round; None: it is modeled.
        first_repair: the result of the first round; None: the model is repaired.
    """

    settings: Settings = Settings()
    rounds: int = 4
    clear_below: float = 0.05
    search: TriggerSearch = TriggerSearch()
    first: TriggerDistribution | None = field(default=None, repr=False)
    first_repair: RepairResult | None = field(default=None, repr=False)
    knowledge: Knowledge = field(default=PAPER_KNOWLEDGE, init=False)

    def repair(self, view: DefenderView) -> RepairResult:
        """Return the repaired model, the history of all rounds, and `rounds`, a record of each round's check.

        A record holds `searched`, `sampled` and `earlier` (see `ResidualCheck`), `round` from 1, `clear`, and `best`,
        the best trigger of the search (3 h w numbers).
        """
        distribution = self.first or MESARepair(self.settings).model(view)
        first = MESARepair(self.settings, fitted=distribution, search=self.search)
        result = self.first_repair or first.repair(view)
        model, history, records = result.model, list(result.history), []
        sampled, searched = [first.source(view)[0]], []
        for number in range(self.rounds):
            if number:
                model = copy.deepcopy(model)
                transform = stamping(mixture([*sampled, *searched]))
                history += view.retrain(model, transform, k=number, label=f"repair (round {number + 1})")
            check, distribution, triggers = self.check(view, model, mixture([*sampled, *searched]), number)
            record = asdict(check) | {"round": number + 1, "clear": check.highest < self.clear_below}
            records.append(record | {"best": [round(value, 3) for value in triggers[0].flatten().tolist()]})
            if record["clear"]:
                break
            if check.sampled >= self.clear_below:
                sampled.append(distribution.sample)
            if check.searched >= self.clear_below:
                searched.append(jitter(triggers))
        failed = {} if records[-1]["clear"] else {"failed": "the last residual check still finds a trigger"}
        return RepairResult(model, history, {"rounds": records} | failed)

    def check(
        self, view: DefenderView, model: nn.Module, stamped: TriggerSource, number: int
    ) -> tuple[ResidualCheck, TriggerDistribution, Tensor]:
        """Check a repaired model.

        Args:
            view: its images, target and size are used.
            model: after the repair of this round.
            stamped: the triggers of all repairs so far.
            number: of the round, from 0.

        Returns:
            The rates; the distribution of the new generator; the best trigger of the search, and all others with at
            least half its ASR, best first.
        """
        images, labels, target = view.clean.images, view.clean.labels, view.target

        def seed(purpose: str) -> int:
            return devices.derive_seed(view.seed, f"residual check: {purpose}", number)

        highest = self.settings.replace(hinge_scale="log", betas=(max(self.settings.betas),))
        modeling = {"size": view.size, "precision": view.precision}
        distribution = staircase.fit(model, images, labels, target, highest, seed=seed("modeling"), **modeling)
        rng = devices.rng(seed("samples"), next(model.parameters()).device)

        def mean_asr(source: TriggerSource) -> float:
            options = {"images_per_trigger": 8, "seed": seed("images"), "precision": view.precision}
            return float(success.asr_of_triggers(model, images, labels, source(128, rng), target, **options).mean())

        sampled, earlier = mean_asr(distribution.sample), mean_asr(stamped)
        triggers, rates = self.search.run(model, images, labels, target, seed=seed("search"), **modeling)
        options = {"seed": seed("best trigger"), "precision": view.precision}
        searched = rate_of_best(model, images, labels, target, triggers, **options)
        effective = triggers.cpu()[rates >= rates[0] / 2]
        return ResidualCheck(searched, sampled, earlier), distribution, effective
