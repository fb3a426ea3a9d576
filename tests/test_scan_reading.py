"""Third-party models: files and modules that are odd, broken or meant to harm end in a model or in one message."""

import json
import math
import os
import pickle
import struct
import sys
import warnings

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save, save_file
from torch import nn
from torchvision import models as torchvision_models
from toys import Coded, coded_images

from mesa_lib import scan as scanning
from mesa_lib import store, training
from mesa_lib.cli import main
from mesa_lib.models import networks
from mesa_lib.models.frozen import frozen
from mesa_lib.scan.reading import checkpoint, cifar_networks, wrapped
from mesa_lib.scan.reading import networks as architectures
from mesa_lib.scan.reading.wrapped import WrappedClassifier

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.2, 0.2)
NO_HEADER = checkpoint.Header({}, "none", None, {})


def small(classes=3, width=4):
    return networks.build_network("smallcnn", classes, width, MEAN, STD, seed=0)


def weights(classes=3):
    return small(classes).state_dict()


def written(tmp_path, held, name="model.safetensors"):
    save_file(held, tmp_path / name)
    return tmp_path / name


def read(tmp_path, held, network="smallcnn", classes=3, *inputs):
    return scanning.read_model(written(tmp_path, held), network, classes, *inputs)


def sample(side=32):
    return torch.rand(4, 3, side, side, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def coded():
    return coded_images()


# --- networks and their files ----------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["smallcnn", "resnet18", "fastcnn"])
def test_a_network_of_this_project_is_read_with_its_width_and_normalization(tmp_path, network):
    original = networks.build_network(network, 3, 8, MEAN, STD, seed=0).eval()
    model = read(tmp_path, original.state_dict(), network)
    assert torch.allclose(model(sample()), original(sample()), atol=1e-6)


def test_a_network_of_torchvision_is_read_at_64_pixels_and_in_half_precision(tmp_path):
    original = torchvision_models.resnet18(num_classes=5).eval()
    half = {k: t.half() if t.is_floating_point() else t for k, t in original.state_dict().items()}
    model = read(tmp_path, half, "torchvision:resnet18", 5, MEAN, STD)
    expected = original(networks.Normalize(MEAN, STD)(sample(64)))
    assert (model(sample(64)) - expected).abs().max() < 0.05 * expected.abs().max()


def test_mean_and_std_can_be_named_where_the_file_has_none(tmp_path):
    held = {k: t for k, t in weights().items() if "normalize" not in k}
    with pytest.raises(ValueError, match="holds no normalize.mean; name mean and std"):
        read(tmp_path, held)
    named = read(tmp_path, held, "smallcnn", 3, MEAN, STD)
    assert torch.allclose(named(sample()), small().eval()(sample()), atol=1e-6)


def test_the_normalization_of_earlier_versions_is_read_under_its_old_name(tmp_path):
    expected = read(tmp_path, weights())(sample())
    old = {name.replace("normalize", "normalise"): t for name, t in weights().items()}
    assert any("normalise.mean" in name for name in old)
    model = read(tmp_path, old)
    assert torch.equal(model(sample()), expected)
    assert "'normalise'" in model.notes[0] and "read as 'normalize'" in model.notes[0]
    inside = read(tmp_path, {f"module.{name}": t for name, t in old.items()})
    assert torch.equal(inside(sample()), expected)
    with pytest.raises(ValueError, match="not known: normalise.mean"):
        read(tmp_path, weights() | {"normalise.mean": torch.zeros(1, 3, 1, 1)})


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_precisions_are_read(tmp_path, kind):
    expected = read(tmp_path, weights())(sample())
    other = {name: t.to(kind) if t.is_floating_point() else t for name, t in weights().items()}
    assert torch.allclose(read(tmp_path, other)(sample()), expected, atol=0.05)


def test_wrappers_and_missing_counters_make_no_difference_and_are_noted(tmp_path):
    expected = read(tmp_path, weights())(sample())
    prefixed = read(tmp_path, {f"_orig_mod.module.{name}": t for name, t in weights().items()})
    assert torch.equal(prefixed(sample()), expected)
    assert "'_orig_mod.'" in " ".join(prefixed.notes) and "'module.'" in " ".join(prefixed.notes)
    bare = read(tmp_path, {name: t for name, t in weights().items() if "num_batches_tracked" not in name})
    assert torch.equal(bare(sample()), expected) and "counters of batches" in bare.notes[0]


def test_a_network_below_a_name_is_read_or_reported_to_be_there(tmp_path):
    below = {f"state_dict.backbone.{name}": t for name, t in weights().items()}
    assert torch.equal(read(tmp_path, below)(sample()), read(tmp_path, weights())(sample()))
    with pytest.raises(ValueError, match="lie below 'state_dict.backbone.', with 1 tensors beside them .centers."):
        read(tmp_path, below | {"centers": torch.ones(2)})
    with pytest.raises(ValueError, match="another architecture"):
        read(tmp_path, {f"{500 * '.'}{name}1": t for name, t in weights().items()} | weights())


def test_safetensors_are_recognized_by_their_content(tmp_path):
    assert scanning.read_model(written(tmp_path, weights(), "model.pt"), "smallcnn", 3)(sample()).shape == (4, 3)


#: one of every family of torchvision whose code is unlike the others'
FAMILIES = ["alexnet", "densenet121", "googlenet", "mnasnet0_5", "squeezenet1_1", "vit_b_32"]


def builds_without_memory(name):
    model = architectures.without_memory(architectures.torchvision_network(f"torchvision:{name}", 3, NO_HEADER))
    assert all(tensor.is_meta for tensor in model.state_dict().values()), name


@pytest.mark.parametrize("name", FAMILIES)
def test_a_classifier_of_torchvision_can_be_built_without_memory(name):
    builds_without_memory(name)


@pytest.mark.long
def test_every_classifier_of_torchvision_can_be_built_without_memory():
    for name in torchvision_models.list_models(module=torchvision_models):
        if not name.startswith("regnet"):  # their code computes with tensors
            builds_without_memory(name)


@pytest.mark.parametrize(
    ("name", "options"),
    [("regnet_y_400mf", {}), ("swin_t", {}), ("googlenet", {"aux_logits": False}), ("googlenet", {"aux_logits": True})],
)
def test_networks_with_peculiarities_are_read(tmp_path, name, options):
    extra = {"init_weights": True} if name == "googlenet" else {}
    original = torchvision_models.get_model(name, weights=None, num_classes=3, **options, **extra).eval()
    held = {key: t.clone() for key, t in original.state_dict().items()}
    model = read(tmp_path, held, f"torchvision:{name}", 3, MEAN, STD)
    x = sample(64)
    with torch.no_grad():
        assert torch.allclose(model(x), original(networks.Normalize(MEAN, STD)(x)), atol=1e-4)
    model.train()(x)  # as in a repair
    assert any("auxiliary heads" in note for note in model.notes) == options.get("aux_logits", False)
    if name == "swin_t":
        fixed = next(key for key in held if key.endswith("relative_position_index"))
        with pytest.raises(ValueError, match="relative_position_index differs from the architecture's"):
            read(tmp_path, held | {fixed: held[fixed] + 1000}, f"torchvision:{name}", 3, MEAN, STD)


# --- files that are refused ------------------------------------------------------------------------------


class Bomb:
    def __reduce__(self):
        return exec, ("raise SystemExit('the bomb went off')",)


def header(text: bytes, length=None) -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text


WHOLE = save(weights())
LYING = json.dumps({"head.weight": {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 8]}}).encode()
OVERLAP = json.dumps({n: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for n in ("a", "b")}).encode()
BROKEN = {
    "pickle": (pickle.dumps(Bomb()), "is a pickle: loading one runs whatever code it holds"),
    "pickle in a zip": (b"PK\x03\x04" + pickle.dumps(Bomb()), "is a pickle"),
    "truncated": (WHOLE[: len(WHOLE) // 2], "expected a whole safetensors file"),
    "a header longer than the file": (header(b"{}", 10**6), "expected a whole safetensors file"),
    "a header of exabytes": (header(b"{}", 2**63), "expected a whole safetensors file"),
    "shapes that are not there": (header(LYING) + bytes(8), "expected a whole safetensors file"),
    "tensors over each other": (header(OVERLAP) + bytes(8), "expected a whole safetensors file"),
    "no json": (header(b"[1, 2"), "expected a whole safetensors file"),
    "nothing": (b"", "expected a whole safetensors file"),
    "no tensors": (save({}), "0 tensors; expected those of one classifier"),
    "another network": (save({"w": torch.ones(2)}), "no smallcnn .it has no fitting head.weight"),
    "nan": (
        save(weights() | {"head.bias": torch.tensor([0.0, float("nan"), 1.0])}),
        "head.bias holds NaN or infinite values",
    ),
    "infinite": (
        save(weights() | {"features.0.0.0.weight": torch.full((4, 3, 3, 3), float("inf"))}),
        "features.0.0.0.weight holds NaN or infinite values",
    ),
    "twelve classes": (save(weights(12)), "the model has 12 classes, the images have 3"),
}


@pytest.fixture
def tree(tmp_path):
    """Three classes of six images, 16x16."""
    for k, name in enumerate(("cat", "dog", "owl")):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(6):
            Image.new("RGB", (16, 16), (80 * k, 10 * i, 0)).save(tmp_path / "images" / name / f"{i}.png")
    return tmp_path / "images"


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_or_hostile_checkpoint_is_one_message(what, tmp_path, tree, capsys):
    content, message = BROKEN[what]
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        scanning.read_model(tmp_path / "model.safetensors", "smallcnn", 3)
    assert main.main(["scan", str(tmp_path / "model.safetensors"), str(tree), "--network", "smallcnn"]) == 1
    shown = capsys.readouterr().err
    assert "Traceback" not in shown and shown.splitlines()[-1].startswith(("mesa: ", "Turn it into"))


BAD_REQUESTS = {
    "network": ({"network": "vgg"}, "'vgg': expected one of smallcnn, resnet18, fastcnn, cifar:NAME with .*any module"),
    "cifar": ({"network": "cifar:resnet20"}, "cifar:NAME with resnet18, resnet34"),
    "torchvision": ({"network": "torchvision:resnet19"}, "did you mean torchvision:resnet"),
    "capitals": ({"network": "cifar:ResNet18"}, r"did you mean cifar:resnet18, torchvision:resnet18\?"),
    "bare": ({"network": "resnet50"}, r"did you mean cifar:resnet50, torchvision:resnet50\?"),
    "detector": ({"network": "torchvision:fasterrcnn_resnet50_fpn"}, "network = "),
    "other width": ({"network": "resnet18"}, "another architecture than ResNet18|no resnet18"),
    "mean": ({"mean": (0.5, 0.5)}, r"mean = \(0.5, 0.5\): expected three numbers, or one"),
    "std": ({"mean": MEAN, "std": (0.2, 0, 0.2)}, "std = .*all above 0"),
    "other mean": ({"mean": (0.1, 0.1, 0.1)}, r"mean = \(0.1, 0.1, 0.1\): expected the file's, \[0.5, 0.4, 0.3\]"),
}


@pytest.mark.parametrize("what", BAD_REQUESTS)
def test_a_request_that_does_not_fit_the_file_is_refused(what, tmp_path):
    request, message = BAD_REQUESTS[what]
    with pytest.raises(ValueError, match=message):
        scanning.read_model(written(tmp_path, weights()), **({"network": "smallcnn", "classes": 3} | request))


# --- networks that people have -------------------------------------------------------------------------------

#: parameters of the published code, for ten classes
PARAMETERS = {
    "resnet18": 11_173_962, "resnet34": 21_282_122, "resnet50": 23_520_842, "preactresnet18": 11_171_146,
    "vgg16": 14_728_266, "vgg19": 20_040_522,
}  # fmt: skip


@pytest.mark.parametrize("name", PARAMETERS)
def test_networks_of_cifar_checkpoints_have_the_published_size(name):
    network = architectures.without_memory(cifar_networks.builder(name, 10))
    assert sum(p.numel() for p in network.parameters()) == PARAMETERS[name]


def as_published(held: dict, prefix: str = "") -> dict:
    """Torchvision's ResNet with a 3x3 stem, under the names of most CIFAR checkpoints."""
    return {prefix + k.replace("downsample", "shortcut").replace("fc.", "linear."): v for k, v in held.items()}


def with_small_stem(channels: int = 3) -> nn.Module:
    torch.manual_seed(0)
    original = torchvision_models.resnet18(num_classes=3)
    original.conv1, original.maxpool = nn.Conv2d(channels, 64, 3, 1, 1, bias=False), nn.Identity()
    return original.eval()


@pytest.mark.parametrize("prefix", ["", "module.", "model.net."])
def test_a_public_resnet18_for_cifar_is_read_under_its_names(tmp_path, prefix):
    original = with_small_stem()
    model = read(tmp_path, as_published(original.state_dict(), prefix), "cifar:resnet18", 3, MEAN, STD)
    expected = original(networks.Normalize(MEAN, STD)(sample()))
    assert torch.allclose(model(sample()), expected, atol=1e-4)


def test_a_preactivated_block_normalizes_before_it_convolves():
    block = cifar_networks.PreActBlock(2, 2, 1).eval()
    block.conv1.weight.data.zero_()
    block.conv2.weight.data.zero_()
    x = torch.randn(1, 2, 4, 4)
    assert torch.equal(block(x), x) and not hasattr(block, "shortcut"), "the shortcut is the input itself"
    wider = cifar_networks.PreActBlock(2, 4, 2).eval()
    wider.conv2.weight.data.zero_()
    activated = nn.functional.relu(wider.bn1(x))
    assert torch.allclose(wider(x), nn.functional.conv2d(activated, wider.shortcut[0].weight, stride=2))


@pytest.mark.parametrize("name", ["preactresnet18", "vgg11", "resnet50"])
def test_every_kind_of_network_for_cifar_is_read(tmp_path, name):
    original = cifar_networks.builder(name, 3)().eval()
    model = read(tmp_path, original.state_dict(), f"cifar:{name}", 3, MEAN, STD)
    assert torch.allclose(model(sample()), original(networks.Normalize(MEAN, STD)(sample())), atol=1e-5)


def test_usual_changes_of_a_torchvision_network_are_seen_in_the_file(tmp_path):
    original = with_small_stem()
    model = read(tmp_path, original.state_dict(), "torchvision:resnet18", 3, MEAN, STD)
    assert torch.allclose(model(sample()), original(networks.Normalize(MEAN, STD)(sample())), atol=1e-4)
    assert "without max pooling" in model.notes[0]
    plain = torchvision_models.resnet18(num_classes=3).eval()
    held = {k.replace("fc.", "fc.1."): v for k, v in plain.state_dict().items()}
    dropped = read(tmp_path, held, "torchvision:resnet18", 3, MEAN, STD)
    assert torch.allclose(dropped(sample(64)), plain(networks.Normalize(MEAN, STD)(sample(64))), atol=1e-4)
    assert dropped.notes == []


@pytest.mark.parametrize(("network", "rename"), [("torchvision:resnet18", dict), ("cifar:resnet18", as_published)])
def test_a_network_for_one_channel_gets_the_mean_of_three(tmp_path, network, rename):
    original = with_small_stem(channels=1)
    model = read(tmp_path, rename(original.state_dict()), network, 3, (0.5,), (0.2,))
    gray = sample().mean(1, keepdim=True)
    assert torch.allclose(model(sample()), original((gray - 0.5) / 0.2), atol=1e-4)
    assert "one channel" in model.notes[-1]


def test_any_module_for_one_channel_can_be_prepared(coded):
    one = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    assert scanning.prepare(one, coded.split.images, 3).channels == 1


@pytest.mark.parametrize(
    ("network", "meant"),
    [("torchvision:resnet18", "cifar:resnet18"), ("resnet18", "cifar:resnet18"), ("cifar:vgg16", "cifar:resnet18")],
)
def test_a_file_under_a_wrong_name_gets_the_right_one(tmp_path, network, meant):
    with pytest.raises(ValueError, match=rf"did you mean {meant}\?$"):
        read(tmp_path, as_published(with_small_stem().state_dict()), network, 3, MEAN, STD)
    with pytest.raises(ValueError, match="another architecture") as refused:
        read(tmp_path, {"a": torch.ones(3), "b": torch.ones(3)}, "cifar:resnet18", 3, MEAN, STD)
    assert "did you mean" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "size"), [("resnet10t", 64), ("mobilenetv3_small_050", 64), ("vit_tiny_patch16_224", 224)]
)
def test_a_network_of_timm_is_read(tmp_path, name, size):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    original = timm.create_model(name, num_classes=3).eval()
    model = read(tmp_path, original.state_dict(), f"timm:{name}", 3, MEAN, STD)
    x = sample(size)
    assert torch.allclose(model(x), original(networks.Normalize(MEAN, STD)(x)), atol=1e-5)


