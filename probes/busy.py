"""Whether others are at work on this machine: torch's threads then wait for each other.

A step of the model ends when the last of its threads has ended. Where another process has one of
the cores, all the others wait for the thread that has to share it, at every layer: two processes
of two threads each on two cores cost a factor of three to ten, and not two.
"""

from __future__ import annotations

import os
import time

THREADS = "OMP_NUM_THREADS"
"""The environment variable that says how many threads torch has."""


def usable_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def load_of_others() -> float | None:
    """Cores that others wanted in the last minute, on average; None where that is not known.

    It is the load average less what this process has computed by now, taken as of that minute.
    """
    try:
        load = os.getloadavg()[0]
    except OSError:
        return None
    return max(0.0, load - time.process_time() / 60)


def found_busy() -> str:
    """What others leave of this machine, where they want more than half of it; else nothing."""
    others, cores = load_of_others(), usable_cores()
    if others is None or cores < 2 or others <= cores / 2:
        return ""
    return f"other processes wanted {others:.1f} of {cores} cores in the last minute"


def busy_remedy() -> str:
    """What to do beside other processes."""
    return f"beside other work begin the command with {THREADS}=1, as in {THREADS}=1 curate tag ..."
