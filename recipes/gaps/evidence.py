"""What the gradients say of an item that training will not solve: four numbers, noise taken out.

With s_r, g_r, h_i, D_i of `probes.lift.gradients` and r, q different correct rollouts of item i:

    own_i      = mean ⟨s_r, g_q − ḡ⁻⟩ / mean ⟨s_r, g_r⟩
                 what correct rollouts have in common that wrong ones have not, as a share of the
                 gradient of a single one: the own term of the lift without its weight. 0 where they
                 have as much in common with wrong ones, or nothing at all.
    inside_i   = mean ⟨P s_r, P s_q⟩ / mean ⟨s_r, s_q⟩
                 the share of h_i (its squared length) within the span of the others' steps.
    from_others_i, lift_i: of `probes.stages.lift`.
    mutual_ij  = ½ (⟨h_i, D_j⟩ + ⟨h_j, D_i⟩) / √(⟨h_i, D_i⟩ ⟨h_j, D_j⟩)
                 1 where two items do for each other what they do for themselves.

No rollout meets itself, so that chance adds nothing on average. An item has few correct rollouts:
what of its length is no noise is drawn to the run's as by one rollout more, and errors to those of
the run's items as in the lift (d₀ = 4), for which up to 256 other items are looked at as well. What
stands on pairs of k draws has k − 2 degrees of freedom of its own. Where no item of the run has
three correct rollouts, the next one might say anything that is possible, and that is the error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from probes.lift.gradients import Block, Work
from probes.statistics.distributions import student_t_quantile, student_t_tail
from recipes.gaps.span import Span

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
Places = NDArray[np.intp]

CONFIDENCE = 0.90
"""Of intervals: what is said for certain is wrong by chance in a twentieth of the cases."""
_PRIOR = 4.0
_WIDEST_SHARE, _WIDEST_PRODUCT = 0.25, 1.0
"""The largest variance of a share, and of a cosine."""


@dataclass(frozen=True)
class Measured:
    """A number of each item with its interval: arrays (items,), nan where it is unknown."""

    value: Floats
    low: Floats
    high: Floats

    def first(self, count: int) -> Measured:
        """Those of the first items."""
        return Measured(self.value[:count], self.low[:count], self.high[:count])

    @classmethod
    def of(cls, value: Floats, variance: Floats, freedom: Floats, most: float = np.inf) -> Measured:
        """By the variance of the value and the degrees of freedom; cut to what is possible."""
        half = student_t_quantile((1 + CONFIDENCE) / 2, freedom) * np.sqrt(variance)
        low = -np.inf if most == np.inf else 0.0
        return cls(*(np.clip(each, low, most) for each in (value, value - half, value + half)))


def moderated(variance: Floats, freedom: Floats, widest: float) -> tuple[Floats, Floats]:
    """Variances drawn to those of the run's items, and their degrees of freedom.

    Args:
        variance: of a draw, (items,).
        freedom: (items,), 0 where it was not estimated.
        widest: what it can be at most, which counts as one degree of freedom.
    """
    total = float(freedom.sum())
    prior = (float(freedom @ np.where(freedom > 0, variance, 0.0)) + widest) / (total + 1)
    own = np.where(freedom > 0, freedom * variance, 0.0)
    return (_PRIOR * prior + own) / (_PRIOR + freedom), _PRIOR + freedom


def share_of_pairs(vectors: Floats, weights: Floats) -> tuple[float, float, Floats]:
    """Σ over pairs of draws ⟨v_r, v_q⟩ and over draws ⟨v_r, v_r⟩, as means; and each row's pairs.

    Args:
        vectors: (rows, columns).
        weights: (rows,), draws of each.
    """
    k = float(weights.sum())
    alone = np.einsum("rd,rd->r", vectors, vectors)
    to_others = (vectors @ (weights @ vectors) - alone) / max(k - 1, 1)
    return float(weights @ to_others) / k, float(weights @ alone) / k, to_others


@dataclass(frozen=True)
class Evidence:
    """Of the items that are asked about, in their order."""

    draws: NDArray[np.int64]
    """Correct rollouts behind the gradient, (items,)."""
    own: Measured
    typical: float
    """`own` of the run's rollouts: over all items looked at with two draws at least."""
    inside: Measured
    cosine: Floats
    """Of the mean correct and the mean wrong gradient, noise taken out; nan where either is none.
    """
    effects: Floats
    """(items, teachers): what a group of each teacher does for the item's log odds; 0: itself."""
    mutual: Floats
    """(items, items), 0 where it is not above noise."""
    slopes: Singles
    """(items, dim): h_i over the root of its own squared length."""
    between_draws: float
    """The variance of `inside` by a draw, pooled."""


