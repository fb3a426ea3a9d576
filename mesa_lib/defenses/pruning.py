"""Pruning and Fine-Pruning (Liu, Dolan-Gavitt, Garg, RAID 2018).

Channels that clean images hardly use may serve the backdoor alone. Pruning removes them, least used first, as long as
accuracy lasts; Fine-Pruning then trains the rest on clean images. The pruned layer is the last one, whose channels the
head reads: the head's columns are masked (a filter set to zero would still pass on its BatchNorm's bias).
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from mesa_lib.defenses.base import DefenderView, Knowledge, Repairer, RepairResult
from mesa_lib.models.inference import representations


def order(model: nn.Module, images: Tensor) -> Tensor:
    """Return the channels that the head reads, from the least used by `images` (uint8, N) to the most."""
    return representations(model, images).mean(0).argsort()


@torch.no_grad()
def accuracies(model: nn.Module, images: Tensor, labels: Tensor, channels: Tensor) -> list[float]:
    """Return the accuracy with none, one, two ... of `channels` removed, in their order, from one pass."""
    features = representations(model, images)
    weight, bias = model.head.weight.float().cpu(), model.head.bias
    logits = features @ weight.T + (0 if bias is None else bias.float().cpu())
    labels, curve = labels.cpu(), []
    for channel in [None, *channels.tolist()]:
        if channel is not None:
            logits = logits - features[:, channel, None] * weight[:, channel]
        curve.append(float((logits.argmax(1) == labels).float().mean()))
    return curve


@dataclass
class Pruning(Repairer):
    """Prune while clean accuracy stays within `tolerance` (a fraction) of what it was."""

    tolerance: float = 0.04
    knowledge: Knowledge = field(default=Knowledge("weights"), init=False)

    def pruned(self, view: DefenderView) -> RepairResult:
        """Return the model with a mask on its head (`torch.nn.utils.prune`)."""
        model, clean = view.model, view.clean
        channels = order(model, clean.images)
        curve = accuracies(model, clean.images, clean.labels, channels)
        count = next((n for n, value in enumerate(curve) if value < curve[0] - self.tolerance), len(curve)) - 1
        mask = torch.ones_like(model.head.weight)
        mask[:, channels[:count].to(mask.device)] = 0
        prune.custom_from_mask(model.head, "weight", mask)
        return RepairResult(model, about={"pruned": count, "of": len(channels)})

    def repair(self, view: DefenderView) -> RepairResult:
        """Return the pruned model."""
        result = self.pruned(view)
        prune.remove(result.model.head, "weight")
        return result


@dataclass
class FinePruning(Pruning):
    """Prune, then train on clean images; pruned channels stay out.

    It may prune deeper than pruning alone, since training restores accuracy. The paper allows 4 points. Here, a
    tolerance of 10 points left most of a backdoor and one of 20 did not, on digits with the triggers bw:170 and
    color:0. (A defender could not have seen that. The sweeps of the benchmark have other triggers, and report the
    paper's 4 points as well.)
    """

    tolerance: float = 0.2

    def repair(self, view: DefenderView) -> RepairResult:
        """Return the model after pruning and retraining."""
        result = self.pruned(view)
        result.history = view.retrain(result.model)
        prune.remove(result.model.head, "weight")
        return result


def careful_fine_pruning() -> FinePruning:
    """Return Fine-Pruning with the paper's tolerance."""
    return FinePruning(tolerance=0.04)