@pytest.mark.parametrize("network", ["resnet18", "cifar:resnet18", "torchvision:resnet18"])
def test_a_file_of_this_project_under_another_name_gets_a_hint(tmp_path, network):
    own = networks.build_network("smallcnn", 3, 8, MEAN, STD, seed=0).state_dict()
    with pytest.raises(ValueError, match=r"did you mean smallcnn\?$"):
        read(tmp_path, own, network, 3, MEAN, STD)


def test_a_misspelled_network_of_this_project_gets_a_hint(tmp_path):
    with pytest.raises(ValueError, match=r"did you mean smallcnn\?$"):
        read(tmp_path, weights(), "smalcnn", 3, MEAN, STD)


def test_a_file_of_timm_under_another_name_gets_a_hint(tmp_path):
    timm = pytest.importorskip("timm")
    weights_of = timm.create_model("vit_tiny_patch16_224", num_classes=3).state_dict()
    with pytest.raises(ValueError, match=r"did you mean timm:vit_tiny_patch16_224\?$"):
        read(tmp_path, weights_of, "torchvision:vit_b_16", 3, MEAN, STD)


@pytest.mark.parametrize(
    ("error", "advice"),
    [("mat1 and mat2 shapes cannot be multiplied", "try another image_size"), ("no such key", "expected a network of")],
)
def test_another_image_size_is_advised_where_it_can_help(error, advice):
    class Failing(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(3, 3)

        def forward(self, x):
            raise RuntimeError(error)

    with pytest.raises(ValueError, match=rf"16x16 pixels \({error}\); {advice}"):
        scanning.prepare(Failing(), torch.zeros(8, 3, 16, 16, dtype=torch.uint8), 3)


@pytest.mark.parametrize("side", [28, 224])
def test_the_size_that_a_model_takes_is_named(side):
    network = nn.Sequential(nn.AvgPool2d(side // 7), nn.Flatten(), nn.Linear(3 * 49, 3))
    with pytest.raises(
        ValueError, match=rf"; it takes {side} pixels: try image_size = {side} \(--image-size {side}\)$"
    ):
        scanning.prepare(network, torch.zeros(8, 3, 100, 100, dtype=torch.uint8), 3)


def test_timm_is_asked_for_one_channel_and_names_near_ones(tmp_path):
    timm = pytest.importorskip("timm")
    one = timm.create_model("resnet10t", num_classes=3, in_chans=1).eval()
    model = read(tmp_path, one.state_dict(), "timm:resnet10t", 3, (0.5,), (0.2,))
    assert model.channels == 1 and model(sample(64)).shape == (4, 3)
    with pytest.raises(ValueError, match="timm has no network of this name, but timm:resnet"):
        read(tmp_path, weights(), "timm:resnet_no_such", 3, MEAN, STD)


def hugging_face_folder(folder, **changes):
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        hidden_sizes=[4, 8], depths=[1, 1], embedding_size=4, layer_type="basic", num_labels=3
    )  # fmt: skip
    torch.manual_seed(0)
    original = transformers.AutoModelForImageClassification.from_config(config).eval()
    original.save_pretrained(folder)
    settings = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(settings))
    inputs = {"do_normalize": True, "image_mean": list(MEAN), "image_std": list(STD)}
    (folder / "preprocessor_config.json").write_text(json.dumps(inputs))
    return original


def test_a_folder_of_hugging_face_is_read_with_its_normalization(tmp_path):
    original = hugging_face_folder(tmp_path)
    model = scanning.read_model(tmp_path / "model.safetensors", f"hf:{tmp_path}", 3)
    expected = original(networks.Normalize(MEAN, STD)(sample(64))).logits
    assert torch.allclose(model(sample(64)), expected, atol=1e-5)
    named = scanning.read_model(tmp_path / "model.safetensors", f"hf:{tmp_path}", 3, (0.1,), (0.9,))
    assert named.normalize.mean.flatten().tolist() == pytest.approx([0.1] * 3)


@pytest.mark.parametrize("kind", ["ViTConfig", "SwinConfig"])
def test_networks_that_transformers_saves_under_other_names_are_read(tmp_path, kind):
    transformers = pytest.importorskip("transformers")
    sizes = {
        "ViTConfig": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16},
        "SwinConfig": {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4},
    }[kind]
    config = getattr(transformers, kind)(image_size=32, patch_size=4, num_labels=3, **sizes)
    torch.manual_seed(0)
    original = transformers.AutoModelForImageClassification.from_config(config).eval()
    original.save_pretrained(tmp_path)
    model = scanning.read_model(tmp_path / "model.safetensors", f"hf:{tmp_path}", 3, MEAN, STD)
    expected = original(networks.Normalize(MEAN, STD)(sample())).logits
    assert torch.allclose(model(sample()), expected, atol=1e-5)
    held = load_file(tmp_path / "model.safetensors")
    save_file({k: v for k, v in held.items() if "classifier" not in k}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="another architecture"):
        scanning.read_model(tmp_path / "model.safetensors", f"hf:{tmp_path}", 3, MEAN, STD)


