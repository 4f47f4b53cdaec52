"""What training on each item takes, and what each item goes along: two vectors an item.

In the words of `probes.lift.gradients`, a group of item j moves the parameters along w_j D_j, and
the log odds of item i go along h_i / (1 − p_i), so that

    ⟨w_j D_j, h_i / (1 − p_i)⟩

is what a group of j does for the log odds of i, to first order: `teaching` is the mean of it over
the unsolved items. Both vectors are sketches, in the inner product of the run's optimizer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from probes.lift.gradients import Flags, LiftInputs, Singles, open_work

_MOST_BYTES = 2**31


@dataclass(frozen=True)
class ItemGradients:
    """Of the items of a run, and of those that are to be taught."""

    step: Singles
    """(items, dim): w_j D_j, zero of an item that a step takes nothing of."""
    slope: Singles
    """(items, dim): h_i / (1 − p_i), zero of an item that was never right."""
    pupil: Singles
    """(pupils, dim): the same of those that are to be taught: the items, or those of a target."""


def item_gradients(
    inputs: LiftInputs,
    *,
    group_size: int,
    loss: str,
    pupils: LiftInputs | None = None,
    seed: int = 0,
    most_bytes: int = _MOST_BYTES,
    block_bytes: int = 2**28,
) -> ItemGradients:
    """Find both vectors of every item.

    Args:
        inputs: of the run.
        group_size, loss: of the training.
        pupils: rollouts of the items of a target, in the same sketch; None: the run's own items.
        seed: of the rollouts that make the preconditioner, and of the folding.
        most_bytes: for the vectors; where they would take more, coordinates are added up with
            random signs, which leaves inner products as they are on average.
        block_bytes: memory for the rollouts in hand.

    Raises:
        ValueError: what `measure_lift` raises.
    """
    items = len(inputs.judged)
    work = open_work(inputs, np.zeros(items, dtype=bool), group_size, loss, seed=seed)
    others = 0 if pupils is None else len(pupils.judged)
    dim = inputs.features.shape[1]
    fold = _Fold(dim, max(1, most_bytes // (4 * max(1, 2 * items + others))), seed)
    step, slope = np.zeros((2, items, fold.width), dtype=np.float32)
    for rows in work.blocks(block_bytes):
        block = work.read(rows)
        share, h, _, k = work.difference(block)
        step[block.items] = fold.apply(share)
        slope[block.items] = fold.apply(_slopes(h, k > 0, work.odds[block.items]))
    pupil = slope
    if pupils is not None:
        pupil = np.zeros((others, fold.width), dtype=np.float32)
        odds = 1 / (1 - pupils.pass_rate)
        for rows in work.blocks(block_bytes, pupils):
            block = work.read(rows, pupils)
            h, _, _, k, _ = work.means(block)
            pupil[block.items] = fold.apply(_slopes(h, k > 0, odds[block.items]))
    return ItemGradients(step, slope, pupil)


def _slopes(h: Singles, has: Flags, odds: NDArray[np.float64]) -> Singles:
    return np.asarray(h * np.where(has, odds, 0.0).astype(np.float32)[:, None])


class _Fold:
    """Adds up coordinates with random signs; changes nothing where there is room for all."""

    def __init__(self, dim: int, most: int, seed: int) -> None:
        self.width = min(dim, most)
        if self.width < dim:
            rng = np.random.default_rng(seed)
            self.signs = rng.choice(np.array([-1.0, 1.0], dtype=np.float32), size=dim)

    def apply(self, vectors: Singles) -> Singles:
        rows, dim = vectors.shape
        if self.width == dim:
            return vectors
        signed = np.zeros((rows, -(-dim // self.width) * self.width), dtype=np.float32)
        signed[:, :dim] = vectors * self.signs
        return np.asarray(signed.reshape(rows, -1, self.width).sum(axis=1))
