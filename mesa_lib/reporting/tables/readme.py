"""The tables of docs/results.md: the published results of a sweep, over seeds and triggers, as markdown.

All functions take the runs of a sweep through the repair (`experiments.results.load_runs`).
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from mesa_lib.evaluation import intervals
from mesa_lib.experiments.results import load_content
from mesa_lib.reporting.tables.paper import PAPER, rates

#: a repair has missed if the ASR of the original trigger is still above this
MISSED = 0.1
MEASURES = ("clean_accuracy", "asr", "target_recall", "true_label_accuracy")
BASELINE = "single inversion"


def markdown(content: dict) -> str:
    """Return the table of a published sweep, then how it was made and what else was measured.

    One row per model, mean ± standard deviation over all runs; then one row per trigger, if there are several. MESA in
    rounds has a row only where a run had a second round: elsewhere it is MESA's. Several attacks have a table each.
    """
    by_attack: dict[str, list[dict]] = {}
    for run in content["runs"]:
        by_attack.setdefault(run["params"].get("attack", "patch"), []).append(run)
    if len(by_attack) == 1:
        return _markdown(content["runs"])
    return "\n\n".join(f"Attack `{attack}`:\n\n{_markdown(runs)}" for attack, runs in by_attack.items())


def _markdown(runs: Sequence[dict]) -> str:
    """Return the table of one attack."""
    rows = model_names(runs)
    triggers = list(dict.fromkeys(run["trigger"] for run in runs))
    lines = model_table(runs, rows)
    lines += trigger_table(runs, rows, triggers) if len(triggers) > 1 else []
    return "\n".join([*lines, "", *details(runs, triggers)])


def details(runs: Sequence[dict], triggers: Sequence[str]) -> list[str]:
    """Return the table below the results: one row per fact about the runs, their samples and their repair rounds."""
    rows = provenance(runs, triggers)
    rows |= changes(runs) if len(runs) > 1 else {}
    rows |= samples(runs) | {"repair rounds": rounds_line(runs)}
    failed = failures(runs)
    rows |= {"reported as failed": failed} if failed else {}
    return ["| detail | value |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]


def failures(runs: Sequence[dict]) -> str:
    """Return in how many runs the result of a repair says that it failed; empty if in none."""
    counts: dict[str, int] = {}
    for run in runs:
        for row in run["rows"]:
            if "failed" in row:
                counts[row["model"]] = counts.get(row["model"], 0) + 1
    parts = [f"{model} in {count} of {len(runs)} runs" for model, count in counts.items()]
    why = "the triggers stamped do not succeed on clean images, or the residual check still finds one"
    return f"{', '.join(parts)} ({why})" if parts else ""


def model_names(runs: Sequence[dict]) -> list[str]:
    """Return the names of the rows, in the order of the results; all repeats of a baseline have one name."""
    names = dict.fromkeys(row["model"] for run in runs for row in run["rows"])
    names = dict.fromkeys(BASELINE if name.startswith(f"{BASELINE} ") else name for name in names)
    one_round = all(len(run["rounds"]) == 1 for run in runs)
    return [name for name in names if not (name == "MESA rounds" and one_round)]


def model_table(runs: Sequence[dict], names: Sequence[str]) -> list[str]:
    """Return the rows of all models: accuracy, ASR, the worst run, and the paper's number where it has one."""
    p = runs[0]["params"]
    published = PAPER.get(p["dataset"], {}) if p["start"] == "clean" else {}
    heads = ["model", "clean accuracy", "ASR of the original trigger", "ASR, worst run"]
    heads += ["the paper's ASR: mean (worst)"] if published else []
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name in names:
        cells = [name, *_measured(runs, name)]
        if published:
            cells.append("{:.1f}% ({:.1f})".format(*published[name]) if name in published else "")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _measured(runs: Sequence[dict], name: str) -> list[str]:
    """Return clean accuracy, ASR and worst ASR of a model; a single measurement has its 95% CI instead of a spread."""
    values = {m: [rate for run in runs for rate in rates(run, name, m)] for m in ("clean_accuracy", "asr")}
    (accuracy, accuracy_std), (asr, asr_std) = (intervals.mean_std(values[m]) for m in ("clean_accuracy", "asr"))
    if len(runs) == 1 and len(values["asr"]) == 1:
        row = next(row for row in runs[0]["rows"] if row["model"] in (name, f"{name} 1"))["asr"]
        return [f"{accuracy:.1f}%", f"{asr:.1f}% ({100 * row['low']:.1f} to {100 * row['high']:.1f})", ""]
    shared = name == "clean model" and runs[0]["params"].get("clean_seed", -1) >= 0  # one model for all runs
    spread = "" if shared else f" ± {accuracy_std:.1f}"
    worst = min(values["asr"]) if name == "attacked" else max(values["asr"])
    return [f"{accuracy:.1f}{spread}%", f"{asr:.1f} ± {asr_std:.1f}%", f"{worst:.1f}%"]