HOSTILE_FOLDERS = {
    "remote code": ({"auto_map": {"AutoModel": "modeling.Evil"}}, "asks for code of its own"),
    "no classifier": ({"model_type": "bert"}, "model_type = 'bert'; expected a classifier of images"),
    "other classes": ({"id2label": {"0": "a", "1": "b"}}, "the model has 2 classes, the images have 3"),
    "too many layers": ({"depths": [10**6, 1]}, "depths = 1000000; expected at most 500"),
    "too wide": ({"hidden_sizes": [10**9, 8]}, "hidden_sizes = 1000000000; expected at most 100000"),
    "wrong type": ({"hidden_sizes": "many"}, "config.json|Error"),
    "other sizes": ({"hidden_sizes": [4, 16]}, "another architecture"),
}


@pytest.mark.parametrize("kind", HOSTILE_FOLDERS)
def test_a_hostile_folder_of_hugging_face_is_one_message(tmp_path, kind):
    changes, message = HOSTILE_FOLDERS[kind]
    hugging_face_folder(tmp_path, **changes)
    (tmp_path / "modeling.py").write_text("open('ran', 'w')")
    with pytest.raises(ValueError, match=message) as refused:
        scanning.read_model(tmp_path / "model.safetensors", f"hf:{tmp_path}", 3)
    assert "\n" not in str(refused.value) and not (tmp_path / "ran").exists()


