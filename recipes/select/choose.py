"""Choosing the items that are worth most, with places for each kind and for solved ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from curate.tagged.quotas import share_out
from recipes.select.teaching import Taught

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

SOLVED = 0.9
"""Above this pass rate an item is solved: a group of 8 rollouts is mixed in half the cases, and in
a third of them from 0.95 on."""
_STEPS = 64
"""In so many steps a set is chosen whose items teach each other's pupils."""


@dataclass(frozen=True)
class Candidates:
    """The items to choose from: arrays (items,), nan where unknown."""

    gain: Floats
    """Forecast less pass rate."""
    teaching: Floats
    pass_rate: Floats
    kind: Sequence[str]
    """Whose places an item takes."""

    @property
    def is_solved(self) -> Flags:
        """(items,)."""
        return np.asarray(self.pass_rate > SOLVED)


@dataclass(frozen=True)
class Chosen:
    """Which items were chosen, and where the others stood: arrays (items,)."""

    chosen: Flags
    first_place: NDArray[np.int64]
    """By worth, from 1, before anything was chosen."""
    last_place: NDArray[np.int64]
    """By worth, from 1, once everything else was chosen."""


def worth(by: str, gain: Floats, teaching: Floats) -> Floats:
    """What items are worth, (items,): larger is more, comparable within one call only.

    Args:
        by: gain, teaching or both; the latter is the mean of an item's ranks, as shares, in the
            two, since they have no unit in common.
        gain, teaching: (items,), nan where unknown: worth nothing.
    """
    if by == "gain":
        return np.where(np.isnan(gain), -np.inf, gain)
    if by == "teaching":
        return np.where(np.isnan(teaching), -np.inf, teaching)
    return np.asarray((_ranks(gain) + _ranks(teaching)) / 2)


def _ranks(values: Floats) -> Floats:
    known = ~np.isnan(values)
    ranks = np.zeros(len(values))
    ranks[known] = rankdata(values[known]) / max(len(values), 1)
    return ranks


def choose_items(
    candidates: Candidates,
    by: str,
    places: Mapping[str, int],
    easy_share: float,
    taught: Taught | None = None,
) -> Chosen:
    """Fill the places of each kind with the items that are worth most.

    First a share of the places goes to solved items, the most worth of them, between equals those
    that fail most often. They are counted: where solved items would have been chosen anyway, none
    is chosen for that.

    Args:
        candidates: the items.
        by: gain, teaching or both.
        places: of each kind.
        easy_share: the share of solved items, at least, as far as there are any.
        taught: what chosen items teach; None: `teaching` counts as it is, whatever is chosen.
    """
    kind = np.array(candidates.kind, dtype=object)
    left = dict(places)
    chosen = np.zeros(len(kind), dtype=bool)
    rate = np.nan_to_num(candidates.pass_rate)

    def value() -> Floats:
        teaching = candidates.teaching
        if taught is not None:
            # An item without a teaching of its own (no rollout of it was right) has none here.
            teaching = np.where(np.isnan(teaching), np.nan, taught.worth_of_one_more())
        return worth(by, candidates.gain, teaching)

    def take(among: Flags, most: int, order: NDArray[np.intp]) -> NDArray[np.intp]:
        taken: list[int] = []
        for item in order:
            if len(taken) == most:
                break
            if among[item] and not chosen[item] and left[kind[item]] > 0:
                left[kind[item]] -= 1
                chosen[item] = True
                taken.append(item)
        return np.array(taken, dtype=np.intp)

    first = value()
    total = sum(places.values())
    solved = candidates.is_solved
    there = {each: int((solved & (kind == each)).sum()) for each in places}
    floors = share_out(
        round(easy_share * total),
        {each: float(count) for each, count in places.items()},
        {each: min(count, there[each]) for each, count in places.items()},
    )
    by_worth = np.lexsort((np.arange(len(kind)), rate, -first))
    for each, floor in floors.items():
        taken = take(solved & (kind == each), floor, by_worth)
        if taught is not None and len(taken):
            taught.add(taken)
    step = total if taught is None else max(1, total // _STEPS)
    last = first
    while True:
        order = np.lexsort((np.arange(len(kind)), rate, -last))
        taken = take(np.ones(len(kind), dtype=bool), step, order)
        if not len(taken):
            break
        if taught is not None:
            taught.add(taken)
            last = value()
    return Chosen(chosen, _places(first), _places(last))


def _places(values: Floats) -> NDArray[np.int64]:
    places = np.empty(len(values), dtype=np.int64)
    places[np.argsort(-values, kind="stable")] = np.arange(1, len(values) + 1)
    return places
