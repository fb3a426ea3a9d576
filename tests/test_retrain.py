import pytest
import torch

from mesa_lib import retrain
from mesa_lib import triggers

SOURCES = {
    "fixed": retrain.constant(2 + triggers.color(0)),
    "uniform": retrain.random_source("uniform", (2, 3)),
    "binary": retrain.random_source("binary", (3, 3)),
    "bw": retrain.random_source("bw", (3, 3)),
}


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(n=2000):
    return torch.full((n, 3, 8, 8), 0.37), torch.arange(n) % 5  # no random trigger holds this value


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("rate", [0.01, 0.2, 0.99])
def test_labels_never_change_and_about_the_rate_is_stamped(name, rate):
    images, labels = batch()
    stamped, answers = retrain.STAMPING_OLD(SOURCES[name], rate)(images, labels, rng())
    assert torch.equal(answers, batch()[1]) and torch.equal(images, batch()[0])
    share = float((stamped != images).flatten(1).any(1).float().mean())
    assert abs(share - rate) < 5 * (rate * (1 - rate) / 2000) ** 0.5


def test_no_source_is_no_edit():
    assert retrain.STAMPING_OLD(None, 0.2) is None


@pytest.mark.parametrize("rate", [0, 1, -0.5, 2, float("nan")])
def test_an_impossible_rate_is_refused_by_value(rate):
    with pytest.raises(ValueError, match=f"repair_rate = {rate}"):
        retrain.STAMPING_OLD(SOURCES["fixed"], rate)


def windows(name, n=500):
    """The pixels that were stamped, one row for each stamped image."""
    images, labels = batch(n)
    stamped, _ = retrain.STAMPING_OLD(SOURCES[name], 0.9)(images, labels, rng())
    hit = (stamped != images).flatten(1).any(1)
    return [image[image != 0.37] for image in stamped[hit]]


def test_a_fixed_source_stamps_its_trigger_everywhere():
    for pixels in windows("fixed"):
        assert torch.equal(pixels, (2 + triggers.color(0)).flatten())


@pytest.mark.parametrize(("name", "values"), [("uniform", 18), ("binary", 27), ("bw", 27)])
def test_random_sources_stamp_each_image_with_a_trigger_of_its_own(name, values):
    drawn = torch.stack(windows(name))
    assert drawn.shape[1] == values
    assert len(drawn.unique(dim=0)) > 0.5 * len(drawn)
    if name != "uniform":
        assert set(drawn.unique().tolist()) == {0.0, 1.0}
    if name == "bw":
        assert torch.equal(drawn[:, :9], drawn[:, 9:18]) and torch.equal(drawn[:, :9], drawn[:, 18:])


def test_all_triggers_can_be_stamped_at_one_place():
    images, _ = batch(50)
    stamped = retrain.stamping(SOURCES["fixed"], torch.tensor([1, 4]))(images, rng())
    expected = images.clone()
    expected[:, :, 1:4, 4:7] = 2 + triggers.color(0)
    assert torch.equal(stamped, expected)


def test_any_sampler_can_be_a_source():
    asked = []

    def source(n, generator):
        asked.append(n)
        return torch.ones(n, 3, 1, 1)

    images, labels = batch(40)
    stamped, _ = retrain.STAMPING_OLD(source, 0.5)(images, labels, rng())
    assert asked == [40] and 0 < int((stamped == 1).sum()) < 3 * 40


def test_edits_follow_their_generator():
    images, labels = batch(100)
    first, again, other = (retrain.STAMPING_OLD(SOURCES["uniform"], 0.5)(images, labels, rng(s))[0] for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