def test_a_folder_without_settings_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"config.json: No such file.*expected a folder with config.json"):
        read(tmp_path, weights(), f"hf:{tmp_path}", 3, MEAN, STD)
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="config.json is no JSON file"):
        read(tmp_path, weights(), f"hf:{tmp_path}", 3, MEAN, STD)


def test_layers_with_versions_are_read_though_safetensors_hold_none(tmp_path):
    original = torchvision_models.mnasnet0_5(num_classes=3).eval()
    model = read(tmp_path, original.state_dict(), "torchvision:mnasnet0_5", 3, MEAN, STD)
    assert torch.allclose(model(sample(64)), original(networks.Normalize(MEAN, STD)(sample(64))), atol=1e-5)


def exported(file, network: nn.Module, size: int = 32, channels: int = 3, fixed: int = 0):
    pytest.importorskip("onnxscript")
    shapes = {} if fixed else {"dynamic_shapes": ({0: torch.export.Dim("batch")},)}
    x = torch.rand(fixed or 2, channels, size, size)
    torch.onnx.export(network.eval(), (x,), file, dynamo=True, verbose=False, external_data=False, **shapes)
    return file


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("fixed", [0, 1, 3])
def test_an_onnx_file_is_read_with_gradients(tmp_path, fixed, capsys):
    original = cifar_networks.ResNet(cifar_networks.BasicBlock, (1, 1, 1, 1), 3).eval()
    file = exported(tmp_path / "m.onnx", original, fixed=fixed)
    model = scanning.read_model(file, "onnx", 3, MEAN, STD)
    x = sample().requires_grad_()
    assert torch.allclose(model(x), original(networks.Normalize(MEAN, STD)(x)), atol=1e-4)
    (gradient,) = torch.autograd.grad(model(x).square().sum(), x)
    assert float(gradient.abs().max()) > 0 and ("batches of" in " ".join(model.notes)) is bool(fixed)
    with pytest.raises(ValueError, match="mean and std of its inputs have to be named"):
        scanning.read_model(file, "onnx", 3)


