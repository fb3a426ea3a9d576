"""All attacks by name, ready to be planted: what `attack = ...` means in a parameter file."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mesa_lib import device as devices
from mesa_lib.attacks import adaptive, badnets, blended, pruning_aware, reflection, trojannet, warp
from mesa_lib.attacks.base import AttackerContext, AttackResult, Backdoor, all_to_all, all_to_one, poison
from mesa_lib.retrain import ImageTransform
from mesa_lib.training import BatchTransform
from mesa_lib.triggers import random_locations


@dataclass(frozen=True)
class AttackSpec:
    """What an attack is built from.

    Attributes:
        trigger: (3, h, w).
        target: the class that is predicted.
        classes: their number.
        image_size: height and width.
        rate: fraction of images that are poisoned.
        seed: the attacker's.
        cover, cover_rate: of the attacks covered and adaptive, see `badnets.covered`.
        more_triggers: further triggers of these, each (3, h, w).
    """

    trigger: Tensor
    target: int
    classes: int
    image_size: tuple[int, int]
    rate: float
    seed: int
    cover: str = "mixed"
    cover_rate: float = 0.3
    more_triggers: Sequence[Tensor] = ()

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the trigger."""
        return tuple(self.trigger.shape[-2:])

    @property
    def source(self) -> int:
        """The source class of a class-specific attack: the class after the target."""
        return (self.target + 1) % self.classes


@dataclass(frozen=True)
class Attack:
    """An attack that is ready to be planted.

    Attributes:
        backdoor: what is planted; or a function from the numbers that `plant` records (`AttackResult.about`) to it,
            where the attacker chooses the trigger while planting.
        plant: context -> the attacked model.
        wrap: what an untrained network becomes before the attacked weights fit.
        size: height and width of a trigger that is a patch.
        targets: all classes that the attacker can have predicted, where they are more than the backdoor's goal says.
        trained_start: whether the attack needs a trained model to start from.
        revision: counts changes of the attack under this name; a part of the key of its models.
    """

    backdoor: Backdoor | Callable[[dict], Backdoor]
    plant: Callable[[AttackerContext], AttackResult]
    wrap: Callable[[nn.Module], nn.Module] = lambda model: model
    size: tuple[int, int] | None = None
    targets: tuple[int, ...] = ()
    trained_start: bool = False
    revision: int = 0


def scaled_rate(rate: float, factor: float) -> float:
    """Return the poison rate of a backdoor that is harder to plant: `factor` times `rate`, at most 0.7."""
    return min(0.7, factor * rate)


def _trained(backdoor: Backdoor, rate: float | None, size: tuple[int, int] | None = None, revision: int = 0) -> Attack:
    """The common kind: the model is trained on images of which a fraction `rate` (None: none) is poisoned."""
    transform = None if rate is None else poison(backdoor, rate)

    def plant(context: AttackerContext) -> AttackResult:
        model = context.start()
        return AttackResult(model, context.train(model, transform))

    return Attack(backdoor, plant, size=size, revision=revision)


def _to_target(s: AttackSpec, transform: ImageTransform, size: tuple[int, int] | None = None) -> Attack:
    """An attack by this transform with the specified rate, every image to the target."""
    return _trained(Backdoor(transform, all_to_one(s.target)), s.rate, size)


def _none(s: AttackSpec) -> Attack:
    """A control: the training of an attack without any poison. What is measured is the clean-model ASR of the patch."""
    return _trained(badnets.backdoor(s.trigger, s.target), None, s.size)


def _patch(s: AttackSpec) -> Attack:
    return _trained(badnets.backdoor(s.trigger, s.target), s.rate, s.size)


def _checked_patches(s: AttackSpec) -> Tensor:
    """Return the triggers (k, 3, h, w) of a backdoor with cover samples; ValueError if they do not go together."""
    for more in s.more_triggers:
        if more.shape != s.trigger.shape:
            raise ValueError(
                f"more_triggers = patches of {tuple(more.shape[-2:])}: expected {s.size}, the size of the first trigger"
            )
    if s.rate + s.cover_rate > 1:
        raise ValueError(f"cover_rate = {s.cover_rate}: expected at most 1 - poison_rate, {1 - s.rate:g}")
    patches = torch.stack([s.trigger, *s.more_triggers])
    if s.cover == "near" and badnets.fewest_different_pixels(patches) <= badnets.NEAR:
        raise ValueError(
            f"more_triggers: two of them differ in {badnets.NEAR} pixels or fewer; expected more where cover = 'near', "
            "since a near miss of one could be another"
        )
    return patches


def _covered(s: AttackSpec) -> Attack:
    return _trained(badnets.covered(_checked_patches(s), s.target, s.cover, s.cover_rate), s.rate, s.size)


def _adaptive(s: AttackSpec) -> Attack:
    patches = _checked_patches(s)

    def plant(context: AttackerContext) -> AttackResult:
        return adaptive.plant(context, patches, s.target, s.cover, s.rate, s.cover_rate, s.seed)

    return Attack(badnets.covered(patches, s.target, s.cover, s.cover_rate), plant, size=s.size)


