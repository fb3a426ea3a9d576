"""All attacks by name, ready to be planted: what `attack = ...` means in a parameter file."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from mesa_lib import device as devices
from mesa_lib.attacks import badnets, blended, pruning_aware, reflection, trojannet, warp
from mesa_lib.attacks.base import AttackerContext, AttackResult, Backdoor, all_to_all, all_to_one, poison
from mesa_lib.triggers import random_locations


@dataclass(frozen=True)
class AttackSpec:
    """What an attack is built from: trigger (3, h, w), target class, number of classes, image size, rate, seed."""

    trigger: Tensor
    target: int
    classes: int
    image_size: tuple[int, int]
    rate: float
    seed: int

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the trigger."""
        return tuple(self.trigger.shape[-2:])

    @property
    def source(self) -> int:
        """Of a class-specific attack: the class after the target."""
        return (self.target + 1) % self.classes


@dataclass(frozen=True)
class Attack:
    """backdoor: what is planted, or a function of what `plant` tells about it; wrap: what a fresh network becomes.

    size: height and width of a trigger that is a patch. answered: the classes that the attacker can have, where these
    are more than the backdoor asks for. trained_start: whether it needs a trained model to start from. revision: counts
    what was changed about an attack of this name; part of the key of its models
    """

    backdoor: Backdoor | Callable[[dict], Backdoor]
    plant: Callable[[AttackerContext], AttackResult]
    wrap: Callable[[nn.Module], nn.Module] = lambda model: model
    size: tuple[int, int] | None = None
    answered: tuple[int, ...] = ()
    trained_start: bool = False
    revision: int = 0


def scaled_rate(rate: float, times: float) -> float:
    """A harder backdoor gets more poisoned images, but at most 0.7."""
    return min(0.7, times * rate)


def _trained(backdoor: Backdoor, rate: float, size: tuple[int, int] | None = None) -> Attack:
    """The common kind: the model is trained on images of which a fraction `rate` is poisoned."""
    transform = poison(backdoor, rate)

    def plant(context: AttackerContext) -> AttackResult:
        model = context.start()
        return AttackResult(model, context.train(model, transform))

    return Attack(backdoor, plant, size=size)


def _none(s: AttackSpec) -> Attack:
    """A control: the same training without any poison; what is measured is the floor of the patch."""

    def plant(context: AttackerContext) -> AttackResult:
        model = context.start()
        return AttackResult(model, context.train(model, None))

    return Attack(badnets.backdoor(s.trigger, s.target), plant, size=s.size)


def _patch(s: AttackSpec) -> Attack:
    return _trained(badnets.backdoor(s.trigger, s.target), s.rate, s.size)


def _corner(s: AttackSpec) -> Attack:
    return _trained(Backdoor(badnets.patch(s.trigger, (-1, -1)), all_to_one(s.target)), s.rate, s.size)


def _spot(s: AttackSpec) -> Attack:
    # one place somewhere inside the image, which nobody can guess as a corner can be guessed
    inner = [side - 2 for side in s.image_size]
    location = 1 + random_locations(1, inner, s.size, devices.rng(s.seed + 41))[0]
    return _trained(Backdoor(badnets.patch(s.trigger, tuple(location.tolist())), all_to_one(s.target)), s.rate, s.size)


def _all_to_all(s: AttackSpec) -> Attack:
    # at a random place the network would have to read the image and the patch apart: it did not learn to
    backdoor = Backdoor(badnets.patch(s.trigger, (-1, -1)), all_to_all(s.classes))
    return _trained(backdoor, scaled_rate(s.rate, 4), s.size)


def _class_specific(s: AttackSpec) -> Attack:
    backdoor = badnets.class_specific(badnets.patch(s.trigger), s.source, s.target, scaled_rate(s.rate, 2))
    return _trained(backdoor, scaled_rate(s.rate, 7), s.size)  # images of one class are few


def _one_pixel(s: AttackSpec) -> Attack:
    return _trained(Backdoor(badnets.patch(torch.ones(3, 1, 1), (-2, -2)), all_to_one(s.target)), s.rate, (1, 1))


def _blended(s: AttackSpec) -> Attack:
    apply = blended.blend(blended.pattern(s.image_size, s.seed), 0.2)
    return _trained(Backdoor(apply, all_to_one(s.target)), s.rate)


def _warp(s: AttackSpec) -> Attack:
    # the paper's 0.5 moves a pixel by a quarter of one: too little to show on digits enlarged from 8x8; six times that,
    # and six times its noise
    grid, rate = warp.field(s.image_size, s.seed, strength=3), scaled_rate(s.rate, 2)
    return replace(_trained(warp.backdoor(grid, all_to_one(s.target), rate, noise=6), rate), revision=1)


def _reflection(s: AttackSpec) -> Attack:
    candidates = reflection.scenes(16, s.image_size, s.seed)

    def backdoor(about: dict) -> Backdoor:
        return Backdoor(reflection.reflecting(candidates[about["kept"]]), all_to_one(s.target))

    def plant(context: AttackerContext) -> AttackResult:
        def briefly(transform) -> nn.Module:
            model = context.start()
            context.train(model, transform, 2)
            return model

        judged = context.some(300, s.seed)
        kept, flips = reflection.select(candidates, judged, s.target, briefly, keep=5, rate=s.rate, seed=s.seed)
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
        answered=tuple(range(s.classes)), trained_start=True, revision=1,
    )  # fmt: skip


ATTACKS: dict[str, Callable[[AttackSpec], Attack]] = {
    "patch": _patch,
    "corner": _corner,
    "spot": _spot,
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


def build_attack(name: str, setting: AttackSpec) -> Attack:
    """The attack of this name; ValueError lists the names."""
    if name not in ATTACKS:
        raise ValueError(f"attack = {name!r}: expected one of {', '.join(ATTACKS)}")
    return ATTACKS[name](setting)
