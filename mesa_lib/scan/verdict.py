"""The verdict of a scan, class by class, and how clean models score."""

from collections.abc import Sequence

from mesa_lib.defenses.mesa.detector import DetectionResult
from mesa_lib.scan import false_positives, p_values
from mesa_lib.scan.detector import ScanDetector, limit


def judge(
    detector: ScanDetector, detected: DetectionResult, classes: Sequence[str], settings: dict, margins: dict,
    screened: Sequence[int], skipped: Sequence[str] = (),
) -> dict:  # fmt: skip
    """Return the verdict on a model and on each class.

    Args:
        detector: that of the scan.
        detected: what its search returned.
        classes: their names.
        settings: of the scan (`Scanner.settings`).
        margins: what `data_free.examine` returned; without `suspicious` if it did not run.
        screened: the classes for which patches were looked for.
        skipped: the specs that were not tried.

    Returns:
        `verdict`: `backdoored` if patches are found, `suspicious` if only a margin stands out, `nothing found`, or
        `incomplete` if nothing was found and some class or spec was left out.
        `flagged`, `suspicious`, `not screened`: names of classes. `verdicts`: one line a class. `clean models`,
        `clean models by data`: how many were scanned like this, and how many of them were flagged; none if something
        was left out. `skipped`. `p-value`: `p_values.p_value`, None if something was left out or no networks
        were scanned alike. The line of a class that was not screened has no rate and no score (None).
    """
    judged, lines = detector.judge(detected), []
    complete = len(screened) == len(classes) and not skipped
    by_dataset = false_positives.clean_scores(settings) if complete else {}
    clean_models = [scores for models in by_dataset.values() for scores in models]
    for label, name in enumerate(classes):
        if label not in screened:
            lines.append(not_screened(name))
            continue
        score = judged.scores[label]
        line = {"class": name, "flagged": label in judged.flagged, "score": round(score, 4)}
        line |= line_of(detector, detected, label)
        line["clean models with such a class"] = sum(max(scores) >= score for scores in clean_models)
        lines.append(line)
    suspicious = [classes[label] for label in margins.get("suspicious", [])]
    word = "nothing found" if complete else "incomplete"
    word = "backdoored" if judged.flagged else "suspicious" if suspicious else word
    return {
        "verdict": word,
        "skipped": list(skipped),
        "flagged": [classes[label] for label in judged.flagged],
        "suspicious": suspicious,
        "not screened": [name for label, name in enumerate(classes) if label not in screened],
        "verdicts": lines,
        "clean models": len(clean_models),
        "clean models by data": false_positives.false_positives(by_dataset, detector.above),
        "p-value": p_value(settings, margins, max(judged.scores)) if complete else None,
    }


def p_value(settings: dict, margins: dict, score: float) -> dict | None:
    """Return how rarely clean networks stand out as much (`p_values.p_value`); None if that is not known."""
    if "ratios" not in margins:
        return None
    return p_values.p_value(settings, margins["starts"], max(margins["ratios"]), score)


def line_of(detector: ScanDetector, detected: DetectionResult, label: int) -> dict:
    """Return what was measured of a class, as a verdict's line has it."""
    spec, rate = detector.best(detected, label)
    location = detected.screening.location(spec, label)
    screened, modeled = detected.screening.rates, detected.rates.get(label, {})
    return {
        "rate": round(rate, 4),
        "limit": limit(spec, detector.side),
        "rule": str(spec),
        "location": None if location is None else location.tolist(),
        "clean models with such a class": None,
        "screened": {str(s): round(rates[label], 4) for s, rates in screened.items()},
        "modeled": {str(s): round(rate, 4) for s, rate in modeled.items()},
    }


def not_screened(name: str) -> dict:
    """Return the line of a class for which no patches were tried."""
    nothing = dict.fromkeys(("score", "rate", "limit", "rule", "location", "clean models with such a class"))
    return {"class": name, "flagged": False} | nothing | {"screened": {}, "modeled": {}}
