"""What `curate confirm` prints: predicted tags against what GRPO made of the items."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from curate.tags import Trainability
from recipes.confirm.dynamics_text import dynamics_text
from recipes.confirm.interventions_text import interventions_text, payoff_text

_KINDS = {
    "unlearnable": "unlearnable",
    "learnable": "learnable",
    "no_positive": "no positive reward",
    "seeds_disagree": "seeds disagree",
    "not_judged": "not judged",
}
_SCORES = {
    "p_unlearnable": "p_unlearnable",
    "pass_rate": "pass rate alone",
    "semantic_similarity": "semantic similarity",
}


def confirmation_text(summary: Mapping[str, Any]) -> str:
    """Write the summary of `curate confirm` as tables for a terminal."""
    seeds = summary["seeds"]
    lines = [
        f"confirmed by recipe {summary['recipe']}, {'seeds' if len(seeds) > 1 else 'seed'} "
        f"{', '.join(map(str, seeds))}; pass rates from τ = {summary['tau']:g} count as solved",
        *(f"note: {note}" for note in summary["notes"]),
        "",
        *_table1(summary),
        "",
        *_confusion(summary["confusion"]),
        "",
        *_agreement(summary),
        "",
        *_sweep(summary["tau_sweep"]),
        "",
        *_further_sections(summary),
        f"tagged file: {summary['tagged_file']}",
        f"evidence:    {summary['run_dir']}/validation",
    ]
    return "\n".join(lines)


def _further_sections(summary: Mapping[str, Any]) -> list[str]:
    """What tells of every recipe, each part followed by an empty line."""
    lines = []
    sections: tuple[tuple[str, Callable[[Any], str]], ...] = (
        ("dynamics", dynamics_text),
        ("interventions", interventions_text),
        ("payoff", payoff_text),
    )
    for name, text in sections:
        if summary[name]:
            lines += [text(summary[name]), ""]
    return lines


def _table1(summary: Mapping[str, Any]) -> list[str]:
    table = summary["table1"]
    strict = table["positives_in_training_only"]
    lines = [
        f"hard items: {table['hard_items']:,} of {summary['items']:,}",
        f"{'':<20}{'items':>8}{'share':>8}{'share, positives in training only':>36}",
    ]
    for kind, label in _KINDS.items():
        if kind != "not_judged" or table[kind]["items"]:
            lines.append(
                f"{label:<20}{table[kind]['items']:>8,}{_share(table[kind]['share']):>8}"
                f"{_share(strict[kind]['share']):>36}"
            )
    return lines


def _confusion(table: Mapping[str, Mapping[str, int]]) -> list[str]:
    lines = ["predicted (rows) against confirmed (columns), items"]
    lines.append(f"{'':<14}" + "".join(f"{tag:>14}" for tag in Trainability))
    for tag in Trainability:
        lines.append(f"{tag:<14}" + "".join(f"{table[tag][other]:>14,}" for other in Trainability))
    return lines


def _agreement(summary: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, where in (
        ("agreement", "hard items on which the seeds agree"),
        ("agreement_all", "all hard items with a positive, by their mean final pass rate"),
    ):
        found = summary[name]
        out = f"; {found['left_out']:,} without p_unlearnable left out" if found["left_out"] else ""
        lines.append(
            f"{where}: {found['unlearnable']:,} unlearnable, {found['learnable']:,} learnable{out}"
        )
        # Without items of both kinds there is nothing to tell apart.
        if found["unlearnable"] and found["learnable"]:
            lines += _scores(found)
        lines.append("")
    return [*lines, summary["too_few"]] if summary["too_few"] else lines[:-1]


def _scores(found: Mapping[str, Any]) -> list[str]:
    header = f"{'':<20}{'AUROC':>22}{'average precision':>22}{'p_unlearnable ahead by':>26}"
    scores = found["scores"]
    lines = [_score_line(label, scores[name]) for name, label in _SCORES.items() if name in scores]
    key = "expected_calibration_error"
    calibrated = _number(found["calibration"][f"{key}_if_calibrated"])
    error = _interval(found["calibration"], key)
    return [
        header,
        *lines,
        f"calibration error of p_unlearnable: {error}; about {calibrated} if it were calibrated",
    ]


def _score_line(label: str, figures: Mapping[str, float | None]) -> str:
    ahead = _interval(figures, "auroc_difference") if "auroc_difference" in figures else ""
    line = f"{label:<20}{_interval(figures, 'auroc'):>22}"
    return f"{line}{_interval(figures, 'average_precision'):>22}{ahead:>26}".rstrip()


def _sweep(rows: list[dict[str, Any]]) -> list[str]:
    names = ["hard", "unlearnable", "learnable", "no positive", "disagree"]
    lines = [
        "other τ: items, and over those with a gradient similarity ('compared') the AUROC of it "
        "and of the pass rate",
        f"{'τ':<6}"
        + "".join(f"{name:>12}" for name in (*names, "compared", "similarity", "pass rate")),
    ]
    for row in rows:
        counts = [row["hard_items"]]
        counts += [row[k]["items"] for k in _KINDS if k != "not_judged"]
        counts.append(row["auroc_items"])
        aurocs = [row["auroc_gradient_similarity"], row["auroc_pass_rate"]]
        lines.append(
            f"{row['tau']:<6.2f}"
            + "".join(f"{count:>12,}" for count in counts)
            + "".join(f"{_number(value):>12}" for value in aurocs)
        )
    return lines


def _interval(figures: Mapping[str, float | None], name: str) -> str:
    value, low, high = (figures[f"{name}{end}"] for end in ("", "_low", "_high"))
    if value is None:
        return "-"
    return f"{value:.2f} ({_number(low)} to {_number(high)})"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
