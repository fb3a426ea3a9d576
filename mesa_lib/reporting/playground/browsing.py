"""The panel with sliders over results of earlier runs."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import ipywidgets as widgets

from mesa_lib.reporting.html import render
from mesa_lib.reporting.playground import records
from mesa_lib.reporting.playground.canvas import PictureGrid
from mesa_lib.reporting.plots.style import COLORS

if TYPE_CHECKING:
    from mesa_lib.reporting.playground.stamping import StampingPanel

SAMPLES, COLUMNS = 24, 12


def slider(name: str, values: Sequence[float], start: float, on_change, text=str) -> widgets.SelectionSlider:
    """Return a slider that stops only at the values that were run."""
    control = widgets.SelectionSlider(
        options=[(text(value), value) for value in values], value=start, description=name,
        style={"description_width": "150px"}, layout={"width": "420px"},
    )  # fmt: skip
    control.observe(lambda change: on_change(), "value")
    return control


def seeds_text(values: Sequence[float], digits: int, unit: str = "", factor: float = 1) -> str:
    """Return the mean of some seeds, with the lowest and the highest: `0.41 (0.38–0.44)`."""
    mean, low, high = (f"{factor * v:.{digits}f}" for v in (sum(values) / len(values), min(values), max(values)))
    return f"{mean}{unit} ({low}–{high}{unit})"


class ResultsPanel(widgets.VBox):
    """Two groups of sliders: alpha and beta of the modeling, and the fraction of triggered images of the repair."""

    def __init__(self, stamp_on: "StampingPanel | None" = None):
        """`stamp_on`: the panel that gets a sample when it is clicked."""
        self.stamp_on = stamp_on
        self.sampled, self.repairs = records.sample_records(), records.repair_records()
        alphas, betas = (sorted({key[i] for key in self.sampled}) for i in (0, 1))
        rates = records.repair_rates(self.repairs)
        self.most = max(max(record.information) for record in self.sampled.values())
        self.alpha = slider("entropy weight α", alphas, 0.1, self.show_samples, "{:g}".format)
        self.beta = slider("success level β", betas, 0.9, self.show_samples, "{:g}".format)
        self.rate = slider("triggered images", rates, rates[-1], self.show_repairs, "{:.0%}".format)
        self.samples, self.repaired = widgets.HTML(), widgets.HTML()
        self.samples.add_class("mesa-sampled")
        self.repaired.add_class("mesa-repaired")
        self.gallery = PictureGrid(COLUMNS, 36, self.stamp_sample, "mesa-stored-samples")
        super().__init__([
            widgets.HTML("<b>Modeling: what the samples of a generator do</b>"), self.alpha, self.beta, self.samples,
            self.gallery.view, widgets.HTML("<b>Repair: what it leaves of the backdoor</b>"), self.rate, self.repaired,
        ])  # fmt: skip
        self.show_samples()
        self.show_repairs()

    def __repr__(self) -> str:
        return "The sliders work in JupyterLab (make lab) and as a page (make play)."

    @property
    def record(self) -> records.SampleRecord:
        """What was measured at the alpha and the beta of the sliders."""
        return self.sampled[self.alpha.value, self.beta.value]

    def show_samples(self) -> None:
        """Show what was measured at this alpha and this beta, and samples of the first seed."""
        record = self.record

        def bar(name: str, values: Sequence[float], most: float, text: str) -> dict:
            width = 100 * sum(values) / len(values) / most
            return {"name": name, "width": width, "text": text, "color": COLORS["MESA"]}

        rows = [
            bar("attack success rate of the samples", record.asr, 1, seeds_text(record.asr, 1, "%", 100)),
            bar("distance between two samples", record.distance, 0.75, seeds_text(record.distance, 2)),
            bar("mutual information with the noise (nats)", record.information, self.most,
                seeds_text(record.information, 2)),
        ]  # fmt: skip
        note = f"Mean (lowest–highest) of {len(record.seeds)} seeds; digits, trigger bw:170. Samples of seed 0:"
        self.samples.value = render("playground_bars.html.j2", rows=rows, note=note)
        self.gallery.show(record.samples[:SAMPLES])

    def show_repairs(self) -> None:
        """Show what the repair with this fraction of triggered images left on each model."""
        rows = []
        for record in self.repairs:
            asr, accuracy = record.after[self.rate.value]
            for name, value, other in (("attacked", *record.before), ("MESA", asr, accuracy)):
                shown = name if name == "attacked" else "fine-tuning" if self.rate.value == 0 else "repaired"
                text = f"ASR {100 * value:.1f}%, clean accuracy {100 * other:.1f}%"
                bar_color = COLORS["fine-tuning" if shown == "fine-tuning" else name]
                rows.append({"name": f"{record.model}: {shown}", "width": 100 * value, "text": text,
                             "color": bar_color})  # fmt: skip
        note = (
            "Attack success rate (ASR) of the attacker's trigger on three CIFAR-10 models, one run each, learning "
            "rate 0.05, two epochs. At 0% nothing is stamped: this is fine-tuning."
        )
        self.repaired.value = render("playground_bars.html.j2", rows=rows, note=note)

    def stamp_sample(self, number: int) -> None:
        """Stamp a stored sample on the image of the other panel."""
        self.gallery.choose(number)
        if self.stamp_on is not None:
            self.stamp_on.stamp(self.gallery.pictures[number])
