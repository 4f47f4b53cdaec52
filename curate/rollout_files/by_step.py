"""An object of JSON, item to list of mean rewards: one for each time that the item was rolled out.

One-Shot-RLVR's `acc_step_500.json` is such a file. The place in the list stands for the step.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from curate.rollout_files.record import LoggedRollout, number

NAME = "item to rewards"


def read_object(path: Path) -> dict[str, list[Any]] | None:
    """The object of such a file; None where a file is none, however it is named."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            if path.suffix != ".json" or file.read(1) != "{":
                return None
            file.seek(0)
            found = json.load(file)
    except (OSError, ValueError, RecursionError):
        return None
    is_one = bool(found) and all(
        isinstance(each, list) and all(number(one) is not None for one in each)
        for each in found.values()
    )
    return found if is_one else None


def rollouts_of(found: dict[str, list[Any]]) -> Iterator[LoggedRollout]:
    """Its rollouts, by item; steps count from 1."""
    for item_id, rewards in found.items():
        for step, reward in enumerate(rewards, 1):
            yield LoggedRollout(item_id=item_id, reward=number(reward), step=step)
