"""Sentences about sweeps that still grow, computed from their result files, so that no page contradicts its tables.

Those in `FINDINGS` take the content of a result file (`experiments.results.load_content`) and return markdown.
"""

from collections.abc import Callable, Sequence

import pandas as pd

from mesa_lib.evaluation.intervals import bootstrap_interval, t_interval
from mesa_lib.experiments.sweep import grid
from mesa_lib.reporting.prose import listed
from mesa_lib.reporting.tables.attackers import COMPARISONS, LEFT, answer, by_attacker, rate
from mesa_lib.reporting.tables.paper import rates

#: ASR in % above which a single inversion has not found the backdoor
MOST = 50.0
#: answers of the rule (`attackers.answer`) in words
BY_THE_RULE = {
    "better": "the first of the two is better",
    "not better": "the first of the two is not better",
    "undecided": "the question is open",
}


def covered_short(content: dict) -> str:
    """Return one sentence for the README: what single inversions, MESA and the best inversion leave."""
    runs = _covered(content)
    failed, single = _single_inversions(runs)
    return (
        f"On CIFAR-10 with cover samples ({len(runs)} models), {failed} of {single} single inversions\nleave an ASR "
        f"above {MOST:.0f}%. MESA leaves at most {_worst(runs, 'MESA'):.1f}%, and the best of {_restarts(runs)} "
        f"inversions at most\n{_worst(runs, 'best inversion'):.1f}%."
    )


def covered(content: dict) -> str:
    """Return how many models of CIFAR-10 with the covered attack there are, and what the repairs leave of them."""
    runs = _covered(content)
    failed, single = _single_inversions(runs)
    seeds = {seed: sum(run["seed"] == seed for run in runs) for seed in sorted({run["seed"] for run in runs})}
    lowest = min(rate(run, name) for run in runs for name in ("fine-tuning", "random mixed", "random binary"))
    lost = [
        _mean(rates(run, "attacked", "clean_accuracy")) - _mean(rates(run, "MESA", "clean_accuracy")) for run in runs
    ]
    lines = [
        f"{len(runs)} models are done: {', '.join(f'{count} with seed {seed}' for seed, count in seeds.items())}.",
        f"Random patches and fine-tuning leave {lowest:.0f}% or more. Of {single} single inversions, {failed} leave "
        f"more than {MOST:.0f}%.",
        f"MESA leaves {_mean([rate(run, 'MESA') for run in runs]):.1f}% on average and {_worst(runs, 'MESA'):.1f}% at "
        f"worst. The ideal repair leaves {_worst(runs, 'ideal'):.1f}% at worst, and the best of {_restarts(runs)} "
        f"inversions {_worst(runs, 'best inversion'):.1f}%.",
        f"MESA minus the best inversion: {_difference(runs, 'MESA - best inversion')}.",
        f"MESA costs {_mean(lost):.1f} points of accuracy on average and {max(lost):.1f} at worst.",
    ]
    return _bullets(lines)


def order_in_words(asr: pd.DataFrame) -> str:
    """Return whether the paper's order of repairs, ideal before MESA before single inversion, holds here.

    It holds where the 95% CI (bootstrap over triggers) of each paired difference lies below 0.

    Args:
        asr: ASR in percent, one row per trigger and one column per repair.
    """
    if len(asr) < 3:
        return f"no order can be established (n = {len(asr)}, no CI)"
    pairs = [("ideal", "MESA"), ("MESA", "single inversion")]
    failing = [f"{one} before {other}" for one, other in pairs if bootstrap_interval(asr[one] - asr[other])[1] >= 0]
    if failing:
        return f"the paper's order does not hold for {listed(failing)}"
    return "the paper's order, ideal before MESA before single inversion, holds"


def hidden(content: dict) -> str:
    """Return what the sweep of attackers who hide answers so far, by the rule that was written before its runs."""
    runs, planned = content["runs"], len(grid.read("hidden-digits").tasks())
    missed = [run for run in runs if rate(run, "MESA") > LEFT]
    lines = [f"{len(runs)} of {planned} models are done, of {len(by_attacker(runs))} attackers."]
    for title in list(COMPARISONS)[:3]:
        lines.append(f"{title}: {_difference(runs, title)}. By the rule, {BY_THE_RULE[answer(runs, title)]}.")
    lines.append(
        f"One round of MESA leaves more than {LEFT:.0f}% on {len(missed)} of {len(runs)} models, and the best "
        f"inversion on {sum(rate(run, 'best inversion') > LEFT for run in runs)}."
    )
    return _bullets(lines)


def adaptive(content: dict) -> str:
    """Return what the attacker who knows MESA leaves to the repairs."""
    runs = content["runs"]
    failed, single = _single_inversions(runs)
    return (
        f"On {len(runs)} models, MESA leaves at most {_worst(runs, 'MESA'):.1f}%, and the best of {_restarts(runs)} "
        f"inversions at most {_worst(runs, 'best inversion'):.1f}%. Of {single} single inversions, {failed} leave more "
        f"than {MOST:.0f}%."
    )


#: the sweep of the covered attack on CIFAR-10
COVERED = "readme-cifar10-covered"
#: sweep -> the sentences about its results
FINDINGS: dict[str, Callable[[dict], str]] = {
    "hidden-digits": hidden,
    "adaptive-digits": adaptive,
    COVERED: covered,
}


def _covered(content: dict) -> list[dict]:
    """Return the runs with the covered attack."""
    return [run for run in content["runs"] if run["params"]["attack"] == "covered"]


def _single_inversions(runs: Sequence[dict]) -> tuple[int, int]:
    """Return how many single inversions, repeats included, leave more than `MOST`, and how many there are."""
    values = [value for run in runs for value in rates(run, "single inversion")]
    return sum(value > MOST for value in values), len(values)


def _restarts(runs: Sequence[dict]) -> int:
    """Return of how many inversions the best is compared with MESA."""
    return runs[0]["params"]["inversion_restarts"]


def _difference(runs: Sequence[dict], title: str) -> str:
    """Return the mean paired difference of a comparison, in points, with its 95% CI."""
    one, other = COMPARISONS[title]
    values = [rate(run, one) - rate(run, other) for run in runs]
    low, high = t_interval(values)
    return f"{_mean(values):+.2f} points (95% CI {low:+.2f} to {high:+.2f})"


def _worst(runs: Sequence[dict], model: str) -> float:
    return max(value for run in runs for value in rates(run, model))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
