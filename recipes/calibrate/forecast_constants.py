"""Refitting the constants of the forecast to what became of a user's own items.

With P_i(θ) the probability that item i ends below τ by `probes.forecast.model` with drift, gain and
spread θ, and b_i the share of the seeds of GRPO in which it did,

    log L(θ) = Σ_i b_i log P_i(θ) + (1 − b_i) log(1 − P_i(θ))

An item counts once, however many seeds there are: they share its start and its lift. What is taken
is the largest of log L plus that of a weak prior, so that few items do not run away: drift and gain
are normal around the built-in constants with a standard deviation of 1, log spread with one of 1/2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import xlog1py, xlogy

from probes.forecast.model import Constants
from recipes.calibrate.confirmed_items import RunOutcomes

Floats = NDArray[np.float64]

_PRIOR_SPREAD = np.array([1.0, 1.0, 0.5])
"""Of drift, gain and log spread."""
# A certainty that was wrong would outweigh everything else.
_MOST_CERTAIN = 1e-4
# Far below what the outcomes say of any constant.
_TOLERANCE = 0.01


@dataclass(frozen=True)
class FittedConstants:
    """Constants, and how well they describe what they were fitted on."""

    constants: Constants
    items: int
    log_likelihood: float
    log_likelihood_built_in: float
    """Of the built-in constants on the same items."""


def fit_constants(runs: Sequence[RunOutcomes], built_in: Constants) -> FittedConstants:
    """Fit drift, gain and spread.

    Args:
        runs: outcomes of one run or more, of one source of the lift.
        built_in: constants of that source, where the search starts and the prior stands.
    """
    center = np.array([built_in.drift, built_in.gain, np.log(built_in.spread)])

    def loss(values: Floats) -> float:
        away = (values - center) / _PRIOR_SPREAD
        return 0.5 * float(away @ away) - log_likelihood(runs, _constants(values))

    # Its steps need no derivative, which the grid of the forecast makes uneven.
    found = minimize(
        loss,
        center,
        method="Nelder-Mead",
        options={
            "initial_simplex": np.vstack([center, center + np.diag(_PRIOR_SPREAD)]),
            "xatol": _TOLERANCE,
            "fatol": _TOLERANCE,
        },
    )
    constants = _constants(found.x)
    return FittedConstants(
        constants,
        sum(len(run.below) for run in runs),
        log_likelihood(runs, constants),
        log_likelihood(runs, built_in),
    )


def _constants(values: Floats) -> Constants:
    drift, gain, log_spread = map(float, values)
    return Constants(drift, gain, float(np.exp(log_spread)))


def log_likelihood(runs: Sequence[RunOutcomes], constants: Constants) -> float:
    """log L of the outcomes, in nats."""
    total = 0.0
    for run in runs:
        p = np.clip(run.p_unlearnable(constants), _MOST_CERTAIN, 1 - _MOST_CERTAIN)
        total += float((xlogy(run.below, p) + xlog1py(1 - run.below, -p)).sum())
    return total
