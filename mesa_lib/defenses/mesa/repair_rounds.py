"""Rounds of modeling and repair until a residual check finds nothing (ours; the paper has one round).

One round may miss the part of the distribution where the attacker's trigger lies. What a check finds is stamped in the
next round, together with samples of all rounds so far.
"""

import copy
from dataclasses import dataclass, field

from torch import nn

from mesa_lib.defenses.base import DefenderView, Knowledge, Repairer, RepairResult
from mesa_lib.defenses.mesa.repair import PAPER_KNOWLEDGE, MESARepair
from mesa_lib.defenses.mesa.residual_check import Found, ResidualCheck, check
from mesa_lib.defenses.mesa.trigger_search import TriggerSearch
from mesa_lib.distribution import TriggerDistribution
from mesa_lib.retrain import TriggerSource, jitter, mixture, stamping
from mesa_lib.settings import Settings

#: a clear check proves nothing if the same means found nothing where the backdoor was
NOTHING_KNOWN = (
    "no trigger that succeeds was found on the attacked model either, so a clear residual check says nothing"
)


@dataclass
class RepairRounds(Repairer):
    """Repair, check, and repair again with what the check found, until it finds nothing.

    The first round is `MESARepair`. The next round stamps what the first one did, the samples of new generators that
    succeed, and triggers near those that searches found. If nothing at all that succeeds was found before the first
    round, a clear check says nothing, since it looks with the same means; the result then says `failed`.

    Attributes:
        settings: of the modeling.
        rounds: how many at most.
        clear_below: the model is clear when no rate of the residual check reaches this.
        search: the search of the residual check.
        restarts: of the first round, see `MESARepair`.
        first: the distribution of the first round; None: it is modeled.
        first_repair: the result of the first round; None: the model is repaired.
    """

    settings: Settings = Settings()
    rounds: int = 4
    clear_below: float = 0.05
    search: TriggerSearch = TriggerSearch()
    restarts: int = 32
    first: TriggerDistribution | None = field(default=None, repr=False)
    first_repair: RepairResult | None = field(default=None, repr=False)
    knowledge: Knowledge = field(default=PAPER_KNOWLEDGE, init=False)

    def repair(self, view: DefenderView) -> RepairResult:
        """Return the repaired model, the history of all rounds, and `rounds`, a record of each round's check.

        A record is that of `ResidualCheck`, with `round` from 1, and `best`, the best trigger of the search (3 h w
        numbers).
        """
        distribution = self.first or MESARepair(self.settings).model(view)
        first = MESARepair(self.settings, fitted=distribution, search=self.search, restarts=self.restarts)
        result = self.first_repair or first.repair(view)
        model, history, records = result.model, list(result.history), []
        source, about = first.source(view)
        sampled, searched = [source], []
        for number in range(self.rounds):
            if number:
                model = copy.deepcopy(model)
                transform = stamping(mixture([*sampled, *searched]))
                history += view.retrain(model, transform, k=number, label=f"repair (round {number + 1})")
            residual, found = self.check(view, model, mixture([*sampled, *searched]), number)
            best = [round(value, 3) for value in found.triggers[0].flatten().tolist()]
            records.append(residual.record(self.clear_below) | {"round": number + 1, "best": best})
            if records[-1]["clear"]:
                break
            if residual.sampled >= self.clear_below:
                sampled.append(found.distribution.sample)
            if residual.searched >= self.clear_below:
                searched.append(jitter(found.triggers))
        failed = {}
        if not records[-1]["clear"]:
            failed = {"failed": "the last residual check still finds a trigger"}
        elif not about.get("found", True) and len(records) == 1:
            failed = {"failed": NOTHING_KNOWN}
        return RepairResult(model, history, {"rounds": records} | failed)

    def check(
        self, view: DefenderView, model: nn.Module, stamped: TriggerSource, number: int
    ) -> tuple[ResidualCheck, Found]:
        """Return the residual check of the model after round `number` (from 0), and what it found."""
        options = {"target": view.target, "size": view.size, "stamped": stamped, "number": number}
        return check(view, model, self.settings, self.search, **options)
