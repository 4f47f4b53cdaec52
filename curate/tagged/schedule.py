"""An order in which difficulty rises over the epochs, with rows that repeat and mixed batches.

The training goes over time from 0 to 1, and at each moment t it has a target: a pass rate μ(t) that
falls from a first to a last one, with weights

    K(p, t) = exp(−(p − μ(t))² / 2 w²)

for a row of pass rate p, or a band of pass rates, within which K is 1 and outside 0, each band for
an equal stretch of the training. (Nemotron 3 Nano, arXiv 2512.20848, section 3.2.2, draws its
batches by such a Gaussian, with fixed shares of domains.) A row of domain k is drawn with

    π(row, t) = share of k · K(p, t) / Σ_{rows of k} K(p, t)

1. How often a row comes: in proportion to ∫ π dt, but `repeats` times at most, by one factor for
   all rows of a domain such that they fill its places. As often as there are epochs means: every
   row that often, and the target then says only when.
2. When: at moments drawn from π(row, ·), spread over its repeats. Sorted by them, rows stand where
   their difficulty is aimed at, in a width that mixes batches.
3. Domains are merged so that every stretch holds their shares, and a row that would come twice in a
   batch waits for the next.

Pass rates are those of the policy before training: they rise while it goes on.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from curate.errors import UsageError

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

MOST_PLACES = 10**9
"""Rows of a file, repeats included."""
_LEVELS = 1000
"""Pass rates are told apart to a thousandth."""
_MOMENTS = 512
_FAR = 1e-12
"""A row is not aimed at where it is drawn by this much less than the nearest."""


@dataclass(frozen=True)
class Aim:
    """What is aimed at over the training: a falling target, or bands one after the other."""

    first: float = 0.8
    last: float = 0.2
    width: float = 0.2
    bands: tuple[tuple[float, float], ...] = ()

    def band(self, moment: float) -> tuple[float, float]:
        """The band of a moment from 0 to 1."""
        return self.bands[min(int(moment * len(self.bands)), len(self.bands) - 1)]

    def target(self, moment: float) -> float:
        """The pass rate aimed at: the target, or the middle of the band."""
        if self.bands:
            return sum(self.band(moment)) / 2
        return self.first + (self.last - self.first) * moment

    def weights(self, rates: Floats, moments: Floats) -> Floats:
        """K, (rates, moments): of a target scaled so that the largest is 1, and 0 far away."""
        if self.bands:
            which = np.minimum((moments * len(self.bands)).astype(int), len(self.bands) - 1)
            low, high = np.array(self.bands).T
            return np.asarray(
                ((rates[:, None] >= low[which]) & (rates[:, None] <= high[which])).astype(float)
            )
        target = self.first + (self.last - self.first) * moments
        exponent = -(((rates[:, None] - target[None, :]) / self.width) ** 2) / 2
        found = np.exp(exponent - exponent.max(axis=0, initial=-np.inf))
        return np.where(found < _FAR, 0.0, found)


@dataclass(frozen=True)
class Schedule:
    """The order, and what it is made by."""

    places: Integers
    """(written,): the row at each place, repeats included."""
    starts: Integers
    """(epochs + 1,): where each epoch begins and ends."""
    weights: Floats
    """(rows, epochs): probability of each row in a draw of that epoch; every epoch sums to 1."""
    notes: list[str] = field(default_factory=list)

    def times(self, rows: int) -> Integers:
        """How often each row comes in each epoch, (rows, epochs)."""
        found = [
            np.bincount(self.places[start:stop], minlength=rows)
            for start, stop in zip(self.starts, self.starts[1:], strict=False)
        ]
        return np.stack(found, axis=1)


def schedule_rows(
    rates: Floats,
    kinds: Sequence[str],
    aim: Aim,
    *,
    epochs: int = 1,
    batch: int = 64,
    repeats: int | None = None,
    shares: Mapping[str, float] | None = None,
    seed: int = 0,
) -> Schedule:
    """Make the order.

    Args:
        rates: (rows,), pass rates.
        kinds: (rows,), the domain of each row.
        aim: what is aimed at.
        epochs: how often the rows are gone through, on average over those that are aimed at.
        batch: rows of a step, among which none comes twice where that can be.
        repeats: how often a row comes at most; None: as often as there are epochs.
        shares: of the domains in every batch; None: as they are among the rows.
        seed: of all draws.

    Raises:
        UsageError: in some band there is no row, or none of a domain with a share; or the file
            would have more than `MOST_PLACES` rows.
    """
    if epochs * len(rates) > MOST_PLACES:
        raise UsageError(
            f"{epochs:,} epochs of {len(rates):,} rows are {epochs * len(rates):,} places, and a "
            f"schedule has at most {MOST_PLACES:,}"
        )
    rng = np.random.default_rng(seed)
    repeats = epochs if repeats is None else repeats
    levels, level = np.unique(np.round(rates * _LEVELS) / _LEVELS, return_inverse=True)
    kernel = aim.weights(levels, _moments())
    _check_bands(aim, kernel)
    is_aimed_at = (kernel.sum(axis=1) > 0)[level]
    of_kind = np.array(kinds, dtype=object)
    counts = Counter(of_kind[is_aimed_at].tolist())
    wanted = {name: (shares or counts).get(name, 0.0) for name in sorted(counts)}
    if not any(wanted.values()):
        raise UsageError("no row that is aimed at has a share above 0 (--share)")
    total = epochs * int(is_aimed_at.sum())
    notes: list[str] = []
    weights = np.zeros((len(rates), epochs))
    sequences: list[Integers] = []
    for name, share in wanted.items():
        share /= sum(wanted.values())
        if not share:
            continue
        rows = np.flatnonzero((of_kind == name) & is_aimed_at)
        there, own = np.unique(level[rows], return_inverse=True)
        chances, is_near = _chances(kernel[there], levels[there], np.bincount(own), aim)
        if is_near:
            notes.append(
                f"{name or 'all rows'}: where no row has a pass rate in the band, the nearest "
                "stand in"
            )
        weights[rows] = share * np.stack(
            [chances[:, moments].mean(axis=1)[own] for moments in _epochs(epochs)], axis=1
        )
        places, most = round(share * total), repeats * len(rows)
        if places > most:
            notes.append(
                f"{name or 'all rows'}: {len(rows):,} rows of at most {repeats} times each fill "
                f"{most:,} of {places:,} places"
            )
        often = _how_often(chances.sum(axis=1)[own], min(places, most), repeats, rng)
        sequences.append(_sequence(rows, own, often, chances, rng))
    order = _apart(_merged(sequences), batch)
    starts = np.round(np.linspace(0, len(order), epochs + 1)).astype(np.int64)
    return Schedule(order, starts, weights, notes)


def _moments() -> Floats:
    return np.asarray((np.arange(_MOMENTS) + 0.5) / _MOMENTS)


def _epochs(epochs: int) -> list[slice]:
    """The moments of each epoch; an epoch shorter than a moment has the one that it lies in."""
    edges = np.linspace(0, _MOMENTS, epochs + 1)
    starts = np.minimum(np.round(edges[:-1]).astype(int), _MOMENTS - 1)
    stops = np.round(edges[1:]).astype(int)
    return [slice(a, max(b, a + 1)) for a, b in zip(starts, stops, strict=True)]


def _check_bands(aim: Aim, kernel: Floats) -> None:
    empty = np.flatnonzero(kernel.sum(axis=0) == 0)
    if len(empty):
        low, high = aim.band(float(_moments()[empty[0]]))
        raise UsageError(f"no row has a pass rate from {low:g} to {high:g} (--band)")


def _chances(kernel: Floats, rates: Floats, counts: Integers, aim: Aim) -> tuple[Floats, bool]:
    """π of a row at each level of a domain, (levels, moments), and whether some row stands in.

    Args:
        kernel: (levels, moments).
        rates: (levels,).
        counts: (levels,), rows at each.
    """
    empty = np.flatnonzero(kernel.sum(axis=0) == 0)
    if len(empty):
        kernel = kernel.copy()
        for moment in empty:
            distance = np.abs(rates - aim.target(float(_moments()[moment])))
            kernel[distance <= distance.min() + 1e-9, moment] = 1
    return np.asarray(kernel / (counts @ kernel)), bool(len(empty))


def _how_often(weight: Floats, places: int, repeats: int, rng: np.random.Generator) -> Integers:
    """Whole numbers, (rows,), that sum to the places: in proportion to weights, none too large."""
    low, high = 0.0, repeats / max(float(weight.min()), 1e-300)
    for _ in range(200):
        middle = (low + high) / 2
        if np.minimum(repeats, middle * weight).sum() < places:
            low = middle
        else:
            high = middle
    exact = np.minimum(repeats, high * weight)
    # Rounded along a random order of the rows, so that the sum is kept and each is off by under 1.
    order = rng.permutation(len(weight))
    ends = np.floor(np.cumsum(exact[order]) * (places / max(exact.sum(), 1e-300)) + 0.5)
    often = np.empty(len(weight), dtype=np.int64)
    often[order] = np.diff(ends, prepend=0).astype(np.int64)
    return often


def _sequence(
    rows: NDArray[np.intp],
    level: NDArray[np.intp],
    often: Integers,
    chances: Floats,
    rng: np.random.Generator,
) -> Integers:
    """The rows as often as they come, by the moments drawn for them."""
    copies = np.repeat(np.arange(len(rows)), often)
    number = np.arange(len(copies)) - np.repeat(np.cumsum(often) - often, often)
    at = (number + rng.random(len(copies))) / often[copies]
    when = np.empty(len(copies))
    for each in np.unique(level[copies]):
        mine = level[copies] == each
        so_far = np.concatenate([[0.0], np.cumsum(chances[each])])
        when[mine] = np.interp(at[mine], so_far / so_far[-1], np.arange(len(so_far)))
    return np.asarray(rows[copies[np.argsort(when, kind="stable")]], dtype=np.int64)


def _merged(sequences: Sequence[Integers]) -> Integers:
    """One sequence in which every stretch holds each of these by its share."""
    if not sequences:
        return np.zeros(0, dtype=np.int64)
    at = np.concatenate([(np.arange(len(each)) + 0.5) / max(len(each), 1) for each in sequences])
    return np.asarray(np.concatenate(sequences)[np.argsort(at, kind="stable")])


def _apart(order: Integers, batch: int) -> Integers:
    """The same rows, but one that is in a batch already waits for the next."""
    rest, waiting = deque(order.tolist()), deque[int]()
    batches: list[list[int]] = [[]]
    inside: set[int] = set()
    while rest:
        if len(batches[-1]) == batch:
            rest.extendleft(reversed(waiting))
            waiting.clear()
            inside.clear()
            batches.append([])
        row = rest.popleft()
        if row in inside:
            waiting.append(row)
        else:
            inside.add(row)
            batches[-1].append(row)
    for row in waiting:
        # No batch is left that could take it: it changes places with a row of the nearest that can.
        last = batches[-1]
        if len(last) == batch:
            last = []
            batches.append(last)
        if row in last:
            swaps = (
                (each, place)
                for each in reversed(batches[:-1])
                if row not in each
                for place, other in enumerate(each)
                if other not in last
            )
            found = next(swaps, None)
            if found is not None:
                each, place = found
                each[place], row = row, each[place]
        last.append(row)
    return np.array([row for each in batches for row in each], dtype=np.int64)
