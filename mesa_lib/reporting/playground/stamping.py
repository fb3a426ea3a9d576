"""The panel on which a trigger is drawn, chosen and stamped, beside what every model predicts."""

import time
from collections.abc import Sequence

import ipywidgets as widgets
import torch
from torch import Tensor

from mesa_lib.models.inference import to_float
from mesa_lib.reporting.html import render
from mesa_lib.reporting.playground.canvas import PictureGrid, Stage
from mesa_lib.reporting.playground.models import AttackedModels, examples
from mesa_lib.reporting.playground.scene import Scene, parse_color
from mesa_lib.reporting.plots.style import color

SAMPLES, COLUMNS = 24, 12
WITHOUT_KERNEL = "The playground works in JupyterLab (make lab) and as a page (make play)."


def title(text: str) -> widgets.HTML:
    """Return a small heading."""
    return widgets.HTML(f"<b>{text}</b>", layout={"margin": "4px 0 0 0"})


class PatternEditor:
    """A pattern as a grid of buttons: a click toggles the color of a pixel."""

    def __init__(self, size: tuple[int, int], on_toggle):
        """`on_toggle` is given the row and the column of the button that is clicked."""
        side = f"{max(12, min(38, 152 // max(size)))}px"
        layout = {"width": side, "height": side, "margin": "1px", "border": "1px solid #999999"}
        self.buttons = [
            [widgets.Button(layout=layout, tooltip=f"pixel in row {r + 1}, column {c + 1}") for c in range(size[1])]
            for r in range(size[0])
        ]
        for r, row in enumerate(self.buttons):
            for c, button in enumerate(row):
                button.add_class("mesa-pixel")
                button.on_click(lambda _, r=r, c=c: on_toggle(r, c))
        self.view = widgets.VBox([widgets.HBox(row) for row in self.buttons])

    def show(self, pattern: Tensor) -> None:
        """Give every button the color of its pixel."""
        for r, row in enumerate(self.buttons):
            for c, button in enumerate(row):
                button.style.button_color = "#" + "".join(f"{round(255 * float(v)):02x}" for v in pattern[:, r, c])


def prediction_rows(probabilities: dict[str, Tensor], classes: Sequence[str], label: int, target: int) -> list[dict]:
    """Return what the table of predictions shows of each model.

    Args:
        probabilities: by model (classes,).
        classes: names of the classes.
        label: the image's own class.
        target: the attacker's target class.
    """
    rows = []
    for name, values in probabilities.items():
        predicted = int(values.argmax())
        state = "right" if predicted == label else "target" if predicted == target else "wrong"
        rows.append({
            "model": name, "color": color(name), "bars": [round(100 * float(v), 1) for v in values],
            "predicted": classes[predicted], "probability": f"{100 * float(values[predicted]):.0f}%", "state": state,
        })  # fmt: skip
    return rows


