"""What GRPO takes of rollouts whose rewards are any numbers.

In a group of G rollouts with rewards ρ_1 … ρ_G rollout r has the advantage

    A_r = (ρ_r − ρ̄) / (σ + 10⁻⁴),          dr_grpo: ρ_r − ρ̄,

and the group contributes the mean of A_r g_r (Shao et al. 2024). In expectation over groups of item
j that is E[a_j(ρ_r) g_r], with a_j(ρ) the expected advantage of a rollout with reward ρ among G − 1
others of the item: the general form of w_j D_j in `probes.lift.gradients`, where with rewards of 0
and 1

    p a(1) = (1 − p) |a(0)| = w_j.

Only some rollouts have gradients, the first correct and the first wrong ones, so the expectation is
put together of the two: n⁺/n times the mean of a(ρ) g over the correct ones with a gradient, and
n⁻/n times that over the wrong ones. Written as w_j (ḡ⁺ − ḡ⁻) with

    w_j = ½ E|a_j|,          g_r scaled by ± (n^±/n) a_j(ρ_r) / w_j,

it is what the lift is made of already; with rewards of 0 and 1 the scale is 1 throughout. What is
lifted stays the probability that a rollout is correct.

a_j is estimated by drawing groups of the item's own rollouts: at random permutations, cut into
groups (with replacement where the item has fewer than G), some 2,048 groups an item. That is
unbiased, as the exact sums over counts are for 0 and 1, and the same for the same rewards.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

EPSILON = 1e-4
"""What trainers add to the standard deviation of a group."""
_GROUPS = 2048


@dataclass(frozen=True)
class ItemRewards:
    """The rewards of all judged rollouts of a run, an item's together."""

    values: Floats
    """(rollouts,)."""
    starts: Integers
    """(items + 1,): where those of each item begin and end."""

    @classmethod
    def of(cls, item: Integers, reward: Floats, items: int) -> ItemRewards:
        """Sort rewards by item.

        Args:
            item: (rollouts,), position of the item.
            reward: (rollouts,), nan where it was not judged.
            items: how many there are.
        """
        judged = ~np.isnan(reward)
        item, reward = item[judged], reward[judged]
        order = np.argsort(item, kind="stable")
        counts = np.bincount(item, minlength=items)
        return cls(reward[order], np.concatenate([[0], np.cumsum(counts)]))

    def of_item(self, item: int) -> Floats:
        """Those of one item."""
        return self.values[self.starts[item] : self.starts[item + 1]]


@dataclass(frozen=True)
class ExpectedAdvantages:
    """What GRPO is expected to take of each item and of each rollout with a gradient."""

    weight: Floats
    """(items,): w_j."""
    signal: Floats
    """(items,): share of groups with unequal rewards."""
    scale: Floats
    """(rows,): what the gradient of a rollout is multiplied by."""


def group_advantages(rewards: Floats, loss: str = "grpo") -> Floats:
    """Advantages within groups, (groups, G) for rewards of that shape."""
    centred = rewards - rewards.mean(axis=-1, keepdims=True)
    if loss == "dr_grpo":
        return np.asarray(centred)
    deviation = rewards.std(axis=-1, ddof=1, keepdims=True)
    return np.asarray(centred / (deviation + EPSILON))


def expected_advantages(
    rewards: ItemRewards,
    item: Integers,
    reward: Floats,
    is_correct: NDArray[np.bool_],
    judged: Integers,
    correct: Integers,
    *,
    group_size: int,
    loss: str = "grpo",
    seed: int = 0,
) -> ExpectedAdvantages:
    """The expected advantages of a run.

    Args:
        rewards: of all its judged rollouts.
        item, reward, is_correct: (rows,), of the rollouts with a gradient.
        judged, correct: (items,), counts of all rollouts.
        group_size: G, at least 2.
        loss: grpo, dapo or dr_grpo.
        seed: of the groups that are drawn.
    """
    items = len(judged)
    weight, signal = np.zeros((2, items))
    scale = np.ones(len(item))
    order = np.argsort(item, kind="stable")
    bounds = np.searchsorted(item[order], np.arange(items + 1))
    for at in range(items):
        own = rewards.of_item(at)
        if len(own) < 2 or own.min() == own.max():
            continue
        # A generator an item: what is drawn of one does not depend on the others.
        rng = np.random.default_rng([seed, at])
        values, expected, weight[at], signal[at] = _of_item(own, group_size, loss, rng)
        rows = order[bounds[at] : bounds[at + 1]]
        if not weight[at]:
            continue
        right = is_correct[rows]
        share = np.where(right, correct[at], correct[at] - judged[at]) / judged[at]
        advantage = expected[np.searchsorted(values, reward[rows])]
        scale[rows] = share * advantage / weight[at]
    return ExpectedAdvantages(weight, signal, scale)


def _of_item(
    own: Floats, group_size: int, loss: str, rng: np.random.Generator
) -> tuple[Floats, Floats, float, float]:
    """The rewards that occur, the expected advantage of each, w, and the share with a signal."""
    values, which = np.unique(own, return_inverse=True)
    count = len(own)
    if count >= group_size:
        each = count // group_size
        tries = -(-_GROUPS // each) if count > group_size else 1
        drawn = rng.random((tries, count)).argsort(axis=1)[:, : each * group_size]
    else:
        drawn = rng.integers(0, count, size=(_GROUPS, group_size))
    groups = which[drawn].reshape(-1, group_size)
    rewards = values[groups]
    found = group_advantages(rewards, loss)
    # Of a rare reward that no group had nothing is known; it takes part in none either.
    seen = np.bincount(groups.ravel(), minlength=len(values))
    sums = np.bincount(groups.ravel(), found.ravel(), minlength=len(values))
    expected = sums / np.maximum(seen, 1)
    share = np.bincount(which, minlength=len(values)) / count
    has_signal = rewards.max(axis=1) > rewards.min(axis=1)
    return values, expected, float(share @ np.abs(expected)) / 2, float(has_signal.mean())
