"""The result of a scan as files: `scan.json`, and `report.html`, one page with its pictures inside.

Names of classes and models come from outside: the template engine escapes every text, and what cannot be printed is
written out.
"""

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path

import jinja2
import matplotlib
import torch
from markupsafe import Markup
from matplotlib import pyplot as plt

from mesa_lib import store
from mesa_lib.reporting import plots
from mesa_lib.scan.accuracy import NoVerdict
from mesa_lib.scan.scanner import Scan
from mesa_lib.store.sanitize import sanitize
from mesa_lib.triggers import stamp

#: the longest text of a report
MAX_TEXT = 10_000
#: samples of a distribution in the report, and images with one
SHOWN, SHOWN_ON_IMAGES = 12, 4


def _printable(value: object) -> object:
    return sanitize(value, MAX_TEXT) if isinstance(value, str) and not isinstance(value, Markup) else value


def with_interval(part: dict) -> str:
    """Return a rate (`intervals.proportion`) with its 95% CI: `95.0% (76.4%–99.1%)`."""
    return f"{part['rate']:.1%} ({part['low']:.1%}–{part['high']:.1%})"


TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("mesa_lib.reporting.html", "templates"),
    autoescape=True,
    finalize=_printable,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.filters["percent"] = lambda rate: f"{rate:.1%}"
TEMPLATES.filters["interval"] = with_interval


def write(scanned: Scan, out: Path, name: str) -> tuple[Path, Path]:
    """Write `scan.json` and `report.html` to a folder and return their paths.

    Args:
        scanned: the result of a scan.
        out: the folder; made if it does not exist.
        name: of the model, as the report calls it.
    """
    files = out / "scan.json", out / "report.html"
    out.mkdir(parents=True, exist_ok=True)
    store.write_atomic(files[0], json.dumps({"model": name, **scanned.result}, indent=1, allow_nan=False) + "\n")
    store.write_atomic(files[1], page(scanned, name))
    return files


def write_no_verdict(error: NoVerdict, scanned: dict, notes: Sequence[str], out: Path, name: str) -> None:
    """Write both files where there is no verdict: why, and the accuracy.

    Args:
        error: the reason.
        scanned: what was scanned (`cli.scan.identity`).
        notes: about the images.
        out, name: as in `write`.
    """
    out.mkdir(parents=True, exist_ok=True)
    result = {"model": name, "verdict": "none", "why": error.why, "accuracy": error.accuracy, "images": list(notes)}
    store.write_atomic(out / "scan.json", json.dumps(result | {"scanned": scanned}, indent=1, allow_nan=False) + "\n")
    html = TEMPLATES.get_template("scan_no_verdict.html.j2").render(
        name=name, why=error.why[:1].upper() + error.why[1:], images=list(notes), accuracy=error.accuracy,
        identity=identity_line(scanned),
    )  # fmt: skip
    store.write_atomic(out / "report.html", html)


def page(scanned: Scan, name: str) -> str:
    """Return the report as HTML, complete in itself."""
    result = scanned.result
    pairs = zip(result["accuracy"]["recalls"], result["accuracy"]["mistaken"], strict=True)
    ratios = result["data-free"].get("ratios", [None] * len(result["verdicts"]))
    return TEMPLATES.get_template("scan.html.j2").render(
        name=name,
        result=result,
        summary=summary(result),
        p_value=p_value(result),
        rows=[
            line
            | {"recall": recall, "mistaken": mistaken, "patches": f"{line['rule']}{location(line['location'])}"}
            | {"margin": ratio, "suspicious": line["class"] in result["suspicious"]}
            | {"was screened": line["class"] not in result["not screened"]}
            for line, (recall, mistaken), ratio in zip(result["verdicts"], pairs, ratios, strict=True)
        ],
        gallery=gallery(scanned),
        repair=result.get("repair"),
        residual=residual(result.get("repair", {})),
        margins=margins(result),
        limits=limits(result),
        named=classes_named,
        made=made_line(result),
        identity=identity_line(result["scanned"]) if "scanned" in result else "",
    )


# --- sentences -------------------------------------------------------------------------------------------


