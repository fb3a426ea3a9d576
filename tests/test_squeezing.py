import pytest
import torch
from victims import victim

from mesa_lib.attacks import adversarial
from mesa_lib.data.splits import Split
from mesa_lib.defenses.base import DefenderView
from mesa_lib.defenses.squeezing import BitDepth, FeatureSqueezing, Median, NonLocalMeans
from mesa_lib.evaluation import benchmark
from mesa_lib.models import inference, networks


def images(n):
    return torch.randint(0, 256, (n, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_bit_depth_rounds_to_its_levels():
    x = torch.tensor([0.0, 0.2, 0.5, 0.6, 1.0]).reshape(1, 1, 1, 5).expand(1, 3, 1, 5)
    assert BitDepth(1)(x)[0, 0, 0].tolist() == [0, 0, 0, 1, 1]
    assert torch.allclose(BitDepth(2)(x)[0, 0, 0], torch.tensor([0, 1, 2, 2, 3]) / 3)
    assert len(BitDepth(4)(torch.rand(2, 3, 16, 16)).unique()) <= 16


def test_black_and_white_are_fixed_points_of_every_bit_depth():
    x = torch.rand(2, 3, 8, 8).round()
    assert all(torch.equal(BitDepth(bits)(x), x) for bits in range(1, 9))


def test_a_median_removes_single_pixels_and_works_channel_by_channel():
    x = torch.full((1, 3, 8, 8), 0.5)
    x[0, 1, 4, 4] = 1
    assert bool((Median(3)(x) == 0.5).all())


def test_the_median_of_two_by_two_takes_the_upper_of_the_middle_two():
    x = torch.tensor([[0.1, 0.2], [0.3, 0.4]]).expand(1, 3, 2, 2)
    assert float(Median(2)(x)[0, 0, 1, 1]) == pytest.approx(0.3)


def test_non_local_means_leaves_flat_images_and_smooths_noise():
    flat = torch.full((1, 3, 16, 16), 0.4)
    assert torch.allclose(NonLocalMeans()(flat), flat, atol=1 / 255)
    noisy = (flat + 0.02 * torch.randn(flat.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    assert NonLocalMeans(strength=6)(noisy).std() < noisy.std()


def test_bytes_and_unit_images_are_squeezed_alike():
    x = images(2)
    for squeeze in (BitDepth(4), Median(2), NonLocalMeans()):
        assert torch.allclose(squeeze(x), squeeze(x.float() / 255), atol=1e-6)


def test_the_score_is_the_largest_distance_over_the_squeezers():
    x = images(6)
    network = networks.build_network("smallcnn", 4, 4, (0.5,) * 3, (0.5,) * 3, 0).eval()
    view = DefenderView(FeatureSqueezing().knowledge, network, Split(x, torch.arange(6) % 4), 4)
    each = [FeatureSqueezing((name,)).fit(view).score(x) for name in ("4 bits", "median 2x2")]
    both = FeatureSqueezing(("4 bits", "median 2x2")).fit(view).score(x)
    assert torch.equal(both, torch.stack(each).max(0).values) and 0 <= both.min() and both.max() <= 2
    assert not torch.equal(each[0], each[1]), "squeezers that differ"


def test_an_unknown_squeezer_is_refused():
    with pytest.raises(ValueError, match="squeezers = .'blur',.: expected some of 4 bits"):
        FeatureSqueezing(("blur",))


@pytest.mark.long
@pytest.mark.parametrize("confidence", [0, 5])
def test_feature_squeezing_separates_strong_carlini_wagner_examples(confidence):
    pipeline = victim("patch").pipeline
    model, d = pipeline.clean().model, pipeline.data
    x, labels = d.evaluation.images[:60].float() / 255, d.evaluation.labels[:60]
    right = inference.predict(model, x) == labels
    perturbed = adversarial.examples(model, x[right], labels[right], "cw", confidence=confidence).cpu()
    logits = inference.logits(model, perturbed).cpu()
    fooled = logits.argmax(1) != labels[right]
    assert float(fooled.float().mean()) > 0.9
    margins = logits.amax(1) - logits.gather(1, labels[right][:, None])[:, 0]
    assert float(margins[fooled].min()) >= confidence - 0.01, "the requested margin over the true class"
    method = FeatureSqueezing()
    method.fit(DefenderView(method.knowledge, model, d.modeling, 10))
    held_out, clean, adversarial_scores = map(method.score, (d.modeling.images[:300], x, perturbed[fooled]))
    fires = torch.ones(len(adversarial_scores), dtype=torch.bool)
    # over seeds of the model (four before all seeds were derived anew, three since): 0.992 to 0.995 and 0.992 to 0.997
    # without confidence, 0.960 to 0.993 and 0.943 to 0.998 with 5
    bound = 0.9 if confidence else 0.95
    assert benchmark.score_separation(held_out, clean, adversarial_scores, fires)["auroc"] >= bound
