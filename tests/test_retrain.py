"""The repair: sources of triggers, what happens to batches, and the retraining itself."""

import pytest
import torch

from mesa_lib import retrain, training, triggers
from mesa_lib.models import networks
from mesa_lib.settings import RepairSettings

SOURCES = {
    "constant": retrain.constant(2 + triggers.color(0)),
    "uniform": retrain.random_source("uniform", (2, 3)),
    "binary": retrain.random_source("binary", (3, 3)),
    "bw": retrain.random_source("bw", (3, 3)),
    "choice": retrain.choice(torch.stack([2 + triggers.color(number) for number in (0, 1)])),
}


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(n=2000):
    return torch.full((n, 3, 8, 8), 0.37), torch.arange(n) % 5  # no random trigger holds this value


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("rate", [0.01, 0.2, 0.99])
def test_labels_never_change_and_about_the_rate_is_stamped(name, rate):
    images, labels = batch()
    transform = retrain.on_fraction(retrain.stamping(SOURCES[name]), rate)
    stamped, after = transform(images, labels, rng())
    assert torch.equal(after, batch()[1]) and torch.equal(images, batch()[0])
    share = float((stamped != images).flatten(1).any(1).float().mean())
    assert abs(share - rate) < 5 * (rate * (1 - rate) / 2000) ** 0.5


@pytest.mark.parametrize("rate", [0, 1, -0.5, 2, float("nan")])
def test_an_impossible_rate_is_refused_by_value(rate):
    with pytest.raises(ValueError, match=f"repair_rate = {rate}"):
        retrain.on_fraction(retrain.stamping(SOURCES["constant"]), rate)


def windows(name, n=500):
    """The pixels that were stamped, one row for each stamped image."""
    images, labels = batch(n)
    stamped, _ = retrain.on_fraction(retrain.stamping(SOURCES[name]), 0.9)(images, labels, rng())
    hit = (stamped != images).flatten(1).any(1)
    return [image[image != 0.37] for image in stamped[hit]]


def test_a_constant_source_stamps_its_trigger_everywhere():
    for pixels in windows("constant"):
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


def test_all_triggers_can_be_stamped_at_one_location():
    images, _ = batch(50)
    stamped = retrain.stamping(SOURCES["constant"], torch.tensor([1, 4]))(images, rng())
    expected = images.clone()
    expected[:, :, 1:4, 4:7] = 2 + triggers.color(0)
    assert torch.equal(stamped, expected)


def test_any_sampler_can_be_a_source():
    asked = []

    def source(n, generator):
        asked.append(n)
        return torch.ones(n, 3, 1, 1)

    images, labels = batch(40)
    stamped, _ = retrain.on_fraction(retrain.stamping(source), 0.5)(images, labels, rng())
    assert asked == [40] and 0 < int((stamped == 1).sum()) < 3 * 40


def test_transforms_follow_their_generator():
    images, labels = batch(100)
    transform = retrain.on_fraction(retrain.stamping(SOURCES["uniform"]), 0.5)
    first, again, other = (transform(images, labels, rng(seed))[0] for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


# --- more sources and transforms -------------------------------------------------------------------------


def test_a_choice_draws_each_of_its_triggers_equally_often_and_follows_its_generator():
    patches = torch.stack([torch.full((3, 2, 2), value) for value in (0.1, 0.5, 0.9)])
    drawn = retrain.choice(patches)(3000, rng())
    assert drawn.shape == (3000, 3, 2, 2)
    for patch in patches:
        share = float((drawn == patch).flatten(1).all(1).float().mean())
        assert abs(share - 1 / 3) < 5 * (2 / 9 / 3000) ** 0.5
    again, other = (retrain.choice(patches)(3000, rng(seed)) for seed in (0, 1))
    assert torch.equal(drawn, again) and not torch.equal(drawn, other)


def test_jitter_stays_near_its_triggers():
    near = retrain.jitter(torch.stack([torch.full((3, 2, 2), 0.3), torch.full((3, 2, 2), 0.95)]), std=0.02)
    drawn = near(400, rng())
    assert drawn.shape == (400, 3, 2, 2) and drawn.min() >= 0 and drawn.max() == 1, "clipped"
    low = drawn.flatten(1).mean(1) < 0.6
    assert 140 < int(low.sum()) < 260
    assert abs(float(drawn[low].mean()) - 0.3) < 0.01 and abs(float(drawn[low].std()) - 0.02) < 0.003
    assert torch.equal(retrain.jitter(torch.rand(1, 3, 2, 2, generator=rng()), 0.0)(3, rng())[0],
                       torch.rand(1, 3, 2, 2, generator=rng())[0])  # fmt: skip


def test_a_mixture_draws_from_each_source_equally_often():
    values = (0.1, 0.5, 0.9)
    mixed = retrain.mixture([retrain.constant(torch.full((3, 1, 1), value)) for value in values])(3000, rng())
    for value in values:
        share = float((mixed == value).flatten(1).all(1).float().mean())
        assert abs(share - 1 / 3) < 5 * (2 / 9 / 3000) ** 0.5


def test_one_of_several_transforms_applies_to_each_image():
    images, _ = batch(1000)
    transforms = [lambda x, rng: x + 1, lambda x, rng: x + 2]
    added = (retrain.one_of(transforms)(images, rng()) - images)[:, 0, 0, 0].round()
    assert set(added.tolist()) == {1.0, 2.0} and 420 < int((added == 1).sum()) < 580
    assert torch.equal(retrain.one_of(transforms[:1])(images, rng()), images + 1)


# --- the repair ------------------------------------------------------------------------------------------

QUICK = RepairSettings(repair_epochs=2, batch_size=16, repair_lr=0.01)


def model():
    return networks.build_network("smallcnn", 2, 2, (0.4,) * 3, (0.2,) * 3, 0)


def weights(network):
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def same(first, second) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first.values(), second.values(), strict=True))


