"""The paper's partition of items by what GRPO did with them, Table 1 of it, and its τ sweep.

arXiv 2605.16787, section 3, over seeds s with initial pass rate p0 and final pass rate p_s:

    easy         p0 >= τ; all others are hard
    no_positive  hard, and in some seed never a correct rollout (union over the seeds)
    unlearnable  the other hard items with p_s < τ in every seed (intersection)
    learnable    the other hard items with p_s >= τ in every seed (intersection)
    undetermined what is left: the seeds disagree, or some rate is unknown

Departures from the paper: it flags p <= τ where we flag p < τ, as for predicted tags; and it looks
for correct rollouts in training only, where ours counts the probe's too, since those are rollouts
of the initial policy. Table 1 gives both counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curate.tags import Trainability
from recipes.statistics.agreement import Booleans, Floats, auroc

SWEEP_TAUS = tuple(round(0.02 * step, 2) for step in range(1, 16))
"""The thresholds of the sweep that the paper names as missing: 0.02 to 0.30."""

Tags = NDArray[np.str_]


@dataclass(frozen=True)
class SeedOutcomes:
    """What became of the same items in each finished seed."""

    initial_pass_rate: Floats
    """c/n of the probe, shape (items,); nan where nothing was judged."""
    final_pass_rates: Floats
    """Shape (seeds, items); nan where nothing was judged."""
    ever_positive: Booleans
    """A correct rollout in the probe or in that seed's training, shape (seeds, items)."""
    positive_in_training: Booleans | None
    """A correct rollout in that seed's training, shape (seeds, items); None where some seed's
    training is not known."""


def partition(initial: Floats, final: Floats, positive: Booleans, tau: float) -> Tags:
    """Tag each item by its outcomes.

    Args:
        initial: initial pass rates, shape (items,), nan for unknown.
        final: final pass rates, shape (seeds, items), nan for unknown.
        positive: whether a correct rollout was seen, shape (seeds, items).
        tau: the pass rate from which an item counts as solved.

    Returns:
        words of `Trainability`, shape (items,).

    Raises:
        ValueError: no seeds, or shapes that do not fit.
    """
    if len(final) == 0 or final.shape != positive.shape or final.shape[1:] != initial.shape:
        raise ValueError(
            f"outcomes of shapes {initial.shape}, {final.shape} and {positive.shape} do not fit"
        )
    # Comparisons with nan are false: an unknown rate makes an item neither this nor that.
    is_hard = initial < tau
    has_positive = positive.all(axis=0)
    tags = np.full(len(initial), str(Trainability.UNDETERMINED))
    tags[initial >= tau] = Trainability.EASY
    tags[is_hard & ~has_positive] = Trainability.NO_POSITIVE
    tags[is_hard & has_positive & (final < tau).all(axis=0)] = Trainability.UNLEARNABLE
    tags[is_hard & has_positive & (final >= tau).all(axis=0)] = Trainability.LEARNABLE
    return tags


def table1(outcomes: SeedOutcomes, tau: float) -> dict[str, Any]:
    """Count the hard items of each kind, as in the paper's Table 1.

    Returns:
        `hard_items`, and for each kind `items` and `share` (of the hard items; None if there are
        none); the same under `positives_in_training_only`, which is the paper's count, each None
        where it is not known.
    """
    counted = _counted(outcomes, outcomes.ever_positive, tau)
    strict: dict[str, Any]
    if outcomes.positive_in_training is None:
        strict = {kind: {"items": None, "share": None} for kind in counted if kind != "hard_items"}
    else:
        strict = _counted(outcomes, outcomes.positive_in_training, tau)
        del strict["hard_items"]  # The same: hard does not depend on it.
    return counted | {"positives_in_training_only": strict}


def _counted(outcomes: SeedOutcomes, positive: Booleans, tau: float) -> dict[str, Any]:
    initial, final = outcomes.initial_pass_rate, outcomes.final_pass_rates
    tags = partition(initial, final, positive, tau)
    is_hard = initial < tau
    is_open = is_hard & (tags == Trainability.UNDETERMINED)
    disagrees = is_open & (final < tau).any(axis=0) & (final >= tau).any(axis=0)
    hard = int(is_hard.sum())
    kinds = {
        "unlearnable": tags == Trainability.UNLEARNABLE,
        "learnable": tags == Trainability.LEARNABLE,
        "no_positive": tags == Trainability.NO_POSITIVE,
        "seeds_disagree": disagrees,
        "not_judged": is_open & ~disagrees,
    }
    return {"hard_items": hard} | {
        name: {"items": int(is_kind.sum()), "share": int(is_kind.sum()) / hard if hard else None}
        for name, is_kind in kinds.items()
    }


def tau_sweep(
    outcomes: SeedOutcomes, scores: Mapping[str, Floats], taus: Sequence[float] = SWEEP_TAUS
) -> list[dict[str, Any]]:
    """Partition anew at each τ, and tell how well scores separate the classes there.

    Args:
        outcomes: of the items.
        scores: by name, shape (items,), higher for learnable; nan where there is none.
        taus: pass rates that decide both who is hard and who was learned.

    Returns:
        for each τ what `table1` gives, without the paper's count; `auroc_items`, the learnable and
        unlearnable items that have all scores; and for each score `auroc_NAME` over these, None
        unless both classes are among them.
    """
    has_scores = np.isfinite(np.array(list(scores.values()))).all(axis=0)
    rows = []
    for tau in taus:
        tags = partition(
            outcomes.initial_pass_rate, outcomes.final_pass_rates, outcomes.ever_positive, tau
        )
        is_unlearnable = tags == Trainability.UNLEARNABLE
        among = (is_unlearnable | (tags == Trainability.LEARNABLE)) & has_scores
        row: dict[str, Any] = {"tau": tau} | _counted(outcomes, outcomes.ever_positive, tau)
        row["auroc_items"] = int(among.sum())
        for name, score in scores.items():
            row[f"auroc_{name}"] = auroc(is_unlearnable[among], -score[among])
        rows.append(row)
    return rows
