"""How far a step of GRPO moves each item's log odds, to first order, from gradients of rollouts.

For a rollout r of item i, s_r = Σ_t ∇ log π(y_t | x, y_<t) is the gradient of its log-probability
and g_r what GRPO's loss takes of it: s_r / |y_r| where tokens are averaged within a rollout
(Shao et al. 2024, and equation 1 of arXiv 2605.16787). The score function has mean zero under the
policy, so for the pass probability p_i

    ∇ log p_i = E[s | correct] =: h_i,          ∇ logit p_i = h_i / (1 − p_i)

and a group of G rollouts of item j, of which a share m is correct, contributes in expectation

    w_j D_j,   D_j = E[g | correct] − E[g | wrong],   w_j = E_K[m (1 − m) / (σ(m) + 10⁻⁴)],  m = K/G

with σ the sample standard deviation of the rewards and K the number of correct rollouts. A step
takes the mean over its groups; with dynamic sampling only those with a signal are in it, a share
q_j of item j's. Its direction is Σ_j w_j D_j / Σ_j q_j, and a step along it lifts the log odds of
item i by

    lift_i = (T_i + U_i) / (1 − p_i) / Σ_j q_j
    T_i = Σ_{j≠i} w_j ⟨h_i, D_j⟩                                   what the others teach it
    U_i = w_i (mean over r ≠ q of ⟨s_r, g_q⟩ − ⟨h_i, ḡ⁻_i⟩)        what it teaches itself

with r, q correct rollouts of i. Nothing is normalised, so that the inner products of different
items are unbiased however few rollouts there are, and no rollout meets itself. w_j and q_j are
unbiased too: given c of n, K is hypergeometric (binomial at c/n where n < G). An item with a single
correct rollout has no pair: its own term takes the share of ⟨s_r, g_r⟩ that pairs have in the run.
The cost is linear in the rollouts: one direction, each item's own share of it taken out. All inner
products are those of an adaptive optimizer (`probes.lift.preconditioner`).

Teaching is the same sum read the other way: what a group of item j moves the log odds of the items
that are not solved, on average, j itself left out.

    teaching_j = w_j ⟨D_j, mean_{i≠j, unsolved} h_i / (1 − p_i)⟩

Errors. Own rollouts: the influence of each correct draw on T + U (Hájek's projection of the U
statistic), with the variance moderated over items,

    s̃² = (d₀ s₀² + f s²) / (d₀ + f),   f = k − 1,   d₀ = 4,   s₀² = (Σ f s² + s_B²) / (Σ f + 1)

in units of the item's mean ‖s‖². A draw that repeats an earlier completion is a draw: an item
whose k correct rollouts are one completion is known better the larger k is, and where hardly any
item of the run shows two different correct completions, as with direct answers, a single one says
it all. s_B² is the spread between items: with no pair in the run to learn from, another completion
might point anywhere. Teachers: the direction is drawn again with random signs on every rollout's
deviation from its item's mean and on each item's weight (wild bootstrap), a few times for all
items at once. The weights come from counts, so that of an item with k correct rollouts is off by a
share of 1/√k.

Rewards that are not 0 or 1 change what a step takes of each rollout and nothing else: w_j and g_r
are then those of `probes.lift.rewards`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.special import gammaln, xlog1py, xlogy

from probes.gradients.blocks import item_blocks, release
from probes.lift.preconditioner import Preconditioner, draw_rows, fit_preconditioner
from probes.lift.rewards import EPSILON, ItemRewards, expected_advantages
from probes.lift.teaching import Pairs, PairSearch, choose_teachers

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
Flags = NDArray[np.bool_]
Integers = NDArray[np.int64]

LOSSES = ("grpo", "dapo", "dr_grpo")
"""How a loss weighs rollouts and tokens: `grpo` divides advantages by their standard deviation and
averages tokens within a rollout; `dapo` (Yu et al. 2025) averages them over the batch; `dr_grpo`
(Liu et al. 2025) does neither."""
_PRIOR_FREEDOM = 4.0
_REDRAWS = 24
"""Directions drawn again: the variance of the teachers' noise is known to a quarter of itself, and
that of the own rollouts is larger in nearly every item."""


@dataclass(frozen=True)
class GroupWeights:
    """What GRPO takes of each item: arrays (items,)."""

    weight: Floats
    """w_j, in front of the mean of correct less that of wrong gradients."""
    signal: Floats
    """q_j, the share of groups with unequal rewards."""


@dataclass(frozen=True)
class GradientLift:
    """What the gradients say of each item: arrays (items,), nan where undefined."""

    lift: Floats
    """Change of the item's log odds by one step of unit length along GRPO's gradient."""
    standard_error: Floats
    degrees_of_freedom: Floats
    """Of Student's t of the error."""
    from_others: Floats
    """The share of `lift` that the other items teach."""
    teaching: Floats
    """What a group of the item does for the log odds of the unsolved others, on average."""
    draws: Integers
    """Correct rollouts behind the item, multiplicities counted."""
    weight: Floats
    """w_j, what a step takes of the item."""
    pairs: Pairs | None = None
    """Who teaches whom; None where it was not asked for."""