def test_a_repair_returns_a_retrained_copy(toy):
    network = model()
    before = weights(network)
    stamp = retrain.stamping(SOURCES["uniform"])
    repaired, history = retrain.repair(network, toy.images, toy.labels, stamp, QUICK, precision="float32")
    assert same(before, weights(network)) and not same(before, weights(repaired)) and repaired is not network
    assert [record["epoch"] for record in history] == [1, 2] and not repaired.training


def test_retraining_changes_the_model_as_the_repair_does(toy):
    network, stamp = model(), retrain.stamping(SOURCES["uniform"])
    repaired, expected = retrain.repair(network, toy.images, toy.labels, stamp, QUICK, seed=3, precision="float32")
    history = retrain.retrain(network, toy.images, toy.labels, stamp, QUICK, seed=3, precision="float32")
    assert history == expected and same(weights(network), weights(repaired))


def test_a_transform_sees_every_image(toy):
    """All images of a batch are transformed; `on_fraction` then picks those that are used."""
    calls = []

    def transform(images, rng):
        calls.append(len(images))
        return images

    retrain.repair(model(), toy.images, toy.labels, transform, QUICK, precision="float32")
    assert sum(calls) == 2 * len(toy.images)


def test_fine_tuning_is_training_without_a_transform(toy):
    tuned, history = retrain.repair(model(), toy.images, toy.labels, None, QUICK, precision="float32")
    expected, s = model(), QUICK
    records = training.train(
        expected, toy.images, toy.labels, epochs=s.repair_epochs, lr=s.repair_lr, batch_size=s.batch_size, seed=0,
        device=torch.device("cpu"), precision="float32", schedule=s.schedule, augment=s.retrain_augment,
    )  # fmt: skip
    assert history == records and same(weights(tuned), weights(expected))


@pytest.mark.parametrize(
    "changes",
    [{"repair_rate": 0.6}, {"repair_epochs": 3}, {"repair_lr": 0.05}, {"schedule": "constant"},
     {"retrain_augment": "none"}, {"batch_size": 24}, {"repair_loss": "labels"},
     {"repair_statistics": "frozen"}],
)  # fmt: skip
def test_every_setting_of_the_repair_matters(toy, changes):
    stamp = retrain.stamping(SOURCES["uniform"])
    first, again, other = (
        weights(retrain.repair(model(), toy.images, toy.labels, stamp, settings, precision="float32")[0])
        for settings in (QUICK, QUICK, QUICK.replace(**changes))
    )
    assert same(first, again) and not same(first, other)


def test_distillation_learns_the_outputs_of_the_model_before_the_repair_and_no_label(toy):
    """On unchanged images, with frozen statistics, the model already has these outputs, and stays as it is."""
    settings = QUICK.replace(repair_loss="distillation", repair_statistics="frozen")
    network, wrong = model().eval(), torch.zeros_like(toy.labels)
    unchanged = retrain.repair(network, toy.images, wrong, lambda images, rng: images, settings, precision="float32")
    tuned, history = unchanged
    assert max(record["loss"] for record in history) < 1e-6
    for name, tensor in weights(network).items():
        assert torch.allclose(tensor, weights(tuned)[name], atol=1e-4), name
    stamp = retrain.stamping(SOURCES["uniform"])
    first, second = (
        weights(retrain.repair(network, toy.images, labels, stamp, settings, precision="float32")[0])
        for labels in (toy.labels, wrong)
    )
    assert same(first, second) and not same(first, weights(network))


def test_fine_tuning_alone_learns_the_labels_whatever_a_repair_learns(toy):
    tuned = [
        weights(retrain.repair(model(), toy.images, toy.labels, None, QUICK.replace(repair_loss=loss))[0])
        for loss in ("distillation", "labels")
    ]
    assert same(*tuned)


def test_the_label_of_a_repair_is_in_its_messages(toy):
    with pytest.raises(FloatingPointError, match="MESA repair: .* smaller learning rate"):
        retrain.repair(
            model(),
            toy.images,
            toy.labels,
            None,
            QUICK.replace(repair_lr=1e38),
            precision="float32",
            label="MESA repair",
        )