def test_an_onnx_file_that_stores_equal_weights_once_is_read(tmp_path):
    """As the exporter by tracing writes it; the normalizations of an untrained network are all equal."""
    pytest.importorskip("onnx2pytorch")
    original = cifar_networks.ResNet(cifar_networks.PreActBlock, (1, 1, 1, 1), 3).eval()
    file = tmp_path / "m.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(original, (sample(),), file, dynamo=False, input_names=["x"], dynamic_axes={"x": {0: "n"}})
    model = scanning.read_model(file, "onnx", 3, MEAN, STD)
    assert torch.allclose(model(sample()), original(networks.Normalize(MEAN, STD)(sample())), atol=1e-4)


def changed_onnx(file, change):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(str(file), load_external_data=False)
    change(model)
    file.write_bytes(model.SerializeToString())


def elsewhere(model):
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = 1
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../secret"


HOSTILE_ONNX = {
    "weights elsewhere": (elsewhere, "lies outside the file, which is not read"),
    "huge claim": (lambda m: m.graph.initializer[0].dims.__setitem__(0, 2**40), "claims the shape"),
    "lying shape": (lambda m: m.graph.initializer[0].dims.__setitem__(0, 7), "claims .* numbers and holds"),
    "negative shape": (lambda m: m.graph.initializer[0].dims.__setitem__(0, -4), "claims the shape"),
    "unknown operation": (lambda m: setattr(m.graph.node[0], "op_type", "Evil"), "cannot be translated to PyTorch"),
    "no graph": (lambda m: m.graph.ClearField("node"), "holds no graph"),
    "two inputs": (lambda m: m.graph.input.append(m.graph.input[0]), "takes 2 inputs"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", HOSTILE_ONNX)
def test_a_hostile_onnx_file_is_one_message(tmp_path_factory, tmp_path, kind, plain_onnx):
    change, message = HOSTILE_ONNX[kind]
    file = tmp_path / "m.onnx"
    file.write_bytes(plain_onnx.read_bytes())
    changed_onnx(file, change)
    with pytest.raises(ValueError, match=message) as refused:
        scanning.read_model(file, "onnx", 3, MEAN, STD)
    assert "\n" not in str(refused.value)


@pytest.fixture(scope="module")
def plain_onnx(tmp_path_factory):
    small_one = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    return exported(tmp_path_factory.mktemp("onnx") / "m.onnx", small_one)


def test_what_is_no_onnx_file_is_one_message(tmp_path):
    for content in (b"", b"no graph", bytes(range(256)) * 40):
        (tmp_path / "m.onnx").write_bytes(content)
        with pytest.raises(ValueError, match="expected an ONNX file"):
            scanning.read_model(tmp_path / "m.onnx", "onnx", 3, MEAN, STD)
    with pytest.raises(FileNotFoundError, match="no such file; expected an ONNX file"):
        scanning.read_model(tmp_path / "none.onnx", "onnx", 3, MEAN, STD)


@pytest.mark.parametrize(
    ("network", "package"), [("timm:resnet18", "timm"), ("onnx", "onnx"), ("hf:folder", "transformers")]
)
def test_a_package_that_is_missing_is_named_with_its_command(tmp_path, monkeypatch, network, package):
    (tmp_path / "m.onnx").write_bytes(b"")
    monkeypatch.setitem(sys.modules, package, None)
    if network == "hf:folder":
        network = f"hf:{tmp_path}"
        (tmp_path / "config.json").write_text('{"num_labels": 3, "model_type": "resnet"}')
    file = tmp_path / "m.onnx" if network == "onnx" else written(tmp_path, weights())
    with pytest.raises(ValueError, match=rf"needs {package}; install it with: pip install 'mesa-lib\[scan\]'"):
        scanning.read_model(file, network, 3, MEAN, STD)


OWN_CODE = """
import torch
from pathlib import Path
from torch import nn

Path(__file__).with_name("ran").touch()

def mine(num_classes, width=4):
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes))

def broken():
    raise KeyError("no such layer")

def number():
    return 3

def leaves():
    raise SystemExit(3)
"""

WITH_IMPORTS = """
from __future__ import annotations
from dataclasses import dataclass
from blocks import head

@dataclass
class Plan:
    width: int = 4

def beside(num_labels):
    return head(Plan().width, num_labels)
"""


def test_a_network_of_the_user_s_code_is_built_where_that_is_allowed(tmp_path):
    (tmp_path / "mine.py").write_text(OWN_CODE)
    torch.manual_seed(0)
    original = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    file, asked = written(tmp_path, original.state_dict()), f"{tmp_path / 'mine.py'}:mine"
    with pytest.raises(ValueError, match="would run the code of that file.*add --trust-code"):
        scanning.read_model(file, asked, 3, MEAN, STD)
    assert not (tmp_path / "ran").exists()
    model = scanning.read_model(file, asked, 3, MEAN, STD, trust_code=True)
    assert (tmp_path / "ran").exists()
    assert torch.allclose(model(sample()), original(networks.Normalize(MEAN, STD)(sample())), atol=1e-6)
    (tmp_path / "blocks.py").write_text(
        "from torch import nn\nhead = lambda width, classes: nn.Sequential(nn.Conv2d(3, width, 3), "
        "nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))"
    )
    (tmp_path / "other.py").write_text(WITH_IMPORTS)
    beside = scanning.read_model(file, f"{tmp_path / 'other.py'}:beside", 3, MEAN, STD, trust_code=True)
    assert torch.equal(beside(sample()), model(sample())) and str(tmp_path) not in sys.path
    (tmp_path / "bad.py").write_text("import no_such_package")
    refused = {
        f"{tmp_path / 'mine.py'}:other": "no function of this name; expected one of mine, broken, number, leaves",
        f"{tmp_path / 'mine.py'}:broken": "KeyError: 'no such layer'",
        f"{tmp_path / 'mine.py'}:number": "returns a int; expected a torch.nn.Module",
        f"{tmp_path / 'mine.py'}:leaves": "SystemExit: 3",
        f"{tmp_path / 'none.py'}:mine": "no such file",
        f"{tmp_path / 'bad.py'}:mine": "ModuleNotFoundError",
    }
    for network, message in refused.items():
        with pytest.raises(ValueError, match=message):
            scanning.read_model(file, network, 3, MEAN, STD, trust_code=True)


def test_torchvision_needs_mean_and_std(tmp_path):
    with pytest.raises(ValueError, match="mean and std of its inputs have to be named"):
        read(tmp_path, weights(), "torchvision:resnet18")


def test_another_number_of_classes_is_reported_as_such(tmp_path):
    held = torchvision_models.squeezenet1_1(num_classes=7).state_dict()
    with pytest.raises(ValueError, match="the model has 7 classes, the images have 3"):
        read(tmp_path, held, "torchvision:squeezenet1_1", 3, MEAN, STD)


@pytest.mark.parametrize("kind", [torch.int8, torch.bool, torch.complex64, torch.float8_e4m3fn])
def test_weights_of_other_types_are_refused_and_not_cast(tmp_path, kind):
    held = weights() | {"head.bias": torch.ones(3).to(kind)}
    with pytest.raises(ValueError, match="head.bias .*; expected floating-point weights .BF16, F16, F32, F64"):
        read(tmp_path, held)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features.0.0.1.running_var": torch.full((4,), -1.0)}, "running_var is -1; expected variances"),
        ({"normalize.std": torch.zeros(1, 3, 1, 1)}, "normalize.std is 0; expected numbers above 0"),
        ({"features.0.0.1.num_batches_tracked": torch.ones(1).long()}, "1 of another shape: .*num_batches_tracked"),
        ({"more": torch.ones(2)}, "1 not known: more"),
        ({"\x1b[31mred\n" + 300 * "x": torch.ones(2)}, r"1 not known: \\x1b\[31mred\\nx+\.\.\."),
    ],
)
def test_what_does_not_fit_is_named_in_one_printable_line(tmp_path, change, message):
    with pytest.raises(ValueError, match=message) as caught:
        read(tmp_path, weights() | change)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 500


