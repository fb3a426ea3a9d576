"""What a scan looks for and how its repair is trained: settings, checked."""

from dataclasses import dataclass

from mesa_lib import training
from mesa_lib.defenses.mesa.detector import MESA
from mesa_lib.defenses.mesa.screening import Size
from mesa_lib.scan.detector import USUAL, ScanDetector, ScanScreening

#: sides of the patches that are looked for in images of 32x32, and in proportion in others. Smaller ones find nothing
#: that these do not: a patch has room for a smaller trigger
SIDES = (3, 4, 5)


def squares(side: int) -> tuple[Size, ...]:
    """The patches that are looked for in images of this side, each once."""
    return tuple(dict.fromkeys((own, own) for own in (max(1, round(part * side / USUAL)) for part in SIDES)))


@dataclass(frozen=True)
class Options:
    """sizes: of the patches that are looked for, None: `squares`; repair: whether a repaired model is made, and how.

    lowest: the accuracy on the clean images below which no verdict is given; None: two fifths of the way from the share
    of the largest class to 1. as_told: normalization and order of the classes are taken as they are, even if others fit
    better
    """

    sizes: tuple[Size, ...] | None = None
    repair: bool = False
    repair_epochs: int = 10
    repair_lr: float = 0.02
    repair_rate: float = 0.2
    batch_size: int = 32
    augment: str = "crop"
    min_accuracy: float | None = None
    trust_preprocessing: bool = False
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"

    def __post_init__(self):
        if self.sizes is not None and not (self.sizes and all(1 <= side <= 64 for size in self.sizes for side in size)):
            raise ValueError(f"sizes = {self.sizes}: expected sides of 1 to 64 pixels")
        for name, low, high in (("repair_epochs", 1, 1000), ("repair_lr", 1e-9, 10), ("batch_size", 2, 10**5)):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} = {getattr(self, name)}: expected a number from {low:g} to {high:g}")
        if not 0 < self.repair_rate < 1:
            raise ValueError(f"repair_rate = {self.repair_rate}: expected a number strictly between 0 and 1")
        if self.min_accuracy is not None and not 0 <= self.min_accuracy < 1:
            raise ValueError(f"lowest = {self.min_accuracy}: expected an accuracy from 0 to below 1")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed = {self.seed}: expected a whole number from 0 to {2**32 - 1}")
        if self.augment not in training.AUGMENTATIONS:
            raise ValueError(f"augment = {self.augment!r}: expected one of {', '.join(training.AUGMENTATIONS)}")

    def detector(self, side: int) -> MESA:
        """MESA for a defender who knows neither size nor place."""
        unknown = ScanScreening(sizes=self.sizes or squares(side), stride=max(2, side // USUAL), side=side)
        return ScanDetector(unknown, side=side)
