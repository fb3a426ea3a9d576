"""What a scan looks for and how its repair is trained: settings, checked."""

from dataclasses import dataclass

from pydantic import ValidationError

from mesa_lib.defenses.mesa.screening import Size
from mesa_lib.scan.detector import REFERENCE_SIDE, ScanDetector, ScanScreening
from mesa_lib.settings import RepairSettings

#: sides of the patches that are tried on images of 32x32, and in proportion on others. Smaller ones detect nothing
#: more: a patch has room for a smaller trigger
SIDES = (3, 4, 5)
_REPAIR = RepairSettings()


def squares(side: int) -> tuple[Size, ...]:
    """Return the patches that are tried on images of this side, each once."""
    patch_sides = (max(1, round(patch * side / REFERENCE_SIDE)) for patch in SIDES)
    return tuple(dict.fromkeys((patch, patch) for patch in patch_sides))


@dataclass(frozen=True)
class Options:
    """The options of a scan.

    Attributes:
        sizes: height and width of the patches that are tried; None: `squares` of the images' side.
        repair: whether a repaired model is made if a class is flagged.
        repair_epochs, repair_lr, repair_rate, batch_size, augment: of the repair, see `RepairSettings`.
        min_accuracy: the lowest accuracy on the clean images for a verdict; None: two fifths of the way from the share
            of the largest class to 1.
        trust_preprocessing: accept normalization and order of the classes as they are, even if others fit better.
        budget: minutes for the verdict; None: as long as it takes. If it is too short for all classes, those with the
            largest margins are screened, at least one. Sizes and locations that do not fit even so are skipped, all
            but the first. The repair is made beyond it.
        seed, device, precision: see `mesa_lib.device`.
    """

    sizes: tuple[Size, ...] | None = None
    repair: bool = False
    repair_epochs: int = _REPAIR.repair_epochs
    repair_lr: float = _REPAIR.repair_lr
    repair_rate: float = _REPAIR.repair_rate
    batch_size: int = _REPAIR.batch_size
    augment: str = _REPAIR.retrain_augment
    min_accuracy: float | None = None
    trust_preprocessing: bool = False
    budget: float | None = None
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"

    def __post_init__(self):
        if self.sizes is not None and not (self.sizes and all(1 <= side <= 64 for size in self.sizes for side in size)):
            raise ValueError(f"sizes = {self.sizes}: expected sides of 1 to 64 pixels")
        if self.min_accuracy is not None and not 0 <= self.min_accuracy < 1:
            raise ValueError(f"min_accuracy = {self.min_accuracy}: expected an accuracy from 0 to below 1")
        if self.budget is not None and not 0 < self.budget < float("inf"):
            raise ValueError(f"budget = {self.budget}: expected a number of minutes above 0")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed = {self.seed}: expected a whole number from 0 to {2**32 - 1}")
        self.repair_settings()

    def repair_settings(self) -> RepairSettings:
        """Return how the repair is trained; ValueError names the first value outside its range."""
        try:
            return RepairSettings(
                repair_rate=self.repair_rate, repair_epochs=self.repair_epochs, repair_lr=self.repair_lr,
                retrain_augment=self.augment, batch_size=self.batch_size,
            )  # fmt: skip
        except ValidationError as error:
            problem = error.errors()[0]
            name = str(problem["loc"][0]).removeprefix("retrain_")
            expected = problem["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
            expected = f"a number {expected}" if expected[:1] in "gl" else expected  # greater, less
            raise ValueError(f"{name} = {problem['input']!r}: expected {expected}") from error

    def detector(self, side: int) -> ScanDetector:
        """Return MESA for a defender who knows neither size nor location, for images of this side."""
        stride = max(2, side // REFERENCE_SIDE)
        return ScanDetector(ScanScreening(sizes=self.sizes or squares(side), stride=stride, side=side), side=side)