def test_a_pipe_or_nothing_is_no_checkpoint(tmp_path):
    os.mkfifo(tmp_path / "model.safetensors")
    for name in ("model.safetensors", "none.safetensors"):
        with pytest.raises(FileNotFoundError, match="no such file"):
            checkpoint.read_header(tmp_path / name)


# --- headers that lie ------------------------------------------------------------------------------------


def claiming(tensors: dict) -> bytes:
    """Return the header of a safetensors file that claims to hold these: name -> (type, shape, bytes)."""
    start, claims = 0, {}
    for name, (kind, shape, size) in tensors.items():
        claims[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, start + size]}
        start += size
    return header(json.dumps(claims).encode())


@pytest.mark.parametrize(
    "tensors",
    [
        {"head.weight": ("F16", [3, 2**14], 2 * 3 * 2**14)},  # a network of gigabytes
        {"head.weight": ("F16", [3, 16], 96), "more": ("F16", [2**29], 2**30)},  # a gigabyte of nothing
    ],
)
def test_nothing_is_loaded_or_built_before_the_header_fits(tmp_path, monkeypatch, tensors):
    file = tmp_path / "model.safetensors"
    start = claiming(tensors)
    with open(file, "wb") as stream:
        stream.write(start)
        stream.truncate(len(start) + sum(size for _, _, size in tensors.values()))
    monkeypatch.setattr(store, "load_checkpoint", lambda *a, **options: pytest.fail("loaded"))
    monkeypatch.setattr(torch.nn.Module, "load_state_dict", lambda *a: pytest.fail("built"))
    with pytest.raises(ValueError, match="of another architecture than SmallCNN .* missing"):
        scanning.read_model(file, "smallcnn", 3, MEAN, STD)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 3000), st.binary(min_size=1, max_size=12))
