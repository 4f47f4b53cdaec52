"""How far an item's gradient points where the rest of the training set points, and how surely.

For rollout r of item i with gradient g_r, drawn w_r times (k_i = Σ w_r):

    u_r = g_r / ‖g_r‖,   m_i = Σ w_r u_r / k_i,   d_i = (S − m_i) / ‖S − m_i‖,   S = Σ_j m_j

    alignment a_r = u_r · d_i,      similarity_i = Σ w_r a_r / k_i

Because d_i leaves item i out, the a_r of an item are independent draws given d_i, so similarity_i
is unbiased whatever k_i: it does not fall with few rollouts as the cosine between item means does
(reference.md, section 2). Its interval is Student's t with a moderated variance (Smyth 2004,
"Linear models and empirical Bayes methods", the method of limma):

    s²_i = Σ w_r (a_r − similarity_i)² / (k_i − 1)
    s̃²_i = (d0 s0² + f_i s²_i) / (d0 + f_i),   standard error = s̃_i / √k_i,   d0 + f_i df

with f_i one less than the number of distinct completions, and d0 and s0² learned from all items, so
that an item with one rollout has an interval too, and one whose two rollouts happen to agree is not
believed to be exact. The interval is conditional on the measured d_i, that is, on the rollouts of
the other items.

    reliability_i = (k ‖ḡ_i‖² − mean ‖g_r‖²) / ((k − 1) ‖ḡ_i‖²)

is the share of the squared length of the raw mean gradient ḡ_i that is not sampling noise.

Repeated completions. The same completion drawn w times is w independent draws that coincide, not
one: the policy does put that much of its mass there. So it counts w times in k, the mean, s² and
the reliability, exactly as w equal rows. But how well s² is known depends on the distinct
completions seen: with 8 equal draws s² = 0, and yet a second completion of probability 0.1 would
stay unseen in 43 % of such draws. Hence f_i, which is limma's k_i − 1 where no completion repeats.
With k_i − 1 throughout, the 95 % intervals of such items covered 67 %; with f_i, 94 % or more
(tests/test_similarity.py).

Other departures from limma: the moments of log s² are weighted by their known precision
(DerSimonian and Laird 1986), as f ranges from 1 to hundreds within one run; d0 is capped at the
pooled degrees of freedom Σ f, because a prior cannot be known better than the data it came from;
and with fewer than 3 items that show a spread there is no telling how much spreads differ, so s0²
is their pooled variance and d0 = Σ f. If no item shows a spread, no item has an interval.
"""

import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import digamma, polygamma
from scipy.stats import t as student_t

Floats = NDArray[np.float64]

NEIGHBOURS = 5
# Alignments closer than this are equal rows seen through rounding; those of unrelated gradients
# differ by 1e-3 even in a million dimensions.
_SAME_ALIGNMENT = 1e-9
_FEWEST_ITEMS_FOR_PRIOR = 3


@dataclass(frozen=True)
class Similarity:
    """What the gradients say of each item: arrays of shape (items,), nan where undefined."""

    rollouts_used: NDArray[np.int64]
    """Draws behind the item, multiplicities counted; 0 for an item without a gradient."""
    similarity: Floats
    """Mean alignment with the direction of all other items, −1 to 1."""
    standard_error: Floats
    low: Floats
    high: Floats
    degrees_of_freedom: Floats
    """Of the t distribution behind the interval: prior and own together."""
    reliability: Floats
    """Share of ‖ḡ‖² that is not sampling noise, 0 to 1; nan with fewer than 2 rollouts."""
    mean_squared_norm: Floats
    similarity_easy: Floats
    """Mean alignment with the direction of the other easy items."""
    similarity_hard: Floats
    """Mean alignment with the direction of the other items that are not easy."""
    nearest: NDArray[np.int64]
    """(items, 5) most similar items by cosine of m_i, nearest first, −1 where there are fewer.

    For exploring only: the neighbours are chosen and measured on the same rollouts, so noise
    flatters them.
    """


