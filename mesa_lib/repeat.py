"""Repeats over seeds: the figures that the README quotes, with mean and spread, in results/*.json."""

import base64
import json
import os
from pathlib import Path

import nbformat

from . import device as devices
from . import metrics, paths
from .params import Params
from .stages import Stages

MEASURES = ("clean_accuracy", "asr", "target_recall", "true_label_accuracy")


def one_seed(p: Params) -> dict:
    """Everything of one seed: the table of all controls, and how the samples do on the modelling images."""
    stages = Stages(p)
    stages.clean(), stages.attacked()  # one after the other, so that each is timed alone
    distribution, made = stages.distribution()
    rows = stages.report().result["rows"]
    top = distribution.betas[0]
    held, attacked = stages.data.modelling, stages.attacked()
    without, _ = stages.distribution(alpha=0.0, betas=(top,))
    samples = {}
    for name, source in [(f"beta {b}", distribution.at(b)) for b in distribution.betas] + [("alpha 0", without)]:
        drawn = source.sample(200, devices.rng(p.seed, stages.device)).cpu()
        rate = metrics.asr_of_samples(attacked.model, held.images, held.labels, drawn, p.target, seed=p.seed)
        information = source.levels[0].information
        samples[name] = {"asr": float(rate.mean()), "information": information} | metrics.diversity(drawn)
    seconds = {
        "clean": stages.clean().artifact.made["seconds"],
        "attack": attacked.artifact.made["seconds"],
        "modelling": made.made["seconds"],
        "repair": stages.repaired("MESA").artifact.made["seconds"],
    }
    return {"seed": p.seed, "rows": rows, "samples": samples, "seconds": seconds, "made": made.made}


def run(p: Params, seeds: list[int], out: Path) -> dict:
    """All seeds, each kept in the store, then one JSON file written whole."""
    runs = []
    for seed in seeds:
        runs.append(one_seed(p.model_copy(update={"seed": seed})))
        print(f"seed {seed}: done", flush=True)
    runs_made = {k: v for k, v in runs[0].pop("made").items() if k not in ("files", "seconds")}
    for other in runs[1:]:
        other.pop("made")
    content = {"params": p.model_dump(exclude={"seed", "data_dir"}), "made": runs_made, "runs": runs}
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = out.with_suffix(".tmp")
    scratch.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(scratch, out)
    return content


def markdown(content: dict) -> str:
    """The README's table: one line a model, mean ± standard deviation over the seeds."""
    runs, p = content["runs"], content["params"]
    values: dict[str, dict[str, list[float]]] = {}
    for run in runs:
        for row in run["rows"]:
            name = "point baseline" if row["model"].startswith("point ") else row["model"]
            for measure in MEASURES:
                values.setdefault(name, {}).setdefault(measure, []).append(100 * row[measure]["rate"])
    lines = ["| model | clean accuracy | ASR of the original trigger | ASR, worst run |", "|---|---|---|---|"]
    for name, measured in values.items():
        (accuracy, spread), (asr, asr_spread) = map(metrics.mean_std, (measured["clean_accuracy"], measured["asr"]))
        worst = min(measured["asr"]) if name == "attacked" else max(measured["asr"])
        if len(runs) == 1 and len(measured["asr"]) == 1:
            row = next(r for r in runs[0]["rows"] if r["model"] == name)["asr"]
            lines.append(
                f"| {name} | {accuracy:.1f} % | {asr:.1f} % ({100 * row['low']:.1f} to {100 * row['high']:.1f}) | |"
            )
        else:
            lines.append(
                f"| {name} | {accuracy:.1f} ± {spread:.1f} % | {asr:.1f} ± {asr_spread:.1f} % | {worst:.1f} % |"
            )
    made, seeds = content["made"], [run["seed"] for run in runs]
    seconds = {k: metrics.mean_std(run["seconds"][k] for run in runs)[0] for k in runs[0]["seconds"]}
    spent = ", ".join(f"{k} {v:.0f} s" for k, v in seconds.items())
    lines += [
        "",
        f"{p['dataset']}, `{p['trigger']}`, target {p['target']}, seeds {', '.join(map(str, seeds))}; {made['device']} "
        f"({made['device_name']}, {made['threads']} threads), torch {made['torch']}; {spent}.",
    ]
    lines += ["", samples_line(runs)]
    return "\n".join(lines)


def samples_line(runs: list[dict]) -> str:
    """How the samples do at the highest level, and beside it without the entropy term."""
    top = next(iter(runs[0]["samples"]))  # the first is the highest level

    def over_seeds(name: str, measure: str, scale: float = 1, digits: int = 2) -> str:
        mean, spread = metrics.mean_std(scale * run["samples"][name][measure] for run in runs)
        return f"{mean:.{digits}f}" + (f" ± {spread:.{digits}f}" if len(runs) > 1 else "")

    texts = [
        f"{title}: ASR {over_seeds(name, 'asr', 100, 1)} %, mutual information {over_seeds(name, 'information')} nats, "
        f"mean distance {over_seeds(name, 'distance', 1, 3)}"
        for title, name in ((f"Samples of MESA, {top}", top), ("the same level with alpha 0", "alpha 0"))
    ]
    ratio = [run["samples"][top]["distance"] / run["samples"]["alpha 0"]["distance"] for run in runs]
    mean, spread = metrics.mean_std(ratio)
    return "; ".join(texts) + f"; ratio of distances {mean:.2f}" + (f" ± {spread:.2f}." if len(runs) > 1 else ".")


def into_readme(readme: Path | None = None) -> None:
    """Put the tables of results/*.json between their markers in the README: `<!-- table NAME -->`."""
    readme = readme or paths.root() / "README.md"
    text = readme.read_text()
    for file in sorted((paths.root() / "results").glob("*.json")):
        start, end = f"<!-- table {file.stem} -->", f"<!-- end {file.stem} -->"
        if start in text and end in text:
            head, _, rest = text.partition(start)
            text = head + start + "\n" + markdown(json.loads(file.read_text())) + "\n" + end + rest.partition(end)[2]
    readme.write_text(text)


def picture(target: Path | None = None) -> None:
    """The README's picture: the t-SNE panels as notebook 03 shows them."""
    target = target or paths.root() / "results" / "picture.png"
    book = nbformat.read(paths.root() / "notebooks" / "03_visualizing.ipynb", 4)
    (cell,) = [c for c in book.cells if c.cell_type == "code" and 'method="t-sne"' in c.source]
    (png,) = [o.data["image/png"] for o in cell.outputs if "image/png" in o.get("data", {})]
    target.write_bytes(base64.b64decode(png))