def test_no_checkpoint_ends_in_a_traceback(tmp_path, at, junk):
    """Bytes overwritten anywhere in the header or the first weights: a model, or one message."""
    file = tmp_path / "model.safetensors"
    file.write_bytes(WHOLE[:at] + junk + WHOLE[at + len(junk) :])
    try:
        model = scanning.read_model(file, "smallcnn", 3)
    except ValueError as error:
        assert len(str(error)) < 2000
    else:
        assert all(torch.isfinite(t).all() for t in model.state_dict().values())


SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I8": 1, "BOOL": 1, "U16": 2, "F8_E4M3": 1, "F4": 1, "X": 4}
NAMES = st.sampled_from(sorted(weights())) | st.text(max_size=12)
SHAPES = st.lists(st.integers(0, 40) | st.sampled_from([2**14, 2**40]), max_size=4)
CLAIMS = st.tuples(st.sampled_from(sorted(SIZES)), SHAPES)


def ends_in_a_message_or_a_model(tmp_path, network, own, claims, honest, *inputs):
    """A header that claims these tensors, in place of the network's own or beside them, is refused or read."""
    own = {name: ("I64" if "batches" in name else "F32", list(t.shape)) for name, t in own.items()}
    tensors = {name: (kind, shape, SIZES[kind] * math.prod(shape)) for name, (kind, shape) in (own | claims).items()}
    start, size = claiming(tensors), sum(size for _, _, size in tensors.values())
    (tmp_path / "model.safetensors").write_bytes(start + b"?" * (min(size, 10**5) if honest else 100))
    try:
        model = scanning.read_model(tmp_path / "model.safetensors", network, 3, *inputs)
    except ValueError as error:
        assert str(error).isprintable() and len(str(error)) < 1500
    else:
        assert all(torch.isfinite(t).all() for t in model.state_dict().values())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(NAMES, CLAIMS, max_size=3), st.booleans())
def test_no_claim_of_a_header_ends_in_a_traceback(tmp_path, claims, honest):
    """Tensors of any type and shape that are there or are not."""
    ends_in_a_message_or_a_model(tmp_path, "smallcnn", weights(), claims, honest)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data(), st.sampled_from(("squeezenet1_1", "shufflenet_v2_x0_5", "mobilenet_v3_small")), st.booleans())
def test_no_claim_for_a_network_of_torchvision_ends_in_a_traceback(tmp_path, data, network, honest):
    build = architectures.torchvision_network(f"torchvision:{network}", 3, NO_HEADER)
    own = architectures.without_memory(build).state_dict()
    claims = data.draw(st.dictionaries(st.sampled_from(sorted(own)) | st.text(max_size=12), CLAIMS, max_size=3))
    ends_in_a_message_or_a_model(tmp_path, f"torchvision:{network}", own, claims, honest, MEAN, STD)


# --- any module ------------------------------------------------------------------------------------------


def test_large_batches_go_through_in_parts_with_equal_gradients(monkeypatch):
    model = WrappedClassifier(small()).eval()
    x = torch.rand(12, 3, 16, 16, generator=torch.Generator().manual_seed(1)).requires_grad_()
    expected = model(x)
    (gradient,) = torch.autograd.grad(expected.square().sum(), x)
    sizes = []
    model.network.register_forward_hook(lambda *a: sizes.append(len(a[1][0])))
    monkeypatch.setattr(wrapped, "MAX_VALUES", 5 * 3 * 16 * 16)
    parts = model(x)
    assert sizes == [5, 5, 2] and torch.allclose(parts, expected, atol=1e-5)
    assert torch.allclose(torch.autograd.grad(parts.square().sum(), x)[0], gradient, atol=1e-4)
    with torch.no_grad():
        assert torch.allclose(model(x), expected, atol=1e-5)


