import pytest
import torch
from victims import victim

from mesa_lib.attacks import adversarial
from mesa_lib.models import inference

#: notebook 06 plants the same attacks in the short run
pytestmark = pytest.mark.long


def clean_model_and_images(n):
    pipeline = victim("none").pipeline
    evaluation = pipeline.data.evaluation
    return pipeline.clean().model, evaluation.images[:n].float() / 255, evaluation.labels[:n]


def test_adversarial_examples_fool_the_model():
    model, images, labels = clean_model_and_images(60)
    right = inference.predict(model, images) == labels
    images, labels = images[right], labels[right]
    perturbed = {m: adversarial.examples(model, images, labels, m).cpu() for m in ("fgsm", "pgd", "deepfool")}
    fooled = {m: float((inference.predict(model, x) != labels).float().mean()) for m, x in perturbed.items()}
    assert fooled["pgd"] >= fooled["fgsm"] > 0.3 and fooled["deepfool"] > 0.9
    assert float((perturbed["deepfool"] - images).flatten(1).norm(dim=1).median()) < 2


def test_adversarial_examples_keep_their_budget():
    model, images, labels = clean_model_and_images(8)
    for method in ("fgsm", "pgd"):
        perturbed = adversarial.examples(model, images, labels, method, epsilon=0.02)
        assert float((perturbed - images).abs().max()) <= 0.02 + 1e-6
        assert 0 <= perturbed.min() and perturbed.max() <= 1
    with pytest.raises(ValueError, match="method = 'magic'"):
        adversarial.examples(model, images, labels, "magic")
    with pytest.raises(ValueError, match="confidence = 3 with pgd: expected 0"):
        adversarial.examples(model, images, labels, "pgd", confidence=3)


def test_the_global_random_state_is_left_alone():
    model, images, labels = clean_model_and_images(2)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    adversarial.examples(model, images, labels, "pgd", steps=1)
    assert torch.equal(torch.rand(1), expected)