def group_weights(n: Integers, c: Integers, group_size: int, loss: str = "grpo") -> GroupWeights:
    """Weight and signal of a GRPO group of each item, from its counts.

    Args:
        n: judged rollouts, (items,).
        c: correct ones, (items,).
        group_size: G, at least 2.
        loss: one of `LOSSES`.

    Raises:
        ValueError: a group below 2, counts that are impossible, an unknown loss.
    """
    n, c = np.asarray(n, np.int64), np.asarray(c, np.int64)
    if group_size < 2:
        raise ValueError(f"a group needs 2 rollouts at least, got {group_size}")
    if np.any(c < 0) or np.any(c > n):
        raise ValueError("counts must satisfy 0 ≤ correct ≤ judged for every item")
    k = np.arange(group_size + 1)
    of_k = group_coefficients(group_size, loss)
    cells, back = np.unique(np.stack([n, c]), axis=1, return_inverse=True)
    chance = _chances(cells[0], cells[1], group_size)
    has_signal = (k > 0) & (k < group_size)
    back = back.reshape(-1)
    return GroupWeights((chance @ of_k)[back], (chance @ has_signal)[back])


def group_coefficients(group_size: int, loss: str = "grpo") -> Floats:
    """Coefficient of ḡ⁺ − ḡ⁻ in a group with K = 0 … G correct rollouts, (G + 1,)."""
    if loss not in LOSSES:
        raise ValueError(f"loss is {loss!r}; it must be one of {', '.join(LOSSES)}")
    mean = np.arange(group_size + 1) / group_size
    spread = mean * (1 - mean)
    if loss == "dr_grpo":
        return np.asarray(spread)
    return np.asarray(spread / (np.sqrt(spread * group_size / (group_size - 1)) + EPSILON))


def _chances(n: Integers, c: Integers, group_size: int) -> Floats:
    """(items, G + 1): probability of K correct among the first G of n rollouts, in any order."""
    k = np.arange(group_size + 1)[None, :]
    n, c = n[:, None], c[:, None]

    def log_choose(total: Integers, chosen: Integers) -> Floats:
        inside = (chosen >= 0) & (chosen <= total)
        chosen = np.where(inside, chosen, 0)
        value = gammaln(total + 1) - gammaln(chosen + 1) - gammaln(total - chosen + 1)
        return np.where(inside, value, -np.inf)

    known = n >= group_size
    size = np.maximum(n, group_size)
    hypergeometric = np.exp(
        log_choose(c, k)
        + log_choose(size - c, group_size - k)
        - log_choose(size, group_size + 0 * c)
    )
    rate = np.where(n > 0, c / np.maximum(n, 1), 0.0)
    binomial = np.exp(
        log_choose(group_size + 0 * c, k) + xlogy(k, rate) + xlog1py(group_size - k, -rate)
    )
    return np.asarray(np.where(known, hypergeometric, binomial))


@dataclass(frozen=True)
class LiftInputs:
    """Gradients of a run's rollouts, and what is known of its items.

    Attributes:
        features: (rows, dim), a distinct completion a row, in any float type, possibly a memmap:
            the gradient of the mean token loss, as `probes.gradients.lora` gives it.
        item: (rows,), position of the item.
        weights: (rows,), how often the completion was drawn.
        is_correct: (rows,).
        tokens: (rows,), length of the completion.
        judged, correct: (items,), counts of all rollouts.
        pass_rate: (items,), the best estimate of p, below 1.
        rewards: where they are other numbers than 1 for correct and 0 for wrong: of all rollouts,
            and then `reward`, (rows,), those of the rows (`probes.lift.rewards`).
    """

    features: NDArray[np.floating]
    item: Integers
    weights: Integers
    is_correct: Flags
    tokens: Integers
    judged: Integers
    correct: Integers
    pass_rate: Floats
    rewards: ItemRewards | None = None
    reward: Floats | None = None

    def __post_init__(self) -> None:
        rows = len(self.features)
        for name in ("item", "weights", "is_correct", "tokens"):
            if getattr(self, name).shape != (rows,):
                raise ValueError(f"{name} must be ({rows},), got {getattr(self, name).shape}")
        if (self.rewards is None) != (self.reward is None):
            raise ValueError("rewards of all rollouts and those of the rows go together")
        if self.reward is not None and self.reward.shape != (rows,):
            raise ValueError(f"reward must be ({rows},), got {self.reward.shape}")
        if rows and np.any(self.tokens < 1):
            raise ValueError("a completion has 1 token at least")


