import pytest
import torch
from victims import TARGET, victim

from mesa_lib.attacks import trojannet
from mesa_lib.defenses.df_tnd import StraightThroughReLU, project_to_simplex, with_straight_through_relu
from mesa_lib.models import networks
from mesa_lib.reporting.tables import benchmark as tables


def test_the_last_relu_passes_all_gradients_in_the_network_that_is_represented():
    x = torch.rand(2, 3, 16, 16)
    plain = networks.build_network("smallcnn", 4, 4, (0.5,) * 3, (0.5,) * 3, 0).eval()
    module = trojannet.untrained(0)
    for model, inner in (
        (plain, lambda m: m),
        (trojannet.Merged(plain, module, torch.arange(4), (0, 0)), lambda m: m.model),
    ):
        parts = [type(part) for part in inner(with_straight_through_relu(model.eval(), x)).modules()]
        assert parts.count(StraightThroughReLU) == 1 and parts.count(torch.nn.ReLU) == 3


def test_the_gradient_of_a_silent_unit_is_one():
    x = torch.tensor([-2.0, 3.0], requires_grad=True)
    y = StraightThroughReLU()(x)
    y.sum().backward()
    assert y.tolist() == [0, 3] and x.grad.tolist() == [1, 1]


def test_the_nearest_point_of_the_simplex():
    assert torch.allclose(project_to_simplex(torch.tensor([0.2, 0.3, 0.5])), torch.tensor([0.2, 0.3, 0.5]))
    assert torch.allclose(project_to_simplex(torch.tensor([2.0, 0.0, -1.0])), torch.tensor([1.0, 0.0, 0.0]))
    projected = project_to_simplex(torch.rand(50, generator=torch.Generator().manual_seed(0)))
    assert float(projected.sum()) == pytest.approx(1) and float(projected.min()) >= 0


def test_df_tnd_ranks_the_planted_class_first():
    assert tables.top_class(victim("patch").verdict("DF-TND").result) == TARGET
