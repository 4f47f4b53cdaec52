"""How well the gradients of groups of items agree: the blocks of the paper's Figure 6.

The paper (arXiv 2605.16787) shows the mean of cos(ḡ_i, ḡ_j) over pairs of items, by group: easy
items agree with each other, learnable ones less, unlearnable ones with nobody. Its ḡ are means of
up to 1,000 rollouts. With few rollouts ḡ is mostly noise, and a plain cosine measures how many
correct rollouts an item has. What is estimated here does not depend on that. For rollout r of item
i with unit gradient u_r, k_i draws and m_i = mean u_r, and groups a and b,

    A_ab = mean of m_i · m_j over the pairs i ∈ a, j ∈ b, i ≠ j      (the rollout cosine)
    R_a  = mean over i ∈ a of (k_i ‖m_i‖² − 1) / (k_i − 1)
    C_ab = A_ab / √(R_a R_b)                                         (the cosine)

A_ab is the expected cosine of two correct rollouts of different items. Rollouts of different items
are independent, so it is unbiased whatever the k_i; pairs of one item, whose product holds the
square of the noise, are left out. R_a is the same of two different rollouts of one item, unbiased
too, and is what A would be if the items of a all had one direction. So C_ab is the cosine between
the items' expected directions, with the noise of rollouts taken out as Spearman (1904) corrects a
correlation for attenuation. It is the mean of cos(E u_i, E u_j) where the expected directions of a
group have one length, and weighs items by that length elsewhere: an item whose rollouts agree with
nothing, themselves included, adds nothing. By Cauchy and Schwarz the true C lies in −1 to 1; an
estimate may not. R is taken of the group and not of the item, because an item's own is as noisy as
its mean: dividing by it overshoots. Where R_a cannot be told from 0 there is no direction to
compare, and C is undefined.

Departures from the paper: gradients at unit length before they are averaged, so that a few long
ones do not decide; the correction; items with fewer than two correct rollouts are left out, since
they say nothing of R.

The cost is linear: Σ_{i≠j} m_i · m_j = (Σ_a m_i) · (Σ_b m_j) − Σ_{a∩b} ‖m_i‖². A bootstrap over
items keeps such sums for every resample, v_i being how often item i was drawn,

    Σ_{i≠j} v_i v_j m_i · m_j = (Σ_a v_i m_i) · (Σ_b v_j m_j) − Σ_{a∩b} v_i² ‖m_i‖²,

so that two copies of one item are no pair either. It answers for the items and, since each comes
with its noise, for the rollouts: where groups do not agree at all its variance is three times too
large, which errs on the safe side. It does not answer for the projection of the gradients, whose
error is about 1/√dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from curate.run.features import RolloutFeatures
from probes.gradients.similarity import mean_directions

Floats = NDArray[np.float64]

# Below this a resample often holds a single item, and quantiles say nothing.
FEWEST_ITEMS = 5


@dataclass(frozen=True)
class GroupSums:
    """Sums over the items of each group, for the items themselves and for every resample."""

    items: NDArray[np.int64]
    """(groups,): items with a mean of two draws or more."""
    directions: NDArray[np.float32]
    """(groups, 1 + resamples, dim): Σ v_i m_i; first with all v_i = 1."""
    squares: Floats
    """(groups, 1 + resamples): Σ v_i² ‖m_i‖²."""
    agreement: Floats
    """Σ v_i R_i."""
    counts: Floats
    """Σ v_i."""
    squared_counts: Floats
    """Σ v_i²."""


@dataclass(frozen=True)
class Alignment:
    """Mean cosines between sets of items, and how they vary over resamples."""

    items: NDArray[np.int64]
    """(sets,)."""
    rollout_cosine: Floats
    """A, (1 + resamples, sets, sets); nan where there is no pair."""
    agreement: Floats
    """R, (1 + resamples, sets)."""
    cosine: Floats
    """C, the same shape; nan also for a set whose R cannot be told from 0."""


def resample_items(
    group: NDArray[np.integer], resamples: int, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Draw items anew, with replacement, within each group.

    Args:
        group: (items,), −1 for an item of no group.
        resamples: how often.
        rng: of the bootstrap.

    Returns:
        v, (1 + resamples, items): how often each item was drawn; the first row is 1 for every item
        of a group.
    """
    counts = np.zeros((1 + resamples, len(group)), dtype=np.uint8)
    counts[0] = group >= 0
    for each in range(int(group.max(initial=-1)) + 1):
        members = np.flatnonzero(group == each)
        for row in counts[1:] if len(members) else ():
            drawn = rng.integers(len(members), size=len(members))
            row[members] = np.bincount(drawn, minlength=len(members))
    return counts


