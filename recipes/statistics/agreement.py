"""How well what was predicted agrees with what GRPO confirmed: confusion, AUROC, calibration.

Intervals are 95 % percentile intervals of a bootstrap over items: an item is drawn with its outcome
and all its scores, so that differences between scores are paired (Efron and Tibshirani 1993,
chapters 13 and 16). They hold the noise of which items the dataset happens to have, not that of the
GRPO runs; that shows in how many items the seeds disagree on.

The calibration error is |mean predicted − share that came true|, averaged over bins of equal mass
(ECE; Naeini et al. 2015, Nixon et al. 2019). Such an estimate is too high, by about what the noise
within the bins adds, and a resample's error is too high once more; so its interval is the basic
one, 2·ECE minus the percentiles, which reflects that bias instead of doubling it. (In simulations
it covers an error of 0.09 in 86 to 90 % of the cases, the percentile interval in 13 to 78 %.) An
error of 0 lies on the edge, where it covers in about half of the cases only. So beside it stands
the error that a calibrated predictor would show on as many items, with outcomes drawn from its own
probabilities (Bröcker and Smith 2007).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

from curate.tags import Trainability

RESAMPLES = 2000
FEWEST_IN_CLASS = 10
"""With fewer items than this in either class no claim is made."""
WIDEST_INTERVAL = 0.3
"""With an AUROC interval wider than this no claim is made."""

_SEED = 0
_PERCENTILES = (2.5, 97.5)
_MOST_BINS = 10
_FEWEST_IN_BIN = 10
# Entries of one block of resamples: bounds the memory, whatever the number of items.
_BLOCK = 4_000_000

Floats = NDArray[np.float64]
Booleans = NDArray[np.bool_]


def confusion(predicted: Sequence[str], confirmed: Sequence[str]) -> dict[str, dict[str, int]]:
    """Count items by predicted and confirmed tag: `{predicted: {confirmed: items}}`."""
    table = {str(row): {str(column): 0 for column in Trainability} for row in Trainability}
    for one, other in zip(predicted, confirmed, strict=True):
        table[one][other] += 1
    return table


def auroc(outcome: Booleans, score: Floats) -> float | None:
    """Return the area under the ROC curve; None unless both outcomes occur."""
    if outcome.all() or not outcome.any():
        return None
    return float(roc_auc_score(outcome, score))


def average_precision(outcome: Booleans, score: Floats) -> float | None:
    """Return the average precision; None unless both outcomes occur."""
    if outcome.all() or not outcome.any():
        return None
    return float(average_precision_score(outcome, score))


def compare_scores(
    outcome: Booleans,
    scores: Mapping[str, Floats],
    *,
    resamples: int = RESAMPLES,
    seed: int = _SEED,
) -> dict[str, dict[str, float | None]]:
    """Tell how well scores rank the items, each with intervals and against the first of them.

    Args:
        outcome: what came true, shape (items,).
        scores: by name, shape (items,), without nan, higher where the outcome is expected.
        resamples, seed: of the bootstrap.

    Returns:
        for each score `auroc` and `average_precision`, each also with `_low` and `_high`; for the
        second and later ones `auroc_difference` too: the first one's AUROC less its own. All None
        unless both outcomes occur.
    """
    measures = ("auroc", "average_precision")
    drawn = {name: np.empty((resamples, len(measures))) for name in scores}
    for block, weights in _resampled_weights(len(outcome), resamples, seed):
        for name, score in scores.items():
            drawn[name][block] = _ranking_measures(outcome, score, weights)
    found: dict[str, dict[str, float | None]] = {}
    first = next(iter(scores))
    for name, score in scores.items():
        values = (auroc(outcome, score), average_precision(outcome, score))
        found[name] = {}
        for place, (measure, value) in enumerate(zip(measures, values, strict=True)):
            found[name] |= _with_interval(measure, value, drawn[name][:, place])
        if name != first:
            ours, theirs = found[first]["auroc"], found[name]["auroc"]
            difference = None if ours is None or theirs is None else ours - theirs
            pairs = drawn[first][:, 0] - drawn[name][:, 0]
            found[name] |= _with_interval("auroc_difference", difference, pairs)
    return found


def calibration(
    outcome: Booleans, probability: Floats, *, resamples: int = RESAMPLES, seed: int = _SEED
) -> dict[str, Any]:
    """Compare predicted probabilities with how often they came true.

    Args:
        outcome: what came true, shape (items,).
        probability: that it would, shape (items,).
        resamples, seed: of the bootstrap.

    Returns:
        `expected_calibration_error` with `_low`, `_high` and `_if_calibrated`, what a calibrated
        predictor would show on average (None without items); and `bins`: for each of at most 10,
        with at least 10 items each where there are as many, its `items`, mean `predicted` and
        `observed` share.
    """
    name = "expected_calibration_error"
    items = len(outcome)
    if not items:
        nothing = _with_interval(name, None, np.empty(0))
        return {**nothing, f"{name}_if_calibrated": None, "bins": []}
    count = min(_MOST_BINS, max(1, items // _FEWEST_IN_BIN))
    order = np.argsort(probability, kind="stable")
    bins = np.array_split(order, count)
    starts = np.cumsum([0, *map(len, bins[:-1])])

    def errors(gaps: Floats) -> Floats:
        sums = np.add.reduceat(gaps, starts, axis=-1)
        return np.asarray(np.abs(sums).sum(axis=-1) / items)

    gaps = (probability - outcome)[order]
    value = float(errors(gaps))
    drawn, calibrated = np.empty((2, resamples))
    random = np.random.default_rng([seed, 1])
    for block, weights in _resampled_weights(items, resamples, seed):
        drawn[block] = errors(weights[:, order] * gaps)
        came_true = random.random(weights.shape) < probability[order]
        calibrated[block] = errors(probability[order] - came_true)
    return {
        **_with_interval(name, value, np.clip(2 * value - drawn, 0, 1)),
        f"{name}_if_calibrated": float(calibrated.mean()),
        "bins": [
            {
                "items": len(each),
                "predicted": float(probability[each].mean()),
                "observed": float(outcome[each].mean()),
            }
            for each in bins
        ],
    }


def too_few_items(
    unlearnable: int, learnable: int, low: float | None, high: float | None
) -> str | None:
    """Say in a sentence why an AUROC supports no claim, or None if it does.

    It supports none with fewer than 10 items in either class, or with a 95 % interval wider than
    0.3, which could not tell a good predictor from a poor one.
    """
    if min(unlearnable, learnable) < FEWEST_IN_CLASS:
        return (
            f"Too few items for a claim: {unlearnable} unlearnable and {learnable} learnable ones "
            f"with p_unlearnable, and {FEWEST_IN_CLASS} of each are needed."
        )
    if low is not None and high is not None and high - low > WIDEST_INTERVAL:
        return (
            f"Too few items for a claim: the AUROC's 95 % interval, {low:.2f} to {high:.2f}, is "
            f"wider than {WIDEST_INTERVAL:g}."
        )
    return None


def _with_interval(name: str, value: float | None, drawn: Floats) -> dict[str, float | None]:
    """Name a figure and its percentile interval; resamples without both outcomes are nan."""
    drawn = drawn[np.isfinite(drawn)]
    low = high = None
    if value is not None and len(drawn):
        low, high = map(float, np.percentile(drawn, _PERCENTILES))
    return {name: value, f"{name}_low": low, f"{name}_high": high}


def _resampled_weights(items: int, resamples: int, seed: int) -> Iterator[tuple[slice, Floats]]:
    """Yield blocks of resamples as how often each item was drawn, shape (block, items).

    The same seed and number of items give the same resamples, so that figures can be paired.
    """
    random = np.random.default_rng(seed)
    size = max(1, _BLOCK // max(items, 1)) if items else resamples
    for start in range(0, resamples, size):
        block = min(size, resamples - start)
        drawn = random.integers(items, size=(block, items)) if items else np.empty((block, 0), int)
        drawn += np.arange(block)[:, None] * items
        counts = np.bincount(drawn.ravel(), minlength=block * items)
        yield slice(start, start + block), counts.reshape(block, items).astype(np.float64)


def _ranking_measures(outcome: Booleans, score: Floats, weights: Floats) -> Floats:
    """AUROC and average precision of weighted items, for many weightings at once.

    Equal to scikit-learn's with `sample_weight`, which takes one weighting at a time. Items of
    equal score are one threshold.

    Args:
        outcome, score: shape (items,).
        weights: shape (weightings, items).

    Returns:
        shape (weightings, 2); nan where only one outcome has weight.
    """
    if not len(outcome):
        return np.full((len(weights), 2), np.nan)
    order = np.argsort(-score, kind="stable")
    ranked = score[order]
    starts = np.flatnonzero(np.concatenate([[True], ranked[1:] != ranked[:-1]]))
    weights, came_true = weights[:, order], outcome[order]
    true = np.add.reduceat(weights * came_true, starts, axis=1)
    false = np.add.reduceat(weights * ~came_true, starts, axis=1)
    true_so_far = np.cumsum(true, axis=1)
    all_so_far = true_so_far + np.cumsum(false, axis=1)
    trues, falses = true.sum(axis=1), false.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        area = (false * (true_so_far - true / 2)).sum(axis=1) / (trues * falses)
        precision = np.divide(
            true_so_far, all_so_far, out=np.zeros_like(all_so_far), where=all_so_far > 0
        )
        average = np.where(falses > 0, (true * precision).sum(axis=1) / trues, np.nan)
    return np.column_stack([area, average])
