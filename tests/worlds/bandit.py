"""Policies that can be enumerated: each item is a softmax over a few completions, linear in θ.

With log π(y | i) = φ_iy·θ − log Z_i all that `probes.lift.gradients` estimates from draws has a sum
in closed form, at no cost: pass probability, ∇ log p, the mean update of a GRPO group, and the
lift.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from probes.lift.gradients import LiftInputs, group_coefficients

GROUP = 8


@dataclass(frozen=True)
class BanditWorld:
    """Arrays over items and their completions."""

    probabilities: NDArray[np.float64]
    """(items, completions)."""
    is_correct: NDArray[np.bool_]
    """(items, completions)."""
    lengths: NDArray[np.int64]
    """(items, completions), tokens."""
    scores: NDArray[np.float64]
    """(items, completions, dim): ∇ log π."""

    @classmethod
    def make(
        cls,
        seed: int,
        *,
        items: int = 80,
        completions: int = 14,
        dim: int = 96,
        most_correct: int = 3,
        logit: float = -3.0,
    ) -> "BanditWorld":
        """Items of six kinds; those of a kind share most of what their completions are made of."""
        rng = np.random.default_rng(seed)
        kind = rng.integers(6, size=items)
        base = rng.normal(size=(6, completions, dim))
        own = rng.normal(size=(items, completions, dim))
        features = (0.8 * base[kind] + 0.6 * own) / np.sqrt(dim)
        right = rng.integers(1, most_correct + 1, size=items)
        is_correct = np.arange(completions) < right[:, None]
        logits = rng.normal(size=(items, completions))
        logits += np.where(is_correct, rng.normal(logit, 1.2, size=items)[:, None], 0)
        shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        mean = np.einsum("iy,iyd->id", shares, features)
        lengths = rng.integers(1, 6, size=(items, completions))
        return cls(shares, is_correct, lengths, features - mean[:, None])

    @property
    def pass_probability(self) -> NDArray[np.float64]:
        """(items,)."""
        return np.asarray((self.probabilities * self.is_correct).sum(axis=1))

    def conditional(self, values: NDArray[np.float64], correct: bool) -> NDArray[np.float64]:
        """Mean of (items, completions, dim) given a correct, or a wrong, one: (items, dim)."""
        chosen = self.is_correct if correct else ~self.is_correct
        shares = self.probabilities * chosen
        shares = shares / shares.sum(axis=1, keepdims=True)
        return np.asarray(np.einsum("iy,iyd->id", shares, values))

    def group_updates(self) -> tuple[NDArray[np.float64], float]:
        """Mean contribution of a group of each item, (items, dim), and Σ_j q_j."""
        per_token = self.scores / self.lengths[..., None]
        difference = self.conditional(per_token, True) - self.conditional(per_token, False)
        chances = binom.pmf(np.arange(GROUP + 1), GROUP, self.pass_probability[:, None])
        weight = chances @ group_coefficients(GROUP)
        return weight[:, None] * difference, float(chances[:, 1:-1].sum())

    def lift(self) -> NDArray[np.float64]:
        """(items,), exactly."""
        updates, signal = self.group_updates()
        slope = self.conditional(self.scores, True) / (1 - self.pass_probability)[:, None]
        return np.asarray(slope @ updates.sum(axis=0) / signal)

    def draw(
        self, rng: np.random.Generator, rollouts: int, *, most: int = 16, most_wrong: int = 4
    ) -> LiftInputs:
        """What a probe of so many rollouts an item would keep."""
        features, rows = [], []
        items, completions = self.probabilities.shape
        correct = np.zeros(items, dtype=np.int64)
        for item in range(items):
            drawn = rng.choice(completions, size=rollouts, p=self.probabilities[item])
            right = self.is_correct[item, drawn]
            correct[item] = right.sum()
            for flag, limit in ((True, most), (False, most_wrong if correct[item] else 0)):
                kept, counts = np.unique(drawn[right == flag][:limit], return_counts=True)
                for each, count in zip(kept.tolist(), counts.tolist(), strict=True):
                    length = int(self.lengths[item, each])
                    features.append(-self.scores[item, each] / length)
                    rows.append((item, count, flag, length))
        item_of, weights, is_correct, tokens = map(np.array, zip(*rows, strict=True))
        judged = np.full(items, rollouts)
        return LiftInputs(
            np.array(features, np.float32),
            item_of, weights, is_correct, tokens, judged, correct, self.pass_probability,
        )  # fmt: skip
