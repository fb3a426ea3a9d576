"""Adversarial examples, the contrast to a backdoor: one perturbation per input, and the model stays as it is.

All four attacks are those of Foolbox (Rauber et al., 2020), on images in [0, 1].
"""

import torch
from torch import Tensor, nn

METHODS = ("fgsm", "pgd", "deepfool", "cw")


def examples(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    method: str,
    *,
    epsilon: float = 8 / 255,
    steps: int | None = None,
    confidence: float = 0,
    seed: int = 0,
) -> Tensor:
    """Return perturbed copies of the images that the model should classify as anything but `labels`.

    Args:
        model: the network under attack.
        images: (N, 3, H, W) in [0, 1].
        labels: (N,), their true classes.
        method: `fgsm` and `pgd` (random start, steps of a fifth of epsilon) move no value by more than `epsilon`;
            `deepfool` and `cw` (Carlini and Wagner, L2) look for the smallest change in L2 and have no bound.
        epsilon: bound of fgsm and pgd.
        steps: None: 10 for pgd, 50 for deepfool, 200 for cw.
        confidence: for cw only, by how much the logit of the wrong class exceeds that of the true one.
        seed: of pgd's random start.
    """
    import foolbox

    if method not in METHODS:
        raise ValueError(f"method = {method!r}: expected one of {', '.join(METHODS)}")
    if confidence < 0 or (confidence and method != "cw"):
        raise ValueError(f"confidence = {confidence} with {method}: expected 0, or with cw a margin of logits above 0")
    device = next(model.parameters()).device
    attacks = {
        "fgsm": lambda: foolbox.attacks.LinfFastGradientAttack(),
        "pgd": lambda: foolbox.attacks.LinfProjectedGradientDescentAttack(rel_stepsize=0.2, steps=steps or 10),
        "deepfool": lambda: foolbox.attacks.L2DeepFoolAttack(steps=steps or 50, overshoot=0.02),
        "cw": lambda: foolbox.attacks.L2CarliniWagnerAttack(
            steps=steps or 200, binary_search_steps=4, confidence=confidence
        ),
    }
    wrapped = foolbox.PyTorchModel(model.eval(), bounds=(0, 1), device=device)
    budget = epsilon if method in ("fgsm", "pgd") else None
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)  # Foolbox draws pgd's random start from the global generator
        _, perturbed, _ = attacks[method]()(wrapped, images.to(device), labels.to(device), epsilons=budget)
    return perturbed.detach().clamp(0, 1)
