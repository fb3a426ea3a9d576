"""Put the tables of results/*.json into benchmarks/README.md: `python benchmarks/tables.py`."""

import statistics

from presets import RATES
from speed import best_rates

from mesa_lib.evaluation import intervals
from mesa_lib.reporting.tables import attackers, findings, readme, zoo
from mesa_lib.store import paths

#: measured beforehand on a machine with AMX, ResNet-18, batch 128: how many times faster than plain each rung is, and
#: the ratio of its bf16 to its float32 matrix product (2,231 and 327 GFLOP/s). What this machine does was predicted
#: from it: without bf16 as much, with bf16 less by as much as its ratio of the two products is smaller
ELSEWHERE = {
    "channels-last, no weight gradients": 1.6,
    "+ bf16 autocast": 5.7,
    "+ BatchNorm folded": 8.3,
    "+ weights kept in bf16": 8.5,
    "+ torch.compile": 9.7,
}
ELSEWHERE_RATIO = 2231 / 327


def percent(rate: float) -> str:
    """Return a rate in [0, 1] as `99.8%`."""
    return f"{100 * rate:.1f}%"


def row(cells: list[str]) -> str:
    """Return one line of a table."""
    return f"| {' | '.join(cells)} |"


def head(cells: list[str]) -> list[str]:
    """Return the first two lines of a table."""
    return [row(cells), "|---" * len(cells) + "|"]


# --- speed -----------------------------------------------------------------------------------------------


def speed(content: dict) -> str:
    """Return the ladder, predicted and measured; then the figures of the whole way, ours and plain."""
    rates = best_rates(content["parts"])
    gflops = {name: rates[name] / 1e9 for name in ("float32", "bfloat16")}
    return "\n".join([*ladder(content, gflops), "", ladder_caption(content, gflops), "", *whole_way(content)])


def ladder(content: dict, gflops: dict[str, float]) -> list[str]:
    """Return one line a rung: how many times faster than plain, on the other machine too where it is known."""
    rungs = {k: v for k, v in content["parts"]["ladder"].items() if k != "compilation" and not k.startswith("peak")}
    plain = next(iter(rungs.values()))
    ratio = gflops["bfloat16"] / gflops["float32"] / ELSEWHERE_RATIO
    predicted = content["about"]["params"]["network"] == "resnet18"
    columns = ["with AMX", "predicted here"] if predicted else []
    lines = head(["one modeling step", *columns, "measured here: times faster", "milliseconds"])
    for name, seconds in rungs.items():
        factor = ELSEWHERE.get(name)
        here = factor * min(1, ratio) if factor and name != "channels-last, no weight gradients" else factor
        cells = [f"{value:.1f}" if value else "" for value in (factor, here)] if predicted else []
        lines.append(row([name, *cells, f"{plain / seconds:.1f}", f"{1000 * seconds:.0f}"]))
    return lines


def ladder_caption(content: dict, gflops: dict[str, float]) -> str:
    """Return what was measured on what, and how far it is from the largest rate of a matrix product."""
    about, made, figures = content["about"], content["made"], content["summary"]
    seconds = content["parts"]["ladder"].get("compilation")
    return (
        f"Medians of {about['repeats']}, batch {about['batch']}, {about['params']['network']}; {made['device_name']}, "
        f"{made['threads']} threads, torch {made['torch']}."
        + (f" Compilation took {seconds:.0f} s." if seconds else "")
        + f"\n\nThe largest measured rate of a matrix product is {gflops['float32']:.0f} GFLOP/s in float32 and "
        f"{gflops['bfloat16']:.0f} in bf16. A modeling step reaches "
        f"{100 * figures['fraction of the bf16 peak, one step']:.0f}% of the bf16 rate, and modeling as a whole "
        f"{100 * figures['fraction of the bf16 peak, modeling']:.0f}%."
    )


