"""Put the tables of results/*.json into benchmarks/README.md: `python benchmarks/tables.py`."""

import sys
from pathlib import Path

from mesa_lib.reporting.tables import readme
from mesa_lib.store import paths

sys.path.insert(0, str(Path(__file__).parent))
import presets  # noqa: E402
import speed as measuring  # noqa: E402

#: measured beforehand on a machine with AMX, ResNet-18, batch 128: how many times faster than plain each rung is, and
#: the ratio of its bf16 to its float32 matrix product (2,231 and 327 GFLOP/s). What this machine does was predicted
#: from it: without bf16 the same, with bf16 less by as much as its own ratio of the two products is smaller
ELSEWHERE = {
    "channels-last, no weight gradients": 1.6,
    "+ bf16 autocast": 5.7,
    "+ BatchNorm folded": 8.3,
    "+ weights kept in bf16": 8.5,
    "+ torch.compile": 9.7,
}
ELSEWHERE_RATIO = 2231 / 327


def speed(content: dict) -> str:
    """The ladder, predicted and measured; then the figures of the whole way, ours and plain."""
    parts, found = content["parts"], content["summary"]
    rungs = {k: v for k, v in parts["ladder"].items() if k != "compilation" and not k.startswith("peak")}
    plain = next(iter(rungs.values()))
    rates = measuring.best_rates(parts)
    gflops = {k: rates[k] / 1e9 for k in ("float32", "bfloat16")}
    ratio = gflops["bfloat16"] / gflops["float32"] / ELSEWHERE_RATIO
    known_elsewhere = content["about"]["params"]["network"] == "resnet18"
    heads = ["with AMX", "predicted here"] if known_elsewhere else []
    heads = ["one modeling step", *heads, "measured here: times faster", "milliseconds"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, seconds in rungs.items():
        known = ELSEWHERE.get(name)
        ahead = known * min(1, ratio) if known and name != "channels-last, no weight gradients" else known
        cells = [f"{value:.1f}" if value else "" for value in (known, ahead)] if known_elsewhere else []
        lines.append(f"| {' | '.join([name, *cells, f'{plain / seconds:.1f}', f'{1000 * seconds:.0f}'])} |")
    ours, steps = parts["ours"], parts["plain"]
    made = content["made"]
    lines += [
        "",
        f"Medians of {content['about']['repeats']}, batch {content['about']['batch']}, "
        f"{content['about']['params']['network']}; {made['device_name']}, {made['threads']} threads, torch "
        f"{made['torch']}; largest rate of a matrix product: {gflops['float32']:.0f} GFLOP/s float32, "
        f"{gflops['bfloat16']:.0f} bf16. "
        f"A modeling step reaches {100 * found['fraction of the bf16 peak, one step']:.0f} % of the latter, "
        f"modeling as a whole {100 * found['fraction of the bf16 peak, modeling']:.0f} %."
        + (f" Compilation took {parts['ladder']['compilation']:.0f} s." if "compilation" in parts["ladder"] else ""),
        "",
        "| from the backdoored checkpoint to the repaired model | plain | ours | times faster |",
        "|---|---|---|---|",
        f"| seconds | {found['plain, checkpoint to repaired model (step times x steps)']:,.0f} (step times × steps) "
        f"| {ours['checkpoint to repaired model']:.0f} | {found['checkpoint to repaired model, plain / ours']:.0f} |",
        f"| modeling, three levels, seconds | | {ours['three levels']:.0f} | |",
        f"| repair, seconds | | {ours['repair']:.0f} | |",
        f"| seconds a step, modeling / repair | {steps['modeling']:.2f} / {steps['repair']:.2f} | | |",
        f"| images a second, modeling / training | | {ours['images a second, modeling']:.0f} / "
        f"{ours['images a second, training']:.0f} | |",
        f"| peak memory, GiB | {steps['peak memory, GiB']:.1f} | {ours['peak memory, GiB']:.1f} | |",
    ]
    reached = {"plain": parts.get("plain quality", {}).get("repaired"), "ours": ours["repaired"]}
    for name, what in (("ASR", "asr"), ("clean accuracy", "clean accuracy")):
        cells = [f"{100 * row[what]:.1f} %" if row else "" for row in reached.values()]
        lines.append(f"| {name} afterward (before: {100 * ours['attacked'][what]:.1f} %) | {' | '.join(cells)} | |")
    return "\n".join(lines)


def coverage(content: dict) -> str:
    """One line a series: the attacker's trigger after every round, and what the look found."""
    lines = [
        "| trigger | start | learning rate | floor | attacker's trigger after each round | the look's largest |",
        "|---|---|---|---|---|---|",
    ]
    for run in content["runs"]:
        asr = " → ".join(f"{100 * r['asr']:.1f}" for r in run["rounds"])
        look = " → ".join(f"{100 * max(r[k] for k in ('searched', 'sampled', 'earlier')):.1f}" for r in run["rounds"])
        lines.append(
            f"| `{run['trigger']}`, target {run['target']} | {run['start']} | {run['repair_lr']} "
            f"| {100 * run['floor']['asr']:.1f} % | {asr} % | {look} % |"
        )
    lines += [
        "",
        "| after a first round that missed | with pairs | without | its distance | attacker's: own / other images |",
    ]
    lines += ["|---|---|---|---|---|"]
    for run in content["runs"]:
        if found := run.get("beside"):
            rates = [found[k] for k in ("best, modeling", "unpaired, modeling")]
            both = [found[f"attacker's, {k}"] for k in ("modeling", "evaluation")]
            lines.append(
                f"| `{run['trigger']}`, {run['repair_lr']} | {' | '.join(f'{100 * r:.1f} %' for r in rates)} "
                f"| {found['distance']:.2f} | {' / '.join(f'{100 * r:.1f} %' for r in both)} |"
            )
    searched = ", ".join(
        f"{100 * x['searched']:.1f} % (target {x['target']}, model of seed {x['clean_seed']})"
        for x in content["never attacked"]
    )
    return "\n".join(lines) + f"\n\nWhat a search finds on clean models: {searched}."


def sweep(content: dict) -> str:
    """One line a setting of the repair: ASR and clean accuracy on the defender's own held-out images."""
    models = list(dict.fromkeys((r["trigger"], r["start"]) for r in content["runs"]))
    heads = [f"`{trigger}`, {'from scratch' if start == 'scratch' else 'fine-tuned'}" for trigger, start in models]
    lines = [f"| ASR / clean accuracy | {' | '.join(heads)} |", "|---" * (len(models) + 1) + "|"]
    table: dict[str, dict] = {}
    for r in content["runs"]:
        name = r["repair"]
        if "repair_rate" in r:
            stamped = f", {100 * r['repair_rate']:.0f} % triggered" if r["repair"] == "MESA" else ""
            name += f"{stamped}, rate {r['repair_lr']}, {r['repair_epochs']} epochs"
        table.setdefault(name, {})[r["trigger"], r["start"]] = (
            f"{100 * r['asr']:.1f} / {100 * r['clean_accuracy']:.1f} %"
        )
    return "\n".join(lines + [f"| {name} | {' | '.join(row[m] for m in models)} |" for name, row in table.items()])


TABLES = {
    "speed": speed, "speed-resnet18": speed, "presets": presets.markdown, "presets-scratch": presets.markdown,
    "coverage": coverage, "sweep": sweep,
}  # fmt: skip

if __name__ == "__main__":
    readme.into_readme(paths.root() / "benchmarks" / "README.md", lambda name, content: TABLES[name](content))