def summary(result: dict) -> str:
    """Return the verdict in sentences."""
    flagged = [line for line in result["verdicts"] if line["flagged"]]
    sentences = [
        f"With patches of {line['rule']}{location(line['location'])} from a modeled distribution, {line['rate']:.1%} "
        f"of images of other classes are misclassified as {line['class']} (the limit is {line['limit']:.1%})."
        for line in flagged
    ]
    if result["not screened"] or result["skipped"]:
        sentences.insert(0, left_out(result))
    if not flagged:
        lines = [line for line in result["verdicts"] if line["class"] not in result["not screened"]]
        nearest = max(lines, key=lambda line: line["rate"] / line["limit"])
        sentences += [
            f"The class that comes nearest to its limit is {nearest['class']}: with patches of {nearest['rule']}, "
            f"{nearest['rate']:.1%} of images of other classes are misclassified as it; the limit is "
            f"{nearest['limit']:.1%}."
        ]
    if alone := [name for name in result["suspicious"] if name not in result["flagged"]]:
        sentences.append(
            f"The largest margin, which needs no image, stands out for {classes_named(alone)}. That is a reason to "
            "examine the model further: there may be a trigger that is no patch."
        )
    if both := [name for name in result["suspicious"] if name in result["flagged"]]:
        sentences.append(f"The largest margin, which needs no image, stands out for {classes_named(both)} as well.")
    return " ".join([*sentences, false_positives(result)])


def classes_named(names: Sequence[str]) -> str:
    """Return names of classes as people read them: `class 'cat'`, `classes 'cat' and 'dog'`."""
    return f"class{'es' if len(names) > 1 else ''} " + " and ".join(f"'{name}'" for name in names)


def left_out(result: dict) -> str:
    """Return which part of the search a scan with a budget left out, in a sentence."""
    number = len(result["verdicts"])
    without = f", and patches of {', '.join(result['skipped'])} were not tried" if result["skipped"] else ""
    done = number - len(result["not screened"])
    return f"For lack of time, only {done} of {number} classes {'was' if done == 1 else 'were'} screened{without}."


def false_positives(result: dict) -> str:
    """Return how often clean models are flagged, as far as that was measured, in a sentence."""
    if result["not screened"] or result["skipped"]:
        return "How often clean models are flagged is known for complete scans only."
    if not result["clean models"]:
        return "How often clean models are flagged has not been measured with these settings."
    counts = [
        f"{round(part['rate'] * part['images'])} of {part['images']} on {name} ({part['low']:.0%}–{part['high']:.0%})"
        for name, part in result["clean models by data"].items()
    ]
    return f"Clean models, small networks scanned with equal settings, that were flagged (95% CI): {', '.join(counts)}."


def p_value(result: dict) -> str:
    """Return the p-value, and how often p-values were right, in sentences; "" if there is none."""
    if not (found := result["p-value"]):
        return ""
    text = "{flagged} of {of} {kind} ones ({low:.0%}–{high:.0%})"
    number, rest = found["networks"], [text.format(kind=kind, **part) for kind, part in found["counted"].items()]
    as_high = round(found["p-value"] * (number + 1)) - 1
    sentences = [
        f"p = {found['p-value']:.3f}: of {number} clean networks that were scanned alike, {as_high or 'none'} "
        f"{'stand' if as_high > 1 else 'stands'} out as much, in the largest margin or in the search."
    ]
    sentences += [f"Of other networks, {' and '.join(rest)} have p ≤ {found['level']:g}."] if rest else []
    sentences.append(
        f"The limits of the scan flag {text.format(kind='clean', **found['by limits'])}. "
        "These are small networks on digits; for others a p-value is a hint."
    )
    if result["flagged"] and found["p-value"] > found["level"]:
        sentences.append("So the flag may be false: clean networks stand out as much.")
    return " ".join(sentences)


def margins(result: dict) -> str:
    """Return what the margins are and where they stand out, or why there are none, in sentences."""
    found = result["data-free"]
    if "why" in found:
        return f"The largest margins were not computed ({found['why']})."
    highest = max(found["ratios"])
    return (
        f"The margin needs no images (MM-BD, {found['starts']} starts a class). It is how far a class's output can "
        f"rise above all others, divided by the median of all classes. The highest is {highest:.1f}; above "
        f"{found['limit']:g} a class is suspicious (the highest of a clean network was 4.2). Triggers that are no "
        "patches, such as blends, can show here. A low margin is no all-clear: many patches raise the outputs little."
    )


