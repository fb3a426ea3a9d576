"""Inference in batches: every image once, any type, no gradients, no more memory than allowed."""

import pytest
import torch

from mesa_lib.models import inference, networks


class Gray(torch.nn.Module):
    """Predicts the class that an image's gray value names: 10 for class 1, 20 for class 2."""

    def __init__(self):
        super().__init__()
        self.dummy, self.batches = torch.nn.Parameter(torch.zeros(1)), []

    def represent(self, x):
        return x.mean((2, 3))

    def forward(self, x):
        assert not self.training and not torch.is_grad_enabled()
        self.batches.append(len(x))
        return torch.nn.functional.one_hot((x.mean((1, 2, 3)) * 25.5).round().long(), 10).float()


def pictures(n):
    labels = torch.arange(n) % 10
    return (10 * labels).to(torch.uint8)[:, None, None, None].expand(n, 3, 4, 4), labels


@pytest.mark.parametrize("n", [1, 499, 500, 501, 1001])
def test_every_image_is_predicted_once(n):
    model, (images, labels) = Gray().train(), pictures(n)
    assert torch.equal(inference.predict(model, images), labels)
    assert sum(model.batches) == n and max(model.batches) <= inference.BATCH


def test_images_may_be_bytes_or_floats():
    images, labels = pictures(20)
    assert torch.equal(inference.predict(Gray(), images.float() / 255), labels)
    assert torch.equal(inference.to_float(images), images.float() / 255)
    values = torch.rand(2, 3, 4, 4)
    assert inference.to_float(values) is values


def test_large_images_go_in_smaller_batches(monkeypatch):
    model, (images, labels) = Gray(), pictures(20)
    monkeypatch.setattr(inference, "VALUES", 7 * 3 * 4 * 4)
    assert torch.equal(inference.predict(model, images), labels) and model.batches == [7, 7, 6]


@pytest.mark.parametrize(
    ("shape", "options", "size"),
    [((3, 32, 32), {}, 500), ((3, 1000, 1000), {}, 66), ((3, 20000, 20000), {}, 1), ((3, 32, 32), {"most": 64}, 64),
     ((3, 10, 10), {"values": 1000}, 3)],
)  # fmt: skip
def test_the_size_of_a_batch_is_limited_by_images_and_by_memory(shape, options, size):
    assert inference.batch_size_for(shape, **options) == size


def test_logits_and_representations_belong_together():
    model = networks.build_network("smallcnn", 4, 2, (0.5,) * 3, (0.2,) * 3, 0)
    images = torch.randint(0, 256, (12, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    logits, features = inference.logits(model, images), inference.representations(model, images)
    assert logits.shape == (12, 4) and features.shape == (12, 8) and logits.dtype == features.dtype == torch.float32
    with torch.no_grad():
        assert torch.allclose(model.head(features), logits, atol=1e-5)
    assert torch.equal(logits.argmax(1), inference.predict(model, images))


def test_precision_is_that_of_the_products():
    model = networks.build_network("smallcnn", 4, 8, (0.5,) * 3, (0.2,) * 3, 0)
    images = torch.randint(0, 256, (12, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    exact, rounded = (inference.logits(model, images, precision) for precision in ("float32", "bf16"))
    assert rounded.dtype == torch.float32 and not torch.equal(exact, rounded)
    assert torch.allclose(exact, rounded, atol=0.05)
