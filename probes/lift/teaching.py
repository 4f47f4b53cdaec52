"""Who teaches whom: the strongest teachers of each item, and whom a teacher helps or hurts most.

What one group of item j does to the log odds of item i is w_j ⟨h_i, D_j⟩ / (1 − p_i) of
`probes.lift.gradients`. Of all pairs there are too many, so the teachers are at most 1,024 items:
those with the longest w_j D_j, which is what a step takes of them. The cost is then linear in the
items.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Singles = NDArray[np.float32]
Floats = NDArray[np.float64]
Places = NDArray[np.int64]

MOST_TEACHERS = 1024
SHOWN = 3


@dataclass(frozen=True)
class Pairs:
    """Arrays (items, 3): places of items, strongest first, −1 where there are fewer; and by how
    much a group of the teacher moves the log odds of the other."""

    teachers: Places
    teachers_by: Floats
    helps: Places
    helps_by: Floats
    hurts: Places
    hurts_by: Floats


def choose_teachers(lengths: Floats) -> NDArray[np.intp]:
    """Places of the items with the longest share of a step, ascending; those of length 0 never."""
    longest = np.argsort(-lengths, kind="stable")[:MOST_TEACHERS]
    return np.sort(longest[lengths[longest] > 0])


class PairSearch:
    """Takes in learners block by block and keeps the strongest pairs.

    Args:
        items: of the run.
        teachers: (teachers,), places of the items.
        shares: (teachers, dim): w_j D_j of each.
    """

    def __init__(self, items: int, teachers: NDArray[np.intp], shares: Singles) -> None:
        self._teachers, self._shares = teachers, shares
        self._of_item = np.full((items, SHOWN), -1), np.full((items, SHOWN), np.nan)
        kept = (len(teachers), SHOWN)
        self._helps = np.full(kept, -1), np.full(kept, -np.inf)
        self._hurts = np.full(kept, -1), np.full(kept, np.inf)

    def add(self, items: NDArray[np.intp], slopes: Singles, is_learner: NDArray[np.bool_]) -> None:
        """Take in some items.

        Args:
            items: (block,), places.
            slopes: (block, dim): h_i / (1 − p_i).
            is_learner: (block,): who counts for `helps` and `hurts`.
        """
        if not len(self._teachers) or not len(items):
            return
        effects = (slopes @ self._shares.T).astype(np.float64)
        itself = items[:, None] == self._teachers[None, :]
        effects[itself] = -np.inf
        best = np.argsort(-effects, axis=1, kind="stable")[:, :SHOWN]
        values = np.take_along_axis(effects, best, axis=1)
        # A teacher that moves the item down is none.
        good = values > 0
        places, by = self._of_item
        shown = best.shape[1]
        places[items, :shown] = np.where(good, self._teachers[best], -1)
        by[items, :shown] = np.where(good, values, np.nan)
        learners = items[is_learner]
        if len(learners):
            seen = effects[is_learner].T
            self._helps = _merged(
                *self._helps, learners, np.where(np.isfinite(seen), seen, -np.inf), 1
            )
            self._hurts = _merged(
                *self._hurts, learners, np.where(np.isfinite(seen), seen, np.inf), -1
            )

    def result(self) -> Pairs:
        """The pairs of all items that were taken in."""
        items = len(self._of_item[0])

        def spread(found: tuple[Places, Floats], sign: int) -> tuple[Places, Floats]:
            places, by = np.full((items, SHOWN), -1), np.full((items, SHOWN), np.nan)
            good = np.isfinite(found[1]) & (sign * found[1] > 0)
            places[self._teachers] = np.where(good, found[0], -1)
            by[self._teachers] = np.where(good, found[1], np.nan)
            return places, by

        return Pairs(*self._of_item, *spread(self._helps, 1), *spread(self._hurts, -1))


def _merged(
    places: Places, by: Floats, new: NDArray[np.intp], values: Floats, sign: int
) -> tuple[Places, Floats]:
    """The strongest of what was kept and what is new: (teachers, 3) each."""
    all_places = np.concatenate([places, np.broadcast_to(new, values.shape)], axis=1)
    all_values = np.concatenate([by, values], axis=1)
    best = np.argsort(-sign * all_values, axis=1, kind="stable")[:, :SHOWN]
    return (
        np.take_along_axis(all_places, best, axis=1),
        np.take_along_axis(all_values, best, axis=1),
    )
