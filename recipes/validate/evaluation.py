"""Final rollouts of every item of a run under a trained policy, and the outcomes they give."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from curate.run.rollouts import count_outcomes, drawn_rollouts, nullable
from curate.run.tables import OUTCOMES, write_parquet
from probes.stages.sample import DrawShards, sample_items
from probes.stages.verify import verify_rollouts
from probes.verifiers.pool import VerifierPool

FINAL_SEED = 2**32
"""What is added to a seed, so that final rollouts share no random numbers with the probe or the
training of the same seed."""


def evaluate(
    folder: Path,
    items: pa.Table,
    pool: VerifierPool,
    draw: Callable[[], DrawShards],
    *,
    rollouts: int,
    shard_rollouts: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw and judge final rollouts of every item; what a killed process drew is not drawn again.

    Args:
        folder: gets `rollouts/*.parquet`, of the same form as those of the probe.
        items: of `items.parquet`: item_id, prompt_token_ids, answer, and perhaps verifier.
        pool: of the run's verifier, not entered.
        draw: gives what draws from the trained policy; called where rollouts are missing.
        rollouts: of every item.
        shard_rollouts: of a file, at most, which is what a kill can lose.

    Returns:
        judged and correct rollouts, each of shape (items,).
    """
    items = items.combine_chunks()
    row_of = {item_id: row for row, item_id in enumerate(items["item_id"].to_pylist())}
    target = np.full(len(row_of), rollouts)
    drawn = drawn_rollouts(folder, row_of)
    if (drawn < target).any():
        sample_items(folder, items, drawn, target, draw(), shard_rollouts)
    verifiers = items["verifier"] if "verifier" in items.column_names else None
    verify_rollouts(folder, pool, items["answer"], row_of, verifiers)
    found = count_outcomes(folder, row_of)
    return found.judged, found.correct


def write_outcomes(
    file: Path,
    rates: pa.Table,
    rewards: Sequence[Mapping[str, Any]] | None,
    judged: NDArray[np.int64],
    correct: NDArray[np.int64],
) -> None:
    """Write `outcomes.parquet`: every item of the run before, during and after training.

    Args:
        rates: of the run's `pass_rates.parquet`.
        rewards: the training's log of groups; empty for a method that samples none, None where
            there is no log: then what happened in training is null, and a correct rollout is one
            of the probe or a final one.
        judged, correct: final rollouts, (items,), in the order of `rates`.
    """
    visits: dict[str, int] = {}
    positive: set[str] = set()
    for row in rewards or ():
        item_id = row["item_id"]
        visits[item_id] = visits.get(item_id, 0) + 1
        right = row.get("correct_rollouts")
        # Trainings of earlier versions had rewards of 0 and 1 alone.
        if (row["mean_reward"] or 0) > 0 if right is None else right > 0:
            positive.add(item_id)
    ids = rates["item_id"].to_pylist()
    in_training = pa.array([item_id in positive for item_id in ids], pa.bool_())
    of_items = pa.array([visits.get(item_id, 0) for item_id in ids], pa.int32())
    seen = in_training
    if rewards is None:
        in_training, of_items = (pa.nulls(len(ids), kind) for kind in (pa.bool_(), pa.int32()))
        seen = pa.array(correct > 0)
    n, c = (rates[name].to_numpy() for name in ("total_rollouts", "total_correct_rollouts"))
    with np.errstate(invalid="ignore"):
        # c/n, by which the probe tells easy from hard; `pass_rate` corrects it for early stopping.
        initial, final = c / n, correct / judged
    table = pa.table(
        {
            "item_id": rates["item_id"],
            "initial_pass_rate": nullable(initial),
            "initial_rollouts": n,
            "initial_correct": c,
            "final_pass_rate": nullable(final),
            "final_rollouts": judged,
            "final_correct": correct,
            "positive_in_training": in_training,
            "ever_positive": pc.or_(seen, pa.array(c > 0)),
            "visits": of_items,
        },
        schema=OUTCOMES.schema,
    )
    write_parquet(file, table)
