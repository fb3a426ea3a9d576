import numpy as np
import pytest
import torch
from torch import nn

from mesa_lib.attacks import trojannet
from mesa_lib.data.splits import Split
from mesa_lib.defenses.base import DefenderView, anomaly_index
from mesa_lib.defenses.last_layer import LastLayer, last_layer
from mesa_lib.models import networks


def view(model, classes=6, seed=0):
    clean = Split(torch.zeros(classes, 3, 16, 16, dtype=torch.uint8), torch.arange(classes))
    return DefenderView(LastLayer().knowledge, model.eval(), clean, classes, seed=seed)


def network(kind="smallcnn", classes=6):
    """Return a network whose rows have the means 0.01, 0.02, ... in the last layer, and unequal norms."""
    model = networks.build_network(kind, classes, 4, (0.5,) * 3, (0.5,) * 3, 0)
    with torch.no_grad():
        weight = model.head.weight
        weight += 0.01 * torch.arange(1, classes + 1)[:, None] - weight.mean(1, keepdim=True)
    return model


@pytest.mark.parametrize("kind", networks.NETWORKS)
def test_scores_are_the_means_of_the_rows_and_the_index_is_theirs(kind):
    model = network(kind)
    verdict, rows = LastLayer().detect(view(model)), model.head.weight.detach().double().numpy()
    assert verdict.scores == pytest.approx(0.01 * np.arange(1, 7), abs=1e-6)
    assert verdict.index == pytest.approx(anomaly_index(rows.mean(1), "high"))
    assert verdict.index == pytest.approx([0, 0, 0, 0.5 / 2.2239, 1.5 / 2.2239, 2.5 / 2.2239], abs=1e-3)
    assert verdict.about["norms"] == pytest.approx(np.sqrt((rows**2).sum(1)))
    assert not verdict.backdoored and verdict.suspect == 5 and verdict.on == "index"


@pytest.mark.parametrize("kind", networks.NETWORKS)
def test_a_planted_row_is_found_and_a_low_row_is_not(kind):
    model = network(kind)
    with torch.no_grad():
        model.head.weight[2] += 0.2
        model.head.weight[4] -= 0.5
    verdict = LastLayer().detect(view(model))
    assert verdict.flagged == [2] and verdict.suspect == 2 and verdict.index[4] == 0
    assert LastLayer(above=verdict.index[2] + 0.1).detect(view(model)).flagged == []


def test_a_row_of_large_weights_without_a_raised_mean_is_not_suspicious():
    model = network()
    with torch.no_grad():
        row = model.head.weight[1]
        row += 40 * (row - row.mean())
    verdict = LastLayer().detect(view(model))
    assert int(np.argmax(verdict.about["norms"])) == 1 and verdict.suspect == 5 and not verdict.backdoored


def test_biases_the_seed_and_the_earlier_layers_do_not_matter():
    model, first = network(), LastLayer().detect(view(network())).as_dict()
    with torch.no_grad():
        model.head.bias[0] = 50
        model.features[0][0][0].weight.mul_(3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert LastLayer().detect(view(model, seed=7)).as_dict() == first
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# --- which layer -----------------------------------------------------------------------------------------


def test_the_layer_is_the_head_where_there_is_one_and_else_the_last_linear_one():
    model = network()
    model.after = nn.Linear(3, 6)  # of an auxiliary output, say
    assert last_layer(model, 6) is model.head
    merged = trojannet.Merged(network(), trojannet.untrained(0), torch.arange(6), (0, 0))
    assert last_layer(merged, 6) is merged.model.head
    plain = nn.Sequential(nn.Flatten(), nn.Linear(768, 5), nn.ReLU(), nn.Linear(5, 6))
    assert last_layer(plain, 6) is plain[3]
    wrapped = nn.Sequential(nn.Flatten())
    wrapped.head = nn.Sequential(nn.Dropout(), nn.Linear(768, 6))
    assert last_layer(wrapped, 6) is wrapped.head[1]
    assert len(LastLayer().detect(view(plain)).scores) == 6


def test_a_model_without_a_fitting_last_layer_is_refused():
    convolutions = nn.Sequential(nn.Conv2d(3, 6, 16), nn.Flatten())
    with pytest.raises(ValueError, match="Sequential: expected a linear layer .* 6 outputs.*found no linear layer"):
        LastLayer().detect(view(convolutions))
    with pytest.raises(ValueError, match="SmallCNN: expected a linear layer .* 6 outputs.*found 4 outputs"):
        LastLayer().detect(view(network(classes=4), 6))


def test_two_classes_and_a_threshold_out_of_range_are_refused():
    with pytest.raises(ValueError, match="classes = 2: expected at least 3"):
        LastLayer().detect(view(network(classes=2), 2))
    for above in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="above = .*: expected"):
            LastLayer(above=above)
