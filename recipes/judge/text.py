"""The final table of `curate judge`: quality of reasoning by tag, and how far to trust it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from curate.errors import one_line
from probes.servers.costs import estimate_text, usage_text

_PROBLEMS_SHOWN = 3


def judgement_text(summary: Mapping[str, Any]) -> str:
    """Write what `judge_run` returned for a terminal."""
    what = (
        f"{summary['rollouts']:,} correct rollouts of {summary['items']:,} items, each judged twice"
    )
    if summary["dry_run"]:
        return (
            f"would judge {what}: {estimate_text(summary['estimate'])}\n"
            "prompts and rollouts are counted by the run's tokenizer, the rubric at 4 characters a "
            "token; nothing was asked"
        )
    lines = [
        f"{what} by {one_line(summary['model'])}",
        "",
        f"{'reasoning, 0 to 5':<22}{'items':>8}{'mean':>8}   95% interval",
    ]
    for group in summary["groups"]:
        interval = "-" if group["low"] is None else f"{group['low']:.2f} to {group['high']:.2f}"
        lines.append(f"{group['group']:<22}{group['items']:>8,}{group['mean']:>8.2f}   {interval}")
    lines += [f"groups: {summary['groups_from']}", "", _agreement(summary["agreement"])]
    if summary["not_scored"]:
        lines.append(f"no score in {summary['not_scored']:,} of {summary['questions']:,} answers:")
        shown = list(summary["problems"].items())[:_PROBLEMS_SHOWN]
        lines += [f"{count:>9,}  {one_line(problem)}" for problem, count in shown]
    lines.append(usage_text(summary["asked"], summary["reused"]))
    lines += [f"note: {one_line(note)}" for note in summary["notes"]]
    return "\n".join(lines)


def _agreement(found: Mapping[str, Any]) -> str:
    if not found["rollouts"]:
        return "agreement of the two passes: not known, no rollout was scored in both"
    kappa = found["weighted_kappa"]
    return (
        f"agreement of the two passes, {found['rollouts']:,} rollouts: equal "
        f"{found['equal']:.0%}, mean difference {found['mean_absolute_difference']:.2f}, "
        f"quadratic-weighted kappa {'not defined' if kappa is None else format(kappa, '.2f')}"
    )