class Shell(nn.Module):
    """A module that does something else with its images than to classify them."""

    def __init__(self, do):
        super().__init__()
        self.do, self.scale = do, nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.do(self.scale * x)


def fails(error):
    def do(x):
        raise error("of its own")

    return do


@pytest.mark.parametrize(
    ("do", "message"),
    [
        (fails(AttributeError), "does not take images of 16x16 pixels .of its own."),
        (fails(ZeroDivisionError), "does not take images of 16x16 pixels"),
        (lambda x: {"logits": x.mean((2, 3))}, "returns a dict; expected one tensor"),
        (lambda x: None, "returns a NoneType; expected one tensor"),
        (lambda x: x.mean((2, 3)).repeat(1, 4), r"the model returns \(64, 12\) for 64 images; expected \(images, 3\)"),
        (lambda x: x.mean((2, 3)) * float("nan"), "the model returns NaN or infinite values for clean images"),
        (lambda x: x.reshape(len(x), 3, 9, 9), "does not take images of 16x16 pixels"),
        (lambda x: x.mean(), r"the model returns \(\) for 64 images"),
    ],
)
def test_a_module_that_is_no_classifier_of_these_images_is_refused(coded, do, message):
    with pytest.raises(ValueError, match=message):
        scanning.scan(Shell(do), coded)


def test_what_is_no_module_or_cannot_be_copied_is_reported_as_such(coded):
    with pytest.raises(ValueError, match="the model is a function; expected a torch.nn.Module"):
        scanning.scan(lambda x: x.mean((2, 3)), coded)
    caught = Coded()
    caught.held = caught.levels * 2  # a tensor in the middle of a graph has no copy
    with pytest.raises(ValueError, match="the model cannot be copied"):
        scanning.scan(caught, coded)


def test_weights_that_are_not_finite_are_refused(coded):
    model = Coded()
    model.levels.data[1] = float("inf")
    with pytest.raises(ValueError, match="levels holds NaN or infinite values"):
        scanning.scan(model, coded)


def nan_where_red(logits, x):
    return torch.where((x[:, 0].amax((1, 2)) > 0.5)[:, None], torch.nan, logits)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (nan_where_red, "NaN or infinite values for noise: no verdict, and suspicious by itself"),
        (lambda logits, x: logits.round(), "no usable gradient"),
        (lambda logits, x: logits.detach(), "no usable gradient"),
        (lambda logits, x: torch.where((logits.argmax(1) == 2)[:, None], torch.nan, logits), "for clean images"),
        (
            lambda logits, x: (500 * logits).softmax(1),
            "too sure to be searched .*without its softmax",
        ),
    ],
)
def test_outputs_that_cannot_be_searched_are_reported_as_such(coded, change, message):
    with pytest.raises(ValueError, match=message):
        scanning.prepare(Coded(change=change), coded.split.images, 3)


# --- networks that are particular about what they are given -------------------------------------------------


class Flattening(nn.Module):
    """Flattens the last feature map by `view`, as most public code for CIFAR does."""

    def __init__(self, dropout: float = 0.0):
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Dropout(dropout))
        self.classifier = nn.Linear(4 * 8 * 8, 3)

    def forward(self, x):
        x = self.features(x)
        return self.classifier(x.view(x.size(0), -1))


def test_a_network_that_takes_contiguous_memory_only_gets_it_in_search_and_repair(coded):
    images = coded.split.images
    with pytest.raises(RuntimeError, match="view size is not compatible"):
        Flattening()((images[:4].float() / 255).contiguous(memory_format=torch.channels_last))
    model = scanning.prepare(Flattening(), images, 3, trained=True)
    assert model.memory_format is torch.contiguous_format
    assert scanning.prepare(small(), images, 3).memory_format is torch.channels_last
    fixed = frozen(model, "float32")
    x = (images[:4].float() / 255).contiguous(memory_format=torch.channels_last)
    assert fixed(x).shape == (4, 3)
    training.train(
        model, images, coded.split.labels, epochs=1, lr=0.01, batch_size=32, seed=0, device=torch.device("cpu"),
        precision="float32",
    )  # fmt: skip
    assert model(x).shape == (4, 3)


class Squeezing(nn.Module):
    """Drops the dimension of the batch if that is 1."""

    def __init__(self):
        super().__init__()
        self.inner = Flattening()

    def forward(self, x):
        return self.inner(x.contiguous()).squeeze()


class Untrainable(nn.Module):
    """Has no code for training mode."""

    def __init__(self):
        super().__init__()
        self.inner = small()

    def forward(self, x):
        if self.training:
            raise NotImplementedError("inference only")
        return self.inner(x)


class NoWeights(nn.Module):
    """Has weights that its outputs do not depend on."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.ones(3))
        self.register_buffer("head", torch.rand(3, 3, generator=torch.Generator().manual_seed(0)))

    def forward(self, x):
        return x.mean((2, 3)) @ self.head + 0 * self.unused


def test_what_comes_later_is_tried_before_the_search(coded):
    images = coded.split.images
    with pytest.raises(ValueError, match=r"returns \(3,\) for a single image; expected \(1, 3\)"):
        scanning.prepare(Squeezing(), images, 3)
    scanning.prepare(Untrainable(), images, 3)
    with pytest.raises(ValueError, match=r"cannot be trained \(inference only\), so it cannot be repaired"):
        scanning.prepare(Untrainable(), images, 3, trained=True)
    scanning.prepare(NoWeights(), images, 3)
    with pytest.raises(ValueError, match="no weight of the model has a gradient"):
        scanning.prepare(NoWeights(), images, 3, trained=True)
