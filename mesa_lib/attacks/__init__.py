"""Attacks: how backdoors are planted. `catalogue` has all of them by name, each is a file of its own."""

from .base import (
    Backdoor,
    Cover,
    Planted,
    Workshop,
    all_to_all,
    all_to_one,
    check_rate,
    check_target,
    one_to_one,
    poison,
)
from .catalogue import ATTACKS, Attack, Setting, build

__all__ = [
    "ATTACKS",
    "Attack",
    "Backdoor",
    "Cover",
    "Planted",
    "Setting",
    "Workshop",
    "all_to_all",
    "all_to_one",
    "build",
    "check_rate",
    "check_target",
    "one_to_one",
    "poison",
]
