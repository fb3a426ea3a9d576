"""The networks, their weights, and the whitening layer."""

import pytest
import torch

from mesa_lib.models import networks

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)
NETWORKS = sorted(networks.NETWORKS)


def build(network="smallcnn", classes=4, width=2, seed=0):
    return networks.build_network(network, classes, width, MEAN, STD, seed)


def same(first, second) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first.values(), second.values(), strict=True))


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("size", [(16, 16), (32, 32), (33, 20), (64, 64)])
def test_any_image_size_gives_one_logit_a_class(network, size):
    assert build(network, classes=7)(torch.rand(3, 3, *size)).shape == (3, 7)


@pytest.mark.parametrize("network", NETWORKS)
def test_weights_follow_the_seed_alone(network):
    torch.manual_seed(1)
    first = build(network, seed=5).state_dict()
    torch.manual_seed(2)
    assert same(first, build(network, seed=5).state_dict())
    assert not same(first, build(network, seed=6).state_dict())


def test_building_leaves_the_global_random_numbers_alone():
    before = torch.random.get_rng_state()
    build()
    assert torch.equal(before, torch.random.get_rng_state())


def test_an_unknown_network_is_refused_by_name():
    with pytest.raises(ValueError, match="network = 'vgg'"):
        build("vgg")


def test_resnet18_at_width_64_is_the_papers_network():
    model = build("resnet18", classes=10, width=64)
    assert sum(p.numel() for p in model.parameters()) == 11_173_962  # He's ResNet-18 with a CIFAR stem
    assert sum(isinstance(m, torch.nn.Conv2d) and m.kernel_size == (3, 3) for m in model.modules()) == 17


def test_normalization_is_per_channel():
    x = torch.rand(2, 3, 4, 4)
    expected = torch.stack([(x[:, c] - MEAN[c]) / STD[c] for c in range(3)], 1)
    assert torch.allclose(networks.Normalize(MEAN, STD)(x), expected)


@pytest.mark.parametrize("network", NETWORKS)
def test_normalization_is_inside_the_network(network):
    """Images (x - mean) / std to a network without normalization are images x to one with it."""
    inside = build(network).eval()
    plain = networks.build_network(network, 4, 2, (0, 0, 0), (1, 1, 1), 0).eval()
    x = torch.rand(2, 3, 16, 16)
    by_hand = (x - torch.tensor(MEAN).reshape(3, 1, 1)) / torch.tensor(STD).reshape(3, 1, 1)
    with torch.no_grad():
        assert torch.allclose(inside(x), plain(by_hand), atol=1e-5)
        assert not torch.allclose(inside(x), plain(x), atol=1e-3)


# --- weights ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", NETWORKS)
def test_loaded_weights_predict_as_before(network):
    source, model = build(network, seed=1).eval(), build(network, seed=2).eval()
    x = torch.rand(2, 3, 16, 16)
    assert not torch.equal(model(x), source(x))
    assert torch.equal(networks.load_weights(model, source.state_dict())(x), source(x))


@pytest.mark.parametrize(
    ("other", "named"),
    [
        pytest.param({"network": "resnet18"}, "blocks.0.first.0.weight", id="architecture"),
        pytest.param({"width": 3}, r"\(3, 3, 3, 3\), expected \(2, 3, 3, 3\)", id="width"),
        pytest.param({"classes": 5}, r"head.bias: \(5,\), expected \(4,\)", id="classes"),
    ],
)
def test_weights_of_another_architecture_are_refused_with_the_difference(other, named):
    model = build()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match=named) as error:
        networks.load_weights(model, build(**other).state_dict(), "mine.safetensors")
    assert "mine.safetensors" in str(error.value)
    assert same(before, model.state_dict())


def test_a_missing_tensor_is_named():
    weights = build().state_dict()
    del weights["head.bias"]
    with pytest.raises(ValueError, match="head.bias: missing"):
        networks.load_weights(build(), weights)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value):
    weights = {k: v.clone() for k, v in build().state_dict().items()}
    weights["head.bias"][1] = value
    with pytest.raises(ValueError, match="head.bias holds NaN or infinite"):
        networks.load_weights(build(), weights)


# --- whitening and training -------------------------------------------------------------------------------


def test_the_first_layer_whitens_patches():
    """Its outputs on the patches it was set from are uncorrelated and of unit size, the rest their negatives."""
    images = torch.nn.functional.interpolate(torch.rand(200, 3, 8, 8), scale_factor=2, mode="bilinear")
    model = build("fastcnn")
    model.whiten((images * 255).byte())
    with torch.no_grad():
        model.whitened.bias.zero_()
        outputs = (
            model.whitened(model.normalize((images * 255).byte().float() / 255)).permute(0, 2, 3, 1).reshape(-1, 24)
        )
    first, second = outputs[:, :12], outputs[:, 12:]
    assert torch.equal(first, -second)
    moments = first.T @ first / len(first)
    assert (moments - torch.diag(moments.diag())).abs().max() < 0.02
    assert moments.diag().max() < 1.01 and moments.diag()[-3:].min() > 0.99  # small ones are damped
    assert not model.whitened.weight.requires_grad


@pytest.mark.parametrize("network", networks.NETWORKS)
def test_no_1x1_convolution_has_a_stride(network):
    """Their gradient may write outside its memory (oneDNN, AVX2, fewer than 8 channels): the process ends."""
    convolutions = [part for part in build(network).modules() if isinstance(part, torch.nn.Conv2d)]
    assert convolutions and all(conv.stride == (1, 1) for conv in convolutions if conv.kernel_size == (1, 1))


def test_a_narrow_resnet_can_be_trained_channels_last():
    model = build("resnet18").to(memory_format=torch.channels_last).train()
    for n in (16, 3):
        model(torch.rand(n, 3, 32, 32).contiguous(memory_format=torch.channels_last)).square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
