"""The rollouts of a run: the files that hold them, and what became of those of each item."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from curate.run.tables import ROLLOUTS, Folder, read_parquet, read_schema, write_parquet

Integers = NDArray[np.int64]


def rollout_shards(run: Folder) -> list[Path]:
    """List the files of rollouts, in the order in which they were drawn."""
    return ROLLOUTS.files(run)


def item_rows(table: pa.Table, row_of: Mapping[str, int]) -> NDArray[np.int64]:
    """Position in `items.parquet` of the item of each line of a table, shape (lines,)."""
    ids = pa.concat_arrays(table["item_id"].chunks) if table.num_rows else pa.array([], pa.string())
    # A file has the same few items on many lines.
    ids = ids.dictionary_encode()
    rows = np.array([row_of[item_id] for item_id in ids.dictionary.to_pylist()], dtype=np.int64)
    return np.asarray(rows[ids.indices.to_numpy()])


def drawn_rollouts(run: Folder, row_of: Mapping[str, int]) -> NDArray[np.int64]:
    """Rollouts that each item has, shape (items,)."""
    drawn = np.zeros(len(row_of), dtype=np.int64)
    for file in rollout_shards(run):
        np.add.at(drawn, item_rows(read_parquet(file, ["item_id"]), row_of), 1)
    return drawn


OUTCOME = ("reward", "verdict")
"""Columns of rollouts that tell what became of them; see `rollout_outcomes`."""


def rollout_outcomes(rollouts: pa.Table | pa.RecordBatch) -> Integers:
    """What became of each rollout, shape (rollouts,): 1 correct, 0 wrong, -1 not judged.

    Whole rewards say it themselves. Those of a function that returns other numbers are numbers
    only, and `verdict` says which of them reached the threshold.

    Args:
        rollouts: has the columns `OUTCOME`.
    """
    reward = rollouts["reward"]
    if not pa.types.is_floating(reward.type):
        return np.asarray(pc.fill_null(reward, -1)).astype(np.int64)
    correct = pc.fill_null(pc.equal(rollouts["verdict"], "correct"), False)
    return np.where(pc.is_null(reward), -1, np.asarray(correct)).astype(np.int64)


def read_outcomes(file: Path, *names: str) -> pa.Table:
    """Read columns of a file of rollouts, and those that `rollout_outcomes` asks for.

    Raises:
        RunError: the file is missing or damaged.
    """
    table = read_parquet(file, list(dict.fromkeys([*names, "reward"])))
    if pa.types.is_floating(table["reward"].type) and "verdict" not in names:
        table = table.append_column("verdict", read_parquet(file, ["verdict"])["verdict"])
    return table


def real_rewards(run: Folder) -> bool:
    """Whether rewards of a run are numbers that do not themselves say what is correct.

    They then are of type double in every file; `as_numbers` sees to that.
    """
    return any(
        pa.types.is_floating(each.field("reward").type)
        for each in map(read_schema, rollout_shards(run))
        if "reward" in each.names
    )


def as_numbers(run: Folder) -> None:
    """Where rewards are double in one file of rollouts, make them double in all.

    A function can return nothing but 0 and 1 for the first files and something else later.
    """
    if not real_rewards(run):
        return
    for file in rollout_shards(run):
        table = read_parquet(file)
        if not pa.types.is_floating(table["reward"].type):
            place = table.column_names.index("reward")
            numbers = table["reward"].cast(pa.float64())
            write_parquet(file, table.set_column(place, "reward", numbers))


@dataclass(frozen=True)
class Outcomes:
    """What became of the rollouts of each item so far: arrays of shape (items,)."""

    drawn: Integers
    judged: Integers
    """Those with a reward, n."""
    correct: Integers
    """Those that the verifier accepted, c."""

    def is_easy(self, tau: float) -> NDArray[np.bool_]:
        """Whether c/n is at least `tau`; not where nothing was judged."""
        with np.errstate(invalid="ignore"):
            return np.asarray((self.judged > 0) & (self.correct / self.judged >= tau))


def count_outcomes(run: Folder, row_of: Mapping[str, int]) -> Outcomes:
    """Count the rollouts on disk.

    Args:
        run: all rollouts have a verdict.
        row_of: position of each item by item_id.
    """
    counts = np.zeros((3, len(row_of)), dtype=np.int64)
    for file in rollout_shards(run):
        table = read_outcomes(file, "item_id")
        rows = item_rows(table, row_of)
        for count, values in zip(counts, drawn_judged_correct(table), strict=True):
            np.add.at(count, rows, values)
    return Outcomes(*counts)


def drawn_judged_correct(table: pa.Table) -> tuple[Integers, Integers, Integers]:
    """Whether each rollout was drawn, judged and correct, as 0 or 1.

    Args:
        table: has the columns `OUTCOME`.
    """
    outcome = rollout_outcomes(table)
    return (
        np.ones(len(outcome), dtype=np.int64),
        (outcome >= 0).astype(np.int64),
        (outcome == 1).astype(np.int64),
    )


COUNTS = ("total_rollouts", "total_correct_rollouts", "unjudged_rollouts")


def outcomes_of(rates: pa.Table) -> Outcomes:
    """The counts in `pass_rates.parquet`, which are what decides between easy and hard."""
    judged, correct, unjudged = (rates[name].to_numpy() for name in COUNTS)
    return Outcomes(judged + unjudged, judged, correct)


def nullable(values: Any) -> pa.Array:
    """Turn numbers into a column of floats in which nan is null."""
    return pa.array(np.asarray(values, dtype=np.float64), from_pandas=True)


def floats(column: pa.ChunkedArray) -> NDArray[np.float64]:
    """Turn a column of numbers into an array in which null is nan."""
    return np.asarray(column.to_numpy(), dtype=np.float64)