def whole_way(content: dict) -> list[str]:
    """Return seconds, memory, ASR and accuracy from the checkpoint to the repaired model, plain and ours."""
    parts, figures = content["parts"], content["summary"]
    ours, plain = parts["ours"], parts["plain"]
    images = f"{ours['images a second, modeling']:.0f} / {ours['images a second, training']:.0f}"
    plain_seconds = f"{figures['plain, checkpoint to repaired model (step times x steps)']:,.0f} (step times × steps)"
    factor = f"{figures['checkpoint to repaired model, plain / ours']:.0f}"
    lines = head(["from the backdoored checkpoint to the repaired model", "plain", "ours", "times faster"])
    lines += [
        row(["seconds", plain_seconds, f"{ours['checkpoint to repaired model']:.0f}", factor]),
        row(["modeling, three levels, seconds", "", f"{ours['three levels']:.0f}", ""]),
        row(["repair, seconds", "", f"{ours['repair']:.0f}", ""]),
        row(["seconds a step, modeling / repair", f"{plain['modeling']:.2f} / {plain['repair']:.2f}", "", ""]),
        row(["images a second, modeling / training", "", images, ""]),
        row(["peak memory, GiB", *(f"{part['peak memory, GiB']:.1f}" for part in (plain, ours)), ""]),
    ]
    after = [parts.get("plain quality", {}).get("repaired"), ours["repaired"]]
    for name, measure in (("ASR", "asr"), ("clean accuracy", "clean accuracy")):
        cells = [percent(rates[measure]) if rates else "" for rates in after]
        lines.append(row([f"{name} afterward (before: {percent(ours['attacked'][measure])})", *cells, ""]))
    return lines


# --- presets, repair rounds, defaults --------------------------------------------------------------------


def presets(content: dict) -> str:
    """Return one line a variant: its samples, the ASR after the repair at both rates, seconds."""
    after = "ASR after repair, 1% triggered"
    lines = head(["variant", "sample ASR", "information", "distance", after, "10% (ours)", "seconds"])
    for name, v in content["variants"].items():
        asr = [percent(v[f"MESA, {rate} rate"]["asr"]["rate"]) for rate in RATES]
        numbers = [percent(v["samples"]), f"{v['information']:.2f}", f"{v['distance']:.3f}"]
        lines.append(row([name, *numbers, *asr, f"{v['seconds']:.0f}"]))
    first = next(iter(content["variants"].values()))
    asr = [percent(first[f"ideal, {rate} rate"]["asr"]["rate"]) for rate in RATES]
    p, made = content["params"], content["made"]
    start = "from scratch" if p["start"] == "scratch" else "fine-tuned"
    lines += [
        f"| the attacker's own trigger | | | | {' | '.join(asr)} | |",
        "",
        f"`{p['trigger']}`, {start}, target {p['target']}, seed {p['seed']}, one run each; {made['device_name']}, "
        f"{made['threads']} threads, torch {made['torch']}.",
    ]
    return "\n".join(lines)


def repair_rounds(content: dict) -> str:
    """Return one line a series: the attacker's trigger after every round, and the residual checks."""
    columns = ["trigger", "start", "learning rate", "clean-model ASR"]
    lines = head([*columns, "attacker's trigger after each round", "highest rate of the residual check"])
    for run in content["runs"]:
        asr = " → ".join(f"{100 * r['asr']:.1f}" for r in run["rounds"])
        highest = [max(r[key] for key in ("searched", "sampled", "earlier")) for r in run["rounds"]]
        check = " → ".join(f"{100 * rate:.1f}" for rate in highest)
        trigger = f"`{run['trigger']}`, target {run['target']}"
        clean = percent(run["clean model"]["asr"])
        lines.append(row([trigger, run["start"], str(run["repair_lr"]), clean, f"{asr}%", f"{check}%"]))
    columns = ["after a first round that missed", "with pairs", "without", "its distance"]
    lines += ["", *head([*columns, "attacker's: defender's / other images"])]
    for run in content["runs"]:
        if beside := run.get("beside"):
            searched = [percent(beside[key]) for key in ("best, modeling", "unpaired, modeling")]
            both = " / ".join(percent(beside[f"attacker's, {part}"]) for part in ("modeling", "evaluation"))
            lines.append(row([f"`{run['trigger']}`, {run['repair_lr']}", *searched, f"{beside['distance']:.2f}", both]))
    lines += ["", *head(["clean model", "target", "what a search finds"])]
    for x in content["clean models"]:
        lines.append(row([f"seed {x['clean_seed']}", str(x["target"]), percent(x["searched"])]))
    return "\n".join(lines)


def sweep(content: dict) -> str:
    """Return one line a setting of the repair: ASR and clean accuracy on the defender's held-out images."""
    models = list(dict.fromkeys((run["trigger"], run["start"]) for run in content["runs"]))
    starts = {"scratch": "from scratch", "clean": "fine-tuned"}
    lines = head(["ASR / clean accuracy", *(f"`{trigger}`, {starts[start]}" for trigger, start in models)])
    table: dict[str, dict] = {}
    for run in content["runs"]:
        name = run["repair"]
        if "repair_rate" in run:
            stamped = f", {100 * run['repair_rate']:.0f}% triggered" if name == "MESA" else ""
            name += f"{stamped}, rate {run['repair_lr']}, {run['repair_epochs']} epochs"
        rates = f"{100 * run['asr']:.1f} / {percent(run['clean_accuracy'])}"
        table.setdefault(name, {})[run["trigger"], run["start"]] = rates
    return "\n".join(lines + [row([name, *(cells[model] for model in models)]) for name, cells in table.items()])


