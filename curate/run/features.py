"""The gradient features of a run's rollouts, as the gradient stage leaves them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from curate.errors import RunError
from curate.run.names import ROLLOUT_FEATURES
from curate.run.rollouts import item_rows
from curate.run.tables import ROLLOUT_INDEX, read_array, read_parquet, read_schema


@dataclass(frozen=True)
class RolloutFeatures:
    """Features of distinct completions of a run: the correct ones first, then the wrong ones."""

    features: NDArray[np.float32]
    """(draws, dim), a memmap."""
    item: NDArray[np.int64]
    """(draws,): position of the item, ascending among the correct ones and among the wrong ones."""
    weights: NDArray[np.int64]
    """(draws,): how often the completion was drawn."""
    reward: NDArray[np.int64] | NDArray[np.float64]
    """(draws,): 1 or 0, or the number that a user's function gave."""
    completion_tokens: NDArray[np.int64] | None
    """(draws,): length of the completion; None in a run of a version that did not keep it."""
    accepted: NDArray[np.bool_] | None = None
    """(draws,): whether it is correct; None: where the reward is 1."""

    @property
    def is_correct(self) -> NDArray[np.bool_]:
        """(draws,)."""
        return np.asarray(self.reward == 1) if self.accepted is None else self.accepted

    @property
    def correct(self) -> RolloutFeatures:
        """The correct completions; a view."""
        return self._part(slice(0, int(self.is_correct.sum())))

    @property
    def wrong(self) -> RolloutFeatures:
        """The wrong completions; a view."""
        return self._part(slice(int(self.is_correct.sum()), len(self.reward)))

    def lengths(self) -> NDArray[np.int64]:
        """`completion_tokens`.

        Raises:
            RunError: they are unknown.
        """
        if self.completion_tokens is None:
            raise RunError(
                "gradients/rollouts.parquet, of an earlier version of curate, has no "
                "completion_tokens and no wrong rollouts: give another --run-dir to tag anew"
            )
        return self.completion_tokens

    def _part(self, lines: slice) -> RolloutFeatures:
        lengths = self.completion_tokens
        return RolloutFeatures(
            self.features[lines],
            self.item[lines],
            self.weights[lines],
            self.reward[lines],
            None if lengths is None else lengths[lines],
            None if self.accepted is None else self.accepted[lines],
        )


def joined(run: Path, row_of: Mapping[str, int]) -> RolloutFeatures:
    """Open the features of a run folder whose shards are joined.

    Raises:
        RunError: a file is missing or damaged.
    """
    path = ROLLOUT_INDEX.path(run)
    table = ROLLOUT_INDEX.read(run, "item_id", "weight")
    # Earlier versions differentiated correct rollouts alone and did not say so.
    there = read_schema(path).names
    if "reward" in there:
        # Where rewards are other numbers than 0 and 1 it says which are correct.
        for column in ("reward", "completion_tokens", *({"correct"} & {*there})):
            table = table.append_column(column, read_parquet(path, [column])[column])
    return features_of(run / ROLLOUT_FEATURES, table, row_of)


def features_of(path: Path, table: pa.Table, row_of: Mapping[str, int]) -> RolloutFeatures:
    """Open an array of features by the table of its rows.

    Raises:
        RunError: the array is missing or damaged, or does not fit the table.
    """
    features = read_array(path, mapped=True)
    items, weights = item_rows(table, row_of), table["weight"].to_numpy().astype(np.int64)
    if features.ndim != 2 or len(features) != table.num_rows:
        raise RunError(
            f"{path} is damaged: shape {features.shape} for {table.num_rows} rows of its index"
        )
    if "reward" not in table.column_names:
        return RolloutFeatures(features, items, weights, np.ones_like(weights), None)
    lengths = table["completion_tokens"].to_numpy().astype(np.int64)
    reward, accepted = table["reward"].to_numpy(), None
    if "correct" in table.column_names:
        accepted = np.asarray(table["correct"])
    else:
        reward = reward.astype(np.int64)
    found = RolloutFeatures(features, items, weights, reward, lengths, accepted)
    if (np.diff(found.is_correct.astype(np.int8)) > 0).any():
        raise RunError(f"{path.with_suffix('.parquet')} is damaged: correct rollouts after wrong")
    return found
