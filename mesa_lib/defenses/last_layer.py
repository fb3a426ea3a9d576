"""Trojan signatures in the weights of the last layer (Fields, Samragh, Javaheripi, Koushanfar, Javidi, ICCVW 2021).

An attack makes images of all classes end in the target class. For that it raises the weights of the target's row in the
last linear layer, on average over the inputs of the layer. A row whose mean is far above the means of the others gives
the backdoor away. The method needs no image and no pass through the network.

Unlike the paper: the outlier test is the anomaly index of Neural Cleanse, which the library's other detectors share;
the paper's test, which also expects that one class at most stands out, is not reproduced.
"""

from dataclasses import dataclass, field

import torch
from torch import nn

from mesa_lib.defenses.base import DefenderView, Detector, Knowledge, Verdict, anomaly_index


def last_layer(model: nn.Module, classes: int) -> nn.Linear:
    """Return the linear layer that computes the logits: `model.head`, or else the last `nn.Linear` of the model.

    The last one is that which the network defines last.

    Raises:
        ValueError: if there is none, or if it does not have `classes` outputs.
    """
    head = getattr(model, "head", None)
    layers = [part for part in model.modules() if isinstance(part, nn.Linear)]
    layer = head if isinstance(head, nn.Linear) else layers[-1] if layers else None
    wanted = f"expected a linear layer (nn.Linear) with {classes} outputs as the last one, one for each class"
    if layer is None:
        raise ValueError(f"model = {type(model).__name__}: {wanted}; found no linear layer")
    if layer.out_features != classes:
        raise ValueError(f"model = {type(model).__name__}: {wanted}; found {layer.out_features} outputs")
    return layer


@dataclass
class LastLayer(Detector):
    """Score of a class: the mean weight of its row in the last linear layer; biases do not count.

    The index is the anomaly index of the scores, high side. `about` holds the Euclidean norm of each row.

    Attributes:
        above: the anomaly index that a flagged class exceeds: 2, as is usual. This threshold is to be calibrated on
            clean models of the kind under test. With ten classes whose means are normally distributed, it flags some
            class of about one clean model in three.
    """

    above: float = 2.0
    knowledge: Knowledge = field(default=Knowledge("weights", images=0), init=False)

    def __post_init__(self):
        if not self.above > 0:
            raise ValueError(f"above = {self.above}: expected an anomaly index above 0")

    @torch.no_grad()
    def detect(self, view: DefenderView) -> Verdict:
        """Return the verdict on the view's model.

        Raises:
            ValueError: if there are fewer than three classes, or no last linear layer with one output for each.
        """
        if view.classes < 3:
            raise ValueError(f"classes = {view.classes}: expected at least 3; of fewer rows none can stand out")
        rows = last_layer(view.model, view.classes).weight.double().cpu()
        means = rows.mean(1)
        index = anomaly_index(means.numpy(), "high")
        return Verdict(means.tolist(), index.tolist(), self.above, "index", {"norms": rows.norm(dim=1).tolist()})
