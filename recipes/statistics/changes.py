"""Intervals of a change between two probes: of a pass rate, of a similarity, of a mean over items.

    pass rate    d = p_b − p_a, with the limits l and u of either rate,
                 low  = d − √((p_b − l_b)² + (u_a − p_a)²)
                 high = d + √((u_b − p_b)² + (p_a − l_a)²)

With Wilson's limits (Wilson 1927) this is Newcombe's hybrid score interval (Newcombe 1998,
"Interval estimation for the difference between independent proportions", method 10). Where sampling
stopped because of what it saw, Wilson's limits do not hold, and those that do take their place,
which is the method of variance estimates recovery (Zou and Donner 2008).

    similarity   Welch (1947): d ± t · √(s_a² + s_b²), where s are standard errors with f_a and f_b
                 degrees of freedom, and t has (s_a² + s_b²)² / (s_a⁴ / f_a + s_b⁴ / f_b)

    mean         quantiles of the mean of resampled items, each with both of its values (Efron 1979)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri
from scipy.stats import bootstrap

from probes.statistics.distributions import student_t_quantile

if TYPE_CHECKING:
    from curate.run.run import Run

Floats = NDArray[np.float64]
Three = tuple[Floats, Floats, Floats]

# Numbers that a bootstrap holds at a time.
_RESAMPLED_AT_ONCE = 2**22


def wilson_limits(
    correct: NDArray[np.integer], total: NDArray[np.integer], confidence: float = 0.95
) -> tuple[Floats, Floats]:
    """Wilson's score limits (low, high) of a rate, shape (items,); nan where total is 0."""
    z = float(ndtri((1 + confidence) / 2))
    n = np.asarray(total, dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        rate = correct / n
        middle = (rate + z**2 / (2 * n)) / (1 + z**2 / n)
        half = z / (1 + z**2 / n) * np.sqrt(rate * (1 - rate) / n + z**2 / (4 * n**2))
    # At the ends the limit is 0 or 1 exactly, whatever rounding says.
    low = np.where(correct == 0, 0.0, middle - half)
    high = np.where(correct == total, 1.0, middle + half)
    return np.where(total > 0, low, np.nan), np.where(total > 0, high, np.nan)


def pass_rates(run: Run, values: Mapping[str, NDArray[Any]], confidence: float = 0.95) -> Three:
    """The pass rates of a run's items with their limits (rate, low, high), each (items,).

    Args:
        run: which says whether it sampled in rounds.
        values: what `Run.measured` gave.
        confidence: of the limits; those of rounds are at 0.95.
    """
    if run.config.max_rollouts > run.config.min_rollouts:
        # In rounds an item stops because of what it showed, which these limits know.
        return values["pass_rate"], values["pass_rate_low"], values["pass_rate_high"]
    counts = values["total_correct_rollouts"], values["total_rollouts"]
    return values["pass_rate"], *wilson_limits(*counts, confidence)


def rate_change(before: Three, after: Three) -> Three:
    """Change of a rate with its interval (change, low, high), from two independent samples.

    Args:
        before, after: (rate, low, high), each (items,), at the confidence that is wanted.
    """
    (old, old_low, old_high), (new, new_low, new_high) = before, after
    change = new - old
    down = np.hypot(_above(new, new_low), _above(old_high, old))
    up = np.hypot(_above(new_high, new), _above(old, old_low))
    return change, change - down, change + up


def _above(upper: Floats, lower: Floats) -> Floats:
    """How far above; a rate freed of bias may lie a little outside its limits."""
    return np.maximum(upper - lower, 0.0)


def similarity_change(before: Three, after: Three, confidence: float = 0.95) -> Three:
    """Change of a similarity with Welch's interval (change, low, high), each (items,).

    Args:
        before, after: (similarity, standard error, degrees of freedom), each (items,).
        confidence: of the interval.

    Returns:
        nan where a similarity is missing, and an interval of nan where an error is.
    """
    (old, old_error, old_freedom), (new, new_error, new_freedom) = before, after
    square = old_error**2 + new_error**2
    with np.errstate(invalid="ignore", divide="ignore"):
        freedom = square**2 / (old_error**4 / old_freedom + new_error**4 / new_freedom)
        half = student_t_quantile((1 + confidence) / 2, freedom) * np.sqrt(square)
    change = new - old
    # Two cosines are 2 apart at most.
    return change, np.clip(change - half, -2, 2), np.clip(change + half, -2, 2)


def mean_interval(
    values: Floats, resamples: int, seed: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Bootstrap interval of the mean of (items,) values; equal values give an empty interval."""
    found = bootstrap(
        (values,),
        np.mean,
        method="percentile",
        n_resamples=resamples,
        batch=max(1, _RESAMPLED_AT_ONCE // len(values)),
        confidence_level=confidence,
        random_state=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)


def is_beyond(low: Floats, high: Floats) -> NDArray[np.bool_]:
    """Whether an interval of a change leaves 0 out; not where there is no interval."""
    return np.asarray((low > 0) | (high < 0))
