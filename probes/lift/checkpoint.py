"""Lift read from two policies: how far training moved each item, from rollouts that are there.

Completions y of an item were drawn from the initial policy pi; a checkpoint pi' is pi after some
training: an early checkpoint of a run, or a pilot of a few steps. With r = pi'(y) / pi(y),

    E[r | y correct] = sum over correct y of pi'(y) / p = p' / p,

so that the mean ratio over n correct draws estimates p'/p without bias, however seldom the item is
right, and needs no rollout of pi'. Delta is its log. The same over wrong draws gives (1-p')/(1-p),
and the change in log odds is read from the rarer outcome, where log odds and log ratio are nearest
to each other:

    p <= 1/2:   logit(p e^Delta) - logit p,            p e^Delta cut at 0.99,
    p > 1/2:    the same of wrong rollouts with 1 - p, negated.

The log of the mean ratio is what is kept; the mean of log ratios, which is lower by half the
variance of a single draw's, orders a real model's items worse.

Standard error. Log ratios of one item's draws have variance s^2, by which the log of a mean of n
log-normal ratios has variance log(1 + (e^(s^2) - 1) / n), that is s^2 where n = 1. An item's own
estimate of s^2 is worth little with few draws and nothing with one; so it is moderated as in
Smyth (2004), by the variance within items pooled over all items, which counts as 2 draws. Draws of
one same completion have no variance: where every item has one correct completion the ratios are
exact and the errors zero, and what no item's draws ever showed is in no error. In simulations with
log ratios of standard deviation 0.1 to 1.8, nominal 95 % intervals covered 0.86 to 0.95 of the
truth at 1, 2, 4, 8 and 16 draws.

Smyth (2004), Linear models and empirical Bayes methods for assessing differential expression in
microarray experiments, Statistical Applications in Genetics and Molecular Biology 3(1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.special import logit

from curate.run.rollouts import item_rows

# An item's new probability of its rarer outcome is not read higher.
_MOST = 0.99
# Draws that the variance within all items counts as.
_PRIOR_DRAWS = 2.0


@dataclass(frozen=True)
class CheckpointLift:
    """How far a checkpoint has moved each item; every array (items,), NaN where nothing tells.

    Attributes:
        correct_rollouts: draws that it is read from.
        log_ratio: Delta, which estimates log(p'/p).
        log_ratio_error: its standard error.
        log_odds_change: estimates logit p' - logit p.
        log_odds_error: its standard error, that of p itself left out.
    """

    correct_rollouts: NDArray[np.int64]
    log_ratio: NDArray[np.float64]
    log_ratio_error: NDArray[np.float64]
    log_odds_change: NDArray[np.float64]
    log_odds_error: NDArray[np.float64]


def log_ratio_lift(
    initial: pa.Table,
    after: pa.Table,
    row_of: Mapping[str, int],
    pass_rates: NDArray[np.float64],
) -> CheckpointLift:
    """Compare two scorings of the same rollouts.

    Args:
        initial, after: from `rescoring_stage.rescore_run` with the policy that drew the rollouts
            and with the checkpoint.
        row_of: position of each item by item_id.
        pass_rates: (items,) inside (0, 1), such as (c + 1/2) / (n + 1).

    Raises:
        ValueError: the tables are not of the same rollouts, or a pass rate is 0 or 1 or beyond.
    """
    same = ["item_id", "sample", "reward", "weight"]
    if initial.select(same) != after.select(same):
        raise ValueError("the two tables do not score the same rollouts")
    if not ((pass_rates > 0) & (pass_rates < 1)).all():
        raise ValueError("pass rates must lie inside (0, 1): log odds have no value at the ends")
    rows = item_rows(initial, row_of)
    rewards, weights = initial["reward"].to_numpy(), initial["weight"].to_numpy()
    ratios = after["log_probability"].to_numpy() - initial["log_probability"].to_numpy()
    correct, wrong = (
        _log_mean(rows[lines], ratios[lines], weights[lines], len(row_of))
        for lines in (rewards == 1, rewards == 0)
    )
    draws, log_ratio, error = correct
    change, change_error = _log_odds(pass_rates, log_ratio, error)
    wrong_draws, wrong_ratio, wrong_error = wrong
    from_wrong, from_wrong_error = _log_odds(1 - pass_rates, wrong_ratio, wrong_error)
    is_wrong_rarer = (pass_rates > 0.5) & (wrong_draws > 0)
    return CheckpointLift(
        correct_rollouts=draws,
        log_ratio=log_ratio,
        log_ratio_error=error,
        log_odds_change=np.where(is_wrong_rarer, -from_wrong, change),
        log_odds_error=np.where(is_wrong_rarer, from_wrong_error, change_error),
    )


def _log_mean(
    rows: NDArray[np.int64],
    log_ratios: NDArray[np.float64],
    weights: NDArray[np.int64],
    items: int,
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Of each item: its draws, the log of the mean of their ratios and the standard error of it."""

    def total(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(np.bincount(rows, weights=values, minlength=items), dtype=np.float64)

    draws = total(weights.astype(float))
    with np.errstate(divide="ignore", invalid="ignore"):
        largest = np.full(items, -np.inf)
        np.maximum.at(largest, rows, log_ratios)
        mean = total(weights * np.exp(log_ratios - largest[rows])) / draws
        log_mean = largest + np.log(mean)
        center = total(weights * log_ratios) / draws
        squares = total(weights * (log_ratios - center[rows]) ** 2)
        pooled = squares.sum() / np.maximum(draws - 1, 0).sum()
        variance = (_PRIOR_DRAWS * pooled + squares) / (_PRIOR_DRAWS + draws - 1)
        # e^709 is the largest float.
        error = np.sqrt(np.log1p(np.expm1(np.minimum(variance, 700.0)) / draws))
    empty = draws == 0
    log_mean[empty] = error[empty] = np.nan
    return draws.astype(np.int64), log_mean, error


def _log_odds(
    probability: NDArray[np.float64], log_ratio: NDArray[np.float64], error: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The change in log odds that a log ratio of probabilities means, and its standard error."""
    new = np.exp(np.minimum(np.log(probability) + log_ratio, np.log(_MOST)))
    return logit(new) - logit(probability), error / (1 - new)
