"""How well an item's gradient agrees with the items that the policy already solves, and how surely.

RL on the items of a dataset moves the policy mostly along the gradients of items that have correct
rollouts. An item is learned by transfer from those among them that are near to it, so it is
compared with its nearest easy items, and not with the mean of everything (docs/benchmarks.md).

For rollout r of item i with gradient g_r, drawn w_r times (k_i = Σ w_r), and the references, which
are easy items j ≠ i with mean unit gradient m_j:

    u_r = g_r / ‖g_r‖,   m_i = Σ w_r u_r / k_i,   s_rj = cos(u_r, m_j)

    score without r    t_rj = Σ_q w_q s_qj − s_rj                  (one draw of r left out)
    direction          d_r  = Σ_j max(t_rj, 0)² m_j / ‖m_j‖
    alignment          x_r  = cos(u_r, d_r),       similarity_i = Σ w_r x_r / k_i

The references that rollout r is measured on are thus weighted by the item's other rollouts: those
that the others agree with three times as well count nine times. Weighted and measured on the same
noise, neighbours flatter. The noise of the projection (`probes.gradients.lora`) is in all rollouts
of an item, so leaving one out does not help against it: the nearest of 1,000 random directions in
4,096 dimensions lie at 0.05, and the mean of five at 0.1. So the weights are taken in one half of
the coordinates, drawn once for all, and x_r is measured in the other, and the other way round; x_r
is the mean of both. What shares nothing with the references then lies around 0, however many there
are.

The square is a soft choice of neighbours. A hard choice of k of them separates as well, but it
jumps between samples of an item, which the interval does not know, and k would have to fit the
dataset. An item with a single draw has nobody to weight for it and has no similarity.

With more than `MOST_REFERENCES` easy items those with the most draws are taken, so that the cost
grows linearly with the items.

The interval is Student's t with a moderated variance (Smyth 2004, "Linear models and empirical
Bayes methods", the method of limma):

    s²_i = Σ w_r (x_r − similarity_i)² / (k_i − 1)
    s̃²_i = (d0 s0² + f_i s²_i) / (d0 + f_i),   standard error = s̃_i / √k_i,   d0 + f_i df

with f_i one less than the number of distinct completions, and d0 and s0² learned from all items, so
that one whose few rollouts happen to agree is not believed to be exact. The interval is conditional
on the references, that is, on the rollouts of the other items. That the x_r of an item share the
draws that chose their neighbours is not in s²_i; `benchmarks/estimators/similarity.py` measures
what this costs in coverage.

    reliability_i = (k ‖ḡ_i‖² − mean ‖g_r‖²) / ((k − 1) ‖ḡ_i‖²)

is the share of the squared length of the raw mean gradient ḡ_i that is not sampling noise.

Repeated completions. The same completion drawn w times is w independent draws that coincide, not
one: the policy does put that much of its mass there. So it counts w times in k, the mean, s² and
the reliability, exactly as w equal rows. But how well s² is known depends on the distinct
completions seen: with 8 equal draws s² = 0, and yet a second completion of probability 0.1 would
stay unseen in 43 % of such draws. Hence f_i, which is limma's k_i − 1 where no completion repeats.

Other departures from limma: the moments of log s² are weighted by their known precision
(DerSimonian and Laird 1986), as f ranges from 1 to hundreds within one run; d0 is capped at the
pooled degrees of freedom Σ f, because a prior cannot be known better than the data it came from;
and with fewer than 3 items that show a spread there is no telling how much spreads differ, so s0²
is their pooled variance and d0 = Σ f. If no item shows a spread, no item has an interval.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.special import digamma, polygamma

from probes.gradients.blocks import item_blocks, release
from probes.statistics.distributions import student_t_quantile

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]

NEIGHBOURS = 5
MOST_REFERENCES = 1024
# Alignments closer than this are equal rows seen through rounding; those of unrelated gradients
# differ by 1e-3 even in a million dimensions.
_SAME_ALIGNMENT = 1e-6
_FEWEST_ITEMS_FOR_PRIOR = 3


@dataclass(frozen=True)
class Similarity:
    """What the gradients say of each item: arrays of shape (items,), nan where undefined."""

    rollouts_used: NDArray[np.int64]
    """Draws behind the item, multiplicities counted; 0 for an item without a gradient."""
    similarity: Floats
    """Mean alignment with the nearest references, −1 to 1; nan with fewer than 2 draws."""
    standard_error: Floats
    low: Floats
    high: Floats
    degrees_of_freedom: Floats
    """Of the t distribution behind the interval: prior and own together."""
    reliability: Floats
    """Share of ‖ḡ‖² that is not sampling noise, 0 to 1; nan with fewer than 2 draws."""
    mean_squared_norm: Floats
    similarity_easy: Floats
    """Mean alignment with the mean direction of the other easy items."""
    similarity_hard: Floats
    """Mean alignment with the mean direction of the other items that are not easy."""
    nearest: NDArray[np.int64]
    """(items, 5) references of highest mean score Σ w_r s_rj, nearest first, −1 where there are
    fewer. For exploring: chosen on the rollouts that they are then looked at with, they flatter.
    """


def measure_similarity(
    features: NDArray[np.floating],
    item_index: NDArray[np.integer],
    weights: NDArray[np.integer],
    is_easy: NDArray[np.bool_],
    *,
    is_reference: NDArray[np.bool_] | None = None,
    ties: NDArray[np.integer] | None = None,
    confidence: float = 0.95,
    block_bytes: int = 2**28,
) -> Similarity:
    """Similarity of every item's gradient to those of the references nearest to it.

    Args:
        features: (rollouts, dim ≥ 2), one gradient a row in any float type, possibly a memmap; its
            coordinates must see the gradients alike, as those of a sketch do.
        item_index: (rollouts,), the item of each row, 0 to items − 1.
        weights: (rollouts,), how often each completion was drawn.
        is_easy: (items,).
        is_reference: (items,): what the items are compared with; default `is_easy`.
        ties: (items,): which of the references with equally many draws are taken first. Numbers
            that depend on the item alone make the answer independent of the items' order. Default:
            the position.
        confidence: of the intervals.
        block_bytes: memory for the rows in hand; one item's rows always fit.

    Returns:
        the measurements. Time and memory: rollouts × (dim + references) × references at most, and
        references × dim plus `block_bytes`. A row with weight 0 or a zero gradient has no direction
        and is left out.

    Raises:
        ValueError: shapes that do not fit, an item_index out of range, weights that are not whole
            multiplicities, non-finite features.
    """
    item_index, weights, is_easy = np.asarray(item_index), np.asarray(weights), np.asarray(is_easy)
    items = len(is_easy)
    _check_inputs(features, item_index, weights, items)
    chosen = is_easy if is_reference is None else np.asarray(is_reference)
    draws = np.zeros(items, dtype=np.int64)
    np.add.at(draws, item_index, weights.astype(np.int64))
    references = _choose_references(chosen, draws, np.arange(items) if ties is None else ties)
    rows_per_block = max(1, block_bytes // (8 * (features.shape[1] + 3 * len(references) + 1)))
    blocks = item_blocks(item_index, weights, rows_per_block)

    summary = _Summary(items, features.shape[1], references)
    for rows in blocks:
        if block := _read(features, rows, item_index, weights):
            summary.add(block, is_easy)
    measured = _Measured(summary)
    for rows in blocks:
        if block := _read(features, rows, item_index, weights):
            measured.add(block, is_easy)

    moderated, degrees_of_freedom = moderate_variances(measured.variance, measured.own_freedom)
    unknown = np.isnan(measured.similarity)
    moderated[unknown] = degrees_of_freedom[unknown] = np.nan
    standard_error = np.sqrt(moderated / np.maximum(summary.rollouts_used, 1))
    half_width = student_t_quantile((1 + confidence) / 2, degrees_of_freedom) * standard_error
    return Similarity(
        rollouts_used=summary.rollouts_used,
        similarity=measured.similarity,
        standard_error=standard_error,
        # A cosine cannot leave [−1, 1], whatever t says with few degrees of freedom.
        low=np.clip(measured.similarity - half_width, -1, 1),
        high=np.clip(measured.similarity + half_width, -1, 1),
        degrees_of_freedom=degrees_of_freedom,
        reliability=summary.reliability,
        mean_squared_norm=summary.mean_squared_norm,
        similarity_easy=measured.by_group[1],
        similarity_hard=measured.by_group[0],
        nearest=measured.nearest,
    )


def mean_directions(
    features: NDArray[np.floating],
    item_index: NDArray[np.integer],
    weights: NDArray[np.integer],
    *,
    block_bytes: int = 2**28,
) -> Iterator[tuple[NDArray[np.intp], Floats, Singles]]:
    """Yield the mean unit gradients m_i of all items that have one, a block of items at a time.

    Args:
        features, item_index, weights: as for `measure_similarity`; rows of zero length are left
            out.
        block_bytes: memory for the rows in hand; one item's rows always fit.

    Yields:
        items (items of the block,), ascending; k_i, the draws behind each; m_i (items of the
        block, dim).

    Raises:
        ValueError: shapes that do not fit, non-finite features.
    """
    _check_inputs(features, item_index, weights, int(item_index.max(initial=-1)) + 1)
    rows_per_block = max(1, block_bytes // (8 * features.shape[1]))
    for rows in item_blocks(item_index, weights, rows_per_block):
        if block := _read(features, rows, item_index, weights):
            yield block.items, block.draws, block.means()


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
    if features.ndim != 2 or features.shape[1] < 2:
        raise ValueError(f"features must be (rollouts, dim ≥ 2), got shape {features.shape}")
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


def _choose_references(
    is_reference: NDArray[np.bool_], draws: NDArray[np.int64], ties: NDArray[np.integer]
) -> NDArray[np.intp]:
    """The items to compare with, ascending: those with the most draws, if there are too many."""
    candidates = np.flatnonzero(is_reference & (draws > 0))
    ranked = candidates[np.lexsort((ties[candidates], -draws[candidates]))]
    return np.sort(ranked[:MOST_REFERENCES])


@dataclass(frozen=True)
class _Block:
    """Rows of whole items, an item's rows together, with directions of unit length."""

    items: NDArray[np.intp]
    """(items of the block,), ascending."""
    starts: NDArray[np.intp]
    """(items of the block,): each item's first row."""
    weights: Singles
    """(rows,)."""
    norms: Floats
    """(rows,): lengths of the raw gradients."""
    directions: Singles
    """(rows, dim): u_r."""

    @property
    def draws(self) -> Floats:
        """(items of the block,): k_i."""
        return np.asarray(np.add.reduceat(self.weights, self.starts, dtype=np.float64))

    def sums(self, values: Singles, weights: Singles) -> Singles:
        """Weighted sum over each item's rows: (rows, columns) to (items of the block, columns)."""
        rows = np.arange(len(weights))
        ends = np.append(self.starts, len(weights))
        return np.asarray(csr_array((weights, rows, ends)) @ values)

    def means(self) -> Singles:
        """m_i of the block's items, (items of the block, dim)."""
        means = self.sums(self.directions, self.weights)
        means /= self.draws[:, None].astype(np.float32)
        return means

    def places_in(self, references: NDArray[np.intp]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Which items of the block are references, and where they stand in `references`."""
        _, own, places = np.intersect1d(
            self.items, references, assume_unique=True, return_indices=True
        )
        return own, places

    @property
    def owner(self) -> NDArray[np.intp]:
        """(rows,): place of each row's item within the block."""
        lengths = np.diff(self.starts, append=len(self.weights))
        return np.repeat(np.arange(len(self.items)), lengths)


def _read(
    features: NDArray[np.floating],
    rows: NDArray[np.intp],
    item_index: NDArray[np.integer],
    weights: NDArray[np.integer],
) -> _Block | None:
    """Read one block; None if none of its gradients has a direction."""
    gradients = features[rows].astype(np.float32, copy=False)
    release(features)
    # In double precision, because the squares of a large gradient overflow in single.
    norms = np.sqrt(np.einsum("rd,rd->r", gradients, gradients, dtype=np.float64))
    if not np.isfinite(norms).all():
        row = int(rows[~np.isfinite(norms)].min())
        raise ValueError(f"features row {row} is not finite")
    usable = norms > 0
    if not usable.all():
        gradients, norms, rows = gradients[usable], norms[usable], rows[usable]
    if not len(rows):
        return None
    gradients /= norms[:, None].astype(np.float32)
    items, starts = np.unique(item_index[rows], return_index=True)
    return _Block(items, starts, weights[rows].astype(np.float32), norms, gradients)


class _Summary:
    """First pass: norms and reliabilities of the items, and what they will be compared with."""

    def __init__(self, items: int, dim: int, references: NDArray[np.intp]) -> None:
        self.rollouts_used = np.zeros(items, dtype=np.int64)
        self.mean_squared_norm = np.full(items, np.nan)
        self.reliability = np.full(items, np.nan)
        # The easy and the other items are summed apart: (not easy, easy) × dim.
        self.sums, self.counts = np.zeros((2, dim)), np.zeros(2, dtype=np.int64)
        self.references = references
        self.directions = [
            np.zeros((len(references), size), dtype=np.float32) for size in (-(-dim // 2), dim // 2)
        ]
        """For each half of the coordinates (references, half): m_j at length 1; 0 for a reference
        without a usable gradient."""

    def add(self, block: _Block, is_easy: NDArray[np.bool_]) -> None:
        """Take in the rows of one block."""
        items = block.items
        draws, means = block.draws, block.means()
        squares = np.add.reduceat(block.weights * block.norms**2, block.starts) / draws
        raw = block.sums(block.directions, block.weights * block.norms.astype(np.float32))
        raw_squares = np.einsum("id,id->i", raw, raw, dtype=np.float64) / draws**2
        self.rollouts_used[items] = draws
        self.mean_squared_norm[items] = squares
        self.reliability[items] = _reliability(draws, raw_squares, squares)
        for group in (0, 1):
            members = is_easy[items] == bool(group)
            self.sums[group] += means[members].sum(axis=0, dtype=np.float64)
            self.counts[group] += members.sum()
        own, places = block.places_in(self.references)
        for directions, half in zip(self.directions, _halves(means[own]), strict=True):
            directions[places] = half / np.maximum(_lengths(half), 1e-30)[:, None]


class _Measured:
    """Second pass: each item against the references, and against the mean directions."""

    def __init__(self, summary: _Summary) -> None:
        items = len(summary.rollouts_used)
        self._summary = summary
        self._grams = [directions @ directions.T for directions in summary.directions]
        self.similarity, self.variance = np.full(items, np.nan), np.zeros(items)
        self.own_freedom = np.zeros(items)
        self.by_group = np.full((2, items), np.nan)
        self.nearest = np.full((items, NEIGHBOURS), -1, dtype=np.int64)

    def add(self, block: _Block, is_easy: NDArray[np.bool_]) -> None:
        """Take in the rows of one block."""
        self._against_groups(block, is_easy)
        references = self._summary.references
        if not len(references):
            return
        owner = block.owner
        own, places = block.places_in(references)
        scores, without, total = [], [], np.zeros((len(block.items), len(references)), np.float32)
        for half, directions in zip(
            _halves(block.directions), self._summary.directions, strict=True
        ):
            found = half @ directions.T
            found /= np.maximum(_lengths(half), 1e-30)[:, None]
            totals = block.sums(found, block.weights)
            total += totals
            others = totals[owner]
            others -= found
            scores.append(found)
            without.append(others)
        # An item is never its own neighbour.
        total[own, places] = -np.inf
        place = np.full(len(block.items), -1)
        place[own] = places
        own_rows = np.flatnonzero(place[owner] >= 0)
        for others in without:
            others[own_rows, place[owner][own_rows]] = 0
        self._keep_nearest(block, total, references)
        alignments = (
            _alignments(without[0], scores[1], self._grams[1])
            + _alignments(without[1], scores[0], self._grams[0])
        ) / 2
        draws = block.draws
        known = (draws > 1) & (len(references) - (place >= 0) > 0)
        items = block.items[known]
        weights = block.weights.astype(np.float64)
        means = np.add.reduceat(weights * alignments, block.starts) / draws
        squares = weights * (alignments - means[owner]) ** 2
        variances = np.add.reduceat(squares, block.starts) / np.maximum(draws - 1, 1)
        self.similarity[items] = means[known]
        self.variance[items] = variances[known]
        # Distinct completions less one: steps between an item's alignments in ascending order.
        order = np.lexsort((alignments, owner))
        steps = np.diff(alignments[order], prepend=-np.inf) > _SAME_ALIGNMENT
        steps[block.starts] = False
        self.own_freedom[items] = np.add.reduceat(steps, block.starts, dtype=np.int64)[known]

    def _against_groups(self, block: _Block, is_easy: NDArray[np.bool_]) -> None:
        summary = self._summary
        means = block.means().astype(np.float64)
        lengths = np.einsum("id,id->i", means, means)
        for group, total in enumerate(summary.sums):
            member = is_easy[block.items] == bool(group)
            counts = summary.counts[group] - member
            # Products with, and the square of, the group's sum without the item's own mean.
            along = means @ total
            products = along - member * lengths
            squares = total @ total - member * (2 * along - lengths)
            norms = np.sqrt(np.maximum(squares, 0))
            # Sums of single-precision means: a shorter one is their rounding, the means cancel.
            known = (counts > 0) & (norms > 1e-6 * np.sqrt(np.maximum(counts, 1)))
            self.by_group[group, block.items[known]] = products[known] / norms[known]

    def _keep_nearest(self, block: _Block, ranked: Singles, references: NDArray[np.intp]) -> None:
        few = min(NEIGHBOURS, len(references))
        top = np.argpartition(ranked, -few, axis=1)[:, -few:]
        values = np.take_along_axis(ranked, top, axis=1)
        order = np.argsort(-values, axis=1, kind="stable")
        nearest = np.take_along_axis(references[top], order, axis=1)
        nearest[np.isneginf(np.take_along_axis(values, order, axis=1))] = -1
        self.nearest[block.items, :few] = nearest


@cache
def halves(dim: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The coordinates of either half, always the same for a `dim`.

    At random, since neighbouring coordinates of a sketch hold neighbouring parts of the gradients:
    its first half knows little of some layers, and its even coordinates of half of the adapter.
    """
    order = np.random.default_rng(0).permutation(dim)
    return np.sort(order[: -(-dim // 2)]), np.sort(order[-(-dim // 2) :])


def _halves(rows: Singles) -> tuple[Singles, Singles]:
    first, second = halves(rows.shape[1])
    return np.take(rows, first, axis=1), np.take(rows, second, axis=1)


def _lengths(rows: Singles) -> Singles:
    return np.asarray(np.sqrt(np.einsum("rd,rd->r", rows, rows)))


def _alignments(without: Singles, scores: Singles, gram: Singles) -> Floats:
    """x_r, (rows,): 0 where the item's others agree with no reference, or the agreeing cancel out.

    without, scores: (rows, references), t_rj and s_rj; gram: (references, references), cosines
    between references, measured where the scores are.
    """
    shares = np.maximum(without, 0)
    shares /= np.maximum(shares.max(axis=1, keepdims=True), 1e-30)
    shares *= shares
    along = np.einsum("rj,rj->r", shares, scores)
    squares = np.einsum("rj,rj->r", shares @ gram, shares)
    lengths = np.sqrt(np.maximum(squares, 0), dtype=np.float64)
    return np.asarray(np.divide(along, lengths, out=np.zeros(len(along)), where=lengths > 1e-6))


def _reliability(
    draws: Floats, squared_norms_of_means: Floats, mean_squared_norms: Floats
) -> Floats:
    """(items,): 0 for a mean gradient of 0, nan for a single draw."""
    with np.errstate(invalid="ignore", divide="ignore"):
        signal = (draws * squared_norms_of_means - mean_squared_norms) / (draws - 1)
        share = np.where(squared_norms_of_means > 0, signal / squared_norms_of_means, 0.0)
    return np.asarray(np.where(draws > 1, np.clip(share, 0, 1), np.nan))
