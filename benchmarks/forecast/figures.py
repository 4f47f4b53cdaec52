"""How well each score of a probe tells what training did: the figures of `benchmarks/forecast`.

Judged are the items that are hard over all rollouts of the world (pass rate from 0.001 to below
0.1) and on which the three seeds agree. An item is learned where its pass rate after training is
0.1 or above in every seed.

    AUROC                learned against not learned
    within skills        the same over pairs of items of one skill
    average precision    of learned items
    calibration error    of p_unlearnable, ECE in 10 bins of equal count, over every hard item and
                         every seed's outcome
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.forecast.data import BUDGETS, Probe, World, probe_at
from benchmarks.forecast.scores import PASS_RATE, Scores, all_scores
from probes.forecast.model import Constants
from probes.stages.lift import GRADIENTS
from probes.tag_rules import DOUBT
from recipes.statistics.agreement import auroc, calibration, compare_scores

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Decided:
    """What the tags of a forecast are worth."""

    share: float
    """Of the hard items, those with a tag: learnable or unlearnable."""
    right: float | None
    """Of those of them on which the seeds agree, the share whose tag came true."""
    right_by_seed: float | None
    """Of every tagged hard item and seed, the share that came true."""


@dataclass(frozen=True)
class Figures:
    """Of one world at one budget; scores by name."""

    rollouts: float
    """Mean rollouts an item."""
    with_positive: int
    """Judged items with a correct rollout in the probe."""
    ranking: Mapping[str, Mapping[str, float | None]]
    """`auroc`, `within`, `with_positive` (AUROC of those items), `average_precision`, and
    `ahead`, `ahead_low`, `ahead_high`: AUROC less that of the pass rate, with its 95 % interval."""
    calibration: Mapping[str, Mapping[str, Any]]
    """As `recipes.statistics.agreement.calibration` gives it."""
    decided: Mapping[str, Decided]


@dataclass(frozen=True)
class Calibrated:
    """What a forecast is worth on the seeds that its constants were not fitted on."""

    error: float
    """Of calibration, over hard items and seeds."""
    error_by_chance: float
    """What a calibrated forecast would show, were the seeds independent."""
    auroc: float | None
    """Of hard items on which these seeds agree."""
    tagged: float
    """Share of the hard items."""
    right: float | None
    """Of those of them on which these seeds agree."""


@dataclass(frozen=True)
class WorldFigures:
    """Of one world."""

    name: str
    items: int
    hard: int
    judged: int
    learned: int
    """Of the judged ones."""
    by_budget: dict[str, Figures] = field(default_factory=dict)
    calibrated: dict[str, dict[str, dict[str, Calibrated]]] = field(default_factory=dict)
    """By budget, source of the lift, and what the constants were fitted on."""

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def measure_world(world: World, constants: Mapping[str, Constants]) -> WorldFigures:
    """All figures of a world.

    Args:
        world: the world.
        constants: of the forecast, by source of the lift.
    """
    judged = world.is_judged
    learned = world.learned_by_all
    found = WorldFigures(
        world.name,
        len(world.item_ids),
        int(world.is_hard.sum()),
        int(judged.sum()),
        int(learned[judged].sum()),
    )
    for budget in BUDGETS:
        probe = probe_at(world, budget, constants[GRADIENTS])
        found.by_budget[str(budget)] = _measure(probe, all_scores(probe, constants))
    return found


def _measure(probe: Probe, scores: Scores) -> Figures:
    world = probe.world
    judged = world.is_judged
    outcome = world.learned_by_all[judged]
    has_positive = (probe.found.correct > 0)[judged]
    # The pass rate first: what the others are ahead of it by is then a difference to it.
    compared = compare_scores(outcome, {n: s[judged] for n, s in scores.ranking.items()})
    ranking = {}
    for name, score in scores.ranking.items():
        figures = compared[name]
        ranking[name] = {
            "auroc": figures["auroc"],
            "within": auroc_within(outcome, score[judged], world.skills[judged]),
            "with_positive": auroc(outcome[has_positive], score[judged][has_positive]),
            "average_precision": figures["average_precision"],
        }
        if name != PASS_RATE:
            ranking[name] |= {
                "ahead": _minus(figures["auroc_difference"]),
                "ahead_low": _minus(figures["auroc_difference_high"]),
                "ahead_high": _minus(figures["auroc_difference_low"]),
            }
    unlearned = ~world.is_learned[:, world.is_hard]
    return Figures(
        rollouts=float(probe.drawn.mean()),
        with_positive=int(has_positive.sum()),
        ranking=ranking,
        calibration={
            name: calibration(unlearned.ravel(), np.tile(p[world.is_hard], len(unlearned)))
            for name, p in scores.p_unlearnable.items()
        },
        decided={name: decided(probe, p) for name, p in scores.p_unlearnable.items()},
    )


def _minus(value: float | None) -> float | None:
    return None if value is None else -value


def auroc_within(outcome: Flags, score: Floats, group: NDArray[np.str_]) -> float | None:
    """AUROC over the pairs of items of one group; None without a pair of unlike outcomes.

    Args:
        outcome, score, group: (items,).
    """
    total = pairs = 0.0
    for name in np.unique(group):
        own = group == name
        value = auroc(outcome[own], score[own])
        if value is not None:
            weight = float(outcome[own].sum() * (~outcome[own]).sum())
            total, pairs = total + weight * value, pairs + weight
    return total / pairs if pairs else None


def decided(probe: Probe, p_unlearnable: Floats) -> Decided:
    """What the tags by a probability are worth, as `probes.tag_rules` gives them."""
    world, found = probe.world, probe.found
    could = (found.correct > 0) & ~found.is_easy(world.config.tau)
    unlearnable = could & (p_unlearnable >= 1 - DOUBT)
    tagged = world.is_hard & (unlearnable | (could & (p_unlearnable <= DOUBT)))
    came_true = world.is_learned != unlearnable
    agreed = tagged & world.is_judged
    return Decided(
        float(tagged.sum() / max(world.is_hard.sum(), 1)),
        float(came_true[:, agreed].mean()) if agreed.any() else None,
        float(came_true[:, tagged].mean()) if tagged.any() else None,
    )