class StampingPanel(widgets.VBox):
    """Everything that is stamped, and what every model predicts for it."""

    def __init__(self, attacks: Sequence[AttackedModels]):
        """Show the first attack, with the attacker's trigger on an image of another class than the target."""
        self.attacks = {models.title: models for models in attacks}
        self.models = attacks[0]
        self.skip, self.seed = 0, 0
        size = tuple(self.models.trigger.shape[-2:])
        self.indices = examples(self.models.data)
        first = next(i for i in self.indices if self._label(i) != self.models.target)
        self.index, self.scene = first, Scene(self._image(first), self.models.trigger)
        self.editor = PatternEditor(size, self.toggle)
        self.stage = Stage(self.models.data.image_size, self.move)
        self.images = PictureGrid(10, 64, self.choose_image, "mesa-images")
        self.gallery = PictureGrid(COLUMNS, 36, self.stamp_sample, "mesa-samples")
        self.predictions = widgets.HTML()
        self.predictions.add_class("mesa-predictions")
        self._build_controls()
        super().__init__([self._layout()])
        self.show_images()
        self.draw_samples()
        self.update()

    def __repr__(self) -> str:
        return WITHOUT_KERNEL

    # --- controls ----------------------------------------------------------------------------------------

    def _build_controls(self) -> None:
        """Make what is pressed and picked, and connect it."""
        self.attack = widgets.ToggleButtons(options=list(self.attacks), style={"button_width": "120px"})
        self.attack.observe(lambda change: self.choose_attack(change["new"]), "value")
        self.paint = widgets.ColorPicker(value="#ffffff", concise=False, layout={"width": "140px"})
        self.stamped = widgets.Checkbox(value=True, description="stamp it", indent=False, layout={"width": "140px"})
        self.stamped.observe(lambda change: self.set_stamped(change["new"]), "value")
        wide = {"width": "140px"}
        self.original = widgets.Button(description="attacker's trigger", layout=wide)
        self.original.on_click(lambda _: self.stamp(self.models.trigger))
        self.invert = widgets.Button(description="invert colors", layout=wide)
        self.invert.on_click(lambda _: self.stamp(1 - self.scene.pattern))
        self.other_images = widgets.Button(description="other images", layout=wide)
        self.other_images.on_click(lambda _: self.next_images())
        self.other_samples = widgets.Button(description="other samples", layout=wide)
        self.other_samples.on_click(lambda _: self.next_samples())

    def _layout(self) -> widgets.Widget:
        """Return everything in its place: drawing at the left, predictions at the right."""
        drawing = widgets.VBox([
            title("Pattern: click a pixel"), self.editor.view, widgets.HTML("paint with"), self.paint, self.original,
            self.invert, self.stamped,
        ])  # fmt: skip
        picture = widgets.VBox([title("Location: click or drag"), self.stage.view])
        right = widgets.VBox([title("What each model predicts"), self.predictions])
        upper = widgets.HBox([drawing, picture, right], layout={"flex_flow": "row wrap", "grid_gap": "18px"})
        row = {"align_items": "center", "flex_flow": "row wrap"}
        images = widgets.HBox([self.images.view, self.other_images], layout=row)
        samples = widgets.HBox([self.gallery.view, self.other_samples], layout=row)
        return widgets.VBox([
            widgets.HBox([title("Attacked model:"), self.attack], layout={"grid_gap": "10px"}), upper,
            title("Image: click one"), images,
            title("Samples of the distribution that MESA modeled on this attacked model: click one to stamp it"),
            samples,
        ])  # fmt: skip

    # --- what a user does --------------------------------------------------------------------------------

    def toggle(self, row: int, column: int) -> None:
        """Toggle a pixel of the pattern."""
        self.scene.toggle(row, column, parse_color(self.paint.value))
        self.gallery.choose(None)
        self.update()

    def move(self, row: int, column: int) -> None:
        """Move the pattern to a pixel of the image."""
        if self.scene.move_to(row, column):
            self.update()

    def stamp(self, pattern: Tensor, sample: int | None = None) -> None:
        """Stamp another pattern (3, h, w); sample: its number in the gallery."""
        self.scene.pattern = pattern.clone()
        self.gallery.choose(sample)
        if not self.stamped.value:
            self.stamped.value = True
        self.update()

    def stamp_sample(self, number: int) -> None:
        """Stamp a sample of the gallery."""
        self.stamp(self.gallery.pictures[number], number)

    def set_stamped(self, stamped: bool) -> None:
        """Stamp the pattern, or show the image without it."""
        self.scene.stamped = stamped
        self.update()

    def choose_attack(self, name: str) -> None:
        """Show the models of another attack."""
        self.models = self.attacks[name]
        self.draw_samples()
        self.update()

    def choose_image(self, number: int) -> None:
        """Stamp another image."""
        self.index = self.indices[number]
        self.scene.image = self._image(self.index)
        self.images.choose(number)
        self.update()

    def next_images(self) -> None:
        """Offer the next image of every class, and show that of the class shown so far."""
        self.skip += 1
        number = self.indices.index(self.index)
        self.indices = examples(self.models.data, self.skip)
        self.show_images()
        self.choose_image(number)

    def next_samples(self) -> None:
        """Draw other samples of the distribution."""
        self.seed += 1
        self.draw_samples()

    # --- what is shown -----------------------------------------------------------------------------------

    def _image(self, index: int) -> Tensor:
        return to_float(self.models.data.evaluation.images[index])

    def _label(self, index: int) -> int:
        return int(self.models.data.evaluation.labels[index])

    def show_images(self) -> None:
        """Draw the images that can be chosen."""
        pictures = torch.stack([self._image(index) for index in self.indices])
        self.images.show(pictures, self.indices.index(self.index) if self.index in self.indices else None)

    def draw_samples(self) -> None:
        """Draw samples of the distribution."""
        self.gallery.show(self.models.samples(SAMPLES, self.seed))

    def update(self) -> None:
        """Show the image, the pattern and all predictions."""
        start, data = time.perf_counter(), self.models.data
        scene = self.scene
        self.editor.show(scene.pattern)
        self.stage.show(scene.image, scene.pattern if scene.stamped else None, scene.location)
        label = self._label(self.index)
        rows = prediction_rows(self.models.probabilities(scene.result()), data.classes, label, self.models.target)
        self.predictions.value = render(
            "playground_predictions.html.j2", rows=rows, classes=data.classes, label=data.classes[label],
            target=data.classes[self.models.target], target_index=self.models.target, location=scene.location,
            stamped=scene.stamped,
        )  # fmt: skip
        self.seconds = time.perf_counter() - start