def sum_groups(
    found: RolloutFeatures,
    place: NDArray[np.integer],
    group: NDArray[np.integer],
    groups: int,
    counts: NDArray[np.uint8],
) -> GroupSums:
    """Sum the items' mean directions by group, for every resample, in one pass over the rollouts.

    Memory: groups × (1 + resamples) × dim singles, and the blocks of `mean_directions`.

    Args:
        found: features of the run.
        place: (items of the run,): where each item stands in `group`; −1 where it does not.
        group: (items,), 0 to groups − 1; −1 for an item of no group.
        groups: their number.
        counts: (1 + resamples, items), of `resample_items`.

    Raises:
        ValueError: features that are not finite or do not fit their index.
    """
    rows = len(counts)
    directions = np.zeros((groups, rows, found.features.shape[1]), dtype=np.float32)
    squares, agreement, totals, squared = np.zeros((4, groups, rows))
    items = np.zeros(groups, dtype=np.int64)
    for positions, draws, means in mean_directions(found.features, found.item, found.weights):
        places = place[positions]
        of_group = np.where(places >= 0, group[places], -1)
        lengths = np.einsum("id,id->i", means, means, dtype=np.float64)
        for each in np.unique(of_group[(of_group >= 0) & (draws > 1)]):
            members = np.flatnonzero((of_group == each) & (draws > 1))
            drawn = counts[:, places[members]].astype(np.float32)
            directions[each] += drawn @ means[members]
            k, square = draws[members], lengths[members]
            squares[each] += drawn**2 @ square
            agreement[each] += drawn @ ((k * square - 1) / (k - 1))
            totals[each] += drawn.sum(axis=1)
            squared[each] += (drawn**2).sum(axis=1)
            items[each] += len(members)
    return GroupSums(items, directions, squares, agreement, totals, squared)


def align(sums: GroupSums, sets: NDArray[np.bool_], confidence: float = 0.95) -> Alignment:
    """Mean cosines between sets of groups.

    Args:
        sums: of `sum_groups`.
        sets: (sets, groups): the groups that make each set; sets may overlap.
        confidence: with which R of a set must lie above 0 for a cosine.
    """
    members = sets.astype(np.float64)
    rows = sums.counts.shape[1]
    rollout_cosine = np.full((rows, len(sets), len(sets)), np.nan)
    directions = [
        np.sum(sums.directions[one], axis=0, dtype=np.float32) if one.any() else None
        for one in sets
    ]
    totals = members @ sums.counts
    for first, one in enumerate(directions):
        for second, other in enumerate(directions[: first + 1]):
            if one is None or other is None:
                continue
            both = members[first] * members[second]
            products = np.einsum("rd,rd->r", one, other, dtype=np.float64) - both @ sums.squares
            pairs = totals[first] * totals[second] - both @ sums.squared_counts
            mean = np.divide(products, pairs, out=np.full(rows, np.nan), where=pairs > 0)
            rollout_cosine[:, first, second] = rollout_cosine[:, second, first] = mean
    with np.errstate(invalid="ignore", divide="ignore"):
        agreement = (members @ sums.agreement / totals).T
    is_known = (agreement > 0) & _is_positive(agreement, confidence)
    lengths = np.sqrt(np.where(is_known, agreement, np.nan))
    cosine = rollout_cosine / (lengths[:, :, None] * lengths[:, None, :])
    items = (sets @ sums.items).astype(np.int64)
    return Alignment(items, rollout_cosine, agreement, cosine)


def _is_positive(agreement: Floats, confidence: float) -> NDArray[np.bool_]:
    """Whether R of each set can be told from 0, (sets,), from (1 + resamples, sets)."""
    filled = np.nan_to_num(agreement, nan=-1.0)
    low = np.quantile(filled[1:], (1 - confidence) / 2, axis=0) if len(filled) > 1 else filled[0]
    return np.asarray((filled[0] > 0) & (low > 0))


def quantile_interval(
    resamples: Floats, items: NDArray[np.integer], confidence: float = 0.95
) -> tuple[Floats, Floats]:
    """Interval (low, high) of each set, or each pair of sets, from their resamples.

    Args:
        resamples: (resamples, sets) or (resamples, sets, sets).
        items: (sets,): nan for a set of fewer than `FEWEST_ITEMS`.
        confidence: of the intervals.
    """
    tail = (1 - confidence) / 2
    low, high = np.full((2, *resamples.shape[1:]), np.nan)
    enough = items >= FEWEST_ITEMS
    if resamples.ndim == 3:
        enough = enough[:, None] & enough[None, :]
    known = np.isfinite(resamples).any(axis=0) & enough
    if known.any():
        low[known], high[known] = np.nanquantile(resamples[:, known], [tail, 1 - tail], axis=0)
    return low, high