# --- attackers who hide ----------------------------------------------------------------------------------


def attackers_table(content: dict) -> str:
    """Return what every repair leaves of each attacker's triggers, the paired differences, and the residual checks."""
    runs = content["runs"]
    made = runs[0]["made"]
    triggers = {run["trigger"] for run in runs}
    tables = [
        attackers.markdown(attackers.left(runs), "ASR (%): mean (worst)"),
        attackers.markdown(attackers.differences(runs), "points: mean (95% CI)"),
        attackers.markdown(attackers.checks(runs), "the residual check"),
    ]
    caption = (
        f"{len(runs)} models with {len(triggers)} triggers; the number of models of each attacker is in brackets. "
        f"{made['device_name']}, torch {made['torch']}."
    )
    return "\n\n".join([*tables, caption, findings.FINDINGS[content["sweep"]](content)])


def official(content: dict) -> str:
    """Return one line a model: the authors' procedure beside ours; then the paired differences."""
    names = ("attacked", "official, repaired as published", "official, our repair", "ours", "ideal")
    lines = head(["model", *names, "held-out F of the levels: official / ours", "seconds"])
    for run in content["runs"]:
        success = " / ".join(", ".join(f"{F:.2f}" for F in run["success"][name]) for name in ("official", "ours"))
        seconds = " / ".join(f"{run['seconds'][name]:.0f}" for name in ("official", "ours"))
        rates = [f"{100 * run[name]['asr']:.1f}%" for name in names]
        lines.append(row([f"`{run['trigger']}`, seed {run['seed']}", *rates, success, seconds]))
    differences = []
    for name in names[1:3]:
        values = [100 * (run["ours"]["asr"] - run[name]["asr"]) for run in content["runs"]]
        low, high = intervals.t_interval(values)
        interval = f" ({low:+.1f} to {high:+.1f})" if len(values) > 1 else " (one model)"
        differences.append(f"{sum(values) / len(values):+.1f}{interval} against {name}")
    made = content["made"]
    return "\n".join(lines) + (
        f"\n\nASR after the repair, ours minus theirs, in points (95% CI, t): {'; '.join(differences)}. "
        f"{made['device_name']}, torch {made['torch']}."
    )


def ablation(content: dict) -> str:
    """Return one line a variant: of each attacker, F of the samples, levels that started again, and what is left."""
    runs = content["runs"]
    titles = list(dict.fromkeys(run["attacker"] for run in runs))
    count = {
        title: len({(run["trigger"], run["seed"]) for run in runs if run["attacker"] == title}) for title in titles
    }
    lines = head(["variant", *(f"{title} ({count[title]}): F, again, ASR mean (worst)" for title in titles)])
    for variant in dict.fromkeys(run["variant"] for run in runs):
        cells = [variant]
        for title in titles:
            chosen = [run for run in runs if (run["attacker"], run["variant"]) == (title, variant)]
            success = statistics.mean(F for run in chosen for F in run["F"]) if chosen else 0
            again = f"{sum(run['started again'] for run in chosen)} of {sum(len(run['F']) for run in chosen)}"
            asr = [run["asr"] for run in chosen]
            left = f"{percent(statistics.mean(asr))} ({percent(max(asr))})" if chosen else ""
            cells.append(f"{success:.2f}, {again}, {left}" if chosen else "")
        lines.append(row(cells))
    made = content["made"]
    return "\n".join(lines) + (
        "\n\nF: mean over levels and models, on held-out images; *again*: levels that missed and started again; ASR of "
        f"the attacker's triggers after the repair. {made['device_name']}, torch {made['torch']}."
    )


