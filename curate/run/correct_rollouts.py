"""Correct rollouts of a run's items, as text: the first of each, drawn as the others were."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from curate.run.rollouts import OUTCOME, rollout_outcomes
from curate.run.run import Run

_COLUMNS = ("item_id", "sample", "completion", "completion_token_ids", *OUTCOME)


@dataclass(frozen=True)
class CorrectRollout:
    """A completion that the verifier accepted."""

    item_id: str
    sample: int
    completion: str
    tokens: int


def correct_rollouts(
    run: Run, item_ids: Collection[str], per_item: int
) -> dict[str, list[CorrectRollout]]:
    """Read the first correct rollouts of some items.

    Returns:
        by item_id, in the order of `item_ids`; items without a correct rollout are left out.

    Raises:
        RunError: a file is damaged.
    """
    found: dict[str, list[CorrectRollout]] = {item_id: [] for item_id in item_ids}
    for table in run.rollout_batches(*_COLUMNS):
        table = table.filter(pa.array(rollout_outcomes(table) == 1))
        columns = [
            *(table[name].to_pylist() for name in ("item_id", "sample", "completion")),
            pc.list_value_length(table["completion_token_ids"]).to_pylist(),
        ]
        for item_id, sample, completion, tokens in zip(*columns, strict=True):
            if len(found.get(item_id, [None] * per_item)) < per_item:
                found[item_id].append(CorrectRollout(item_id, sample, completion, tokens or 0))
    return {item_id: rollouts for item_id, rollouts in found.items() if rollouts}
