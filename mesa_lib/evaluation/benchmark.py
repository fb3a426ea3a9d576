"""How filters and reformers are evaluated: how well scores separate, and a model behind a change of its inputs."""

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from mesa_lib import device as devices
from mesa_lib.attacks.base import Backdoor
from mesa_lib.data.splits import Split
from mesa_lib.defenses.base import Filter, Reformer, threshold
from mesa_lib.models.inference import predict, to_float

#: images on which filters and reformers are evaluated, at most
MAX_IMAGES = 500
#: fractions of clean images that a filter may flag
FALSE_POSITIVE_RATES = (0.05, 0.01)


class ReformedModel(nn.Module):
    """A model that sees every image through a reformer: (B, 3, H, W) in [0, 1] -> logits."""

    def __init__(self, model: nn.Module, reformer: Reformer):
        super().__init__()
        self.model, self.reformer = model, reformer

    def forward(self, x: Tensor) -> Tensor:
        """Return the model's logits of the reformed images."""
        return self.model(self.reformer(x))


def triggered_inputs(
    model: nn.Module, evaluation: Split, backdoor: Backdoor, *, seed: int = 0, precision: str = "float32"
) -> tuple[Tensor, Tensor, Tensor]:
    """Return clean and triggered evaluation images, at most `MAX_IMAGES` each, and on which of these the attack works.

    Returns:
        Clean images (N, 3, H, W) in [0, 1]; triggered images (M, 3, H, W) of classes that the attacker wants changed;
        boolean (M,), whether the model predicts what the attacker wants.
    """
    images, labels = evaluation.images.cpu(), evaluation.labels.cpu()
    wanted = backdoor.goal(labels)
    others = ((wanted >= 0) & (wanted != labels)).nonzero()[:MAX_IMAGES, 0]
    triggered = backdoor.apply(to_float(images[others]), devices.rng(seed))
    return to_float(images[:MAX_IMAGES]), triggered, predict(model, triggered, precision) == wanted[others]


def score_separation(held_out: Tensor, clean: Tensor, triggered: Tensor, fires: Tensor) -> dict:
    """Return how well a filter's scores separate triggered inputs from clean ones.

    Args:
        held_out: scores (N,) of clean images of the defender's, from which the thresholds are taken.
        clean: scores of clean evaluation images.
        triggered: scores (M,) of triggered evaluation images.
        fires: boolean (M,), whether the attack works on them.

    Returns:
        `auroc`; `fire`, the fraction on which the attack works; `auroc of those that fire`, if there are any; for each
        of `FALSE_POSITIVE_RATES` (`at 0.05`) the fraction flagged of `clean`, `triggered` and `of those that fire`.
    """
    firing = triggered[fires]
    result = {"auroc": _auroc(clean, triggered), "fire": float(fires.float().mean())}
    if len(firing):
        result["auroc of those that fire"] = _auroc(clean, firing)
    for rate in FALSE_POSITIVE_RATES:
        limit = threshold(held_out, rate)
        groups = {"clean": clean, "triggered": triggered, "of those that fire": firing}
        result[f"at {rate:g}"] = {
            name: float((scores > limit).float().mean()) for name, scores in groups.items() if len(scores)
        }
    return result


def _auroc(negative: Tensor, positive: Tensor) -> float:
    truth = torch.cat([torch.zeros(len(negative)), torch.ones(len(positive))])
    return float(roc_auc_score(truth, torch.cat([negative, positive])))


def filter_inputs(fitted: Filter, held_out: Tensor, clean: Tensor, triggered: Tensor, fires: Tensor) -> tuple:
    """Score inputs by a fitted filter, and evaluate the scores.

    Args:
        fitted: the filter, fitted on other clean images.
        held_out: the defender's clean images (N, 3, H, W) for the thresholds.
        clean, triggered, fires: as `triggered_inputs` returns them.

    Returns:
        The scores by name, `clean` and `triggered`; `score_separation` of them, with the number of images behind the
        thresholds.
    """
    scores = {"clean": fitted.score(clean), "triggered": fitted.score(triggered)}
    separation = score_separation(fitted.score(held_out), scores["clean"], scores["triggered"], fires)
    return scores, separation | {"thresholds from": len(held_out)}
