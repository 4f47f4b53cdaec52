"""Worlds of enumerable policies: each item is a softmax over a few completions, linear in θ.

Items are of kinds that differ in size, in difficulty and in how alike their items are: completions
of one kind share a part of what they are made of. Nothing else is planted, and training is GRPO on
sampled groups with Adam, some milliseconds a step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from probes.lift.gradients import LiftInputs

Floats = NDArray[np.float64]

GROUP = 8
_COMPLETIONS, _DIM = 14, 96


@dataclass(frozen=True)
class World:
    """Arrays over items and their completions."""

    features: Floats
    """(items, completions, dim)."""
    is_correct: NDArray[np.bool_]
    logits: Floats
    """At θ = 0."""
    lengths: NDArray[np.int64]

    @classmethod
    def make(cls, seed: int, items: int, kinds: int) -> World:
        """Draw a world."""
        rng = np.random.default_rng(seed)
        kind = rng.choice(kinds, size=items, p=rng.dirichlet(np.full(kinds, 2.0)))
        level = rng.normal(-3, 2.0, size=kinds)
        alike = rng.uniform(0.3, 0.95, size=kinds)[kind][:, None, None]
        shared = rng.normal(size=(kinds, _COMPLETIONS, _DIM))[kind]
        own = rng.normal(size=(items, _COMPLETIONS, _DIM))
        right = np.arange(_COMPLETIONS) < rng.integers(1, 4, size=items)[:, None]
        logits = rng.normal(size=(items, _COMPLETIONS))
        logits += np.where(right, (level[kind] + rng.normal(0, 1.5, size=items))[:, None], 0)
        features = (alike * shared + np.sqrt(1 - alike**2) * own) / np.sqrt(_DIM)
        return cls(features, right, logits, rng.integers(1, 6, size=(items, _COMPLETIONS)))

    def policy(self, theta: Floats, items: NDArray[np.intp]) -> Floats:
        """Probabilities of completions, (items, completions)."""
        logits = self.logits[items] + self.features[items] @ theta
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(shares / shares.sum(axis=1, keepdims=True))

    def pass_rate(self, theta: Floats, items: NDArray[np.intp]) -> float:
        """Mean probability of a correct completion."""
        return float((self.policy(theta, items) * self.is_correct[items]).sum(axis=1).mean())

    def probe(self, rng: np.random.Generator, items: int, rollouts: int) -> LiftInputs:
        """What a probe of the first items keeps, before any training."""
        shares = self.policy(np.zeros(_DIM), np.arange(items))
        mean = np.einsum("iy,iyd->id", shares, self.features[:items])
        features, rows = [], []
        correct = np.zeros(items, dtype=np.int64)
        for item in range(items):
            drawn = rng.choice(_COMPLETIONS, size=rollouts, p=shares[item])
            right = self.is_correct[item, drawn]
            correct[item] = right.sum()
            for flag, most in ((True, 16), (False, 4 if correct[item] else 0)):
                kept, counts = np.unique(drawn[right == flag][:most], return_counts=True)
                for each, count in zip(kept.tolist(), counts.tolist(), strict=True):
                    length = int(self.lengths[item, each])
                    features.append((mean[item] - self.features[item, each]) / length)
                    rows.append((item, count, flag, length))
        item_of, weights, is_correct, tokens = map(np.array, zip(*rows, strict=True))
        judged = np.full(items, rollouts)
        rate = np.minimum((correct + 0.5) / (rollouts + 1), 0.99)
        return LiftInputs(
            np.array(features, np.float32),
            item_of, weights, is_correct, tokens, judged, correct, rate,
        )  # fmt: skip


def train(
    world: World,
    batch_of: Callable[[int], NDArray[np.intp]],
    steps: int,
    held_out: NDArray[np.intp],
    rng: np.random.Generator,
    told: Callable[[NDArray[np.intp], Floats], None] | None = None,
    learning_rate: float = 0.05,
) -> Floats:
    """Held-out pass rate every tenth step.

    Args:
        world: where.
        batch_of: the items of each step.
        steps: how many.
        held_out: items that are not trained on.
        rng: of the rollouts.
        told: what hears of every batch: its items, and their rewards (items, `GROUP`).
        learning_rate: of Adam.
    """
    theta, first, second = np.zeros((3, _DIM))
    curve = []
    for step in range(steps):
        items = batch_of(step)
        shares = world.policy(theta, items)
        drawn = (rng.random((len(items), GROUP, 1)) > shares.cumsum(axis=1)[:, None, :-1]).sum(
            axis=2
        )
        rewards = np.take_along_axis(world.is_correct[items], drawn, axis=1).astype(float)
        centred = rewards - rewards.mean(axis=1, keepdims=True)
        advantages = centred / (rewards.std(axis=1, ddof=1, keepdims=True) + 1e-4)
        weights = advantages / np.take_along_axis(world.lengths[items], drawn, axis=1)
        mean = np.einsum("iy,iyd->id", shares, world.features[items])
        scores = world.features[items[:, None], drawn] - mean[:, None]
        gradient = np.einsum("ig,igd->d", weights, scores) / (GROUP * len(items))
        first = 0.9 * first + 0.1 * gradient
        second = 0.99 * second + 0.01 * gradient**2
        unbiased = first / (1 - 0.9 ** (step + 1)), second / (1 - 0.99 ** (step + 1))
        theta = theta + learning_rate * unbiased[0] / (np.sqrt(unbiased[1]) + 1e-8)
        if told is not None:
            told(items, rewards)
        if (step + 1) % 10 == 0:
            curve.append(world.pass_rate(theta, held_out))
    return np.array(curve)
