"""Counting the rollouts of items, and the pass rates that follow: in a run, and from its rewards.

What may be said of an item that stopped early goes by the rounds of the plan, so rollouts are
counted by the round that drew them: `sample` of a rollout is its number within the item.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike, NDArray

from probes.statistics.plan import Plan, sequential_interval, sequential_pass_rate

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]


class RolloutCounts:
    """Rollouts of items, added some at a time.

    Args:
        plan: that sampling followed; it has the rounds.
        items: how many.
    """

    def __init__(self, plan: Plan, items: int) -> None:
        self.plan = plan
        # By look: what an item's first looks[k] rollouts gave, first of those that the look added.
        self._added = np.zeros((3, items, len(plan.looks)), dtype=np.int64)

    def add(
        self, items: ArrayLike, samples: ArrayLike, judged: ArrayLike, correct: ArrayLike
    ) -> None:
        """Count rollouts; all arguments are of shape (rollouts,).

        Args:
            items: position of the item.
            samples: number of the rollout within its item, from 0.
            judged, correct: 1 or 0.
        """
        items, look = np.asarray(items), np.searchsorted(self.plan.looks, samples, side="right")
        for count, values in zip(self._added, (np.ones(len(items)), judged, correct), strict=True):
            np.add.at(count, (items, look), np.asarray(values, dtype=np.int64))

    @property
    def totals(self) -> tuple[Counts, Counts, Counts]:
        """Rollouts that were drawn, judged and correct, each of shape (items,)."""
        drawn, judged, correct = self._added.sum(axis=2)
        return drawn, judged, correct

    def rates(self, *, is_planned: bool = True) -> tuple[Floats, Floats, Floats]:
        """Pass rate and its interval (low, high), each of shape (items,); nan without a judged one.

        Args:
            is_planned: whether the numbers of rollouts are those of the plan; else they say
                nothing, and a pass rate is the share of correct ones.
        """
        drawn, n, c = self.totals
        low, high = sequential_interval(self.plan, n, c)
        if not is_planned:
            with np.errstate(invalid="ignore"):
                return np.asarray(c / n), low, high
        _, judged, correct = self._added.cumsum(axis=2)
        not_reached = drawn[:, None] < np.array(self.plan.looks)
        judged[not_reached] = correct[not_reached] = -1
        return sequential_pass_rate(self.plan, judged, correct), low, high


def pass_rates(rewards: pa.Table, *, min_rollouts: int, max_rollouts: int, tau: float) -> pa.Table:
    """Recompute the pass rates of a run from the rewards of all its rollouts.

    Args:
        rewards: a row a rollout: item_id, sample, and correct (null where it could not be judged);
            as `curate push --with-rewards` uploads them, the rows of all splits. What an item that
            stopped early is worth depends on how many others went on.
        min_rollouts, max_rollouts, tau: of the run.

    Returns:
        a row an item, in the order in which they first come: item_id, total_rollouts (judged),
        total_correct_rollouts, pass_rate, pass_rate_low, pass_rate_high.
    """
    ids = rewards["item_id"].combine_chunks().dictionary_encode()
    counts = RolloutCounts(Plan(min_rollouts, max_rollouts, tau), len(ids.dictionary))
    correct = rewards["correct"]
    counts.add(
        ids.indices.to_numpy(),
        rewards["sample"].to_numpy(),
        pc.is_valid(correct).to_numpy(),
        pc.fill_null(correct, False).to_numpy(),
    )
    _, n, c = counts.totals
    columns = dict(
        zip(("pass_rate", "pass_rate_low", "pass_rate_high"), counts.rates(), strict=True)
    )
    return pa.table(
        {"item_id": ids.dictionary, "total_rollouts": n, "total_correct_rollouts": c}
        | {name: pa.array(values, from_pandas=True) for name, values in columns.items()}
    )
