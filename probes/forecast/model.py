"""The pass rate that training is expected to lead to, with an interval, and what it makes of τ.

In log odds, with p the pass rate under the initial policy and ℓ the lift of the item,

    logit p' = logit p + H (level + drift + gain · sign(ℓ) log(1 + |ℓ|)) + spread √H · ε,
    ε ~ N(0, 1)

H is the length of the training in units of the recipe's (`--horizon`). The logarithm is because a
lift to first order does not last: what is lifted soon is solved soon, and then teaches no more.
`drift`, `gain` and `spread` are fitted on grown worlds (docs/evidence/forecast.md says on which,
and how well they do on others), or by `curate calibrate` on a user's own outcomes. `spread` is
what training does by chance and what a first order does not see. `level` is what a pilot says of
the training as a whole (`probes.stages.forecast`); gradients, whose unit is relative, say nothing.

p and ℓ are not known either. p has its posterior given the counts
(`probes.forecast.pass_probability`). ℓ is measured with an error, and items differ in it: over the
run's hard items ℓ ~ N(m, v), with m their mean and v such that they scatter about it as much as v
and their errors say (Paule and Mandel 1982), so that what is measured badly is drawn towards the
others, and an item without a lift has theirs.

    p_unlearnable = P(p' < τ)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit, logit, ndtr

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Posterior = Callable[[NDArray[np.intp]], tuple[Floats, Floats]]
"""Of some items: pass rates (grid,) and their probabilities (items, grid)."""

CONFIDENCE = 0.9
_ITEMS_AT_ONCE = 2048
_BINS = np.linspace(-14.0, 14.0, 281)
"""Log odds that a distribution is kept at."""
_NODES, _NODE_WEIGHTS = np.polynomial.hermite_e.hermegauss(7)
_LEAST_SPREAD = 1e-3


@dataclass(frozen=True)
class Constants:
    """Of the forecast; what they were fitted on is in docs/evidence/forecast.md."""

    drift: float
    """Log odds that training adds to any item."""
    gain: float
    """Log odds by which it lifts an item of lift e − 1."""
    spread: float
    """Standard deviation of what is left, in log odds."""

    def __post_init__(self) -> None:
        values = asdict(self)
        if not all(np.isfinite(value) for value in values.values()) or self.spread <= 0:
            raise ValueError(f"drift and gain must be finite and spread above 0, got {values}")

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Constants:
        """Read plain values; raises ValueError for one that is missing or no number."""
        try:
            return cls(**{each.name: float(values[each.name]) for each in fields(cls)})
        except (KeyError, TypeError) as error:
            raise ValueError(f"a forecast needs drift, gain and spread: {error}") from error


@dataclass(frozen=True)
class Forecast:
    """Of each item, arrays (items,)."""

    pass_rate: Floats
    """Expected after training."""
    low: Floats
    high: Floats
    """Ends of the interval."""
    p_unlearnable: Floats
    """Probability that it ends below τ."""
    evidence_spread: Floats
    """Standard deviation, in log odds, that more rollouts could take away."""


@dataclass(frozen=True)
class Lifts:
    """Measured lifts: arrays (items,), nan where there is none."""

    lift: Floats
    standard_error: Floats

    @property
    def is_known(self) -> Flags:
        """(items,)."""
        return np.asarray(np.isfinite(self.lift) & np.isfinite(self.standard_error))


def fit_population(lifts: Lifts, chosen: Flags) -> tuple[float, float]:
    """Mean and variance of the true lift over some items, from measured ones.

    Args:
        lifts: of all items.
        chosen: (items,), those that speak for the others.

    Returns:
        m and v; 0 and 0 where no lift is known.
    """
    known = lifts.is_known & chosen
    if not known.any():
        return 0.0, 0.0
    value = lifts.lift[known]
    variance = np.maximum(lifts.standard_error[known] ** 2, _LEAST_SPREAD**2)
    # Equal weights: errors differ by orders of magnitude, and the surest items are no sample.
    mean = float(np.mean(value))
    if len(value) == 1:
        return mean, float(variance[0])
    squares = (value - mean) ** 2

    def excess(between: float) -> float:
        return float((squares / (variance + between)).sum()) - (len(value) - 1)

    return mean, float(brentq(excess, 0.0, squares.sum())) if excess(0.0) > 0 else 0.0


def saturated(lift: Floats) -> Floats:
    """sign(ℓ) log(1 + |ℓ|)."""
    return np.asarray(np.sign(lift) * np.log1p(np.abs(lift)))


def forecast_items(
    posterior: Posterior,
    lifts: Lifts,
    population: tuple[float, float],
    constants: Constants,
    *,
    tau: float,
    horizon: float = 1.0,
    confidence: float = CONFIDENCE,
    level: float = 0.0,
) -> Forecast:
    """Forecast every item.

    Args:
        posterior: of the pass rates.
        lifts: of the items.
        population: mean and variance of the lift over the run's hard items, `fit_population`.
        constants: of the forecast.
        tau: where an item counts as learned, inside (0, 1).
        horizon: length of the training in units of the recipe's, above 0.
        confidence: of the interval.
        level: log odds that this training adds to any item, beside the drift.

    Raises:
        ValueError: tau or horizon outside of their range.
    """
    if not 0 < tau < 1 or not horizon > 0:
        raise ValueError(f"tau must lie in (0, 1) and horizon above 0, got {tau} and {horizon}")
    items = len(lifts.lift)
    found = np.empty((5, items))
    constants = replace(constants, drift=constants.drift + level)
    for start in range(0, items, _ITEMS_AT_ONCE):
        rows = np.arange(start, min(start + _ITEMS_AT_ONCE, items))
        part = Lifts(lifts.lift[rows], lifts.standard_error[rows])
        found[:, rows] = _some(
            *posterior(rows), _shrunk(part, *population), constants, tau, horizon, confidence
        )
    return Forecast(*found)


def chances_below(
    rates: Floats,
    weights: Floats,
    lifts: Lifts,
    population: tuple[float, float],
    constants: Constants,
    *,
    tau: float,
    horizon: float,
    level: float,
) -> Floats:
    """Give `p_unlearnable` of `forecast_items` alone, (items,), several times as fast.

    For a search over constants. The posterior is `rates` (grid,) and `weights` (items, grid); for
    the rest see there.
    """
    constants = replace(constants, drift=constants.drift + level)
    base, gained = _moves(rates, _shrunk(lifts, *population), constants, horizon)
    spread = constants.spread * np.sqrt(horizon)
    # To share a value out to the bins and to read between them is the same sum.
    below = np.interp(base + gained[:, :, None], _BINS, ndtr((logit(tau) - _BINS) / spread))
    at_nodes = np.matmul(below, weights[:, :, None])[:, :, 0]
    return np.asarray(at_nodes @ (_NODE_WEIGHTS / _NODE_WEIGHTS.sum()))


def _shrunk(lifts: Lifts, mean: float, variance: float) -> tuple[Floats, Floats]:
    """Posterior mean and standard deviation of the lift, (items,)."""
    known = lifts.is_known
    measured = np.where(known, lifts.standard_error**2, np.inf)
    with np.errstate(invalid="ignore"):
        share = np.where(known, variance / (variance + measured + _LEAST_SPREAD**2), 0.0)
    value = np.where(known, lifts.lift, 0.0)
    return mean + share * (value - mean), np.sqrt((1 - share) * variance)


def _some(
    rates: Floats,
    weights: Floats,
    lift: tuple[Floats, Floats],
    constants: Constants,
    tau: float,
    horizon: float,
    confidence: float,
) -> Floats:
    """Mean, low, high, P(< τ) and evidence spread of some items, (5, items)."""
    base, gained = _moves(rates, lift, constants, horizon)
    node_weights = _NODE_WEIGHTS / _NODE_WEIGHTS.sum()
    before = _on_bins(base[None, None, :] + gained[:, :, None], weights, node_weights)
    center = before @ _BINS
    evidence = np.sqrt(np.maximum(before @ _BINS**2 - center**2, 0))
    spread = constants.spread * np.sqrt(horizon)
    below = before @ ndtr((logit(tau) - _BINS) / spread)
    blurred = ndtr((_BINS[None, :] - _BINS[:, None]) / spread)
    cumulative = before @ blurred
    # Of a normal in log odds, by the same nodes as the lift's.
    expected = before @ (expit(_BINS[:, None] + spread * _NODES) @ node_weights)
    tail = (1 - confidence) / 2
    low, high = (_quantile(cumulative, share) for share in (tail, 1 - tail))
    return np.stack([expected, low, high, below, evidence])


def _moves(
    rates: Floats, lift: tuple[Floats, Floats], constants: Constants, horizon: float
) -> tuple[Floats, Floats]:
    """Log odds of the rates, (grid,), and what training adds at each node, (items, nodes)."""
    mean, deviation = lift
    nodes = saturated(mean[:, None] + deviation[:, None] * _NODES)
    gained = horizon * (constants.drift + constants.gain * nodes)
    return logit(np.clip(rates, expit(_BINS[0]), expit(_BINS[-1]))), gained


def _on_bins(values: Floats, weights: Floats, node_weights: Floats) -> Floats:
    """Distribution over the bins, (items, bins), of values (items, nodes, grid), weighted."""
    items, bins = len(values), len(_BINS)
    step = _BINS[1] - _BINS[0]
    place = np.clip((values - _BINS[0]) / step, 0, bins - 1 - 1e-9)
    left = place.astype(np.int64)
    share = place - left
    mass = node_weights[None, :, None] * weights[:, None, :]
    cell = left + bins * np.arange(items)[:, None, None]
    size = items * bins
    low = np.bincount(cell.ravel(), (mass * (1 - share)).ravel(), minlength=size)
    high = np.bincount(cell.ravel() + 1, (mass * share).ravel(), minlength=size)
    return np.asarray((low[:size] + high[:size]).reshape(items, bins))


def _quantile(cumulative: Floats, share: float) -> Floats:
    """(items,): pass rate at which a distribution over the bins reaches `share`."""
    above = cumulative >= share
    place = np.where(above.any(axis=1), above.argmax(axis=1), len(_BINS) - 1)
    before = np.maximum(place - 1, 0)
    rows = np.arange(len(cumulative))
    low, high = cumulative[rows, before], cumulative[rows, place]
    with np.errstate(invalid="ignore", divide="ignore"):
        part = np.where(high > low, (share - low) / (high - low), 1.0)
    return np.asarray(expit(_BINS[before] + np.clip(part, 0, 1) * (_BINS[place] - _BINS[before])))