def measure_lift(
    inputs: LiftInputs,
    is_unsolved: Flags,
    *,
    group_size: int = 8,
    loss: str = "grpo",
    learners: LiftInputs | None = None,
    with_pairs: bool = False,
    is_preconditioned: bool = True,
    seed: int = 0,
    block_bytes: int = 2**28,
) -> GradientLift:
    """Lift and teaching of every item.

    Args:
        inputs: of the run.
        is_unsolved: (items,), those that teaching is for.
        group_size, loss: of the training.
        learners: whom teaching is for, where that is not the run's unsolved items: rollouts of the
            items of a target, in the same sketch.
        with_pairs: whether to look for each item's teachers and pupils as well.
        is_preconditioned: whether the step is an adaptive optimizer's
            (`probes.lift.preconditioner`), or goes along the gradient itself.
        seed: of the redrawn directions, and of the rollouts that make the preconditioner.
        block_bytes: memory for the rows in hand; one item's rows always fit.

    Returns:
        the measurements; items without a correct rollout have none. Time: rows × dim ×
        (redraws + 1). Memory: redraws × dim and `block_bytes`.

    Raises:
        ValueError: non-finite features, or what `group_weights` raises.
    """
    work = open_work(
        inputs, is_unsolved, group_size, loss, seed=seed, is_preconditioned=is_preconditioned
    )
    rng = np.random.default_rng(seed)
    blocks = work.blocks(block_bytes)
    for rows in blocks:
        work.add(work.read(rows), rng)
    if learners is not None:
        work.learn_for(learners, block_bytes)
    if with_pairs:
        work.search = work.pair_search(blocks)
    for rows in blocks:
        work.measure(work.read(rows))
    return work.result()


def open_work(
    inputs: LiftInputs,
    is_unsolved: Flags,
    group_size: int,
    loss: str,
    *,
    seed: int = 0,
    is_preconditioned: bool = True,
) -> Work:
    """Find what a step takes of every item and every rollout, and the optimizer's inner product.

    The arguments are those of `measure_lift`, and so is what is raised.
    """
    groups = group_weights(inputs.judged, inputs.correct, group_size, loss)
    scale = None
    if inputs.rewards is not None and inputs.reward is not None:
        taken = expected_advantages(
            inputs.rewards, inputs.item, inputs.reward, inputs.is_correct, inputs.judged,
            inputs.correct, group_size=group_size, loss=loss, seed=seed,
        )  # fmt: skip
        groups, scale = GroupWeights(taken.weight, taken.signal), taken.scale
    work = Work(inputs, is_unsolved, groups)
    work.per_token = loss != "grpo"
    work.scale = scale
    if is_preconditioned:
        work.preconditioner = _fit(inputs, groups, scale, seed)
    return work


def _fit(
    inputs: LiftInputs, groups: GroupWeights, scale: Floats | None, seed: int
) -> Preconditioner:
    """The preconditioner of a run: its rollouts count as much as GRPO takes of them."""
    draws = np.bincount(inputs.item, inputs.weights, minlength=len(inputs.judged))
    used = groups.weight[inputs.item] * inputs.weights / np.maximum(draws, 1)[inputs.item]
    if scale is not None:
        used = used * np.abs(scale)
    rows, repeats = np.unique(draw_rows(used, seed), return_counts=True)
    gradients = inputs.features[rows].astype(np.float32, copy=False)
    release(inputs.features)
    if not np.isfinite(gradients).all():
        row = int(rows[~np.isfinite(gradients).all(axis=1)].min())
        raise ValueError(f"features row {row} is not finite")
    return fit_preconditioner(gradients, repeats)


