"""The figures: what is in them (axes, labels, artists), never pixels."""

from io import BytesIO

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pytest
import torch
from PIL import Image

from mesa_lib import mine, staircase
from mesa_lib.evaluation import intervals
from mesa_lib.reporting import plots
from mesa_lib.reporting.plots import attacks, benchmark, detection, distribution, repair, scan, style, training
from mesa_lib.settings import Settings


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_a_gallery_has_a_cell_an_image_and_its_titles():
    images = torch.rand(5, 3, 4, 4)
    figure = plots.gallery(images, list("abcde"), columns=3, title="five")
    drawn = [a for a in figure.axes if a.images]
    assert len(figure.axes) == 6 and [a.get_title() for a in drawn] == list("abcde")
    assert torch.allclose(torch.from_numpy(drawn[1].images[0].get_array()), images[1].permute(1, 2, 0))


def test_training_curves_show_every_history():
    history = [{"epoch": e, "loss": 1 / e, "accuracy": 1 - 1 / e} for e in (1, 2, 3)]
    figure = plots.training_curves({"clean model": history, "attacked": history})
    assert [len(a.lines) for a in figure.axes] == [2, 2]
    assert list(figure.axes[1].lines[0].get_ydata()) == [h["accuracy"] for h in history]
    assert [line.get_color() for line in figure.axes[0].lines] == [plots.COLORS[n] for n in ("clean model", "attacked")]


def test_a_close_up_shows_the_window_of_the_trigger_and_stays_in_the_image():
    figure = plots.close_ups(torch.rand(2, 3, 20, 20), torch.tensor([[0, 0], [8, 9]]), (3, 3), "a sentence")
    corner, inside = figure.axes[2:]
    assert corner.get_xlim() == (-0.5, 10.5) and corner.get_ylim() == (10.5, -0.5)
    assert inside.get_xlim() == (4.5, 15.5) and inside.get_ylim() == (14.5, 3.5)
    assert [p.get_xy() for p in inside.patches] == [(8.5, 7.5)]


def test_ranked_triggers_stand_in_the_order_of_the_first_model():
    figure = plots.ranked_asr({"attacked": [10, 90, 50], "other": [1, 2, 3]}, ["a", "b", "c"], "a sentence")
    (axis,) = figure.axes
    assert [t.get_text() for t in axis.get_xticklabels()] == ["b", "c", "a"]
    assert [list(line.get_ydata()) for line in axis.lines[:2]] == [[90, 50, 10], [2, 3, 1]]


def test_mine_curves_end_near_a_dashed_line():
    figure = plots.mine_curves({0.5: (0.14, [0.1] * 80)}, {0.5: mine.gaussian_information(0.5)})
    curve, truth, _ = figure.axes[0].lines
    assert truth.get_linestyle() == "--" and truth.get_ydata()[0] == pytest.approx(0.1438, abs=1e-3)
    assert len(curve.get_xdata()) == 31


def test_a_map_has_groups_and_marks():
    groups = {"a": torch.rand(20, 3, 2, 2), "b": torch.rand(20, 3, 2, 2)}
    figure = plots.distribution_map(groups, {"original": torch.zeros(3, 2, 2)}, method="pca")
    (axis,) = figure.axes
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["a", "b", "original"]
    assert "of the variance" in axis.get_xlabel() and axis.get_aspect() == 1


def test_maps_in_a_row_share_one_embedding_or_have_their_own():
    one = {"a": torch.rand(20, 3, 2, 2)}, {"original": torch.zeros(3, 2, 2), "its inverse": torch.ones(3, 2, 2)}
    for shared in (True, False):
        figure = plots.distribution_maps({"x": one, "y": one, "z": one}, method="pca", shared=shared)
        drawn = [axis.collections[0].get_offsets().data for axis in figure.axes]
        assert abs(drawn[0] - drawn[1]).max() < 1e-4 and [axis.get_title() for axis in figure.axes] == ["x", "y", "z"]
        assert (figure.axes[0].get_xlim() == figure.axes[2].get_xlim()) and len(figure.legends) == 1
    other = {"a": 3 * torch.rand(20, 3, 2, 2)}, one[1]
    wide = plots.distribution_maps({"x": one, "y": other}, method="pca", shared=True)
    spread = [float(axis.collections[0].get_offsets().data.std()) for axis in wide.axes]
    assert spread[1] > 1.5 * spread[0] and wide.axes[0].get_xlim() == wide.axes[1].get_xlim()


def test_a_parameter_sweep_has_a_panel_for_each_quantity():
    figure = plots.parameter_sweep(
        [0, 0.1], {"ASR": {"x": [1, 0.5], "y": [0.9, 0.1]}, "distance": {"x": [0, 1]}}, "alpha"
    )
    assert [len(a.lines) for a in figure.axes] == [2, 1] and figure.axes[1].get_ylabel() == "distance"


