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

from curate.run.tables import ROLLOUTS, Folder, read_parquet

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


@dataclass(frozen=True)
class Outcomes:
    """What became of the rollouts of each item so far: arrays of shape (items,)."""

    drawn: Integers
    judged: Integers
    """Those with a reward, n."""
    correct: Integers
    """Those with reward 1, c."""

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
        table = read_parquet(file, ["item_id", "reward"])
        rows = item_rows(table, row_of)
        for count, values in zip(counts, drawn_judged_correct(table), strict=True):
            np.add.at(count, rows, values)
    return Outcomes(*counts)


def drawn_judged_correct(table: pa.Table) -> tuple[Integers, Integers, Integers]:
    """Whether each rollout was drawn, judged and correct, as 0 or 1."""
    reward = table["reward"]
    return (
        np.ones(len(reward), dtype=np.int64),
        pc.is_valid(reward).to_numpy().astype(np.int64),
        pc.fill_null(reward, 0).to_numpy().astype(np.int64),
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
