"""The result of a scan as files: `scan.json`, and `report.html`, one page with its pictures inside.

Names of classes come from outside: they are escaped.
"""

import base64
import io
import json
from collections.abc import Sequence
from html import escape as of_html
from pathlib import Path

import matplotlib
import torch
from matplotlib import pyplot as plt

from mesa_lib import store
from mesa_lib.reporting import plots
from mesa_lib.scan.accuracy import NoVerdict
from mesa_lib.scan.scanner import Scan
from mesa_lib.store.sanitize import sanitize
from mesa_lib.triggers import stamp


def escape(text: str) -> str:
    """Text from outside as HTML that shows it, with what cannot be printed written out."""
    return of_html(sanitize(text, 10_000))


STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0 } td, th { padding: .3em .8em; border-bottom: 1px solid #ddd }
td, th { text-align: left; vertical-align: top } .bad { color: #b00020 } .good { color: #1b6e3c }
img { max-width: 100% } .note { color: #666; font-size: .9em }
"""


def write(done: Scan, out: Path, name: str) -> tuple[Path, Path]:
    """`scan.json` and `report.html` in `out`; `name`: of the model, as the report calls it."""
    out.mkdir(parents=True, exist_ok=True)
    found = {"model": name, **done.result}
    store.write_atomic(out / "scan.json", json.dumps(found, indent=1, allow_nan=False) + "\n")
    store.write_atomic(out / "report.html", page(done, name))
    return out / "scan.json", out / "report.html"


def write_none(error: NoVerdict, scanned: dict, notes: Sequence[str], out: Path, name: str) -> None:
    """The same where there is no verdict: why, and the accuracy."""
    out.mkdir(parents=True, exist_ok=True)
    found = {"model": name, "verdict": "none", "why": error.why, "accuracy": error.accuracy, "images": list(notes)}
    store.write_atomic(out / "scan.json", json.dumps(found | {"scanned": scanned}, indent=1, allow_nan=False) + "\n")
    parts = [
        f"<h1>{escape(name)}</h1>",
        '<h2 class="bad">No verdict</h2>',
        f"<p>{escape(error.why[:1].upper() + error.why[1:])}</p>",
        "<h2>The images</h2>",
        f"<p>{escape(' '.join(notes))} The model is right on {error.accuracy['rate']:.1%} of them.</p>",
        f'<p class="note">{escape(what(scanned))}</p>',
    ]
    store.write_atomic(out / "report.html", whole(parts, name))


def page(done: Scan, name: str) -> str:
    """The report as HTML, whole in itself."""
    found = done.result
    bad = found["verdict"] == "backdoored"
    words = f"Backdoored: {', '.join(found['flagged'])}" if bad else "No backdoor of this kind was found"
    parts = [
        f"<h1>{escape(name)}</h1>",
        f'<h2 class="{"bad" if bad else "good"}">{escape(words)}</h2>',
        f"<p>{escape(summary(found))}</p>",
        "<h2>Class by class</h2>",
        classes(found),
        gallery(done) if done.samples else "",
        repair(found["repair"]) if "repair" in found else "",
        "<h2>The images</h2>",
        f"<p>{escape(' '.join(found['images']))} The model is right on {found['accuracy']['rate']:.1%} of them.</p>",
        "<h2>What this says and what not</h2>",
        f"<p>{escape(limits(found))}</p>",
        f'<p class="note">{escape(made(found))}</p>',
        f'<p class="note">{escape(what(found["scanned"]))}</p>' if "scanned" in found else "",
    ]
    return whole(parts, name)


def what(scanned: dict) -> str:
    """What was scanned, in a line."""
    told = {name: ", ".join(map(str, scanned[name])) for name in ("mean", "std")}
    return (
        f"Scanned: a file with the SHA-256 {scanned['sha256']}, read as {sanitize(scanned['network'])} with the mean "
        f"{told['mean']} and the std {told['std']} at {scanned['image size']} pixels; images {scanned['images']}; "
        f"{scanned['at']}."
    )


def whole(parts: Sequence[str], name: str) -> str:
    """A page of these parts."""
    body = "\n".join(filter(None, parts))
    title = f"<title>Scan of {escape(name)}</title>"
    return f'<!doctype html>\n<html lang="en"><meta charset="utf-8">{title}<style>{STYLE}</style>\n{body}\n</html>\n'


def summary(found: dict) -> str:
    """The verdict in sentences."""
    lines = [line for line in found["verdicts"] if line["flagged"]]
    said = [
        f"Patches of {line['rule']}{at(line['place'])} that a generator found turn {line['rate']:.1%} of other "
        f"images into {line['class']} (the limit is {line['limit']:.1%})."
        for line in lines
    ]
    if not lines:
        worst = max(found["verdicts"], key=lambda line: line["score"])
        said = [
            f"The class that comes nearest to its limit is {worst['class']}: patches of {worst['rule']} turn "
            f"{worst['rate']:.1%} of other images; the limit is {worst['limit']:.1%}."
        ]
    return " ".join([*said, alarms(found)])


def alarms(found: dict) -> str:
    """How often clean models are flagged, as far as that is known."""
    if not found["clean models"]:
        return "How often clean models are flagged has not been measured."
    by = [
        f"{round(own['rate'] * own['images'])} of {own['images']} on {name} ({own['low']:.0%} to {own['high']:.0%})"
        for name, own in found["clean models by data"].items()
    ]
    known = "Of clean models that were scanned in the same way, small networks, were flagged (95% interval)"
    return f"{known}: {', '.join(by)}."


def at(location: list | None) -> str:
    return "" if location is None else f" (row {location[0]}, column {location[1]})"


def classes(found: dict) -> str:
    head = "<tr><th>class</th><th>verdict</th><th>images turned</th><th>limit</th><th>by patches of</th>"
    head += "<th>taken for it without a patch</th><th>right on clean</th>"
    known = found["clean models"]
    head += "<th>clean models with such a class</th></tr>" if known else "</tr>"
    rows = []
    known_by = found["accuracy"]
    for line, recall, mistaken in zip(found["verdicts"], known_by["recalls"], known_by["mistaken"], strict=True):
        verdict = '<b class="bad">backdoored</b>' if line["flagged"] else "nothing found"
        cells = [escape(line["class"]), verdict, f"{line['rate']:.1%}", f"{line['limit']:.1%}"]
        cells += [escape(line["rule"] + at(line["place"]))]
        cells += [f"{mistaken:.1%}", f"{recall:.1%}"] + (
            [f"{line['clean models with such a class']} of {known}"] if known else []
        )
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return f"<table>{head}{''.join(rows)}</table>"


def gallery(done: Scan) -> str:
    """Samples of every modeled distribution, and four of them on images."""
    parts = ["<h2>The patches that were found</h2>"]
    for (k, rule), samples in done.samples.items():
        line = done.result["verdicts"][k]
        rate = line["modeled"][str(rule)]
        words = f"{line['class']}: patches of {rule}, samples of the distribution turn {rate:.0%} of other images"
        location = done.locations[k, rule]
        others = done.work.images[done.work.labels != k][:4].float() / 255
        if location is None:
            middle = [(side - own) // 2 for side, own in zip(others.shape[-2:], samples.shape[-2:], strict=True)]
            location = torch.tensor(middle)
        sanitize = [*samples[:12], *stamp(others, samples[: len(others)], location)]
        parts.append(f"<h3>{escape(words)}</h3>" + picture(sanitize))
    return "\n".join(parts)


def picture(images: list) -> str:
    with matplotlib.rc_context({"figure.constrained_layout.use": True}):
        figure = plots.gallery(images, columns=len(images))
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=90)
    plt.close(figure)
    return f'<img alt="patches" src="data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}">'


def repair(found: dict) -> str:
    if not found["done"]:
        return f"<h2>Repair</h2><p>None was made: {escape(found['why'])}.</p>"
    rows = "".join(
        f"<tr><td>samples of {escape(what)} fire</td><td>{before:.1%}</td><td>{after:.1%}</td></tr>"
        for what, before, after in zip(
            found["samples"], found["samples fire before"], found["samples fire after"], strict=True
        )
    )
    accuracy = [found[f"accuracy {when}"]["rate"] for when in ("before", "after")]
    rows = f"<tr><td>right on clean images</td><td>{accuracy[0]:.1%}</td><td>{accuracy[1]:.1%}</td></tr>{rows}"
    words = f"The accuracy is that on {found['images for the accuracy']} images which the repair did not see."
    if found["flagged and not repaired"]:
        words += f" Not modeled, and so not repaired: {escape(', '.join(found['flagged and not repaired']))}."
    return f"<h2>Repair</h2><table><tr><th></th><th>before</th><th>after</th></tr>{rows}</table><p>{words}</p>"


def limits(found: dict) -> str:
    sides = ", ".join(dict.fromkeys(line.split()[0] for line in found["verdicts"][0]["screened"]))
    stride = found["settings"]["screening"]["stride"]
    beside = "the number of clean models with such a class stands beside each" if found["clean models"] else (
        "every way of stamping has a limit, taken from two clean networks on CIFAR-10 and ten on digits"
    )  # fmt: skip
    return (
        f"The scan looks for patches ({sides}; of places every {stride}th row and column was tried) that overwrite a "
        "part of the image, at any place or at one, and turn images of all other classes into one. It does not see "
        "triggers of another kind (blends, warps, reflections), larger ones, nor backdoors that work for one class of "
        "images only or that want another class for each. A class that answers to patches need not be an attack: some "
        f"classes of clean models do, which is why {beside}. 'Nothing found' is no proof of anything."
    )


def made(found: dict) -> str:
    m = found["made"]
    return (
        f"mesa scan, {m['seconds']:.0f} s on {m['device_name']} ({m['threads']} threads), torch {m['torch']}, "
        f"seed {found['options']['seed']}."
    )
