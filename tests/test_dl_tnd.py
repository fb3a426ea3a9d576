import numpy as np
import pytest
import torch
from victims import TARGET, victim

from mesa_lib.data.splits import Split
from mesa_lib.defenses import dl_tnd
from mesa_lib.defenses.base import DefenderView, Knowledge
from mesa_lib.models import networks
from mesa_lib.reporting.tables import benchmark as tables


def test_many_classes_are_searched_in_parts_with_the_same_result(monkeypatch):
    network = networks.build_network("smallcnn", 4, 4, (0.5,) * 3, (0.5,) * 3, 0).eval()
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (40, 3, 16, 16), generator=rng, dtype=torch.uint8)
    method, knowledge = dl_tnd.DLTND(steps=5), Knowledge("weights", images=40)

    def detect():
        return method.detect(DefenderView(knowledge, network, Split(images, torch.arange(40) % 4), 4))

    whole = detect()
    monkeypatch.setattr(dl_tnd, "CLASSES_PER_BATCH", 3)
    parts = detect()
    assert len(parts.scores) == 4 and parts.scores == pytest.approx(whole.scores, abs=1e-3)
    assert np.ptp(whole.scores) > 0.01, "classes that differ"


@pytest.mark.long
def test_dl_tnd_ranks_the_planted_class_first():
    assert tables.top_class(victim("patch").verdict("DL-TND").result) == TARGET