@dataclass
class _Item:
    """The sums that one item leaves."""

    k: float
    s: Singles
    g: Singles
    wrong: Singles
    weights: Floats
    wrong_weights: Floats


def gather(
    work: Work, span: Span, asked: Sequence[int], others: Sequence[int], block_bytes: int
) -> Evidence:
    """Measure the items that are asked about.

    Args:
        work: of the run.
        span: of its training signal.
        asked: places of the items; at least one.
        others: places of further items, which tell how far rollouts differ.
        block_bytes: memory for the rollouts in hand. The rollouts of these items lie in memory.

    Raises:
        ValueError: a gradient is not finite.
    """
    items = [*asked, *others]
    found: dict[int, _Item] = {}
    for rows in work.blocks(block_bytes):
        wanted = rows[np.isin(work.inputs.item[rows], items)]
        if len(wanted):
            found.update(_items(work.read(wanted)))
    dim = work.inputs.features.shape[1]
    count = len(items)
    none = np.zeros((0, dim), np.float32)
    of = [found.get(each, _Item(0, none, none, none, np.zeros(0), np.zeros(0))) for each in items]
    k = np.array([each.k for each in of])
    h, d = np.zeros((2, count, dim), dtype=np.float32)
    for n, each in enumerate(of):
        if each.k:
            h[n] = each.weights @ each.s / each.k
            d[n] = each.weights @ each.g / each.k - _mean(each.wrong, each.wrong_weights)
    own, typical, length, shrunk = _own(of, k, h)
    inside, between = _inside(of, k, span, items)
    places, many = np.array(asked), len(asked)
    odds = work.odds[places]
    effects = (h[:many].astype(np.float64) @ span.steps.T.astype(np.float64)) * odds[:, None]
    effects[places[:, None] == span.teachers[None, :]] = 0.0
    scale = np.sqrt(shrunk * length)
    with np.errstate(invalid="ignore", divide="ignore"):
        slopes = np.where(scale[:, None] > 0, h / scale[:, None], 0).astype(np.float32)
    mutual = _mutual(of, k, h, d, scale, many)
    cosine = np.array([_cosine(each) for each in of[:many]])
    return Evidence(
        k[:many].astype(np.int64), own.first(many), typical, inside.first(many), cosine, effects,
        mutual, slopes[:many], between,
    )  # fmt: skip


def _items(block: Block) -> dict[int, _Item]:
    of = {}
    for n, item in enumerate(block.items):
        rows = block.owner == n
        right, wrong = rows & block.is_correct, rows & ~block.is_correct
        of[int(item)] = _Item(
            float(block.weights[right].sum()), block.s[right], block.g[right], block.g[wrong],
            block.weights[right], block.weights[wrong],
        )  # fmt: skip
    return of


def _mean(rows: Singles, weights: Floats) -> Floats:
    return np.asarray(weights @ rows / max(weights.sum(), 1))


def _drawn(values: Floats, typical: float, k: Floats) -> Floats:
    """Ratios drawn to the run's, which counts as one rollout."""
    free = np.maximum(k - 1, 0)
    return np.asarray((typical + free * np.where(free > 0, values, 0.0)) / (1 + free))


