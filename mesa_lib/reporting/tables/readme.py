"""Repeats over seeds and triggers: the figures that the README quotes, with mean and spread, in results/*.json."""

import base64
import json
from collections.abc import Callable
from pathlib import Path

import nbformat

from mesa_lib import device as devices
from mesa_lib import store, success, triggers
from mesa_lib.evaluation import intervals
from mesa_lib.experiments import params as parameters
from mesa_lib.experiments import results
from mesa_lib.experiments.params import Params
from mesa_lib.experiments.pipeline import Pipeline
from mesa_lib.reporting.tables.paper import PAPER
from mesa_lib.store import paths

#: a repair has missed if the original trigger still fires on more than this share of the images
MISSED = 0.1
MEASURES = ("clean_accuracy", "asr", "target_recall", "true_label_accuracy")


def one_seed(p: Params) -> dict:
    """Everything of one seed: the table of all controls, and how the samples do on the modeling images."""
    pipeline = Pipeline(p)
    pipeline.clean(), pipeline.attacked()  # one after the other, so that each is timed alone
    distribution, made = pipeline.distribution()
    rows = pipeline.report().result["rows"]
    top = distribution.betas[0]
    held, attacked = pipeline.data.modeling, pipeline.attacked()
    without, _ = pipeline.distribution(alpha=0.0, betas=(top,))
    samples = {}
    for name, source in [(f"beta {b}", distribution.at(b)) for b in distribution.betas] + [("alpha 0", without)]:
        drawn = source.sample(2000, devices.rng(p.seed, pipeline.device)).cpu()
        rate = success.asr_of_triggers(attacked.model, held.images, held.labels, drawn[:200], p.target, seed=p.seed)
        information = source.measured_information()
        samples[name] = {"asr": float(rate.mean()), "information": information} | triggers.diversity(drawn)
    rounds = pipeline.repaired("MESA rounds").artifact.result["rounds"]
    made = {k: v for k, v in made.made.items() if k not in ("files", "seconds")}
    found = {"rows": rows, "samples": samples, "rounds": rounds, "seconds": results.seconds(pipeline)}
    return {"trigger": p.trigger, "seed": p.seed, "made": made} | found


def run(p: Params, seeds: list[int], out: Path, triggers: list[str] | None = None) -> dict:
    """All triggers and seeds, each kept in the store; the JSON file is written whole after every one of them."""
    each = [params_of(p, trigger, seed) for trigger in triggers or [p.trigger] for seed in seeds]
    paper = PAPER.get(p.dataset, {}) if p.start == "clean" else {}
    content = {"params": p.model_dump(exclude={"seed", "data_dir", "trigger"}), "paper": paper, "runs": []}
    out.parent.mkdir(parents=True, exist_ok=True)
    for one in each:
        content["runs"].append(one_seed(one))
        store.write_atomic(out, json.dumps(content, indent=1) + "\n")
        print(f"{one.trigger}, seed {one.seed}: done", flush=True)
    return content


def params_of(p: Params, trigger: str, seed: int) -> Params:
    return parameters.check(p.model_dump() | {"trigger": trigger, "seed": seed})


