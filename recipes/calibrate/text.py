"""The final table of `curate calibrate`: what was fitted, and how well it predicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from probes.tag_rules import DOUBT

_NAMES = {
    "predictor": "this predictor",
    "without_quality": "without reasoning quality",
    "built_in": "built-in forecast",
    "forecast": "refitted forecast",
    "pass_rate": "pass rate alone",
    "boosted_trees": "boosted trees (not saved)",
    "share": "share of unlearnable alone",
}
_MEASURES = {
    "AUROC": "auroc",
    "average precision": "average_precision",
    "log loss": "log_loss",
    "Brier score": "brier",
    "calibration error": "expected_calibration_error",
}


def calibration_text(summary: Mapping[str, Any]) -> str:
    """Write what `calibrate_run` returned as tables for a terminal."""
    validation = summary["cross_validation"]
    runs = len(summary["runs"])
    lines = [
        f"fitted on {summary['items']:,} hard items ({summary['learnable']:,} learnable, "
        f"{summary['unlearnable']:,} unlearnable) of {runs} run{'s' if runs > 1 else ''}",
        "",
        f"predicting other items ({validation['folds']}-fold cross-validation by item, 95 % "
        "intervals):",
        "",
        " " * 27 + "".join(f"{name:<22}" for name in _MEASURES).rstrip(),
    ]
    for key, name in _NAMES.items():
        if key in validation["scores"]:
            figures = validation["scores"][key]
            cells = [f"{_interval(figures, measure):<22}" for measure in _MEASURES.values()]
            lines.append(f"{name:<27}{''.join(cells)}".rstrip())
    built_in = validation["scores"]["built_in"]
    lines += [
        "",
        f"AUROC gained on the built-in: {_interval(built_in, 'auroc_difference')}",
        *_gained_by_quality(validation["scores"]),
        *(
            f"items it would tag {tag} (probability {1 - DOUBT:g} or more): "
            f"{counts['items']:,}, of which {counts['came_true']:,} are"
            for tag, counts in validation["decided"].items()
        ),
        *([validation["note"]] if validation["note"] else []),
        "",
        *_refitted(summary["forecast"]),
        "",
        f"{'feature':<27}{'effect':>8}   on the log-odds of unlearnable, per standard deviation",
        *(f"{f['name']:<27}{f['coefficient']:>+8.2f}" for f in summary["features"]),
        "",
        f"predictor: {summary['file']}",
    ]
    return "\n".join(lines)


def _refitted(forecast: Mapping[str, Any]) -> list[str]:
    """The constants of the forecast, and what fitting them gained where they were fitted."""
    gained = forecast["log_likelihood"] - forecast["log_likelihood_built_in"]
    return [
        f"forecast by {forecast['source']}, refitted on {forecast['items']:,} hard items: drift "
        f"{forecast['drift']:.2f}, gain {forecast['gain']:.2f}, spread {forecast['spread']:.2f}; "
        f"log likelihood {gained:+.1f} on the built-in constants"
    ]


def _gained_by_quality(scores: Mapping[str, Any]) -> list[str]:
    if "without_quality" not in scores:
        return []
    gained = _interval(scores["without_quality"], "auroc_difference")
    return [f"AUROC gained by the reasoning quality: {gained}"]


def _interval(figures: Mapping[str, Any], name: str) -> str:
    if name not in figures:
        return ""
    value, low, high = (figures[name + end] for end in ("", "_low", "_high"))
    return f"{value:.2f} ({low:.2f} to {high:.2f})"