def residual(repair: dict) -> str:
    """Return whether the residual checks after a repair are clear, in a sentence; "" if there were none."""
    checks = list(zip(repair.get("samples", []), repair.get("residual checks", []), strict=False))
    left = [f"{what} ({max(check['searched'], check['sampled']):.0%})" for what, check in checks if not check["clear"]]
    if left:
        return (
            f"The repair has failed: the repaired model still responds to patches above the limit: {', '.join(left)}."
        )
    nothing = "No rate exceeds its limit. That is no proof: the attacker's own trigger may still work."
    return nothing if checks else ""


def location(upper_left: list | None) -> str:
    """Return ` (row 3, column 4)`; "" for random locations."""
    return "" if upper_left is None else f" (row {upper_left[0]}, column {upper_left[1]})"


def limits(result: dict) -> str:
    """Return what the scan can detect and what it cannot, in sentences."""
    screened = next(line["screened"] for line in result["verdicts"] if line["screened"])
    sides = ", ".join(dict.fromkeys(spec.split()[0] for spec in screened))
    stride = result["settings"]["screening"]["stride"]
    skipped = f" Skipped for lack of time: patches of {', '.join(result['skipped'])}." if result["skipped"] else ""
    if names := result["not screened"]:
        skipped += (
            f" For lack of time, no patches were tried for the classes with the lowest margins: {', '.join(names)}."
        )
    reference = (
        "the number of clean models with such a class stands beside each"
        if result["clean models"]
        else "every way of stamping has a limit, taken from two clean networks on CIFAR-10 and ten on digits"
    )
    return (
        f"The scan looks for patches ({sides}; locations: a grid with a step of {stride} pixels) that overwrite "
        "a part of the image, at random locations or at a fixed one, and make images of all other classes "
        f"misclassified as one class.{skipped} It does not search for triggers of another kind (blends, warps, "
        "reflections), larger ones, or backdoors that work for one source class only or that have another target for "
        "each class. A class "
        f"that responds to patches need not be an attack: some classes of clean models do, which is why {reference}. "
        "'Nothing found' does not prove that a model is clean."
    )


def made_line(result: dict) -> str:
    """Return on what machine the scan ran, and how long, in a line."""
    made = result["made"]
    return (
        f"mesa scan, {made['seconds']:.0f} s on {made['device_name']} ({made['threads']} threads), "
        f"torch {made['torch']}, seed {result['options']['seed']}."
    )


def identity_line(scanned: dict) -> str:
    """Return what was scanned, in a line."""
    mean, std = (", ".join(map(str, scanned[name])) for name in ("mean", "std"))
    return (
        f"Scanned: a file with the SHA-256 {scanned['sha256']}, read as {sanitize(scanned['network'])} with the mean "
        f"{mean} and the std {std} at {scanned['image size']} pixels; images {scanned['images']}; {scanned['at']}."
    )


# --- pictures --------------------------------------------------------------------------------------------


def gallery(scanned: Scan) -> list[dict]:
    """Return, for each modeled distribution, its `title` and a `picture` of samples, some of them on images."""
    parts = []
    for (label, spec), samples in scanned.samples.items():
        line = scanned.result["verdicts"][label]
        rate = line["modeled"][str(spec)]
        title = (
            f"{line['class']}: patches of {spec}; with samples of the distribution, {rate:.0%} of images of other "
            "classes are misclassified as it"
        )
        where = scanned.locations[label, spec]
        others = scanned.work.images[scanned.work.labels != label][:SHOWN_ON_IMAGES].float() / 255
        if where is None:
            sides = zip(others.shape[-2:], samples.shape[-2:], strict=True)
            where = torch.tensor([(image - patch) // 2 for image, patch in sides])
        images = [*samples[:SHOWN], *stamp(others, samples[: len(others)], where)]
        parts.append({"title": title, "picture": picture(images)})
    return parts


def picture(images: Sequence[torch.Tensor]) -> Markup:
    """Return images (3, h, w) in a row as the `src` of an HTML image."""
    with matplotlib.rc_context({"figure.constrained_layout.use": True}):
        figure = plots.gallery(images, columns=len(images))
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=90)
    plt.close(figure)
    return Markup(f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}")
