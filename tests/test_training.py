"""The training loop: what is learned, what is repeated, what goes wrong."""

import pytest
import torch

from mesa_lib import training
from mesa_lib.models import networks

CPU = torch.device("cpu")
SETTINGS = {"epochs": 4, "lr": 0.05, "batch_size": 16, "seed": 0, "device": CPU, "precision": "float32"}


def network(seed=0):
    return networks.build_network("smallcnn", 2, 2, (0.4,) * 3, (0.2,) * 3, seed)


def weights(toy, **changes) -> dict:
    model = network()
    training.train(model, toy.images, toy.labels, **(SETTINGS | changes))
    return model.state_dict()


def same(first, second) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first.values(), second.values(), strict=True))


# --- learning --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", training.SCHEDULES)
@pytest.mark.parametrize("augment", training.AUGMENTATIONS)
def test_an_easy_task_is_learned(toy, schedule, augment):
    model = network()
    history = training.train(
        model, toy.images, toy.labels, **(SETTINGS | {"epochs": 6, "schedule": schedule, "augment": augment})
    )
    assert [record["epoch"] for record in history] == [1, 2, 3, 4, 5, 6]
    assert history[-1]["loss"] < history[0]["loss"]
    with torch.no_grad():
        accuracy = (model(toy.images.float() / 255).argmax(1) == toy.labels).float().mean()
    assert accuracy > 0.9 and history[-1]["accuracy"] > 0.9
    assert not model.training


def test_the_same_seed_gives_the_same_weights_to_the_bit(toy):
    options = {"augment": "crop-flip", "schedule": "onecycle"}
    first, again, other = (weights(toy, **options, seed=seed) for seed in (3, 3, 4))
    assert same(first, again) and not same(first, other)


def test_the_global_random_numbers_play_no_part(toy):
    torch.manual_seed(1)
    first = weights(toy, augment="crop")
    torch.manual_seed(2)
    assert same(first, weights(toy, augment="crop"))


CHANGES = [
    {"lr": 0.01},
    {"weight_decay": 0.1},
    {"label_smoothing": 0.2},
    {"bias_rate": 4.0},
    {"schedule": "onecycle"},
    {"augment": "crop"},
    {"batch_size": 8},
    {"epochs": 2},
]


@pytest.mark.parametrize("changes", CHANGES)
def test_every_setting_matters(toy, changes):
    assert not same(weights(toy), weights(toy, **changes))


def test_the_data_are_left_as_they_were(toy):
    images, labels = toy.images.clone(), toy.labels.clone()
    weights(toy, transform=lambda x, y, rng: (x.mul_(0), y.mul_(0)))
    assert torch.equal(images, toy.images) and torch.equal(labels, toy.labels)


