"""What an adaptive optimizer makes of a direction, seen through sketches of gradients.

Adam divides each coordinate of the mean gradient by the root of its second moment, so that a
direction in which rollouts differ wildly moves less than its mean says. A sketch mixes the
coordinates of the model, and what is left of that is the second moment of the sketched gradients,

    C = Σ_r v_r g_r g_rᵀ / Σ v_r,       inner products ⟨x, (C/ĉ + 0.01)^(−1/2) y⟩

with ĉ the largest eigenvalue of C and v_r what GRPO takes of rollout r. C comes from at most 1,024
rollouts drawn by v_r: its leading directions are what matters, and all others are divided alike.
It was chosen for how lift and later gain go together in the grown world d1. It departs from Adam in
that it can be rotated: Adam's second moment is diagonal in the model's coordinates, which the
sketch does not keep.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Singles = NDArray[np.float32]

MOST_ROWS = 1024
_DAMPING = 0.01
# Below this share of the largest eigenvalue sums of singles are rounding, and the damping is all.
_RANK_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Preconditioner:
    """Applies (C/ĉ + damping)^(−1/4), so that plain inner products are the preconditioned ones."""

    basis: Singles
    """(directions, dim), orthonormal."""
    extra: Singles
    """(directions,): by how much each is scaled beyond all others."""
    common: float
    """Scale of every other direction."""

    def apply(self, vectors: Singles) -> Singles:
        """Scale vectors, (rows, dim)."""
        inside = (vectors @ self.basis.T) * self.extra
        return np.asarray(np.float32(self.common) * vectors + inside @ self.basis)


def draw_rows(weights: NDArray[np.float64], seed: int) -> NDArray[np.intp]:
    """Rows for a second moment: drawn by weight, with replacement; empty where none has any."""
    total = float(weights.sum())
    if not total > 0:
        return np.zeros(0, dtype=np.intp)
    rng = np.random.default_rng(seed)
    drawn = rng.choice(len(weights), size=MOST_ROWS, p=weights / total)
    return np.sort(drawn)


def fit_preconditioner(gradients: Singles, repeats: NDArray[np.int64]) -> Preconditioner:
    """The preconditioner of some gradients.

    Args:
        gradients: (rows, dim).
        repeats: (rows,): how often each was drawn.

    Returns:
        the preconditioner; without a gradient that is not zero, one that changes nothing.
    """
    scaled = gradients * np.sqrt(repeats / max(int(repeats.sum()), 1)).astype(np.float32)[:, None]
    # The rows are fewer than the coordinates, so their Gram matrix has the same spectrum for less.
    values, vectors = np.linalg.eigh((scaled @ scaled.T).astype(np.float64))
    largest = float(values.max(initial=0.0))
    if largest <= 0:
        dim = gradients.shape[1]
        return Preconditioner(np.zeros((0, dim), np.float32), np.zeros(0, np.float32), 1.0)
    kept = values > _RANK_TOLERANCE * largest
    basis = (vectors[:, kept].T @ scaled) / np.sqrt(values[kept])[:, None]
    scale = (values[kept] / largest + _DAMPING) ** -0.25
    common = _DAMPING**-0.25
    return Preconditioner(
        basis.astype(np.float32), (scale - common).astype(np.float32), float(common)
    )