def _own(of: Sequence[_Item], k: Floats, h: Singles) -> tuple[Measured, float, Floats, Floats]:
    """`own`, its mean, mean ⟨s_r, g_r⟩, and `own` drawn to its mean."""
    pairs, against, alone, variance, by_wrong = np.full((5, len(of)), np.nan)
    for n, each in enumerate(of):
        if not each.k:
            continue
        s, g = each.s.astype(np.float64), each.g.astype(np.float64)
        itself = np.einsum("rd,rd->r", s, g)
        alone[n] = each.weights @ itself / each.k
        to = s @ _mean(each.wrong, each.wrong_weights)
        against[n] = each.weights @ to / each.k
        more = max(each.k - 1, 1)
        one = (s @ (each.weights @ g) - itself) / more
        other = (g @ (each.weights @ s) - itself) / more
        pairs[n] = each.weights @ one / each.k
        influence = one + other - to
        influence -= each.weights @ influence / each.k
        variance[n] = each.weights @ influence**2 / more / alone[n] ** 2
        m = each.wrong_weights.sum()
        if m:
            along = each.wrong @ h[n].astype(np.float64)
            along = along - (each.wrong_weights @ along / m if m > 1 else 0.0)
            by_wrong[n] = each.wrong_weights @ along**2 / m / max(m - 1, 1) / alone[n] ** 2
    paired = k > 1
    share = float(pairs[paired].sum() / alone[paired].sum()) if paired.any() else 1.0
    value = np.where(paired, pairs / alone, np.clip(share, 0, 1)) - against / alone
    typical = float(value[paired] @ alone[paired] / alone[paired].sum()) if paired.any() else 1.0
    has = k > 0
    each_draw, freedom = moderated(variance, np.maximum(k - 2, 0), _WIDEST_SHARE)
    measured = Measured.of(value, each_draw / np.maximum(k, 1) + np.nan_to_num(by_wrong), freedom)
    drawn = np.where(has, np.maximum(_drawn(value, typical, k), 0.0), 0.0)
    return measured, typical, np.nan_to_num(alone), drawn


def _inside(
    of: Sequence[_Item], k: Floats, span: Span, items: Sequence[int]
) -> tuple[Measured, float]:
    whole, part, alone, alone_part, variance = np.full((5, len(of)), np.nan)
    rows: list[tuple[Floats, Floats]] = []
    for n, each in enumerate(of):
        rows.append((np.zeros(0), np.zeros(0)))
        if each.k:
            within = (each.s @ span.vectors.T).astype(np.float64) @ span.without([items[n]]).T
            part[n], alone_part[n], to_part = share_of_pairs(within, each.weights)
            whole[n], alone[n], to_whole = share_of_pairs(each.s.astype(np.float64), each.weights)
            rows[n] = to_part, to_whole
    paired = k > 1
    ratio = ratio_part = 1.0
    if paired.any():
        ratio = max(float(whole[paired].sum() / alone[paired].sum()), 0.0)
        total = float(alone_part[paired].sum())
        ratio_part = max(float(part[paired].sum()) / total, 0.0) if total > 0 else 0.0
    with np.errstate(invalid="ignore", divide="ignore"):
        length = alone * np.maximum(_drawn(whole / alone, ratio, k), 0.0)
        known = np.where(alone_part > 0, part / alone_part, 0.0)
        inside_length = alone_part * _drawn(known, ratio_part, k)
        value = np.where(length > 0, inside_length / length, np.nan)
    for n, (to_part, to_whole) in enumerate(rows):
        if k[n] > 2 and length[n] > 0:
            influence = 2 * (to_part - np.clip(value[n], 0, 1) * to_whole) / length[n]
            weights = of[n].weights
            influence = influence - weights @ influence / k[n]
            variance[n] = weights @ influence**2 / (k[n] - 1)
    freedom = np.where(np.isfinite(variance), np.maximum(k - 2, 0), 0.0)
    has = np.isfinite(value)
    each_draw, freedom = moderated(np.nan_to_num(variance), freedom, _WIDEST_SHARE)
    value = np.clip(value, 0, 1)
    return Measured.of(value, each_draw / np.maximum(k, 1), freedom, most=1.0), float(
        each_draw[has].mean() if has.any() else 0.0
    )


