"""How far two passes of a judge agree on integer scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def score_agreement(first: Sequence[int], second: Sequence[int]) -> dict[str, Any]:
    """Compare two scores of each rollout.

    Returns:
        `rollouts`; `equal`, the share of equal scores; `mean_absolute_difference`; and
        `weighted_kappa`, Cohen's kappa with quadratic weights (Cohen 1968),

            1 − Σ (a_i − b_i)² / (Σ_ij (a_i − b_j)² / n),

        1 where the passes agree, 0 where they agree no more than chance would have it. None where
        it is undefined: no rollout, or for kappa where all scores are the same.
    """
    a, b = np.array(first, dtype=np.float64), np.array(second, dtype=np.float64)
    found: dict[str, Any] = {
        "rollouts": len(a), "equal": None, "mean_absolute_difference": None, "weighted_kappa": None,
    }  # fmt: skip
    if len(a):
        found["equal"] = float(np.mean(a == b))
        found["mean_absolute_difference"] = float(np.mean(np.abs(a - b)))
        # Σ_ij (a_i − b_j)² / n² from moments.
        by_chance = a.var() + b.var() + (a.mean() - b.mean()) ** 2
        if by_chance > 0:
            found["weighted_kappa"] = float(1 - np.mean((a - b) ** 2) / by_chance)
    return found