def markdown(content: dict) -> str:
    """The README's table: one line a model, mean ± standard deviation over all runs; then one a trigger, if several.

    MESA in rounds has a line only where a run had more than one: else it is MESA's.
    """
    whole, p = content["runs"], content["params"]
    left_out = "MESA rounds" if all(len(run["rounds"]) == 1 for run in whole) else ""
    runs = [run | {"rows": [row for row in run["rows"] if row["model"] != left_out]} for run in whole]
    values: dict[str, dict[str, list[float]]] = {}
    for run in runs:
        for row in run["rows"]:
            name = "point baseline" if row["model"].startswith("point ") else row["model"]
            for measure in MEASURES:
                values.setdefault(name, {}).setdefault(measure, []).append(100 * row[measure]["rate"])
    paper = content.get("paper", {})
    lines = ["| model | clean accuracy | ASR of the original trigger | ASR, worst run |", "|---|---|---|---|"]
    lines = [lines[0] + " the paper's ASR: mean (worst) |", lines[1] + "---|"] if paper else lines
    for name, measured in values.items():
        (accuracy, spread), (asr, asr_spread) = map(intervals.mean_std, (measured["clean_accuracy"], measured["asr"]))
        worst = min(measured["asr"]) if name == "attacked" else max(measured["asr"])
        if len(runs) == 1 and len(measured["asr"]) == 1:
            known = {"point baseline": "point 1"}.get(name, name)
            row = next(r for r in runs[0]["rows"] if r["model"] == known)["asr"]
            lines.append(
                f"| {name} | {accuracy:.1f} % | {asr:.1f} % ({100 * row['low']:.1f} to {100 * row['high']:.1f}) | |"
            )
        else:
            one_model = name == "clean, never attacked" and p.get("clean_seed", -1) >= 0
            accuracies = f"{accuracy:.1f} %" if one_model else f"{accuracy:.1f} ± {spread:.1f} %"
            lines.append(f"| {name} | {accuracies} | {asr:.1f} ± {asr_spread:.1f} % | {worst:.1f} % |")
        if paper:
            lines[-1] += " {:.1f} % ({:.1f}) |".format(*paper[name]) if name in paper else " |"
    made, seeds = runs[0]["made"], sorted({run["seed"] for run in runs})
    threads = sorted({str(run["made"]["threads"]) for run in runs})
    threads = " or ".join(threads) + (" thread" if threads == ["1"] else " threads")
    chosen = list(dict.fromkeys(run["trigger"] for run in runs))
    lines += per_trigger(runs, chosen) if len(chosen) > 1 else []
    lines += ["", changes(runs)] if len(runs) > 1 else []
    seconds = {k: intervals.mean_std(run["seconds"][k] for run in runs)[0] for k in runs[0]["seconds"]}
    spent = ", ".join(f"{k} {v:.0f} s" for k, v in seconds.items())
    repeats = sum(row["model"].startswith("point ") for row in runs[0]["rows"])
    over = f"Mean ± standard deviation over {len(runs)} runs" if len(runs) > 1 else "One run"
    lines += [
        "",
        f"{over}, the point baseline {repeats} times in each. "
        f"{p['dataset']}, {', '.join(f'`{t}`' for t in chosen)}, target {p['target']}, "
        f"seeds {', '.join(map(str, seeds))}; {made['device']} "
        f"({made['device_name']}, {threads}), torch {made['torch']}; {spent}.",
    ]
    lines += ["", samples_line(runs)]
    lines += ["", rounds_line(whole)]
    return "\n".join(lines)