def _mutual(
    of: Sequence[_Item], k: Floats, h: Singles, d: Singles, scale: Floats, many: int
) -> Floats:
    """What the first `many` items do for each other over what they do for themselves; 0 where it
    may be chance.

    Of all pairs those are above noise that pass a test by Benjamini and Hochberg at 5 %.
    """
    count = len(of)
    products = (h @ d.T).astype(np.float64)
    # The variance of each draw's product, by the draws of the one and of the other.
    by_pupil, by_teacher = np.zeros((2, count, count))
    square_s, square_g = np.ones((2, count))
    for n, each in enumerate(of):
        if not each.k:
            continue
        square_s[n] = each.weights @ np.einsum("rd,rd->r", each.s, each.s) / each.k
        square_g[n] = each.weights @ np.einsum("rd,rd->r", each.g, each.g) / each.k
        by_pupil[n] = _spread((each.s @ d.T).astype(np.float64), each.weights)
        by_teacher[:, n] = _spread((each.g @ h.T).astype(np.float64), each.weights)
    length_h, length_d = (np.einsum("id,id->i", each, each).astype(float) for each in (h, d))
    free = np.maximum(k - 1, 0)
    has = (k > 0) & (scale > 0)
    off = has[:, None] & has[None, :] & ~np.eye(count, dtype=bool)
    if not off.any():
        return np.zeros((many, many))
    units = np.outer(square_s, length_d), np.outer(length_h, square_g)
    variance = np.zeros((count, count))
    for spread, unit, freedom, draws in (
        (by_pupil, units[0], free[:, None] + np.zeros(count), k[:, None]),
        (by_teacher, units[1], free[None, :] + np.zeros((count, 1)), k[None, :]),
    ):
        unit = np.where(unit > 0, unit, 1.0)
        relative = (spread / unit)[off]
        drawn, _ = moderated(relative, freedom[off], _WIDEST_PRODUCT)
        filled = np.zeros((count, count))
        filled[off] = drawn * unit[off]
        variance += filled / np.maximum(draws, 1)
    # What wrong rollouts add is the noise of the teacher's mean, of those that it has.
    for n, each in enumerate(of):
        m = each.wrong_weights.sum()
        if m:
            along = _spread((each.wrong @ h.T).astype(np.float64), each.wrong_weights)
            if m < 2:
                along = ((each.wrong @ h.T).astype(np.float64) ** 2).sum(axis=0)
            variance[:, n] += along / m
    # Other items have told what they could.
    off[many:, :] = off[:, many:] = False
    mutual = (products + products.T) / 2
    error = np.sqrt((variance + variance.T) / 4)
    freedom = _PRIOR + np.minimum(free[:, None], free[None, :])
    with np.errstate(invalid="ignore", divide="ignore"):
        chance = student_t_tail(np.where(error > 0, mutual / error, np.inf), freedom)
        value = np.where(off, mutual / np.outer(scale, scale), 0.0)
    upper = np.triu(off)
    ordered = np.sort(chance[upper])
    passing = np.flatnonzero(ordered <= 0.05 * np.arange(1, len(ordered) + 1) / len(ordered))
    level = ordered[passing[-1]] if len(passing) else -1.0
    return np.where(off & (chance <= level), np.clip(value, 0, 1), 0.0)[:many, :many]


def _spread(values: Floats, weights: Floats) -> Floats:
    """The variance over draws of each column; 0 of a single draw."""
    k = weights.sum()
    if k < 2:
        return np.zeros(values.shape[1])
    return np.asarray(weights @ (values - weights @ values / k) ** 2 / (k - 1))


def _cosine(each: _Item) -> float:
    if each.k < 2 or each.wrong_weights.sum() < 2:
        return float("nan")
    right, _, _ = share_of_pairs(each.g.astype(np.float64), each.weights)
    wrong, _, _ = share_of_pairs(each.wrong.astype(np.float64), each.wrong_weights)
    if right <= 0 or wrong <= 0:
        return float("nan")
    cross = _mean(each.g, each.weights) @ _mean(each.wrong, each.wrong_weights)
    return float(np.clip(cross / np.sqrt(right * wrong), -1, 1))