def _corner(s: AttackSpec) -> Attack:
    return _to_target(s, badnets.patch(s.trigger, (-1, -1)), s.size)


def _fixed_location(s: AttackSpec) -> Attack:
    """A patch at one location inside the image, which a defender cannot guess as a corner can be guessed."""
    inner = [side - 2 for side in s.image_size]
    location = 1 + random_locations(1, inner, s.size, devices.rng(devices.derive_seed(s.seed, "location")))[0]
    return _to_target(s, badnets.patch(s.trigger, tuple(location.tolist())), s.size)


def _all_to_all(s: AttackSpec) -> Attack:
    # in a fixed corner: the network did not learn to read image and patch apart at random locations
    backdoor = Backdoor(badnets.patch(s.trigger, (-1, -1)), all_to_all(s.classes))
    return _trained(backdoor, scaled_rate(s.rate, 4), s.size)


def _class_specific(s: AttackSpec) -> Attack:
    backdoor = badnets.class_specific(badnets.patch(s.trigger), s.source, s.target, scaled_rate(s.rate, 2))
    return _trained(backdoor, scaled_rate(s.rate, 7), s.size)  # images of one class are few


def _one_pixel(s: AttackSpec) -> Attack:
    return _to_target(s, badnets.patch(torch.ones(3, 1, 1), (-2, -2)), (1, 1))


def _blended(s: AttackSpec) -> Attack:
    return _to_target(s, blended.blend(blended.pattern(s.image_size, s.seed), 0.2))


def _warp(s: AttackSpec) -> Attack:
    # the paper's 0.5 moves a pixel by a quarter of one, too little to show on digits enlarged from 8x8; here strength
    # and noise are six times the paper's
    grid, rate = warp.field(s.image_size, s.seed, strength=3), scaled_rate(s.rate, 2)
    return _trained(warp.backdoor(grid, all_to_one(s.target), rate, noise=6), rate, revision=1)


def _reflection(s: AttackSpec) -> Attack:
    candidates = reflection.scenes(16, s.image_size, s.seed)

    def backdoor(about: dict) -> Backdoor:
        return Backdoor(reflection.reflecting(candidates[about["kept"]]), all_to_one(s.target))

    def plant(context: AttackerContext) -> AttackResult:
        def train_briefly(transform: BatchTransform) -> nn.Module:
            model = context.start()
            context.train(model, transform, 2)
            return model

        images = context.sample(300, s.seed)
        kept, flips = reflection.select(candidates, images, s.target, train_briefly, keep=5, rate=s.rate, seed=s.seed)
        about, model = {"kept": kept.tolist(), "flips": flips.tolist()}, context.start()
        return AttackResult(model, context.train(model, poison(backdoor(about), s.rate)), about)

    return Attack(backdoor, plant)


def _pruning_aware(s: AttackSpec) -> Attack:
    backdoor, rate = badnets.backdoor(s.trigger, s.target), scaled_rate(s.rate, 2)

    def plant(context: AttackerContext) -> AttackResult:
        return pruning_aware.plant(context, backdoor, rate, s.seed)

    return Attack(backdoor, plant, size=s.size, trained_start=True, revision=2)


def _trojannet(s: AttackSpec) -> Attack:
    rows, location = trojannet.rows(s.classes, s.seed), trojannet.location(s.image_size)
    code = trojannet.codes()[rows[s.target]].reshape(1, 3, 3).expand(3, -1, -1)

    def plant(context: AttackerContext) -> AttackResult:
        patches = trojannet.gray_patches(context.images.images, s.seed)
        module = trojannet.train_module(patches, s.seed)
        return AttackResult(trojannet.Merged(context.start(), module, rows, location), [])

    def wrap(model: nn.Module) -> nn.Module:
        device = next(model.parameters()).device
        return trojannet.Merged(model, trojannet.untrained(s.seed), rows, location).to(device)

    return Attack(
        Backdoor(trojannet.trigger(code, location), all_to_one(s.target)), plant, wrap, size=(3, 3),
        targets=tuple(range(s.classes)), trained_start=True, revision=1,
    )  # fmt: skip


ATTACKS: dict[str, Callable[[AttackSpec], Attack]] = {
    "patch": _patch,
    "covered": _covered,
    "adaptive": _adaptive,
    "corner": _corner,
    "fixed-location": _fixed_location,
    "all-to-all": _all_to_all,
    "class-specific": _class_specific,
    "one-pixel": _one_pixel,
    "blended": _blended,
    "warp": _warp,
    "reflection": _reflection,
    "pruning-aware": _pruning_aware,
    "trojannet": _trojannet,
    "none": _none,
}


def build_attack(name: str, spec: AttackSpec) -> Attack:
    """Return the attack of this name.

    Raises:
        ValueError: for an unknown name; the message lists the names.
    """
    if name not in ATTACKS:
        raise ValueError(f"attack = {name!r}: expected one of {', '.join(ATTACKS)}")
    return ATTACKS[name](spec)
