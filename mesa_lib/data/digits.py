"""scikit-learn's handwritten digits: 1,797 real images of 8x8 pixels (Alpaydin and Kaynak, UCI, 1998)."""

import numpy as np
import torch
import torch.nn.functional as F

from mesa_lib.data.splits import Split, TrainAndTest

TRAIN = 800
#: part of the 997 test images that is for modeling
MODELING_SHARE = 597 / 997


def digits(seed: int, size: int = 32) -> TrainAndTest:
    """Return the digits enlarged to size x size in three equal channels: 800 to train, 997 to test.

    Args:
        seed: decides which images are for training.
        size: side in pixels; enlarged bilinearly.
    """
    from sklearn.datasets import load_digits

    raw = load_digits()
    images = torch.from_numpy(raw.images).float()[:, None] / 16
    images = F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)
    images = (images * 255).round().to(torch.uint8).repeat(1, 3, 1, 1)
    # not `derive_seed`: this division is part of the data set, on which results have been published
    order = torch.from_numpy(np.random.RandomState(seed + 1).permutation(len(images)))
    both = Split(images[order], torch.from_numpy(raw.target).long()[order])
    return TrainAndTest(both[:TRAIN], both[TRAIN:], tuple(str(d) for d in range(10)))
