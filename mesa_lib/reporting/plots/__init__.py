"""The figures, one function each: every function returns a matplotlib figure and changes none of its inputs.

`from mesa_lib.reporting import plots`, then `plots.theme()` once and `plots.NAME(...)`.
"""

from mesa_lib.reporting.plots.attacks import attack_rates, trigger_pictures
from mesa_lib.reporting.plots.benchmark import (
    heatmap,
    matrices,
    points_by_repair,
    pruning_curves,
    score_histograms,
    scores_by_class,
    scores_by_model,
)
from mesa_lib.reporting.plots.compact import compact, compact_png
from mesa_lib.reporting.plots.detection import class_scores, counts_by_detector, response_maps
from mesa_lib.reporting.plots.distribution import (
    MARKS,
    distribution_map,
    distribution_maps,
    embed,
    gallery,
    mine_curves,
    modeling_curves,
    parameter_sweep,
    success_ecdf,
    toy_staircase,
)
from mesa_lib.reporting.plots.readme import before_and_after
from mesa_lib.reporting.plots.repair import (
    CHECKS,
    asr_by_control,
    asr_by_source,
    asr_by_task,
    asr_by_trigger,
    means_with_intervals,
    repair_rounds,
)
from mesa_lib.reporting.plots.scan import screening_rates
from mesa_lib.reporting.plots.style import COLORS, theme
from mesa_lib.reporting.plots.training import close_ups, location_heatmap, ranked_asr, training_curves

__all__ = [
    "CHECKS",
    "COLORS",
    "MARKS",
    "asr_by_control",
    "asr_by_source",
    "asr_by_task",
    "asr_by_trigger",
    "attack_rates",
    "before_and_after",
    "class_scores",
    "close_ups",
    "compact",
    "compact_png",
    "counts_by_detector",
    "distribution_map",
    "distribution_maps",
    "embed",
    "gallery",
    "heatmap",
    "location_heatmap",
    "matrices",
    "means_with_intervals",
    "mine_curves",
    "modeling_curves",
    "parameter_sweep",
    "points_by_repair",
    "pruning_curves",
    "ranked_asr",
    "repair_rounds",
    "response_maps",
    "score_histograms",
    "scores_by_class",
    "scores_by_model",
    "screening_rates",
    "success_ecdf",
    "theme",
    "toy_staircase",
    "training_curves",
    "trigger_pictures",
]
