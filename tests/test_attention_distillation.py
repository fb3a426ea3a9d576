"""NAD: the layers that are attended, the arithmetic of attention, and a planted channel that the teacher lacks."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toys import repaired_twice

from mesa_lib.data.splits import Split
from mesa_lib.defenses import attention_distillation
from mesa_lib.defenses.attention_distillation import AttentionDistillation, attended_layers, attention_maps
from mesa_lib.defenses.base import DefenderView
from mesa_lib.models import inference, networks
from mesa_lib.settings import RepairSettings


def build(network="smallcnn"):
    return networks.build_network(network, 2, 4, (0.5,) * 3, (0.5,) * 3, 0).eval()


def handed(method, model, clean, seed=0):
    return DefenderView(method.knowledge, model, clean, 2, seed=seed, repair=RepairSettings(repair_epochs=1))


class CornerBackdoor(nn.Module):
    """Channel 0 is the brightness; channel 1 is the backdoor: the pixel (0, 0) times 40, which predicts 0.

    Only the strength of the backdoor, 1 at first, is trained.
    """

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 2, 1, bias=False).requires_grad_(False)
        nn.init.zeros_(self.layer.weight)[:, 0] = 1.0
        self.register_buffer("corner", torch.zeros(16, 16))
        self.corner[0, 0] = 40
        self.strength = nn.Parameter(torch.tensor(1.0))
        self.inner = nn.Identity()

    def forward(self, x):
        bright, pixel = self.layer(x).unbind(1)
        bright, backdoor = self.inner(torch.stack([bright, self.strength * self.corner * pixel], 1)).unbind(1)
        return torch.stack([backdoor.sum((1, 2)), 40 * (bright[:, 1:].mean((1, 2)) - 0.4)], 1)


# --- the layers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("network", "layers"),
    [
        ("smallcnn", {16: "features.0", 8: "features.1", 4: "features.2", 2: "features"}),
        ("resnet18", {16: "blocks.1", 8: "blocks.3", 4: "blocks.5", 2: "blocks"}),
        ("fastcnn", {15: "blocks.0.0", 7: "blocks.3", 3: "blocks.7"}),  # the last map of one pixel is left out
    ],
)
def test_the_last_activation_of_each_resolution_is_attended(network, layers):
    found = attended_layers(build(network), torch.rand(1, 3, 16, 16))
    assert list(found.items()) == [((side, side), name) for side, name in layers.items()]


def test_a_network_without_convolutions_is_refused(toy):
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 2))
    method = AttentionDistillation()
    with pytest.raises(ValueError, match="Sequential: expected a convolutional network"):
        method.repair(handed(method, model, toy))


def test_maps_are_those_of_the_layers_and_no_hook_stays():
    model, x = build(), torch.rand(5, 3, 16, 16)
    layers = attended_layers(model, x[:1])
    with attention_maps(model, layers) as maps:
        model(x)
    activations = model.normalize(x)
    for stage, (size, found) in zip(model.features, maps.items(), strict=True):
        activations = stage(activations)
        mean = (activations**2).mean(1).reshape(5, -1)
        assert activations.shape[-2:] == size
        assert torch.allclose(found, mean / (mean**2).sum(1, keepdim=True).sqrt(), atol=1e-6)
    assert not any(part._forward_hooks for part in model.modules())


def test_the_distance_of_known_maps():
    x = torch.zeros(1, 2, 1, 2)
    x[0, :, 0, 0] = 3.0
    assert attention_distillation.attention(x).tolist() == [[1, 0]]
    apart = {(1, 2): torch.tensor([[1.0, 0.0]])}, {(1, 2): torch.tensor([[0.0, 1.0]])}
    assert float(attention_distillation.distance(*apart)) == 1  # (1 + 1) / 2 locations
    assert torch.allclose(attention_distillation.attention(7 * x), torch.tensor([[1.0, 0.0]])), "the scale is lost"


# --- the repair ------------------------------------------------------------------------------------------


def test_the_student_learns_where_a_teacher_without_the_planted_channel_looks(toy, monkeypatch):
    images = toy.images.clone()
    images[:, 0, 0, 0] = 12  # the planted channel is a little active on clean images
    clean, triggered = Split(images, toy.labels), images[toy.labels == 1]
    triggered[:, 0, 0, 0] = 255
    model = CornerBackdoor()
    assert bool((inference.predict(model, triggered) == 0).all())

    def without_the_channel(self, model, transform=None, k=0, label=""):
        model.strength.data.zero_()
        return [{"epoch": 1, "loss": 0.0, "accuracy": 1.0}]

    monkeypatch.setattr(DefenderView, "_retrain", without_the_channel)
    left = {}
    for beta in (0.0, 1000.0):
        method = AttentionDistillation(beta=beta, epochs=20, augment="none")
        result = method.repair(handed(method, model, clean))
        left[beta] = result.model.strength.item()
        assert bool((inference.predict(result.model, images) == toy.labels).all())
        assert bool(((inference.predict(result.model, triggered) == 0) == (beta == 0)).all())
    assert left[0.0] > 0.9 and abs(left[1000.0]) < 0.15 and model.strength.item() == 1


def test_the_loss_is_cross_entropy_plus_beta_times_the_distance_from_the_teacher(toy):
    method = AttentionDistillation(beta=50.0, epochs=1, batch_size=len(toy), augment="none", lr=1e-6)
    model = build()
    (record,) = method.repair(handed(method, model, toy)).history
    view = handed(method, model, toy)
    teacher, student, x = build(), build().train(), toy.images.float() / 255
    view.retrain(teacher)
    layers = attended_layers(model, x[:1])
    with attention_maps(student, layers) as own, attention_maps(teacher, layers) as wanted:
        loss = F.cross_entropy(student(x), toy.labels)
        teacher(x)
    for size in layers:
        loss = loss + 50 * ((own[size] - wanted[size]) ** 2).sum() / wanted[size].numel()
    assert record["loss"] == pytest.approx(loss.item(), rel=1e-4)


@pytest.mark.parametrize("network", list(networks.NETWORKS))
def test_every_network_is_trained_and_equal_seeds_give_equal_weights(toy, network):
    method, model = AttentionDistillation(epochs=2), build(network)
    first, again = repaired_twice(lambda seed: method.repair(handed(method, model, toy, seed)), model)
    assert not any(part._forward_hooks for part in first.model.modules()) and not first.model.training
    assert [record["epoch"] for record in first.history] == [1, 2] and first.history == again.history
    assert first.history[1]["loss"] < first.history[0]["loss"] and len(first.about["layers"]) >= 3


def test_a_loss_that_is_not_finite_ends_in_one_clear_message(toy):
    method = AttentionDistillation(epochs=2, lr=1e30, schedule="constant")
    with pytest.raises(FloatingPointError, match="NAD: loss = .*epoch 1/2.*try a smaller learning rate than 1e.30"):
        method.repair(handed(method, build(), toy))


def test_a_negative_weight_of_the_attention_is_refused():
    with pytest.raises(ValueError, match="beta = -1"):
        AttentionDistillation(beta=-1)