def per_trigger(runs: list[dict], triggers: list[str]) -> list[str]:
    """ASR of every model for every trigger, mean over its seeds and the worst of them."""
    names = [row["model"] for row in runs[0]["rows"] if not row["model"].startswith("point ")]
    names.insert(names.index("MESA"), "point")
    lines = ["", "| ASR: mean (worst) | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for trigger in triggers:
        rows = [row for run in runs if run["trigger"] == trigger for row in run["rows"]]
        cells = []
        for name in names:
            own = [100 * r["asr"]["rate"] for r in rows if r["model"] == name or r["model"].startswith(f"{name} ")]
            worst = min(own) if name == "attacked" else max(own)
            cells.append(f"{intervals.mean_std(own)[0]:.1f}" + (f" ({worst:.1f})" if len(own) > 1 else ""))
        lines.append(f"| `{trigger}` | " + " | ".join(cells) + " |")
    return lines


def changes(runs: list[dict]) -> str:
    """What MESA leaves, against models without a backdoor and the ideal repair, and what it costs."""

    def points(measure: str, other: str, worst: Callable, model: str = "MESA") -> str:
        pairs = [{row["model"]: row[measure]["rate"] for row in run["rows"]} for run in runs]
        differences = [100 * (pair[model] - pair[other]) for pair in pairs]
        return f"{intervals.mean_std(differences)[0]:+.1f} (worst {worst(differences):+.1f})"

    return (
        f"In points, mean (worst): ASR after MESA {points('asr', 'clean, never attacked', max)} against the floor of "
        f"its trigger, {points('asr', 'clean, repaired', max)} against the clean model after the same repair, "
        f"{points('asr', 'ideal', max)} against the ideal. Clean accuracy {points('clean_accuracy', 'attacked', min)} "
        f"against the attacked model, recall of the target class {points('target_recall', 'attacked', min)}; the ideal "
        f"repair {points('clean_accuracy', 'attacked', min, 'ideal')} and "
        f"{points('target_recall', 'attacked', min, 'ideal')}."
    )


def samples_line(runs: list[dict]) -> str:
    """How the samples do at the highest level, and beside it without the entropy term."""
    top = next(iter(runs[0]["samples"]))  # the first is the highest level

    def over_seeds(name: str, measure: str, scale: float = 1, digits: int = 2) -> str:
        mean, spread = intervals.mean_std(scale * run["samples"][name][measure] for run in runs)
        return f"{mean:.{digits}f}" + (f" ± {spread:.{digits}f}" if len(runs) > 1 else "")

    texts = [
        f"{title}: ASR {over_seeds(name, 'asr', 100, 1)} %, mutual information {over_seeds(name, 'information')} nats, "
        f"mean distance {over_seeds(name, 'distance', 1, 3)}"
        for title, name in ((f"Samples of MESA, {top}", top), ("the same level with alpha 0", "alpha 0"))
    ]
    ratio = [run["samples"][top]["distance"] / run["samples"]["alpha 0"]["distance"] for run in runs]
    mean, spread = intervals.mean_std(ratio)
    return "; ".join(texts) + f"; ratio of distances {mean:.2f}" + (f" ± {spread:.2f}." if len(runs) > 1 else ".")


def rounds_line(runs: list[dict]) -> str:
    """How often one round missed (the original trigger above `MISSED`), what the look said, and what rounds cost."""

    def asr(run: dict, name: str) -> float:
        return next(row for row in run["rows"] if row["model"] == name)["asr"]["rate"]

    missed = [run for run in runs if asr(run, "MESA") > MISSED]
    noticed = [run for run in missed if not run["rounds"][0]["clear"]]
    alarms = [run for run in runs if run not in missed and not run["rounds"][0]["clear"]]
    false_clear = [run for run in runs if run["rounds"][-1]["clear"] and asr(run, "MESA rounds") > MISSED]
    used = [len(run["rounds"]) for run in runs]
    seconds = intervals.mean_std(run["seconds"]["rounds"] for run in runs)[0]
    told = f"After one round the original trigger fires above {100 * MISSED:.0f} % in {len(missed)} of {len(runs)} runs"
    told += f", of which the look notices {len(noticed)}" if missed else ""
    told += f"; it asks for another round in {len(alarms)} others" if alarms else ""
    return (
        f"{told}. Rounds until clear: {intervals.mean_std(used)[0]:.1f} (most {max(used)}), {seconds:.0f} s beyond the "
        f"first model and repair; false all-clears at the end: {len(false_clear)}."
    )


def into_readme(readme: Path | None = None, table: Callable[[str, dict], str] | None = None) -> None:
    """Put the tables of results/*.json between their markers in the README: `<!-- table NAME -->`.

    table: name and content of a result file -> its markdown; default `markdown`, for files of `run`
    """
    readme = readme or paths.root() / "README.md"
    table = table or (lambda name, content: markdown(content))
    text = readme.read_text()
    for file in sorted((paths.root() / "results").glob("*.json")):
        start, end = f"<!-- table {file.stem} -->", f"<!-- end {file.stem} -->"
        if start in text and end in text:
            head, _, rest = text.partition(start)
            inner = table(file.stem, json.loads(file.read_text()))
            text = head + start + "\n" + inner + "\n" + end + rest.partition(end)[2]
    readme.write_text(text)


def picture(target: Path | None = None) -> None:
    """The README's picture: the t-SNE panels as notebook 03 shows them."""
    target = target or paths.root() / "results" / "picture.png"
    book = nbformat.read(paths.root() / "notebooks" / "03_visualizing.ipynb", 4)
    (cell,) = [c for c in book.cells if c.cell_type == "code" and 'method="t-sne"' in c.source]
    (png,) = [o.data["image/png"] for o in cell.outputs if "image/png" in o.get("data", {})]
    target.write_bytes(base64.b64decode(png))