def equal_terms(content: dict) -> str:
    """Return, for each number of clean images, one line a repair: over all attacked models, and the ASR by attacker."""
    runs = content["runs"]
    key = ("attacker", "poison_rate", "seed")
    before = {tuple(run[name] for name in key): run for run in runs if run["repair"] == "no repair"}
    attackers_named = list(dict.fromkeys(run["attacker"] for run in runs))
    columns = ["accuracy lost", "ASR: mean (worst)", "true-label accuracy", "ASR after five poisoned images", "seconds"]
    blocks = []
    for images in sorted({run["images"] for run in runs} - {0}, reverse=True):
        chosen = [run for run in runs if run["images"] in (0, images)]
        lines = head([f"{images} clean images", "models", *columns, *(f"ASR: {name}" for name in attackers_named)])
        for name in dict.fromkeys(run["repair"] for run in chosen):
            group = [run for run in chosen if run["repair"] == name]
            done = [run for run in group if "error" not in run]
            if not done:
                lines.append(row([name, f"{len(group)} (all diverged)"]))
                continue
            lost = [100 * (before[tuple(r[k] for k in key)]["clean_accuracy"] - r["clean_accuracy"]) for r in done]
            asr = [run["asr"] for run in done]
            cells = [
                name,
                str(len(group)) + (f" ({len(group) - len(done)} diverged)" if len(done) < len(group) else ""),
                f"{statistics.mean(lost):.1f}",
                f"{percent(statistics.mean(asr))} ({percent(max(asr))})",
                percent(statistics.mean(run["true_label_accuracy"] for run in done)),
                percent(statistics.mean(run["reactivated"]["asr"] for run in done)),
                f"{statistics.median(run['seconds'] for run in done):.0f}" if "seconds" in done[0] else "",
            ]
            for attacker in attackers_named:
                rates = [run["asr"] for run in done if run["attacker"] == attacker]
                cells.append(percent(statistics.mean(rates)) if rates else "")
            lines.append(row(cells))
        blocks.append("\n".join(lines))
    made = content["made"]
    return "\n\n".join([*blocks, f"{len(before)} attacked models; {made['device_name']}, torch {made['torch']}."])


def residual_check(content: dict) -> str:
    """Return how often the check raises an alarm on models without a backdoor, and what it finds."""
    columns = ["model", "not clear", "95% CI", "search, median (highest)", "new generator, median (highest)", "seconds"]
    lines = head(columns)
    for name in ("clean model", "clean model, repaired"):
        found = [run[name] for run in content["runs"]]
        alarms = sum(not check["clear"] for check in found)
        low, high = intervals.clopper_pearson(alarms, len(found))
        rates = [
            f"{percent(statistics.median(values))} ({percent(max(values))})"
            for values in ([check[part] for check in found] for part in ("searched", "sampled"))
        ]
        seconds = f"{statistics.median(check['seconds'] for check in found):.0f}"
        alarm = [f"{alarms} of {len(found)}", f"{100 * low:.0f}–{100 * high:.0f}%"]
        lines.append(row([name, *alarm, *rates, seconds]))
    models = len({run["seed"] for run in content["runs"]})
    p, made = content["params"], content["made"]
    return "\n".join(lines) + (
        f"\n\n{p.get('dataset', 'digits')}: {models} clean model{'s' * (models > 1)}, each class taken for the target; "
        f"{made['device_name']}, {made['threads']} thread{'s' * (made['threads'] > 1)}, torch {made['torch']}."
    )


def repair_loss(content: dict) -> str:
    """Return one line a variant: clean accuracy lost, and the ASR left, of each model."""
    models = list(dict.fromkeys(run["trigger"] for run in content["runs"]))
    names = ("images", "repair_loss", "repair_statistics", "repair_lr")
    lines = head(
        [*(name.replace("repair_", "") for name in names), *(f"`{model}`: points lost / ASR" for model in models)]
    )
    table: dict[tuple, dict[str, str]] = {}
    for run in content["runs"]:
        if run.get("diverged"):
            cell = "diverged"
        else:
            lost = 100 * (run["before"]["clean_accuracy"]["rate"] - run["clean_accuracy"]["rate"])
            cell = f"{lost:.1f} / {percent(run['asr']['rate'])}"
        table.setdefault(tuple(str(run[name]) for name in names), {})[run["trigger"]] = cell
    return "\n".join(lines + [row([*key, *(cells.get(model, "") for model in models)]) for key, cells in table.items()])


TABLES = {
    "hidden-digits": attackers_table,
    "adaptive-digits": attackers_table,
    "cifar10-covered": attackers_table,
    "official": official,
    "ablation": ablation,
    "equal-terms": equal_terms,
    "equal-terms-digits": equal_terms,
    "residual-check": residual_check,
    "residual-cifar": residual_check,
    "zoo-digits": zoo.markdown,
    "repair-loss": repair_loss,
    "speed": speed,
    "speed-resnet18": speed,
    "presets": presets,
    "presets-scratch": presets,
    "repair-rounds": repair_rounds,
    "sweep": sweep,
}

if __name__ == "__main__":
    readme.fill_page(paths.root() / "benchmarks" / "README.md", lambda name, content: TABLES[name](content))