def measure_similarity(
    features: NDArray[np.floating],
    item_index: NDArray[np.integer],
    weights: NDArray[np.integer],
    is_easy: NDArray[np.bool_],
    *,
    confidence: float = 0.95,
    block_bytes: int = 2**28,
    scratch: Path | None = None,
) -> Similarity:
    """Similarity of every item's gradient to the gradients of the others.

    features: (rollouts, dim), one gradient a row in any float type, possibly a memmap.
    item_index: (rollouts,), the item of each row, 0 to items − 1; fastest with an item's rows
    together. weights: (rollouts,), how often each completion was drawn. is_easy: (items,).

    Holds about `block_bytes` of features at a time, and keeps the item means in a temporary file
    in `scratch` (4 · items · dim bytes, the system's temporary folder if None). A row with weight 0
    or a zero gradient has no direction and is left out. Raises ValueError for shapes that do not
    fit, an item_index out of range, weights that are not whole multiplicities, non-finite features.
    """
    item_index, weights, is_easy = np.asarray(item_index), np.asarray(weights), np.asarray(is_easy)
    items = len(is_easy)
    _check_inputs(features, item_index, weights, items)
    dim = features.shape[1]
    rows_per_block = max(1, block_bytes // (8 * dim))
    norms = _row_norms(features, rows_per_block)
    usable = np.flatnonzero((weights > 0) & (norms > 0))
    rows_of_item = _rows_by_item(item_index, usable)
    rollouts_used = np.zeros(items, dtype=np.int64)
    mean_squared_norm, reliability = np.full(items, np.nan), np.full(items, np.nan)

    with tempfile.TemporaryFile(dir=scratch) as file:
        means = np.memmap(file, dtype=np.float32, mode="w+", shape=(max(items, 1), dim))
        # The easy and the other items are summed apart: (not easy, easy) × dim.
        sums, counts = np.zeros((2, dim)), np.zeros(2, dtype=np.int64)
        for item, rows in rows_of_item.items():
            total = int(weights[rows].sum())
            shares = weights[rows] / total
            unit_mean, raw_mean = np.zeros(dim), np.zeros(dim)
            for part, gradients in _blocks(features, rows, rows_per_block):
                unit_mean += (shares[part] / norms[rows[part]]) @ gradients
                raw_mean += shares[part] @ gradients
            means[item] = unit_mean
            # Sum what was stored, so that leaving the item out again subtracts the same numbers.
            sums[int(is_easy[item])] += means[item]
            counts[int(is_easy[item])] += 1
            rollouts_used[item] = total
            mean_squared_norm[item] = shares @ norms[rows] ** 2
            reliability[item] = _reliability(
                total, float(raw_mean @ raw_mean), float(mean_squared_norm[item])
            )

        similarity, variance = np.full(items, np.nan), np.zeros(items)
        own_freedom = np.zeros(items)
        by_group = np.full((2, items), np.nan)
        for item, rows in rows_of_item.items():
            mean = means[item].astype(np.float64)
            others, other_counts = sums.copy(), counts.copy()
            others[int(is_easy[item])] -= mean
            other_counts[int(is_easy[item])] -= 1
            for group in (0, 1):
                group_direction = _direction(others[group], int(other_counts[group]))
                if group_direction is not None:
                    by_group[group, item] = mean @ group_direction
            direction = _direction(others.sum(axis=0), int(other_counts.sum()))
            if direction is None:
                continue
            alignments = np.empty(len(rows))
            for part, gradients in _blocks(features, rows, rows_per_block):
                alignments[part] = gradients @ direction / norms[rows[part]]
            total = int(rollouts_used[item])
            similarity[item] = weights[rows] @ alignments / total
            squares = (alignments - similarity[item]) ** 2
            variance[item] = weights[rows] @ squares / max(total - 1, 1)
            own_freedom[item] = (np.diff(np.sort(alignments)) > _SAME_ALIGNMENT).sum()
        nearest = _nearest_items(means, rollouts_used > 0, block_bytes)
        del means

    moderated, degrees_of_freedom = moderate_variances(variance, own_freedom)
    moderated[np.isnan(similarity)] = degrees_of_freedom[np.isnan(similarity)] = np.nan
    standard_error = np.sqrt(moderated / np.maximum(rollouts_used, 1))
    half_width = student_t.ppf((1 + confidence) / 2, degrees_of_freedom) * standard_error
    return Similarity(
        rollouts_used=rollouts_used,
        similarity=similarity,
        standard_error=standard_error,
        # A cosine cannot leave [−1, 1], whatever t says with few degrees of freedom.
        low=np.clip(similarity - half_width, -1, 1),
        high=np.clip(similarity + half_width, -1, 1),
        degrees_of_freedom=degrees_of_freedom,
        reliability=reliability,
        mean_squared_norm=mean_squared_norm,
        similarity_easy=by_group[1],
        similarity_hard=by_group[0],
        nearest=nearest,
    )


def moderate_variances(variances: Floats, degrees_of_freedom: Floats) -> tuple[Floats, Floats]:
    """Empirical-Bayes variances and their degrees of freedom, both (items,).

    variances: (items,) s², each with its own degrees of freedom; where those are 0 it is the prior
    alone that speaks. All nan if none has any, for then nothing is known of any.
    """
    spread = degrees_of_freedom > 0
    if not spread.any():
        return np.full(len(variances), np.nan), np.full(len(variances), np.nan)
    prior_variance, prior_freedom = _variance_prior(variances[spread], degrees_of_freedom[spread])
    total = prior_freedom + degrees_of_freedom
    moderated = (prior_freedom * prior_variance + degrees_of_freedom * variances) / total
    # As in limma: together, prior and own cannot have more than all items have.
    return moderated, np.minimum(total, degrees_of_freedom.sum())


def _variance_prior(variances: Floats, freedom: Floats) -> tuple[float, float]:
    """s0² and d0 of s² ~ s0² F(d, d0), from the mean and the excess variance of log s²."""
    pooled = float(freedom.sum())
    if len(variances) < _FEWEST_ITEMS_FOR_PRIOR:
        return float(variances @ freedom / pooled), pooled
    logs = np.log(variances) - digamma(freedom / 2) + np.log(freedom / 2)
    sampling = polygamma(1, freedom / 2)  # variance of log s² if all items had one σ²
    weights = 1 / sampling
    mean = weights @ logs / weights.sum()
    left_over = weights * (1 - weights / weights.sum())
    excess = float((weights @ (logs - mean) ** 2 - left_over @ sampling) / left_over.sum())
    weights = 1 / (sampling + max(excess, 0.0))
    mean = float(weights @ logs / weights.sum())
    half = _inverse_trigamma(excess) if excess > 0 else math.inf
    prior_freedom = min(2 * half, pooled)
    half = prior_freedom / 2
    return math.exp(mean + float(digamma(half)) - math.log(half)), prior_freedom


def _inverse_trigamma(value: float) -> float:
    """The y > 0 with trigamma(y) = value > 0, by Newton's method (Smyth 2004, appendix)."""
    if value < 1e-6:
        return 1 / value
    if value > 1e7:
        return 1 / math.sqrt(value)
    y = 0.5 + 1 / value
    for _ in range(50):
        trigamma = float(polygamma(1, y))
        step = trigamma * (1 - trigamma / value) / float(polygamma(2, y))
        y += step
        if -step / y < 1e-12:
            break
    return y


def _check_inputs(
    features: NDArray[np.floating],
    item_index: NDArray[np.integer],
    weights: NDArray[np.integer],
    items: int,
) -> None:
    if features.ndim != 2 or features.shape[1] == 0:
        raise ValueError(f"features must be (rollouts, dim), got shape {features.shape}")
    rollouts = features.shape[0]
    if item_index.shape != (rollouts,) or weights.shape != (rollouts,):
        raise ValueError(
            f"{rollouts} rows of features need as many item_index and weights, "
            f"got {item_index.shape} and {weights.shape}"
        )
    if rollouts and (item_index.min() < 0 or item_index.max() >= items):
        raise ValueError(f"item_index must lie in 0 to {items - 1}")
    if np.any(weights < 0) or np.any(weights != np.floor(weights)):
        raise ValueError("weights are multiplicities: whole numbers, at least 0")


def _rows_by_item(
    item_index: NDArray[np.integer], usable: NDArray[np.intp]
) -> dict[int, NDArray[np.intp]]:
    """The usable rows of each item that has any, in the order of the items."""
    rows = usable[np.argsort(item_index[usable], kind="stable")]
    items, starts = np.unique(item_index[rows], return_index=True)
    return dict(zip(items.tolist(), np.split(rows, starts[1:]), strict=False))


def _blocks(
    features: NDArray[np.floating], rows: NDArray[np.intp], rows_per_block: int
) -> Iterator[tuple[slice, Floats]]:
    """The named rows in double precision, some at a time, with their place in `rows`."""
    for start in range(0, len(rows), rows_per_block):
        part = slice(start, min(start + rows_per_block, len(rows)))
        yield part, features[rows[part]].astype(np.float64)


def _row_norms(features: NDArray[np.floating], rows_per_block: int) -> Floats:
    norms = np.empty(len(features))
    for part, gradients in _blocks(features, np.arange(len(features)), rows_per_block):
        norms[part] = np.sqrt(np.einsum("rd,rd->r", gradients, gradients))
    if not np.isfinite(norms).all():
        row = int(np.flatnonzero(~np.isfinite(norms))[0])
        raise ValueError(f"features row {row} is not finite")
    return norms


def _reliability(rollouts: int, squared_norm_of_mean: float, mean_squared_norm: float) -> float:
    if rollouts < 2:
        return math.nan
    if squared_norm_of_mean == 0:
        return 0.0
    signal = (rollouts * squared_norm_of_mean - mean_squared_norm) / (rollouts - 1)
    return min(max(signal / squared_norm_of_mean, 0.0), 1.0)


def _direction(total: Floats, items: int) -> Floats | None:
    """Unit vector along a sum over `items` item means; None if there is none or they cancel."""
    norm = float(np.linalg.norm(total))
    # The means are stored in single precision: a shorter sum is their rounding.
    return total / norm if items > 0 and norm > 1e-6 * items**0.5 else None


def _nearest_items(
    means: NDArray[np.float32], used: NDArray[np.bool_], block_bytes: int
) -> NDArray[np.int64]:
    """Items of highest cosine between means, (items, 5), by a blocked product of all pairs."""
    best = np.full((len(used), NEIGHBOURS), -1, dtype=np.int64)
    best_cosines = np.full(best.shape, -np.inf, dtype=np.float32)
    candidates = np.flatnonzero(used)
    # Bounds a block of means and a block of cosines with the indices that sort them.
    size = max(1, min(block_bytes // (4 * means.shape[1]), math.isqrt(block_bytes // 16)))
    blocks = [candidates[start : start + size] for start in range(0, len(candidates), size)]

    def unit_means(items: NDArray[np.intp]) -> NDArray[np.float32]:
        block: NDArray[np.float32] = means[items]
        block /= np.maximum(np.linalg.norm(block, axis=1, keepdims=True), 1e-30)
        return block

    def keep_best(
        items: NDArray[np.intp], others: NDArray[np.intp], cosines: NDArray[np.float32]
    ) -> None:
        few = min(NEIGHBOURS, len(others))
        top = np.argpartition(cosines, len(others) - few, axis=1)[:, -few:]
        cosines = np.hstack([best_cosines[items], np.take_along_axis(cosines, top, axis=1)])
        indices = np.hstack([best[items], others[top]])
        order = np.argsort(-cosines, axis=1, kind="stable")[:, :NEIGHBOURS]
        best_cosines[items] = np.take_along_axis(cosines, order, axis=1)
        best[items] = np.take_along_axis(indices, order, axis=1)

    for first, items in enumerate(blocks):
        left = unit_means(items)
        for others in blocks[first:]:
            if others is items:
                cosines = left @ left.T
                np.fill_diagonal(cosines, -np.inf)
                keep_best(items, others, cosines)
            else:
                cosines = left @ unit_means(others).T
                keep_best(items, others, cosines)
                keep_best(others, items, cosines.T)
    best[np.isneginf(best_cosines)] = -1
    return best