@pytest.mark.parametrize(("count", "batch_size"), [(37, 8), (40, 8), (5, 64), (9, 8)])
def test_every_image_is_used_once_an_epoch(count, batch_size):
    images = torch.arange(count, dtype=torch.uint8).reshape(count, 1, 1, 1).expand(count, 3, 16, 16)
    labels, batches = torch.arange(count) % 2, []

    def record(x, y, rng):
        numbers = (x[:, 0, 0, 0] * 255).round().long()
        assert torch.equal(numbers % 2, y), "labels stay with their images"
        batches.append(numbers.tolist())
        return x, y

    options = SETTINGS | {"epochs": 2, "batch_size": batch_size, "transform": record, "lr": 0.001}
    training.train(network(), images, labels, **options)
    per_epoch = -(-count // batch_size)
    epochs = [sum(batches[:per_epoch], []), sum(batches[per_epoch:], [])]
    assert [sorted(epoch) for epoch in epochs] == [list(range(count))] * 2
    assert epochs[0] != epochs[1], "each epoch has an order of its own"
    sizes = {len(batch) for batch in batches}
    assert max(sizes) <= batch_size and max(sizes) - min(sizes) <= 1


def test_a_transform_decides_what_is_learned(toy):
    """The model predicts labels that the transform has swapped."""
    model = network()
    training.train(
        model, toy.images, toy.labels, **(SETTINGS | {"epochs": 6, "transform": lambda x, y, rng: (x, 1 - y)})
    )
    with torch.no_grad():
        predicted = model(toy.images.float() / 255).argmax(1)
    assert (predicted == 1 - toy.labels).float().mean() > 0.9


# --- a teacher, frozen statistics -------------------------------------------------------------------------


class Opposite(torch.nn.Module):
    """Predicts the other class: bright images as 0 and dark ones as 1; `seen` collects its inputs."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        assert not torch.is_grad_enabled(), "a teacher learns nothing"
        self.seen.append(x.clone())
        score = 20 * (x.mean((1, 2, 3)) - 0.39)
        return torch.stack([score, -score], 1)


def test_the_outputs_of_a_teacher_are_learned_and_labels_play_no_part(toy):
    model, other = network(), network()
    options = SETTINGS | {"epochs": 6, "teacher": Opposite()}
    history = training.train(model, toy.images, toy.labels, **options)
    training.train(other, toy.images, torch.zeros_like(toy.labels), **options)
    assert same(model.state_dict(), other.state_dict()) and history[-1]["loss"] < 0.3 * history[0]["loss"]
    with torch.no_grad():
        predicted = model(toy.images.float() / 255).argmax(1)
    assert (predicted == 1 - toy.labels).float().mean() > 0.9


def test_a_teacher_sees_images_after_augmentation_and_before_the_transform(toy):
    """The transform paints all images white: the teacher never sees white, and its outputs are learned for white."""
    teacher, plain = Opposite(), []

    def paint(x, y, rng):
        plain.append(x.clone())
        return torch.ones_like(x), y

    weights(toy, teacher=teacher, transform=paint, augment="crop", epochs=1)
    assert len(plain) == len(teacher.seen) == 6
    assert all(torch.equal(a, b) for a, b in zip(plain, teacher.seen, strict=True))


def test_a_model_that_is_its_own_teacher_has_nothing_to_learn(toy):
    model, teacher = network().eval(), network().eval()
    history = training.train(model, toy.images, toy.labels, **(SETTINGS | {"teacher": teacher, "statistics": "frozen"}))
    assert max(record["loss"] for record in history) < 1e-6
    for name, tensor in teacher.state_dict().items():
        assert torch.allclose(tensor, model.state_dict()[name], atol=1e-4), name


@pytest.mark.parametrize(("statistics", "kept"), [("frozen", True), ("updated", False)])
def test_frozen_statistics_leave_the_buffers_of_batch_normalization_as_they_were(toy, statistics, kept):
    before, after = network().state_dict(), weights(toy, statistics=statistics, epochs=1)
    buffers = [name for name in before if "running_" in name or "num_batches" in name]
    assert len(buffers) >= 9 and not torch.equal(before["head.weight"], after["head.weight"])
    assert [torch.equal(before[name], after[name]) for name in buffers] == [kept] * len(buffers)


# --- what goes wrong -------------------------------------------------------------------------------------


def test_a_huge_learning_rate_is_reported(toy):
    with pytest.raises(
        FloatingPointError,
        match=r"attack: loss = (nan|inf) in epoch \d/4: expected a number; .* smaller learning rate than 1e\+38",
    ):
        training.train(network(), toy.images, toy.labels, **(SETTINGS | {"lr": 1e38, "label": "attack"}))


def test_weights_that_are_not_finite_are_no_result(toy):
    """A running variance can overflow while the loss, which uses the batch's own, stays finite."""
    model = network()
    buffer = next(tensor for name, tensor in model.state_dict().items() if "running_var" in name)
    buffer.fill_(float("inf"))
    with pytest.raises(
        FloatingPointError,
        match="repair: .*running_var has NaN or infinite values: expected finite weights; try a smaller",
    ):
        training.train(model, toy.images, toy.labels, **(SETTINGS | {"epochs": 1, "label": "repair"}))


def test_weights_of_nan_are_reported(toy):
    model = network()
    torch.nn.init.constant_(model.head.bias, float("nan"))
    with pytest.raises(FloatingPointError, match="training: loss = nan in epoch 1/4: expected a number"):
        training.train(model, toy.images, toy.labels, **SETTINGS)


@pytest.mark.parametrize(
    ("name", "value"), [("schedule", "cosine"), ("augment", "mixup"), ("augment", ""), ("precision", "float16")]
)
def test_an_unknown_choice_is_refused_by_name(toy, name, value):
    with pytest.raises(ValueError, match=f"{name} = '{value}'"):
        training.train(network(), toy.images, toy.labels, **(SETTINGS | {name: value}))


# --- augmentation ----------------------------------------------------------------------------------------

GRID = torch.arange(24 * 16.0).reshape(1, 1, 24, 16).expand(400, 3, 24, 16)  # a pixel tells where it came from


def rng():
    return torch.Generator().manual_seed(0)


def test_no_augmentation_is_the_identity():
    assert torch.equal(training.augmented(GRID, "none", rng()), GRID)


@pytest.mark.parametrize("kind", ["crop", "crop-flip"])
def test_augmented_images_are_shifted_copies(kind):
    """Every result is one of the 7 x 7 shifts (3 = 24 // 8 pixels each way) of the image or its mirror image."""
    shifts = set()
    for image in training.augmented(GRID, kind, rng()):
        assert image.shape == (3, 24, 16) and torch.equal(image[0], image[1]) and torch.equal(image[0], image[2])
        row, column = divmod(int(image[0, 12, 8]), 16)
        mirrored = bool(image[0, 12, 7] > image[0, 12, 8])
        rows = (torch.arange(24) + row - 12).clamp(0, 23)
        columns = ((torch.arange(16) - 8) * (-1 if mirrored else 1) + column).clamp(0, 15)
        assert torch.equal(image[0], GRID[0, 0][rows][:, columns])
        shifts.add((row - 12, column - (7 if mirrored else 8), mirrored))
    assert {s[0] for s in shifts} == {s[1] for s in shifts} == set(range(-3, 4))
    assert {s[2] for s in shifts} == ({False} if kind == "crop" else {False, True})


def test_half_of_the_images_are_mirrored():
    images = training.augmented(GRID, "crop-flip", rng())
    mirrored = (images[:, 0, 12, 7] > images[:, 0, 12, 8]).float().mean()
    assert abs(float(mirrored) - 0.5) < 5 * 0.5 / 20


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_training_on_cuda(toy, precision):
    model, options = network(), {"device": torch.device("cuda"), "precision": precision, "augment": "crop-flip"}
    history = training.train(model, toy.images, toy.labels, **(SETTINGS | options | {"epochs": 6}))
    assert next(model.parameters()).device.type == "cuda" and history[-1]["accuracy"] > 0.9
