"""The final lines of `curate augment`: what was written, what was kept, and why not the rest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from curate.errors import one_line
from probes.servers.costs import estimate_text, usage_text


def augmentation_text(summary: Mapping[str, Any]) -> str:
    """Write what `augment_run` returned for a terminal."""
    from_ = f"{summary['parents']:,} items tagged {' or '.join(summary['tags'])}"
    if summary["dry_run"]:
        lines = [
            f"would have {summary['per_item']} {summary['mode']} problems written from each of "
            f"{from_}",
            *(f"{who}: {estimate_text(each)}" for who, each in summary["estimate"].items()),
            "tokens are estimated at 4 characters each; the checker is asked only about problems "
            "that pass the other checks; nothing was asked",
        ]
        return "\n".join([*lines, *_notes(summary)])
    lines = [
        f"{summary['written']:,} {summary['mode']} problems written from {from_} "
        f"({summary['groups_from']})",
        f"kept: {summary['kept']:,}, of {summary['parents_with_new_items']:,} items",
        f"rejected: {summary['rejected']:,}",
        *(f"{count:>9,}  {one_line(reason)}" for reason, count in summary["reasons"].items()),
    ]
    if summary["not_written"]:
        lines.append(f"items with no usable answer: {sum(summary['not_written'].values()):,}")
        lines += [
            f"{n:>9,}  {one_line(why)}" for why, n in list(summary["not_written"].items())[:3]
        ]
    lines += [
        f"{who}: {usage_text(summary['asked'][who], summary['reused'][who])}"
        for who in ("writer", "checker")
    ]
    lines += [f"dataset:  {summary['out']}", f"rejected: {summary['rejected_file']}"]
    return "\n".join([*lines, *_notes(summary)])


def _notes(summary: Mapping[str, Any]) -> list[str]:
    return [f"note: {one_line(note)}" for note in summary["notes"]]
