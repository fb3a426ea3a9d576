"""What is stamped where: an image, a pattern, and its location."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mesa_lib import triggers

BLACK = (0.0, 0.0, 0.0)


def parse_color(text: str) -> tuple[float, float, float]:
    """Return the color that `#rrggbb` names, as three values in [0, 1]."""
    return tuple(int(text[i : i + 2], 16) / 255 for i in (1, 3, 5))


class Scene:
    """An image and the pattern that is stamped on it.

    Attributes:
        image: (3, H, W) in [0, 1].
        pattern: (3, h, w) in [0, 1].
        location: row and column of the pattern's upper left corner.
        stamped: whether the pattern is stamped at all.
    """

    def __init__(self, image: Tensor, pattern: Tensor):
        """Begin with the pattern in the middle of the image."""
        triggers.check_fits(tuple(pattern.shape[-2:]), tuple(image.shape[-2:]))
        self.image, self.pattern, self.stamped = image, pattern.clone(), True
        self.location = (0, 0)
        self.move_to(*(side // 2 for side in image.shape[-2:]))

    def toggle(self, row: int, column: int, color: Sequence[float]) -> None:
        """Give a pixel of the pattern this color; if it has it already, make it black, and white if that is black."""
        old, new = self.pattern[:, row, column], torch.tensor(color, dtype=self.pattern.dtype)
        if torch.allclose(old, new, atol=0.5 / 255):
            new = torch.full_like(new, float(not torch.any(new)))
        self.pattern = self.pattern.clone()
        self.pattern[:, row, column] = new

    def move_to(self, row: int, column: int) -> bool:
        """Move the pattern's middle to a pixel, or as near as the image allows; return whether it moved."""
        middle, sides, sizes = (row, column), self.image.shape[-2:], self.pattern.shape[-2:]
        location = tuple(
            min(max(at - size // 2, 0), side - size) for at, side, size in zip(middle, sides, sizes, strict=True)
        )
        moved, self.location = location != self.location, location
        return moved

    def result(self) -> Tensor:
        """Return what the models see (3, H, W): the image, with the pattern if it is stamped."""
        if not self.stamped:
            return self.image
        return triggers.stamp(self.image[None], self.pattern, torch.tensor(self.location))[0]
