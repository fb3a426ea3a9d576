"""The playground without a browser: what is stamped and shown, what the sliders read, what a missing extra says."""

import json
import re
import subprocess
import sys
from pathlib import Path

import ipywidgets
import nbformat
import pytest
import torch

from mesa_lib import triggers
from mesa_lib.cli import play
from mesa_lib.cli.main import build_parser, main
from mesa_lib.data import Dataset, Split
from mesa_lib.experiments import copies, notebooks
from mesa_lib.experiments.params import Params
from mesa_lib.models.networks import build_network
from mesa_lib.reporting import playground
from mesa_lib.reporting.playground import models as playground_models
from mesa_lib.reporting.playground import records
from mesa_lib.reporting.playground.canvas import PictureGrid, Stage
from mesa_lib.reporting.playground.scene import Scene, parse_color
from mesa_lib.reporting.playground.stamping import WITHOUT_KERNEL, prediction_rows
from mesa_lib.store import paths

WHITE, RED = (1.0, 1.0, 1.0), (1.0, 0.0, 0.0)


class Samples:
    """In the place of a distribution: random triggers."""

    def sample(self, n, rng):
        return triggers.random_triggers(n, "uniform", rng)


def toy_models(attack, seed):
    """Three untrained models of an attack on random images of four classes."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(24) % 4
    split = Split(torch.randint(0, 256, (24, 3, 16, 16), generator=rng).to(torch.uint8), labels)
    data = Dataset("toy", split, split, split, tuple("abcd"), (0.5,) * 3, (0.3,) * 3, "toy")
    names = ("clean model", "attacked", "MESA")
    models = {
        name: build_network("smallcnn", 4, 4, data.mean, data.std, seed + i).eval() for i, name in enumerate(names)
    }
    return playground.AttackedModels(attack, models, data, 1, triggers.pattern(170), Samples())


@pytest.fixture
def panel():
    return playground.stamping_panel([toy_models("patch", 0), toy_models("covered", 3)])


# --- what is stamped -------------------------------------------------------------------------------------


@pytest.fixture
def scene():
    return Scene(torch.full((3, 16, 20), 0.5), triggers.pattern(0))


def test_a_click_gives_a_pixel_the_color_and_another_makes_it_black(scene):
    before = scene.pattern
    scene.toggle(0, 2, RED)
    assert scene.pattern[:, 0, 2].tolist() == list(RED) and before.sum() == 0, "a pattern that was given away stays"
    scene.toggle(0, 2, RED)
    assert scene.pattern.sum() == 0
    scene.toggle(1, 1, (0.0, 0.0, 0.0))
    assert scene.pattern[:, 1, 1].tolist() == list(WHITE), "black on black: white, so that a click always shows"


def test_the_pattern_stays_inside_the_image(scene):
    assert scene.location == (7, 9), "the middle"
    assert scene.move_to(0, 0) and scene.location == (0, 0)
    assert not scene.move_to(1, 1), "the pattern's middle is there already"
    assert scene.move_to(99, 99) and scene.location == (13, 17)
    assert scene.move_to(-5, 4) and scene.location == (0, 3)


def test_the_models_see_the_pattern_only_if_it_is_stamped(scene):
    scene.move_to(5, 5)
    assert (scene.result()[:, 4:7, 4:7] == 0).all() and (scene.result() == 0).sum() == 27
    scene.stamped = False
    assert scene.result() is scene.image


def test_a_pattern_larger_than_the_image_is_refused():
    with pytest.raises(ValueError, match="does not fit"):
        Scene(torch.zeros(3, 16, 16), torch.zeros(3, 17, 3))


def test_colors_are_read():
    assert parse_color("#ff0080") == (1.0, 0.0, 128 / 255)


# --- what is shown ---------------------------------------------------------------------------------------


def test_a_click_on_a_grid_finds_the_picture():
    clicked = []
    grid = PictureGrid(4, 36, clicked.append, "grid")
    grid.press(10, 10)
    assert clicked == [], "there are no pictures yet"
    grid.show(torch.rand(6, 3, 3, 3))
    assert (grid.cell, grid.view.width, grid.view.height) == (36, 4 * 42 + 6, 2 * 42 + 6)
    for number in range(6):
        x, y = grid.corner(number)
        grid.press(x + 1, y + 1)
        grid.press(x + 35, y + 35)
    assert clicked == [number for number in range(6) for _ in range(2)]
    grid.press(3 * 42 + 10, 42 + 10)
    grid.press(500, 10)
    grid.press(10, 500)
    assert len(clicked) == 12, "beside the pictures nothing happens"


def test_pictures_are_drawn_in_whole_pixels():
    grid = PictureGrid(4, 40, print, "grid")
    grid.show(torch.rand(2, 3, 32, 32))
    assert grid.cell == 32 and grid.view.width == 2 * 38 + 6


def test_the_pattern_follows_the_pointer_only_while_a_button_is_down():
    moves = []
    stage = Stage((16, 16), lambda row, column: moves.append((row, column)), side=160)
    stage.drag(5, 5)
    stage.press(25, 31)
    stage.drag(159, 0)
    stage.release()
    stage.drag(5, 5)
    assert moves == [(3, 2), (0, 15)]


def test_rows_say_what_is_predicted_and_what_of_it_is_the_backdoor():
    probabilities = {
        "clean model": torch.tensor([0.1, 0.2, 0.7]),
        "attacked": torch.tensor([0.1, 0.9, 0.0]),
        "MESA": torch.tensor([0.6, 0.3, 0.1]),
    }
    rows = prediction_rows(probabilities, "abc", label=2, target=1)
    assert [(r["predicted"], r["probability"], r["state"]) for r in rows] == [
        ("c", "70%", "right"), ("b", "90%", "target"), ("a", "60%", "wrong"),
    ]  # fmt: skip
    assert rows[0]["bars"] == [10.0, 20.0, 70.0] and len({r["color"] for r in rows}) == 3
    (own,) = prediction_rows({"attacked": torch.tensor([0.1, 0.9, 0.0])}, "abc", label=1, target=1)
    assert own["state"] == "right", "an image of the target class says nothing of a backdoor"


def test_class_names_are_escaped():
    rows = prediction_rows({"MESA": torch.tensor([0.2, 0.8])}, ("<b>", "<script>"), 0, 1)
    page = playground_page(rows, ("<b>", "<script>"))
    assert "<script>" not in page and "&lt;script&gt;" in page


def playground_page(rows, classes):
    from mesa_lib.reporting.html import render

    return render(
        "playground_predictions.html.j2", rows=rows, classes=classes, label=classes[0], target=classes[1],
        target_index=1, location=(0, 0), stamped=True,
    )  # fmt: skip


# --- the panels ------------------------------------------------------------------------------------------


def test_every_action_changes_the_table(panel):
    assert panel.models.title == "plain attack" and panel._label(panel.index) != panel.models.target
    seen = [panel.predictions.value]

    def changed(message):
        assert panel.predictions.value not in seen, message
        seen.append(panel.predictions.value)

    panel.editor.buttons[0][1].click()
    assert panel.editor.buttons[0][1].style.button_color == "#000000", "the attacker's trigger is white there"
    changed("a pixel was toggled")
    panel.stage.press(3, 3)
    panel.stage.drag(100, 60)
    changed("the pattern was dragged")
    assert panel.scene.location == (2, 4), "20 points a pixel"
    panel.gallery.press(*(at + 1 for at in panel.gallery.corner(5)))
    assert panel.gallery.chosen == 5 and panel.scene.pattern.equal(panel.gallery.pictures[5])
    changed("a sample was stamped")
    panel.images.press(*(at + 1 for at in panel.images.corner(2)))
    assert panel._label(panel.index) == 2 and panel.images.chosen == 2
    changed("another image was chosen")
    panel.attack.value = "covered attack"
    changed("the models are others")
    panel.stamped.value = False
    changed("nothing is stamped")
    panel.original.click()
    assert panel.stamped.value and panel.scene.pattern.equal(triggers.pattern(170)) and panel.gallery.chosen is None
    changed("the attacker's trigger is stamped")
    panel.invert.click()
    assert panel.scene.pattern.equal(1 - triggers.pattern(170))
    changed("the colors are swapped")


def test_other_images_are_of_the_same_classes_and_other_samples_are_others(panel):
    before, samples = list(panel.indices), panel.gallery.pictures
    panel.other_images.click()
    assert [panel._label(i) for i in panel.indices] == [0, 1, 2, 3] and not set(before) & set(panel.indices)
    assert panel.index in panel.indices
    panel.other_samples.click()
    assert not panel.gallery.pictures.equal(samples)


def test_examples_start_again_where_a_class_has_few_images(panel):
    data = panel.models.data
    assert playground_models.examples(data, 6) == playground_models.examples(data, 0) == [0, 1, 2, 3]


def test_a_stored_copy_says_where_the_playground_works(panel):
    assert repr(panel) == WITHOUT_KERNEL and len(WITHOUT_KERNEL) <= 110, "ipywidgets cuts longer texts"
    output = nbformat.v4.new_output("display_data", {"text/plain": WITHOUT_KERNEL, copies.LIVE: {"model_id": "1"}})
    cell = nbformat.v4.new_code_cell("panel", outputs=[output])
    book = copies.clean(nbformat.v4.new_notebook(cells=[cell]))
    assert book.cells[0].outputs[0].data == {"text/plain": WITHOUT_KERNEL}


# --- the sliders -----------------------------------------------------------------------------------------


def stored(name):
    return json.loads((paths.root() / "results" / f"{name}.json").read_text())["runs"]


def test_the_sliders_stop_at_settings_that_were_run():
    results = playground.results_panel()
    ran = {(float(r["params"]["alpha"]), float(r["params"]["betas"])) for r in stored("alpha-beta")}
    for control, values in ((results.alpha, {a for a, _ in ran}), (results.beta, {b for _, b in ran})):
        assert isinstance(control, ipywidgets.SelectionSlider)
        assert [value for _, value in control.options] == sorted(values)
    assert ran == set(results.sampled), "every pair of stops was run"
    stops = [value for _, value in results.rate.options]
    assert stops == sorted({r.get("repair_rate", 0.0) for r in stored("sweep") if r["repair"] == "MESA"} | {0.0})


def test_the_sliders_show_the_stored_numbers():
    results = playground.results_panel()
    results.alpha.value, results.beta.value = 10.0, 0.5
    rates = [
        r["samples"]["beta 0.5"]["asr"]
        for r in stored("alpha-beta")
        if (r["params"]["alpha"], r["params"]["betas"]) == (10.0, "0.5")
    ]
    assert len(rates) == 3 and f"{100 * sum(rates) / 3:.1f}%" in results.samples.value
    assert results.gallery.pictures.equal(results.record.samples[:24])
    results.rate.value = 0.1
    for run in stored("sweep"):
        if run.get("repair_rate") == 0.1 and (run["repair_lr"], run["repair_epochs"]) == (0.05, 2):
            assert f"{100 * run['asr']:.1f}%" in results.repaired.value
    results.rate.value = 0.0
    assert "fine-tuning" in results.repaired.value and "repaired" not in results.repaired.value


def test_a_stored_sample_is_stamped_on_the_image(panel):
    results = playground.results_panel(stamp_on=panel)
    results.gallery.press(*(at + 1 for at in results.gallery.corner(7)))
    assert panel.scene.pattern.equal(results.record.samples[7]) and results.gallery.chosen == 7


def test_repairs_differ_in_the_fraction_alone():
    for record in records.repair_records():
        assert list(record.after) == [0.0, 0.1, 0.2]
        assert record.after[0.0][0] > 0.9 > 0.1 > record.after[0.2][0]


# --- the models, the command, the extra ------------------------------------------------------------------


def test_the_models_come_from_the_stages_of_the_notebooks(monkeypatch):
    """With the training replaced: which stages are asked for, and what becomes of them."""
    asked = []

    class Trained:
        def __init__(self, name):
            asked.append(name)
            self.model = name

    class Pipeline:
        def __init__(self, p):
            self.p, self.compared = p, None
            self.data, self.trigger = "data", triggers.pattern(170)
            if p.compare_attack and p.compare_attack != p.attack:
                self.compared = Pipeline(p.replace(attack=p.compare_attack))

        def clean(self):
            return Trained("clean model")

        def attacked(self):
            return Trained("attacked")

        def repaired(self, name):
            return Trained(name)

        def distribution(self):
            return "distribution", "artifact"

    monkeypatch.setattr(playground_models, "Pipeline", Pipeline)
    names = ["clean model", "attacked", *playground_models.REPAIRS]
    first, second = playground.load_models(Params())
    assert asked == 2 * names and list(first.models) == list(second.models) == names
    assert (first.title, second.title) == ("plain attack", "covered attack")
    assert len(playground.load_models(Params(compare_attack=""))) == 1


def test_the_command_serves_the_notebook():
    a = build_parser().parse_args(["play", "--port", "9000", "--no-browser"])
    assert (a.function, a.port, a.no_browser) == (play.play, 9000, True)
    options = play.page_options(Path("playground.ipynb"), 9000, True)
    assert options[:2] == ["playground.ipynb", "--port=9000"] and "--no-browser" in options
    assert "--no-browser" not in play.page_options(Path("playground.ipynb"), 9000, False)


def test_the_page_has_all_code_and_no_link_that_leads_nowhere():
    stored = nbformat.read(notebooks.notebook_path(notebooks.PLAYGROUND), 4)
    page = play.as_page(nbformat.read(notebooks.notebook_path(notebooks.PLAYGROUND), 4))
    code = [[cell.source for cell in book.cells if cell.cell_type == "code"] for book in (stored, page)]
    prose = "\n".join(cell.source for cell in page.cells if cell.cell_type == "markdown")
    assert code[0] == code[1] and len(page.cells) < len(stored.cells)
    assert not re.search(r"\]\((?!https:)", prose) and "Notebook 00 tells the story" in prose


WITHOUT = """
import sys
sys.modules["ipycanvas"] = None  # as if it were not installed
import mesa_lib.cli.main
from mesa_lib.reporting import playground
calls = [lambda: playground.stamping_panel([]), playground.results_panel, lambda: playground.require("ipycanvas")]
for call in calls:
    try:
        call()
    except ValueError as error:
        print(error)
"""


def test_without_the_extra_there_is_one_message():
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", WITHOUT], capture_output=True, text=True, timeout=120)
    expected = "playground: needs ipycanvas; install it with: pip install 'mesa-lib[play]'"
    assert done.stdout.splitlines() == [expected] * 3, done.stderr


def test_the_command_says_what_is_missing(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "voila", None)
    assert main(["play", "--no-browser"]) == 1
    assert capsys.readouterr().err == "mesa: playground: needs voila; install it with: pip install 'mesa-lib[play]'\n"
