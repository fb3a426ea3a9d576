"""Pictures of large pixels that can be clicked and dragged on: one picture with a frame over it, and a grid of them.

A canvas is drawn by the page that shows it, and a page may come later, or several may: each is drawn for when it says
that it is ready.
"""

from collections.abc import Callable

import numpy as np
from ipycanvas import Canvas, MultiCanvas, hold_canvas
from torch import Tensor

FRAME, FRAME_BELOW, EDGE = "#d55e00", "#ffffff", "#999999"


def draw_pixels(canvas: Canvas, picture: Tensor, scale: int, left: float = 0, top: float = 0) -> None:
    """Draw a picture (3, h, w) in [0, 1] with its corner at a point of the canvas, each pixel `scale` points wide."""
    height, width = picture.shape[-2:]
    rows, columns = np.mgrid[:height, :width]
    colors = (picture.detach().cpu().permute(1, 2, 0).reshape(-1, 3).numpy() * 255).round()
    canvas.fill_styled_rects(
        (left + columns.ravel() * scale).astype(np.float32), (top + rows.ravel() * scale).astype(np.float32),
        scale, scale, colors.astype(np.uint8), 1,
    )  # fmt: skip


def draw_frame(canvas: Canvas, left: float, top: float, width: float, height: float) -> None:
    """Draw a frame around a part of a canvas that is visible on dark and on light ground."""
    for color, line in ((FRAME_BELOW, 5), (FRAME, 2.5)):
        canvas.stroke_style, canvas.line_width = color, line
        canvas.stroke_rect(left, top, width, height)


def at_most(width: int) -> dict[str, str]:
    """Return the layout of a canvas of this width in points that becomes smaller on a narrow page."""
    return {"width": f"{width}px", "max_width": "100%", "height": "auto"}


class Stage:
    """An image with a pattern stamped on it, which a click puts elsewhere and a pointer drags."""

    def __init__(self, image_size: tuple[int, int], on_move: Callable[[int, int], None], side: int = 320):
        """Prepare an empty picture.

        Args:
            image_size: height and width of the images.
            on_move: is given the row and the column of the pixel below the pointer while a button is down.
            side: width of the canvas in points, rounded down to whole pixels of the image.
        """
        self.scale = max(1, side // max(image_size))
        height, width = (size * self.scale for size in image_size)
        self.view = MultiCanvas(2, width=width, height=height, layout=at_most(width))
        self.view.add_class("mesa-stage")
        self._dragging, self._on_move = False, on_move
        self._image: Tensor | None = None
        self._pattern: Tensor | None = None
        self._location = (0, 0)
        self.view.on_mouse_down(self.press)
        self.view.on_mouse_move(self.drag)
        self.view.on_mouse_up(self.release)
        self.view.on_mouse_out(self.release)
        self.view.on_touch_start(lambda points: self.press(*points[0]))
        self.view.on_touch_move(lambda points: self.drag(*points[0]))
        self.view.on_touch_end(lambda points: self.release())
        self.view.on_client_ready(self.redraw)

    def press(self, x: float, y: float) -> None:
        """Begin to drag: the pattern jumps below the pointer."""
        self._dragging = True
        self.drag(x, y)

    def drag(self, x: float, y: float) -> None:
        """Report the pixel below the pointer, if a button is down."""
        if self._dragging:
            self._on_move(int(y // self.scale), int(x // self.scale))

    def release(self, x: float = 0, y: float = 0) -> None:
        """End dragging."""
        self._dragging = False

    def show(self, image: Tensor, pattern: Tensor | None, location: tuple[int, int]) -> None:
        """Draw the image (3, H, W), and the pattern (3, h, w) at its location if there is one."""
        changed = self._image is None or image is not self._image
        self._image, self._pattern, self._location = image, pattern, location
        if changed:
            self._draw_image()
        self._draw_pattern()

    def redraw(self) -> None:
        """Draw everything again, for a page that has just come."""
        if self._image is not None:
            self._draw_image()
            self._draw_pattern()

    def _draw_image(self) -> None:
        with hold_canvas():
            self.view[0].clear()
            draw_pixels(self.view[0], self._image, self.scale)

    def _draw_pattern(self) -> None:
        with hold_canvas():
            self.view[1].clear()
            if self._pattern is not None:
                top, left = (at * self.scale for at in self._location)
                height, width = (size * self.scale for size in self._pattern.shape[-2:])
                draw_pixels(self.view[1], self._pattern, self.scale, left, top)
                draw_frame(self.view[1], left, top, width, height)


class PictureGrid:
    """Small pictures in rows, one of which may be framed; a click reports its number."""

    GAP = 6

    def __init__(self, columns: int, most: int, on_click: Callable[[int], None], name: str):
        """Prepare an empty grid.

        Args:
            columns: pictures in a row.
            most: largest side of a picture in points; it is rounded down to whole pixels of the picture.
            on_click: is given the number of the picture that is clicked, from 0.
            name: of the class that the page gives to the canvas.
        """
        self.columns, self.cell, self._most, self._on_click = columns, most, most, on_click
        self.pictures: Tensor | None = None
        self.chosen: int | None = None
        self.view = Canvas(width=1, height=1)
        self.view.add_class(name)
        self.view.on_mouse_down(self.press)
        self.view.on_client_ready(self.redraw)

    @property
    def step(self) -> int:
        """Distance from one picture to the next."""
        return self.cell + self.GAP

    def show(self, pictures: Tensor, chosen: int | None = None) -> None:
        """Draw pictures (n, 3, h, w), one of them framed."""
        self.pictures, self.chosen = pictures, chosen
        self.cell = self._scale() * max(pictures.shape[-2:])
        width = self.step * min(self.columns, len(pictures)) + self.GAP
        height = self.step * -(-len(pictures) // self.columns) + self.GAP
        if (self.view.width, self.view.height) != (width, height):
            self.view.width, self.view.height = width, height
            self.view.layout = at_most(width)
        self.redraw()

    def _scale(self) -> int:
        """Return how many points wide a pixel is drawn."""
        return max(1, self._most // max(self.pictures.shape[-2:]))

    def choose(self, number: int | None) -> None:
        """Frame another picture, or none."""
        if self.chosen != number:
            self.chosen = number
            self.redraw()

    def corner(self, number: int) -> tuple[int, int]:
        """Return x and y of the upper left corner of a picture."""
        row, column = divmod(number, self.columns)
        return self.GAP + column * self.step, self.GAP + row * self.step

    def number_at(self, x: float, y: float) -> int | None:
        """Return the number of the picture at a point; None: there is none."""
        column, row = int((x - self.GAP / 2) // self.step), int((y - self.GAP / 2) // self.step)
        number = row * self.columns + column
        inside = 0 <= column < self.columns and row >= 0
        return number if inside and self.pictures is not None and number < len(self.pictures) else None

    def press(self, x: float, y: float) -> None:
        """Report the picture at a point."""
        number = self.number_at(x, y)
        if number is not None:
            self._on_click(number)

    def redraw(self) -> None:
        """Draw everything again, for a page that has just come."""
        if self.pictures is None:
            return
        scale = self._scale()
        with hold_canvas():
            self.view.clear()
            for number, picture in enumerate(self.pictures):
                left, top = self.corner(number)
                draw_pixels(self.view, picture, scale, left, top)
                self.view.stroke_style, self.view.line_width = EDGE, 1
                self.view.stroke_rect(left - 0.5, top - 0.5, self.cell + 1, self.cell + 1)
            if self.chosen is not None:
                draw_frame(self.view, *self.corner(self.chosen), self.cell, self.cell)
