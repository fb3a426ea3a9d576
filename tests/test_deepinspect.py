import pytest
import torch
from victims import TARGET, victim

from mesa_lib.data.splits import Split
from mesa_lib.defenses.base import DefenderView
from mesa_lib.defenses.deepinspect import DeepInspect, deviation_factor
from mesa_lib.reporting.tables import benchmark as tables


class Constant(torch.nn.Module):
    """Predicts class 1 for every image."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(1.0))

    def forward(self, x):
        return self.scale * torch.tensor([0.0, 9.0, 0.0, 0.0]) + 0 * x.mean((1, 2, 3))[:, None]


def test_deepinspect_flags_nothing_where_nothing_can_be_inverted():
    method, images = DeepInspect(inversion_steps=2), torch.zeros(4, 3, 16, 16, dtype=torch.uint8)
    verdict = method.detect(DefenderView(method.knowledge, Constant(), Split(images, torch.arange(4)), 4))
    assert verdict.flagged == [] and verdict.about["compared"] == []


def test_the_double_mad_measures_the_left_side_by_itself():
    values = [1, 8, 9, 10, 11, 50, 90]  # median 10; below it 9, 2, 1, 0: median 1.5
    factor = deviation_factor(values)
    assert factor[0] == pytest.approx(9 / (1.4826 * 1.5)) and factor[3:].tolist() == [0, 0, 0, 0]


@pytest.mark.long
def test_deepinspect_ranks_the_planted_class_first():
    verdict = victim("corner").verdict("DeepInspect").result
    assert tables.top_class(verdict) == TARGET
    assert TARGET in verdict["about"]["compared"] and verdict["about"]["certainty of the inverted images"] > 0.9
