"""How filters and reformers are evaluated."""

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

#: fractions of clean images that a filter may flag
FALSE_POSITIVES = (0.05, 0.01)


class ReformedModel(nn.Module):
    """A model that sees images through a reformer."""

    def __init__(self, model: nn.Module, reformer: base.Reformer):
        super().__init__()
        self.model, self.reformer = model, reformer

    def forward(self, x: Tensor) -> Tensor:
        return self.model(self.reformer(x))


def score_separation(known: Tensor, clean: Tensor, triggered: Tensor, fires: Tensor) -> dict:
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
