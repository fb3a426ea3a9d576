import pytest
import torch
from victims import rates, victim

from mesa_lib.defenses import pruning
from mesa_lib.models import inference, networks


def test_the_accuracy_curve_is_that_of_masked_heads():
    network = networks.build_network("smallcnn", 4, 4, (0.5,) * 3, (0.5,) * 3, 0).eval()
    images = torch.randint(0, 256, (50, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    labels = inference.predict(network, images)
    channels = pruning.order(network, images)
    used = inference.representations(network, images).mean(0)[channels]
    assert sorted(channels.tolist()) == list(range(16)) and bool((used.diff() >= 0).all())
    curve = pruning.accuracies(network, images, labels, channels)
    assert curve[0] == 1 and len(curve) == 17 and min(curve) < 1
    with torch.no_grad():
        network.head.weight[:, channels[:9]] = 0
    assert curve[9] == float((inference.predict(network, images) == labels).float().mean())


@pytest.mark.long
def test_decoys_stand_first_in_the_defenders_order_and_change_nothing():
    attacked = victim("pruning-aware").pipeline.attacked()
    about = attacked.artifact.result
    assert about["below"] and about["changed"] <= 0.005
    first = pruning.order(attacked.model, victim("patch").data.modeling.images)[: len(about["decoys"])].tolist()
    assert sorted(first) == sorted(about["decoys"])


@pytest.mark.long
def test_the_pruning_aware_backdoor_survives_pruning_and_is_weakened_by_fine_pruning():
    """How much Fine-Pruning leaves depends on the seeds of the attacked model and of retraining.

    ASR over attacked models, each retrained with two to four seeds. Seeds 0 to 3, before all seeds were derived anew:
    pruning left 92 to 100%, Fine-Pruning 1 to 51%, fine-tuning 1 to 94%. Seeds 0 to 2 since: 65 to 100%, 0.5 to 92% and
    2 to 85%. Fine-Pruning always left less than pruning, by 7 points at least, but not always less than fine-tuning.
    """
    evaluation = victim("pruning-aware")
    _, pruned = rates(evaluation, evaluation.repaired("pruning"))
    accuracy, asr = rates(evaluation, evaluation.repaired("Fine-Pruning"))
    assert pruned > 0.5
    assert accuracy > 0.95 and asr < pruned - 0.05