def test_controls_show_rate_and_interval():
    one_of_four = intervals.proportion(torch.tensor([True, False, False, False]))
    clean = intervals.proportion(torch.tensor([False, True, False, True, True]))
    models = ("clean model", "attacked", "MESA", "clean model, repaired")
    rows = [{"model": m, "asr": clean if m == models[0] else one_of_four} for m in models]
    figure = plots.asr_by_control({"patch": rows}, "a sentence")
    (axis,) = figure.axes
    dots = [line for line in axis.lines if line.get_marker() == "o"]
    assert [round(float(dot.get_xdata()[0]), 3) for dot in dots] == [60.0, 25.0, 25.0, 25.0]
    bars = [line.get_xdata() for line in axis.lines if line.get_linewidth() == 3]
    assert [list(bar) for bar in bars] == [[100 * row["asr"]["low"], 100 * row["asr"]["high"]] for row in rows]
    assert [t.get_text() for t in axis.get_yticklabels()] == list(models)
    assert [t.get_text() for t in axis.texts] == ["60.0", "25.0", "25.0", "25.0"]
    (line,) = [line for line in axis.lines if line.get_linestyle() == ":"]
    assert round(float(line.get_xdata()[0]), 3) == 60.0


def test_a_row_has_the_color_of_its_name_or_of_what_it_is_a_variant_of():
    names = {"single inversion 2": "single inversion", "MESA rounds": "MESA", "MESA, target unknown": "MESA"}
    names |= {name: name for name in plots.COLORS}
    assert {name: style.color(name) for name in names} == {name: plots.COLORS[base] for name, base in names.items()}
    assert style.color("beta 0.9") == style.OTHER and len(set(plots.COLORS.values())) >= 9


def test_the_other_figures_take_what_the_library_makes():
    settings = Settings(betas=(0.9, 0.5), steps=4, triggers_per_step=8, hidden=8, noise_dim=4)
    fitted = staircase.fit_staircase(lambda points, rng: points.mean(1, keepdim=True), (2,), settings)
    assert len(plots.modeling_curves(fitted.levels).axes) == 3
    toy = plots.toy_staircase(torch.rand(10, 10), {"level": fitted.sample(5, torch.Generator().manual_seed(0))})
    assert len(toy.axes) == 2
    outlined = plots.toy_staircase(torch.rand(10, 10), {"a": torch.rand(5, 2), "b": torch.rand(5, 2)}, sets={"a": 0.5})
    assert [len(axis.collections) for axis in outlined.axes] == [0, 2, 1], "dots, and a line around the set"
    (shares,) = plots.success_ecdf({"a": torch.rand(10), "b": torch.tensor([0.5, 1.0])}).axes
    assert len(shares.lines) == 2 and shares.get_xlim()[1] > 100 and shares.get_ylim()[1] > 1, "a jump at 100% is seen"
    assert list(shares.lines[1].get_ydata()) == [0, 0.5, 1]
    assert plots.location_heatmap(torch.rand(5, 5), "locations").axes[0].get_title() == "locations"


def test_rounds_show_the_truth_beside_what_each_residual_check_measured():
    records = [
        {"asr": 0.9, "searched": 0.1, "sampled": 0.7, "earlier": 0.0},
        {"asr": 0.02, "searched": 0.05, "sampled": 0.01, "earlier": 0.03},
    ]
    series = {"one": records, "two": records[:1]}
    figure = plots.repair_rounds(series, clear_below=0.2, clean_model_asr=(0.004, 0.01), title="a sentence")
    assert figure.get_suptitle() == "a sentence"
    truth, earlier, sampled, searched, threshold, clean = figure.axes[0].lines
    assert list(truth.get_ydata()) == [90, 2] and list(earlier.get_ydata()) == [0.3, 3], "a logarithmic axis has no 0"
    assert list(sampled.get_ydata()) == [70, 1] and list(searched.get_ydata()) == [10, 5]
    assert threshold.get_ydata()[0] == 20 and clean.get_ydata()[0] == pytest.approx(0.4)
    assert [a.get_title() for a in figure.axes] == ["one", "two"]


def test_sources_of_triggers_are_points_before_and_after_the_repair():
    points = {"patch": {"MESA": (0.9, 0.01), "random mixed": (0.05, 0.5)}, "covered": {"MESA": (0.8, 0.0)}}
    (axis,) = plots.asr_by_source(points, "a sentence").axes
    drawn = {(x, y): line for line in axis.lines for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)}
    assert sorted(drawn) == [(5, 50), (80, 0), (90, 1)]
    assert drawn[90, 1].get_color() == drawn[80, 0].get_color() == plots.COLORS["MESA"]
    assert drawn[90, 1].get_marker() == drawn[5, 50].get_marker() != drawn[80, 0].get_marker()
    assert axis.figure.legends[0].texts[-1].get_text() == "random mixed"


