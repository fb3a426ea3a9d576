import pytest
import torch
from victims import TARGET, victim

from mesa_lib import attacks
from mesa_lib.data.splits import Split
from mesa_lib.defenses.base import DefenderView
from mesa_lib.defenses.strip import OVERLAYS, STRIP
from mesa_lib.device import rng
from mesa_lib.evaluation import benchmark
from mesa_lib.models import inference


class Switch(torch.nn.Module):
    """Predicts class 1 with certainty where the first pixel is bright, and all classes alike elsewhere."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x):
        certain = torch.tensor([0.0, 1e4, 0.0, 0.0])
        return torch.where(x[:, 0, 0, 0, None] > 0.9, certain, torch.zeros(4))


def test_the_entropy_is_zero_where_a_trigger_dominates_and_full_elsewhere():
    dark = Split(torch.zeros(8, 3, 16, 16, dtype=torch.uint8), torch.arange(8) % 4)
    images = torch.zeros(2, 3, 16, 16)
    images[1, 0, 0, 0] = 1
    method = STRIP("sum", overlays=5)
    assert method.fit(DefenderView(method.knowledge, Switch(), dark, 4)).score(images).tolist() == [-2, 0], "bits"


def test_overlays_mix_as_their_names_say():
    x, o = torch.tensor(0.8), torch.tensor(0.6)
    mixed = {name: round(float(mix(x, o)), 3) for name, mix in OVERLAYS.items()}
    assert mixed == {"sum": 1.4, "clipped sum": 1.0, "half": 0.7, "more input": 0.74}
    with pytest.raises(ValueError, match="overlay = 'glue'"):
        STRIP(overlay="glue")


@pytest.mark.long
def test_strip_separates_a_blended_trigger():
    # 0.968 to 0.987 over four seeds before seeds were derived anew, 0.947 to 0.976 over three since
    assert victim("blended").filtered("STRIP").result["auroc of those that fire"] >= 0.9


@pytest.mark.long
def test_strip_separates_an_additive_trigger():
    """A pattern added to the image, and overlays added to the input or both halved (ours), over all triggered.

    Sums that leave [0, 1], as the paper's code has them, show the network what it was never trained on: over eight
    trainings they separate with 0.68 to 0.91, clipped ones with 0.997 and more, halves with 0.998 and more.
    """
    pipeline = victim("none").pipeline
    pattern = torch.rand(3, 32, 32, generator=rng(3))
    plus = attacks.Backdoor(lambda images, _: (images + pattern).clamp(0, 1), attacks.all_to_one(TARGET))
    model, d = pipeline.clean().model, pipeline.data
    pipeline.train(
        model, d.train, epochs=10, lr=0.05, schedule="onecycle", augment="none", seed=0, label="additive",
        transform=attacks.poison(plus, 0.1),
    )  # fmt: skip
    clean, truth = d.evaluation.images.float() / 255, d.evaluation.labels
    triggered = (clean[truth != TARGET] + pattern).clamp(0, 1)
    assert float((inference.predict(model, triggered) == TARGET).float().mean()) > 0.95
    for overlay in ("clipped sum", "half"):
        method = STRIP(overlay)
        method.fit(DefenderView(method.knowledge, model, d.modeling, 10))
        scores = [method.score(x) for x in (d.modeling.images[:300], clean, triggered)]
        fires = torch.ones(len(triggered), dtype=torch.bool)
        assert benchmark.score_separation(*scores, fires)["auroc"] >= 0.95, overlay
