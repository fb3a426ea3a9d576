"""Splits: how images are divided, and what identifies them."""

import dataclasses

import numpy as np
import pytest
import torch

from mesa_lib import data
from mesa_lib.data import Split
from mesa_lib.data.splits import channel_statistics, fingerprint, split


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


def numbered(n: int = 1000, classes: int = 10) -> Split:
    """Images that carry their own number."""
    return Split(torch.arange(n).reshape(n, 1, 1, 1), torch.arange(n) % classes)


def test_a_split_is_disjoint_and_loses_nothing():
    modeling, evaluation = split(numbered(), 0.8, 0, 10)
    assert (len(modeling), len(evaluation)) == (800, 200)
    assert sorted(modeling.images.flatten().tolist() + evaluation.images.flatten().tolist()) == list(range(1000))
    for part in (modeling, evaluation):
        assert torch.equal(part.images.flatten() % 10, part.labels), "labels stay with their images"


def test_a_split_is_fixed_by_its_seed():
    first, again, other = (split(numbered(), 0.8, seed, 10)[0].images for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first.sort(0).values, other.sort(0).values)


@pytest.mark.parametrize(("n", "part"), [(40, "evaluation"), (9, "modeling")])
def test_too_few_images_for_a_split_are_refused(n, part):
    with pytest.raises(ValueError, match=f"too few images: {n} test images leave .* for {part}.*of 10 classes"):
        split(numbered(n), 0.8, 0, 10)


def test_mean_and_std_are_those_of_the_training_images(digits):
    pixels = digits.train.images.double() / 255
    assert np.allclose(digits.mean, pixels.mean((0, 2, 3)), atol=1e-4)
    assert np.allclose(digits.std, pixels.std((0, 2, 3), correction=0), atol=1e-4)


def test_channel_statistics_tell_channels_apart_and_cross_batches():
    images = torch.zeros(5001, 3, 1, 2, dtype=torch.uint8)
    images[:, 0] = 255
    images[:, 1, :, 0] = 255
    mean, std = channel_statistics(images)
    assert mean == (1, 0.5, 0) and std == pytest.approx((1e-4, 0.5, 1e-4), abs=1e-4)


def test_the_fingerprint_changes_with_one_pixel_or_label(digits):
    part = digits.evaluation
    pixel, label = part.images.clone(), part.labels.clone()
    pixel[-1, 2, 31, 31] += 1
    label[-1] = (label[-1] + 1) % 10
    marks = {fingerprint(part), fingerprint(Split(pixel, part.labels))}
    marks.add(fingerprint(Split(part.images, label)))
    assert len(marks) == 3
    assert fingerprint(part) == fingerprint(Split(part.images.clone(), part.labels.clone()))


def test_a_data_set_cannot_be_changed(digits):
    with pytest.raises(dataclasses.FrozenInstanceError):
        digits.evaluation = digits.train
