"""An attacker who knows MESA: covers its backdoor with samples of MESA, round after round (ours).

The attacker models the triggers of its own model as a defender will, and trains on with these samples as cover samples:
stamped on images that keep their labels. What the modeling found stops working, unless it is the trigger itself.
"""

from torch import Tensor

from mesa_lib import device as devices
from mesa_lib import staircase
from mesa_lib.attacks import badnets
from mesa_lib.attacks.base import AttackerContext, AttackResult, poison
from mesa_lib.retrain import choice, mixture

#: how often the attacker models its own model
ROUNDS = 2
#: samples of each round that become cover samples
SAMPLES = 1000
#: samples nearer than this to a trigger (root mean square difference) are left out: they are to keep working. One pixel
#: of a black-white 3x3 trigger changed is a difference of a third
NEAREST = 0.25


def unlike(samples: Tensor, patches: Tensor, nearest: float = NEAREST) -> Tensor:
    """Return the samples (n, 3, h, w) that are at least so far from every one of the patches (k, 3, h, w)."""
    distance = (samples[:, None] - patches.to(samples.device)).square().mean((2, 3, 4)).sqrt()
    return samples[distance.amin(1) >= nearest]


def plant(
    context: AttackerContext, patches: Tensor, target: int, cover: str, rate: float, cover_rate: float, seed: int
) -> AttackResult:
    """Plant one or several patches with cover samples, of `cover` at first and of MESA's samples in later rounds.

    Args:
        context: what the attacker has.
        patches: the triggers (k, 3, h, w).
        target: the class that every image should be classified as.
        cover: one of `badnets.COVERS`.
        rate, cover_rate: fractions of poisoned images and of cover samples.
        seed: of the modeling.

    Returns:
        The attacked model. `about` has, for each round, on how many of the `samples` it was covered, and the `success`
        of each level of its modeling on held-out images.
    """
    sources, model, history, rounds = [badnets.cover_source(cover, patches)], context.start(), [], []
    for number in range(ROUNDS + 1):
        backdoor = badnets.with_covers(patches, target, mixture(sources), cover_rate)
        history += context.train(model, poison(backdoor, rate))
        if number == ROUNDS:
            break
        own_seed = devices.derive_seed(seed, "own modeling", number)
        images, labels = context.images.images, context.images.labels
        distribution = staircase.fit(model, images, labels, target, size=tuple(patches.shape[-2:]), seed=own_seed)
        rng = devices.rng(devices.derive_seed(own_seed, "samples"), next(model.parameters()).device)
        kept = unlike(distribution.sample(SAMPLES, rng), patches)
        rounds.append({"samples": len(kept), "success": [level.success for level in distribution.levels]})
        sources += [choice(kept)] if len(kept) else []
    return AttackResult(model.eval(), history, {"rounds": rounds})
