"""What `curate push` prints: every file with its size, and the commit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def push_text(summary: Mapping[str, Any]) -> str:
    """Write the result of `cards.push.push.push_run` for a terminal."""
    width = max(len(each["path"]) for each in summary["files"])
    lines = [f"{each['path']:<{width}}{_size(each['bytes']):>12}" for each in summary["files"]]
    total = sum(each["bytes"] for each in summary["files"])
    lines += [f"{'all':<{width}}{_size(total):>12}", ""]
    lines += [f"deleted there: {path}" for path in summary["deleted"]]
    if summary["dry_run"]:
        lines += [
            f"dry run: nothing was uploaded to {summary['repo']}; README.md is merged with the one "
            "there when pushed",
        ]
    elif summary["changed"]:
        lines.append(f"pushed to {summary['repo']}: {summary['url']}")
    else:
        lines.append(f"{summary['repo']} has all of it already: {summary['url']}")
    return "\n".join(lines)


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:,.0f} B" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"