def test_every_public_function_of_a_module_is_on_the_facade():
    for module in (attacks, benchmark, detection, distribution, repair, scan, training):
        functions = [
            name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__
        ]
        public = {name for name in functions if not name.startswith("_")}
        assert public <= set(plots.__all__), module.__name__


def test_points_by_repair_has_one_row_a_repair_and_one_point_a_model():
    values = {"one": {"patch": [0.3, 99.0], "blended": [100.0]}, "two": {"patch": [5.0]}}
    figure = plots.points_by_repair(values, "ASR (%)", "title", line=0.5)
    axis = figure.axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["one", "two"]
    assert [len(dots.get_offsets()) for dots in axis.collections] == [3, 1]
    assert axis.get_xscale() == "symlog" and axis.get_title(loc="left") == "title"
    assert plots.points_by_repair(values, "points", "", symlog=False).axes[0].get_xscale() == "linear"


def test_a_compact_figure_has_150_dpi_and_a_palette():
    figure = plots.points_by_repair({"one": {"patch": [0.3]}}, "ASR (%)", "title")
    picture = Image.open(BytesIO(plots.compact_png(figure)))
    assert picture.mode == "P" and picture.width > 1000


def test_class_scores_have_one_row_a_search_and_a_diamond_for_each_planted_class():
    scores, planted = {"one": [0.1, 60, 0.3], "two": [0, 0, 1]}, {"one": [1], "two": []}
    for scale, drawn in (("percent", "symlog"), ("symlog", "symlog"), ("linear", "linear")):
        (axis,) = plots.class_scores(scores, planted, 20, "ASR (%)", "a sentence", scale=scale).axes
        others, targets = axis.collections
        assert len(others.get_offsets()) == 5 and targets.get_offsets().data.tolist() == [[60, 0]]
        assert axis.get_xscale() == drawn and axis.get_title(loc="left") == "a sentence"
        assert [label.get_text() for label in axis.get_yticklabels()] == ["one", "two"]
    assert not len(plots.class_scores({"two": [1, 2]}, planted, 20, "", "").axes[0].collections[1].get_offsets())


def test_counts_by_detector_show_each_group_with_its_interval():
    flags = {"A": {"attacked": [True] * 5, "clean": [False] * 5}, "B": {"attacked": [False] * 5, "clean": [True] * 5}}
    figure = plots.counts_by_detector(flags, "a sentence")
    axis = figure.axes[0]
    dots = [
        float(line.get_xdata()[0])
        for line in axis.lines
        if line.get_marker() in ("o", "s") and len(line.get_xdata()) == 1
    ]
    assert dots == [100, 0, 0, 100]
    low, high = axis.lines[0].get_xdata()
    assert low == pytest.approx(100 * intervals.clopper_pearson(5, 5)[0]) and high == 100
    assert [text.get_text() for text in figure.legends[0].texts] == ["attacked (5)", "clean (5)"]


def test_response_maps_name_the_pixels_that_the_fields_stand_for():
    positions = torch.arange(0, 14, 2), torch.arange(0, 20, 2)
    figure = plots.response_maps({"x": torch.rand(7, 10), "y": torch.rand(7, 10)}, positions, "a sentence")
    assert [axis.get_title() for axis in figure.axes[:2]] == ["x", "y"]
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["0", "10"]
    assert [label.get_text() for label in figure.axes[1].get_yticklabels()] == ["0", "10"]


def test_trigger_pictures_show_each_image_and_its_change():
    clean = torch.full((3, 6, 6), 0.25)
    white = clean.clone()
    white[:, 0, 0] = 1
    figure = plots.trigger_pictures(clean, {"a": white, "b": clean}, "a sentence")
    assert [axis.get_title() for axis in figure.axes[:3]] == ["clean", "a", "b"]
    change = figure.axes[4].images[0].get_array()
    assert change[0, 0, 0] == pytest.approx(0.875) and change[1, 1, 0] == pytest.approx(0.5)


def test_attack_rates_show_rate_and_interval_of_each_model():
    half, none = (intervals.proportion(torch.tensor(hits)) for hits in ([True, False] * 8, [False] * 16))
    figure = plots.attack_rates({"x": {"attacked": half, "clean model": none}}, "a sentence")
    bars = [line.get_xdata() for line in figure.axes[0].lines if line.get_linewidth() == 3]
    assert list(bars[0]) == [100 * half["low"], 100 * half["high"]] and list(bars[1]) == [0, 100 * none["high"]]
    assert [text.get_text() for text in figure.legends[0].texts] == ["attacked", "clean model"]


def test_matrices_and_pruning_curves_have_a_title_for_all_panels():
    assert plots.matrices({"a": torch.eye(3)}, "x", "y", "a sentence").get_suptitle() == "a sentence"
    curves = plots.pruning_curves({"a": {"ASR": [1, 0], "clean accuracy": [1, 0.5]}}, "a sentence")
    assert curves.get_suptitle() == "a sentence" and len(curves.axes[0].lines) == 2
