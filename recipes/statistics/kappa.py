"""How far two raters agree: passes of a judge on integer scores, two models on tags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


def tag_agreement(table: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
    """Tell how far two taggings of the same items agree.

    Args:
        table: `{first tag: {second tag: items}}`, with the same tags in rows and columns
            (`recipes.statistics.agreement.confusion`).

    Returns:
        `items`; `equal`, the share with the same tag; and `kappa`, Cohen's (1960) without weights,
        since tags have no order,

            (equal − chance) / (1 − chance),    chance = Σ_t first_t second_t / n²,

        1 where they agree on all items, 0 where no more than chance would have it. None where it is
        undefined: no item, or for kappa where both have one and the same tag throughout.
    """
    counts = np.array([[row[tag] for tag in table] for row in table.values()], dtype=np.float64)
    items = counts.sum()
    found: dict[str, Any] = {"items": int(items), "equal": None, "kappa": None}
    if items:
        equal = float(np.trace(counts) / items)
        chance = float(counts.sum(axis=0) @ counts.sum(axis=1) / items**2)
        found["equal"] = equal
        if chance < 1:
            found["kappa"] = (equal - chance) / (1 - chance)
    return found