@dataclass(frozen=True)
class Block:
    """Rows of whole items: s and g of each, and the sums over an item that all else is made of."""

    items: NDArray[np.intp]
    """(items of the block,)."""
    owner: NDArray[np.intp]
    """(rows,): place of each row's item within the block."""
    weights: Floats
    """(rows,)."""
    is_correct: Flags
    s: Singles
    """(rows, dim)."""
    g: Singles
    """(rows, dim)."""

    def sums(self, values: Singles, weights: Floats) -> Singles:
        """Weighted sum over each item's rows: (items of the block, columns)."""
        shape = (len(self.items), len(self.owner))
        matrix = csr_array(
            (weights.astype(np.float32), (self.owner, np.arange(len(self.owner)))), shape=shape
        )
        return np.asarray(matrix @ values)

    def total(self, values: Floats) -> Floats:
        """(items of the block,): sum of a number a row."""
        return np.asarray(np.bincount(self.owner, values, minlength=len(self.items)), np.float64)


class Work:
    """Both passes: the direction of a step first, then what it does to each item."""

    per_token = False
    """Whether a loss counts tokens alike, so that g = s / mean length."""
    scale: Floats | None = None
    """(rows,): what a step takes of each rollout beside w_j; None: alike."""
    preconditioner: Preconditioner | None = None
    search: PairSearch | None = None
    target: LiftInputs | None = None

    def __init__(self, inputs: LiftInputs, is_unsolved: Flags, groups: GroupWeights) -> None:
        items, dim = len(inputs.judged), inputs.features.shape[1]
        self.inputs, self.groups = inputs, groups
        self.is_unsolved = is_unsolved
        self.odds = 1 / (1 - inputs.pass_rate)
        draws = inputs.weights.sum()
        self.mean_tokens = float(inputs.weights @ inputs.tokens / draws) if draws else 1.0
        self.direction = np.zeros(dim)
        self.redrawn = np.zeros((_REDRAWS, dim), dtype=np.float32)
        self.own_redrawn = np.zeros((items, _REDRAWS))
        self.learning = np.zeros(dim)
        """Σ h_i / (1 − p_i) over the unsolved items."""
        self.learners = 0
        self.draws = np.zeros(items, dtype=np.int64)
        self.share_length = np.zeros(items)
        empty = np.full((8, items), np.nan)
        (
            self.others, self.pairs, self.alone, self.against_wrong,
            self.variance, self.square, self.noise, self.teaching,
        ) = empty  # fmt: skip

    def blocks(self, block_bytes: int, inputs: LiftInputs | None = None) -> list[NDArray[np.intp]]:
        """Rows that are read together, items whole; of the run, or of other inputs."""
        inputs = inputs or self.inputs
        size = max(1, block_bytes // (16 * inputs.features.shape[1]))
        return item_blocks(inputs.item, inputs.weights, size)

    def read(self, rows: NDArray[np.intp], inputs: LiftInputs | None = None) -> Block:
        """One block; raises ValueError for a gradient that is not finite."""
        inputs = inputs or self.inputs
        features = inputs.features[rows].astype(np.float32, copy=False)
        release(inputs.features)
        if not np.isfinite(features).all():
            row = int(rows[~np.isfinite(features).all(axis=1)].min())
            raise ValueError(f"features row {row} is not finite")
        if self.preconditioner:
            features = self.preconditioner.apply(features)
        lengths = inputs.tokens[rows].astype(np.float32)[:, None]
        s = -features * lengths
        g = s / np.float32(self.mean_tokens) if self.per_token else -features
        if self.scale is not None and inputs is self.inputs:
            g = g * self.scale[rows].astype(np.float32)[:, None]
        items, owner = np.unique(inputs.item[rows], return_inverse=True)
        weights = inputs.weights[rows].astype(np.float64)
        return Block(items, owner.reshape(-1), weights, inputs.is_correct[rows], s, g)

    def means(self, block: Block) -> tuple[Singles, Singles, Singles, Floats, Floats]:
        """Per item h, ḡ⁺, ḡ⁻ (items, dim) and the draws behind them; zero where there are none."""
        right, wrong = block.weights * block.is_correct, block.weights * ~block.is_correct
        k, m = block.total(right), block.total(wrong)
        by_k = (1 / np.maximum(k, 1)).astype(np.float32)[:, None]
        by_m = (1 / np.maximum(m, 1)).astype(np.float32)[:, None]
        h = block.sums(block.s, right) * by_k
        return h, block.sums(block.g, right) * by_k, block.sums(block.g, wrong) * by_m, k, m

    def difference(self, block: Block) -> tuple[Singles, Singles, Singles, Floats]:
        """Per item w_j D_j, h, ḡ⁻ (items, dim) and the correct draws."""
        h, right, wrong, k, m = self.means(block)
        weight = self._contrast(block, k, m)
        return weight.astype(np.float32)[:, None] * (right - wrong), h, wrong, k

    def _contrast(self, block: Block, k: Floats, m: Floats) -> Floats:
        """w_j where all is there that it weighs: (items of the block,).

        Without a wrong rollout (of an item that is hardly ever wrong) nothing is contrasted, unless
        rewards differ among the correct ones and there is no other.
        """
        judged, correct = self.inputs.judged[block.items], self.inputs.correct[block.items]
        is_whole = ((k > 0) | (correct == 0)) & ((m > 0) | (correct == judged))
        return np.where(is_whole, self.groups.weight[block.items], 0.0)

    def add(self, block: Block, rng: np.random.Generator) -> None:
        """First pass: take a block into the direction of a step."""
        share, h, _, k = self.difference(block)
        self.direction += share.sum(axis=0, dtype=np.float64)
        self.share_length[block.items] = np.sqrt(np.einsum("id,id->i", share, share))
        learns = (k > 0) & self.is_unsolved[block.items]
        self.learning += (self.odds[block.items][learns] @ h[learns]).astype(np.float64)
        self.learners += int(learns.sum())
        self.draws[block.items] = k.astype(np.int64)
        self._redraw(block, rng)

    def learn_for(self, target: LiftInputs, block_bytes: int) -> None:
        """Have teaching be for the items of a target that have a correct rollout."""
        self.target = target
        self.learning[:] = 0
        self.learners = 0
        odds = 1 / (1 - target.pass_rate)
        for rows in self.blocks(block_bytes, target):
            block = self.read(rows, target)
            h, _, _, k, _ = self.means(block)
            self.learning += odds[block.items][k > 0] @ h[k > 0]
            self.learners += int((k > 0).sum())

    def pair_search(self, blocks: list[NDArray[np.intp]]) -> PairSearch:
        """Look up what the strongest teachers teach."""
        teachers = choose_teachers(self.share_length)
        shares = np.zeros((len(teachers), len(self.direction)), dtype=np.float32)
        for rows in blocks:
            wanted = rows[np.isin(self.inputs.item[rows], teachers)]
            if len(wanted):
                block = self.read(wanted)
                shares[np.searchsorted(teachers, block.items)] = self.difference(block)[0]
        return PairSearch(len(self.draws), teachers, shares)

    def _redraw(self, block: Block, rng: np.random.Generator) -> None:
        """Take in the block's deviations with random signs, and note each item's own share."""
        h, right, wrong, k, m = self.means(block)
        at = block.owner
        draws = np.where(block.is_correct, k[at], m[at])
        # A single draw has no deviation from itself; its own length stands for it.
        means = np.where(block.is_correct[:, None], right[at], wrong[at])
        deviations = block.g - np.where(draws[:, None] > 1, means, 0).astype(np.float32)
        weight = self._contrast(block, k, m)
        scale = weight[at] * np.sqrt(block.weights / draws / np.maximum(draws - 1, 1))
        # The weight itself comes from counts, and a count of k is off by √k.
        share = (weight / np.sqrt(np.maximum(np.where(k > 0, k, m), 1))).astype(np.float32)[
            :, None
        ] * (right - wrong)
        signs = rng.choice(np.array([-1.0, 1.0]), size=(_REDRAWS, len(at) + len(k)))
        of_rows = signs[:, : len(at)] * scale
        of_items = signs[:, len(at) :]
        self.redrawn += of_rows.astype(np.float32) @ deviations
        self.redrawn += of_items.astype(np.float32) @ share
        own = of_rows * np.einsum("rd,rd->r", h[at], deviations, dtype=np.float64)
        self.own_redrawn[block.items] = of_items.T * np.einsum("id,id->i", h, share)[:, None]
        np.add.at(self.own_redrawn, block.items[at], own.T)

    def measure(self, block: Block) -> None:
        """Second pass: what a step does to the items of a block."""
        share, h, wrong, k = self.difference(block)
        has = k > 0
        items = block.items
        weight = np.where(has, self.groups.weight[items], 0.0)
        others = np.einsum("id,id->i", h, self.direction.astype(np.float32) - share)
        # Sums over the draws of an item: Σ g, Σ s, and of each row its product with the others'.
        right = block.weights * block.is_correct
        sum_s, sum_g = (block.sums(each, right) for each in (block.s, block.g))
        alone = np.einsum("rd,rd->r", block.s, block.g, dtype=np.float64)
        s_all = np.einsum("rd,rd->r", block.s, sum_g[block.owner], dtype=np.float64) - alone
        g_all = np.einsum("rd,rd->r", block.g, sum_s[block.owner], dtype=np.float64) - alone
        pairs = block.total(right * s_all)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean_pair = pairs / (k * (k - 1))
            mean_alone = block.total(right * alone) / k
        against = np.einsum("id,id->i", h, wrong)
        # Influence of each draw.
        at = block.owner
        x = block.s @ self.direction.astype(np.float32) - np.einsum(
            "rd,rd->r", block.s, share[at], dtype=np.float64
        )
        more = np.maximum(k - 1, 1)[at]
        own = np.where(k[at] > 1, (s_all + g_all) / more, 0.0)
        y = x + weight[at] * (own - np.einsum("rd,rd->r", block.s, wrong[at], dtype=np.float64))
        mean_y = block.total(right * y) / np.maximum(k, 1)
        spread = block.total(right * (y - mean_y[at]) ** 2)
        square = block.total(right * np.einsum("rd,rd->r", block.s, block.s, dtype=np.float64))
        noise = np.mean((h @ self.redrawn.T - self.own_redrawn[items]) ** 2, axis=1)
        learns = self.is_unsolved[items] & has & (self.target is None)
        learning = self.learning - np.where(learns, self.odds[items], 0.0)[:, None] * h
        learners = self.learners - learns
        if self.search:
            slopes = h[has] * self.odds[items][has].astype(np.float32)[:, None]
            self.search.add(items[has], slopes, self.is_unsolved[items][has])
        teaching = np.einsum("id,id->i", share, learning.astype(np.float32), dtype=np.float64)
        rows = items[has]
        # An item that is never right is not lifted, but where its rewards differ it teaches.
        teaches = has | share.any(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            self.others[rows] = others[has]
            self.pairs[rows] = mean_pair[has]
            self.alone[rows] = mean_alone[has]
            self.against_wrong[rows] = against[has]
            self.variance[rows] = (spread / (k - 1))[has]
            self.square[rows] = (square / k)[has]
            self.noise[rows] = noise[has]
            self.teaching[items[teaches]] = np.where(
                learners > 0, teaching / np.maximum(learners, 1), np.nan
            )[teaches]

    def result(self) -> GradientLift:
        """Put together what both passes found."""
        weight = self.groups.weight
        signal = float(self.groups.signal.sum())
        paired = self.draws > 1
        share = 0.0
        if paired.any() and np.sum(self.alone[paired]) > 0:
            share = float(np.sum(self.pairs[paired]) / np.sum(self.alone[paired]))
        pairs = np.where(paired, self.pairs, np.clip(share, 0, 1) * self.alone)
        own = weight * (pairs - self.against_wrong)
        scale = self.odds / signal if signal > 0 else np.full(len(weight), np.nan)
        variance, freedom = self._moderated()
        draws = np.maximum(self.draws, 1)
        error = np.sqrt(variance / draws + own**2 / draws + self.noise)
        return GradientLift(
            lift=scale * (self.others + own),
            standard_error=scale * error,
            degrees_of_freedom=freedom,
            from_others=scale * self.others,
            teaching=self.teaching,
            draws=self.draws,
            pairs=self.search.result() if self.search else None,
            weight=weight,
        )

    def _moderated(self) -> tuple[Floats, Floats]:
        """Variance of a draw's influence and its degrees of freedom, (items,)."""
        has = self.draws > 0
        freedom = np.where(has, self.draws - 1, 0).astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            unit = self.variance / self.square
            level = self.others / np.sqrt(self.square)
        known = has & (freedom > 0) & np.isfinite(unit)
        between = float(np.nanvar(level[has])) if has.sum() > 1 else 0.0
        total = float(freedom[known].sum())
        prior = (float(freedom[known] @ unit[known]) + between) / (total + 1)
        own = np.where(known, freedom * np.nan_to_num(unit), 0.0)
        free = np.where(known, freedom, 0.0)
        moderated = (_PRIOR_FREEDOM * prior + own) / (_PRIOR_FREEDOM + free) * self.square
        return np.where(has, moderated, np.nan), np.where(has, _PRIOR_FREEDOM + free, np.nan)
