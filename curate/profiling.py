"""Where the time of a command went, by stage."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

OVERHEAD = "overhead"


def process_start() -> float:
    """When this process was started, as `time.monotonic` counts; now, where nobody tells."""
    now = time.monotonic()
    try:
        # After the command's name, which may hold anything but ends in the last parenthesis.
        fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        since_boot = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return min(now, now - time.clock_gettime(time.CLOCK_BOOTTIME) + since_boot)
    except (OSError, ValueError, IndexError, AttributeError):
        return now


def make_profile(
    seconds: Mapping[str, float], work: Mapping[str, tuple[int, str]], total: float
) -> list[dict[str, Any]]:
    """List stage, seconds, share, count, unit and rate, the time outside all stages last.

    Args:
        seconds: of each stage.
        work: how many of what each stage went through; a stage may be missing.
        total: seconds of the whole command.
    """
    rows = []
    spent = {**seconds, OVERHEAD: max(total - sum(seconds.values()), 0.0)}
    for stage, taken in spent.items():
        count, unit = work.get(stage, (None, None))
        rows.append(
            {
                "stage": stage,
                "seconds": round(taken, 3),
                "share": round(taken / max(total, 1e-9), 4),
                "count": count,
                "unit": unit,
                "rate": round(count / taken, 3) if count is not None and taken > 0 else None,
            }
        )
    return rows


def profile_text(profile: list[dict[str, Any]]) -> str:
    """Write a profile as a table for a terminal."""
    lines = [f"{'stage':<12}{'seconds':>10}{'share':>8}{'count':>13} {'':<10}{'rate':>12}"]
    for row in profile:
        line = f"{row['stage']:<12}{row['seconds']:>10,.2f}{row['share']:>8.1%}"
        if row["count"] is not None:
            line += f"{row['count']:>13,} {row['unit']:<10}"
        if row["rate"] is not None:
            line += f"{row['rate']:>10,.1f}/s"
        lines.append(line)
    return "\n".join(lines)
