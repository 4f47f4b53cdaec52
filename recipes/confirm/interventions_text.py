"""The tables of interventions and of what curation pays, for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def interventions_text(table: Mapping[str, Any]) -> str:
    """Write the result of `recipes.confirm.interventions.intervention_table`."""
    head = ("recipe", "group", "items", "baseline", "recipe", "difference", "reach τ", "verdict")
    rows: list[Sequence[str]] = [head]
    compared = 0
    for recipe in table["recipes"]:
        for name, group in recipe["groups"].items():
            compared += group["verdict"] is not None
            reached = (group["baseline_reached_tau"], group["reached_tau"])
            rows.append(
                (
                    recipe["recipe"],
                    name,
                    "-" if group["items"] is None else f"{group['items']:,}",
                    _rate(group["baseline_pass_rate"]),
                    _rate(group["pass_rate"]),
                    _with_interval(
                        group["difference"], group["difference_low"], group["difference_high"]
                    ),
                    " -> ".join("-" if each is None else f"{each:.0%}" for each in reached),
                    group["verdict"] or f"none: {group['note']}",
                )
            )
    lines = [
        f"final pass rates against {table['baseline']}, on items chosen by its other seeds",
        *_columns(rows),
        "",
    ]
    for recipe in table["recipes"]:
        lines.append(f"{recipe['recipe']}: {recipe['hypothesis']}")
        if recipe["paper_found"]:
            lines.append(f"    the paper found: {recipe['paper_found']}")
    if compared > 1:
        lines.append("")
        lines.append(
            f"{compared} comparisons with 95 % intervals: about {0.05 * compared:.1f} of them "
            "would show a difference by chance"
        )
    return "\n".join(lines)


def payoff_text(table: Mapping[str, Any]) -> str:
    """Write the result of `recipes.confirm.payoff.payoff_table`."""
    rows: list[Sequence[str]] = [
        ("arm", "seeds", "rollouts", "final held-out pass rate", "reaches the full arm's rate at")
    ]
    for arm in table["arms"].values():
        rows.append(
            (
                arm["recipe"],
                str(arm["seeds"]),
                f"{arm['rollouts']:,.0f}",
                _with_interval(**arm["final"]),
                _reached(arm),
            )
        )
    lines = [
        f"{table['items']:,} held-out items that no run trained on; the probe, which filtered, "
        f"trimmed and ordered need, spent {table['probe_rollouts']:,} rollouts beside",
        *_columns(rows),
    ]
    if table["filtered_minus_random"]:
        final, mean = (table["filtered_minus_random"][name] for name in ("final", "mean"))
        lines += [
            "",
            f"filtered minus random: {_with_interval(**final)} at the end, "
            f"{_with_interval(**mean)} on average over training",
        ]
    lines += [f"note: {note}" for note in table["notes"]]
    return "\n".join(lines)


def _reached(arm: Mapping[str, Any]) -> str:
    share = arm["reached_share"]
    if share is None:
        return "-"
    if share["value"] is None:
        text = "never"
    else:
        text = f"{arm['reached_at']['value']:,.0f} rollouts, {share['value']:.0%}"
        if share["low"] is not None:
            high = "never" if share["high"] is None else f"{share['high']:.0%}"
            text += f" ({share['low']:.0%} to {high})"
    if arm["reached_fraction"] is not None and arm["reached_fraction"] < 0.995:
        text += f"; in {arm['reached_fraction']:.0%} of resamples"
    return text


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _with_interval(value: float | None, low: float | None, high: float | None) -> str:
    if value is None:
        return "-"
    return (
        f"{value:.3f}" if low is None or high is None else f"{value:.3f} ({low:.3f} to {high:.3f})"
    )


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