def trigger_table(runs: Sequence[dict], names: Sequence[str], triggers: Sequence[str]) -> list[str]:
    """Return the ASR of every model for every trigger: mean over its runs, and the worst of them."""
    lines = ["", "| ASR (%): mean (worst) | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for trigger in triggers:
        cells = []
        for name in names:
            asr = [rate for run in runs if run["trigger"] == trigger for rate in rates(run, name)]
            worst = min(asr) if name == "attacked" else max(asr)
            cells.append(f"{intervals.mean_std(asr)[0]:.1f}" + (f" ({worst:.1f})" if len(asr) > 1 else ""))
        lines.append(f"| `{trigger}` | " + " | ".join(cells) + " |")
    return lines


def provenance(runs: Sequence[dict], triggers: Sequence[str]) -> dict[str, str]:
    """Return what the table shows and how its runs were made: n, data, triggers, seeds, machine, seconds."""
    p, made = runs[0]["params"], runs[0]["made"]
    seeds = ", ".join(map(str, sorted({run["seed"] for run in runs})))
    counts = sorted({str(run["made"]["threads"]) for run in runs})
    threads = " or ".join(counts) + (" thread" if counts == ["1"] else " threads")
    seconds = {k: intervals.mean_std(run["seconds"][k] for run in runs)[0] for k in runs[0]["seconds"]}
    over = f"mean ± standard deviation over {len(runs)} runs" if len(runs) > 1 else "one run, 95% CI in brackets"
    repeats = len(rates(runs[0], BASELINE))
    return {
        "values": f"{over}; {repeats} repeat{'s' * (repeats != 1)} of the single inversion in each",
        "data, target": f"{p['dataset']}, {p['target']}",
        "triggers": ", ".join(f"`{trigger}`" for trigger in triggers),
        "seeds": seeds,
        "machine": f"{made['device']} ({made['device_name']}, {threads}), torch {made['torch']}",
        "seconds": ", ".join(f"{name} {value:.0f}" for name, value in seconds.items()),
    }


def changes(runs: Sequence[dict]) -> dict[str, str]:
    """Return what MESA leaves, against never-attacked models and the ideal repair, and what it costs: in points."""

    def points(measure: str, other: str, worst: Callable, model: str = "MESA") -> str:
        differences = [rates(run, model, measure)[0] - rates(run, other, measure)[0] for run in runs]
        return f"{intervals.mean_std(differences)[0]:+.1f} (worst {worst(differences):+.1f}) points"

    after, cost = "ASR after MESA, against the", "against the attacked model"
    return {
        f"{after} clean-model ASR": points("asr", "clean model", max),
        f"{after} repaired clean model": points("asr", "clean model, repaired", max),
        f"{after} ideal repair": points("asr", "ideal", max),
        f"clean accuracy after MESA, {cost}": points("clean_accuracy", "attacked", min),
        f"recall of the target class after MESA, {cost}": points("target_recall", "attacked", min),
        f"clean accuracy after the ideal repair, {cost}": points("clean_accuracy", "attacked", min, "ideal"),
        f"recall of the target class after the ideal repair, {cost}": points("target_recall", "attacked", min, "ideal"),
    }


def samples(runs: Sequence[dict]) -> dict[str, str]:
    """Return how the samples of the highest level do, and those of this level modeled without the entropy term."""
    top = max((name for name in runs[0]["samples"] if name.startswith("beta ")), key=lambda name: float(name[5:]))

    def over_runs(name: str, measure: str, scale: float = 1, digits: int = 2, unit: str = "") -> str:
        mean, spread = intervals.mean_std(scale * run["samples"][name][measure] for run in runs)
        return f"{mean:.{digits}f}" + (f" ± {spread:.{digits}f}" if len(runs) > 1 else "") + unit

    titles = {top: f"samples of MESA, {top}"}
    if all("alpha 0" in run["samples"] for run in runs):
        titles["alpha 0"] = f"samples of MESA, {top}, alpha 0"
    rows = {
        title: f"ASR {over_runs(name, 'asr', 100, 1, '%')}, mutual information {over_runs(name, 'information')} "
        f"nats, mean distance {over_runs(name, 'distance', 1, 3)}"
        for name, title in titles.items()
    }
    if "alpha 0" in titles:
        ratios = [run["samples"][top]["distance"] / run["samples"]["alpha 0"]["distance"] for run in runs]
        mean, spread = intervals.mean_std(ratios)
        ratio = f"{mean:.2f}" + (f" ± {spread:.2f}" if len(runs) > 1 else "")
        rows["mean distance, with against without entropy"] = f"ratio {ratio}"
    return rows


def rounds_line(runs: Sequence[dict]) -> str:
    """Return how often one round missed, whether the residual check noticed, and what further rounds cost."""
    missed = [run for run in runs if rates(run, "MESA")[0] > 100 * MISSED]
    noticed = [run for run in missed if not run["rounds"][0]["clear"]]
    unneeded = [run for run in runs if run not in missed and not run["rounds"][0]["clear"]]
    false_clear = [run for run in runs if run["rounds"][-1]["clear"] and rates(run, "MESA rounds")[0] > 100 * MISSED]
    used = [len(run["rounds"]) for run in runs]
    seconds = intervals.mean_std(run["seconds"]["rounds"] for run in runs)[0]
    limit = f"{100 * MISSED:.0f}%"
    text = f"After one round the original trigger has an ASR above {limit} in {len(missed)} of {len(runs)} runs"
    text += f", of which the residual check notices {len(noticed)}" if missed else ""
    text += f"; it asks for another round in {len(unneeded)} others" if unneeded else ""
    return (
        f"{text}. Rounds until clear: {intervals.mean_std(used)[0]:.1f} (most {max(used)}), {seconds:.0f} s beyond the "
        f"first model and repair; false all-clears at the end: {len(false_clear)}."
    )


# --- files -----------------------------------------------------------------------------------------------


def fill_page(
    page: Path, table: Callable[[str, dict], str], findings: dict[str, Callable[[dict], str]] | None = None
) -> None:
    """Write tables of results/*.json, and sentences about them, between their markers in a page.

    The markers are `<!-- table NAME -->` or `<!-- findings NAME -->`, and `<!-- end NAME -->` or
    `<!-- end findings NAME -->`. What is written is indented like the first of them.

    Args:
        page: a markdown file.
        table: name and content of a result file -> its markdown.
        findings: sweep -> the sentences about its results.

    A result that is not published leaves its place as it is.

    Raises:
        ValueError: if a marker of a published result has no end.
    """
    text = page.read_text()
    for kind, name in re.findall(r"<!-- (table|findings) (\S+) -->", text):
        if not (content := load_content(name)):  # not published yet
            continue
        body = table(name, content) if kind == "table" else (findings or {})[content["sweep"]](content)
        end = f"<!-- end {name} -->" if kind == "table" else f"<!-- end findings {name} -->"
        block = re.compile(f"^( *)<!-- {kind} {re.escape(name)} -->$.*?^ *{re.escape(end)}$", re.M | re.S)
        match = block.search(text)
        if not match:
            raise ValueError(f"{page.name}: the {kind} {name} has no line {end} after it")
        lines = [f"<!-- {kind} {name} -->", *body.splitlines(), end]
        written = "\n".join(match[1] + line if line else "" for line in lines)
        text = text[: match.start()] + written + text[match.end() :]
    page.write_text(text)
