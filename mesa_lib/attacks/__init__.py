"""Attacks: how backdoors are planted. `registry` has all of them by name; each is a file of its own."""

from mesa_lib.attacks.base import (
    AttackerContext,
    AttackResult,
    Backdoor,
    Cover,
    all_to_all,
    all_to_one,
    check_rate,
    check_target,
    one_to_one,
    poison,
)
from mesa_lib.attacks.registry import ATTACKS, Attack, AttackSpec, build_attack

__all__ = [
    "ATTACKS",
    "Attack",
    "AttackResult",
    "AttackSpec",
    "AttackerContext",
    "Backdoor",
    "Cover",
    "all_to_all",
    "all_to_one",
    "build_attack",
    "check_rate",
    "check_target",
    "one_to_one",
    "poison",
]
