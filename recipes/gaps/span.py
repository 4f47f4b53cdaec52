"""The directions in which a step of GRPO can go: the low-rank view of the training signal.

The steps of all items, w_j D_j of `probes.lift.gradients`, are the rows of a matrix. Its leading
right singular vectors are the directions in which training moves. Those count that are above noise
by parallel analysis (Horn 1965): their singular value is above that of the same place of a matrix
of pure noise, made of the deviations of rollouts from their item's mean with random signs; and of
these as many as hold 95 % of the squared length, at most 64. At most 1,024 items have a row, those
with the longest steps.

An item is asked about the span of the *others*. Taking out rows S_L changes SᵀS = V Σ² Vᵀ to
V (Σ² − Σ U_Lᵀ U_L Σ) Vᵀ, a small eigenvalue problem in the leading 128 vectors; directions that
fall below the least of those that count are no longer in the span.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from probes.lift.gradients import Block, Work
from probes.lift.teaching import choose_teachers

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]

_MOST_DIRECTIONS = 64
_MOST_VECTORS = 128
_HELD = 0.95
_NOISES = 8


@dataclass(frozen=True)
class Span:
    """The training signal of a run, and the directions of it that are above noise."""

    teachers: NDArray[np.intp]
    """(teachers,), places of the items with a row, ascending."""
    steps: Singles
    """(teachers, dim), w_j D_j."""
    vectors: Singles
    """(vectors, dim), orthonormal."""
    left: Floats
    """(teachers, vectors), U."""
    squares: Floats
    """(vectors,), σ², descending."""
    floor: float
    """The σ² from which a direction is in the span."""
    held: float
    """The share of the signal's squared length along the directions."""

    @property
    def directions(self) -> int:
        """How many there are."""
        return int((self.squares > self.floor).sum())

    def without(self, items: Sequence[int]) -> Floats:
        """The directions of all items but these: (directions, vectors), in `vectors`."""
        rows = np.flatnonzero(np.isin(self.teachers, items))
        if not len(rows):
            return np.eye(len(self.squares))[self.squares > self.floor]
        taken = self.left[rows] * np.sqrt(self.squares)
        values, vectors = np.linalg.eigh(np.diag(self.squares) - taken.T @ taken)
        return np.asarray(vectors.T[values > self.floor])


def find_span(work: Work, block_bytes: int, seed: int = 0) -> Span:
    """Find the directions of a run's training signal; the rollouts are read twice.

    Args:
        work: of the run.
        block_bytes: memory for the rollouts in hand.
        seed: of the signs of the noise.

    Raises:
        ValueError: a gradient is not finite.
    """
    blocks = work.blocks(block_bytes)
    lengths = np.zeros(len(work.draws))
    for rows in blocks:
        block = work.read(rows)
        lengths[block.items] = np.linalg.norm(work.difference(block)[0], axis=1)
    teachers = choose_teachers(lengths)
    dim = work.inputs.features.shape[1]
    steps = np.zeros((len(teachers), dim), dtype=np.float32)
    noises = np.zeros((_NOISES, len(teachers), dim), dtype=np.float32)
    rng = np.random.default_rng(seed)
    for rows in blocks:
        wanted = rows[np.isin(work.inputs.item[rows], teachers)]
        if not len(wanted):
            continue
        block = work.read(wanted)
        places = np.searchsorted(teachers, block.items)
        steps[places] = work.difference(block)[0]
        for noise in noises:
            noise[places] = _noise(work, block, rng)
    return _of(teachers, steps, noises)


def _noise(work: Work, block: Block, rng: np.random.Generator) -> Singles:
    """What the steps of a block are off by, drawn anew: (items of the block, dim)."""
    _, right, wrong, k, m = work.means(block)
    at = block.owner
    draws = np.where(block.is_correct, k[at], m[at])
    means = np.where(block.is_correct[:, None], right[at], wrong[at])
    # A single draw has no deviation from itself; its own length stands for it, as in the lift.
    deviations = block.g - np.where(draws[:, None] > 1, means, 0).astype(np.float32)
    weight = work.groups.weight[block.items][at]
    scale = weight * np.sqrt(block.weights / draws / np.maximum(draws - 1, 1))
    signs = rng.choice(np.array([-1.0, 1.0]), size=len(at))
    return block.sums(deviations, signs * scale)


def _of(teachers: NDArray[np.intp], steps: Singles, noises: Singles) -> Span:
    if not len(teachers):
        empty = np.zeros((0, steps.shape[1]), np.float32)
        return Span(teachers, steps, empty, np.zeros((0, 0)), np.zeros(0), 0.0, 0.0)
    squares, left = (each[..., ::-1] for each in np.linalg.eigh(_gram(steps)))
    by_noise = np.mean([np.linalg.eigvalsh(_gram(noise))[::-1] for noise in noises], axis=0)
    total = float(squares.sum())
    is_noise = squares <= np.maximum(by_noise, 1e-9 * total)
    first = int(is_noise.argmax()) if is_noise.any() else len(squares)
    enough = int(np.searchsorted(np.cumsum(squares), _HELD * total)) + 1
    count = min(first, enough, _MOST_DIRECTIONS)
    floor = float(by_noise[min(count, len(by_noise) - 1)])
    if 0 < count < first:
        # Midway to the first that is one too many, in log.
        floor = max(floor, float(np.sqrt(squares[count - 1] * max(squares[count], 0.0))))
    floor = max(floor, 1e-9 * total)
    floor = min(floor, float(squares[count - 1]) * (1 - 1e-9)) if count else np.inf
    held = float(squares[:count].sum()) / total if total > 0 else 0.0
    kept = int((squares[:_MOST_VECTORS] > 1e-9 * total).sum())
    squares, left = squares[:kept].copy(), left[:, :kept].copy()
    vectors = (left / np.sqrt(squares)).T.astype(np.float32) @ steps
    return Span(teachers, steps, np.asarray(vectors), left, squares, floor, held)


def _gram(rows: Singles) -> Floats:
    return np.asarray((rows @ rows.T).astype(np.float64))
