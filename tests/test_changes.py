"""Intervals of changes, and cosines between groups, hold what they promise."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from curate.run.features import RolloutFeatures
from probes.gradients.alignment import align, quantile_interval, resample_items, sum_groups
from recipes.statistics.changes import mean_interval, rate_change, similarity_change, wilson_limits
from tests.made.run import planted_gradients

# --- Intervals -------------------------------------------------------------------------------


def _coverage(n1: int, p1: float, n2: int, p2: float) -> float:
    """Exact probability that the interval of the change holds p2 − p1."""
    sides = []
    for n in (n1, n2):
        c = np.arange(n + 1)
        sides.append((c / n, *wilson_limits(c, np.full(n + 1, n))))
    before = tuple(values[:, None] for values in sides[0])
    after = tuple(values[None, :] for values in sides[1])
    _, low, high = rate_change(before, after)  # type: ignore[arg-type]
    weight = np.outer(binom.pmf(np.arange(n1 + 1), n1, p1), binom.pmf(np.arange(n2 + 1), n2, p2))
    return float(weight[(low <= p2 - p1) & (p2 - p1 <= high)].sum())


def test_the_change_of_a_pass_rate_is_newcombes() -> None:
    """56 of 70 against 48 of 80: Newcombe 1998, table II, case (a), method 10."""
    sides = [
        (np.array([c / n]), *wilson_limits(np.array([c]), np.array([n])))
        for c, n in ((48, 80), (56, 70))
    ]
    change, low, high = rate_change(*sides)  # type: ignore[arg-type]
    assert change[0] == pytest.approx(0.2)
    assert (low[0], high[0]) == (pytest.approx(0.0524, abs=5e-5), pytest.approx(0.3339, abs=5e-5))


def test_wilson_limits_are_scipys_and_unknown_without_rollouts() -> None:
    for c, n in ((0, 32), (1, 32), (32, 32), (300, 1024)):
        theirs = binomtest(c, n).proportion_ci(method="wilson")
        low, high = wilson_limits(np.array([c]), np.array([n]))
        assert (low[0], high[0]) == (pytest.approx(theirs.low), pytest.approx(theirs.high))
    assert np.isnan(wilson_limits(np.array([0]), np.array([0]))).all()


@pytest.mark.parametrize(("n1", "n2"), [(32, 32), (128, 32), (32, 1024), (256, 256)])
def test_the_interval_of_a_pass_rate_change_covers_as_often_as_it_says(n1: int, n2: int) -> None:
    rates = (0.01, 0.05, 0.1, 0.3, 0.6, 0.9)
    cover = np.array([_coverage(n1, p1, n2, p2) for p1 in rates for p2 in rates])
    assert cover.min() > 0.92
    assert 0.945 < cover.mean() < 0.985


def test_without_a_change_of_similarity_95_percent_of_the_intervals_hold_0() -> None:
    rng, items, k = np.random.default_rng(0), 4000, (4, 9)
    sides = []
    for draws, spread in zip(k, (0.1, 0.3), strict=True):
        x = 0.2 + spread * rng.normal(size=(items, draws))
        error = x.std(axis=1, ddof=1) / np.sqrt(draws)
        sides.append((x.mean(axis=1), error, np.full(items, draws - 1.0)))
    _, low, high = similarity_change(*sides)  # type: ignore[arg-type]
    assert np.mean((low <= 0) & (high >= 0)) == pytest.approx(0.95, abs=0.012)


def test_the_bootstrap_interval_of_a_mean_is_seeded_and_covers() -> None:
    rng = np.random.default_rng(1)
    samples = rng.normal(0.1, 0.2, size=(200, 40))
    intervals = [mean_interval(each, 500, seed=0) for each in samples]
    assert np.mean([low <= 0.1 <= high for low, high in intervals]) > 0.89
    assert mean_interval(samples[0], 500, seed=0) == intervals[0]
    assert mean_interval(samples[0], 500, seed=1) != intervals[0]


# --- Cosines between groups ------------------------------------------------------------------


def _correct(features: Any, item: Any, weights: Any) -> RolloutFeatures:
    return RolloutFeatures(features, item, weights, np.ones_like(weights), None)


def _aligned(
    rng: np.random.Generator, alignment: Sequence[float], draws: Sequence[int], resamples: int
) -> Any:
    """Cosines among the first and second half of the items, and all of them."""
    features, item = planted_gradients(rng, alignment, draws)
    found = _correct(features, item, np.ones(len(item), dtype=np.int64))
    group = np.repeat([0, 1], len(draws) // 2)
    counts = resample_items(group, resamples, rng)
    sums = sum_groups(found, np.arange(len(draws)), group, 2, counts)
    return align(sums, np.array([[True, False], [False, True], [True, True]]))


def test_the_cosine_between_groups_is_that_without_noise_and_its_interval_covers() -> None:
    rng = np.random.default_rng(2)
    truth = np.array([[0.5, np.sqrt(0.05)], [np.sqrt(0.05), 0.1]])
    estimates, covered = [], []
    for _ in range(60):
        draws = np.concatenate([rng.integers(6, 14, 30), rng.integers(2, 5, 30)])
        found = _aligned(rng, [0.5] * 30 + [0.1] * 30, draws.tolist(), 200)
        estimates.append(found.cosine[0][:2, :2])
        low, high = quantile_interval(found.cosine[1:], found.items)
        covered.append((low[:2, :2] <= truth) & (truth <= high[:2, :2]))
    assert np.abs(np.mean(estimates, axis=0) - truth).max() < 0.03
    assert np.mean(covered, axis=0).min() >= 0.85


def test_the_number_of_rollouts_does_not_move_a_cosine() -> None:
    rng = np.random.default_rng(3)
    few, many = ([_aligned(rng, [0.3] * 40, [k] * 40, 20) for _ in range(30)] for k in (2, 16))
    for name in ("cosine", "rollout_cosine"):
        means = [np.mean([getattr(each, name)[0][0, 1] for each in side]) for side in (few, many)]
        assert means[0] == pytest.approx(means[1], rel=0.15)


def test_sums_give_the_mean_over_pairs_of_different_items() -> None:
    rng = np.random.default_rng(4)
    draws = [2, 3, 4, 2, 5, 3]
    features, item = planted_gradients(rng, [0.5] * 6, draws, dim=16)
    weights = rng.integers(1, 3, len(item))
    found = _correct(features, item, weights)
    group = np.array([0, 0, 0, 1, 1, -1])
    counts = np.array([[1, 1, 1, 1, 1, 0], [2, 0, 1, 1, 1, 0]], dtype=np.uint8)
    sums = sum_groups(found, np.arange(6), group, 2, counts)
    aligned = align(sums, np.array([[True, False], [False, True], [True, True]]))
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    means = [np.average(unit[item == i], axis=0, weights=weights[item == i]) for i in range(6)]

    def mean(pairs: list[tuple[int, int]]) -> float:
        return float(np.mean([means[i] @ means[j] for i, j in pairs]))

    within = [(0, 1), (0, 2), (1, 2)]
    across = [(i, j) for i in (0, 1, 2) for j in (3, 4)]
    assert aligned.rollout_cosine[0, 0, 0] == pytest.approx(mean(within), rel=1e-4)
    assert aligned.rollout_cosine[0, 0, 1] == pytest.approx(mean(across), rel=1e-4)
    everything = mean([*within, *across, (3, 4)])
    assert aligned.rollout_cosine[0, 2, 2] == pytest.approx(everything, rel=1e-4)
    # Item 0 twice and 2 once: the copies of item 0 are no pair.
    assert aligned.rollout_cosine[1, 0, 0] == pytest.approx(mean([(0, 2)]), rel=1e-4)


def test_a_group_whose_rollouts_agree_with_nothing_has_no_cosine() -> None:
    rng = np.random.default_rng(5)
    features, item = planted_gradients(rng, [0.5] * 40, [4] * 40)
    features[item >= 20] = rng.normal(size=features[item >= 20].shape)
    found = _correct(features, item, np.ones(len(item), dtype=np.int64))
    group = np.repeat([0, 1], 20)
    sums = sum_groups(found, np.arange(40), group, 2, resample_items(group, 200, rng))
    aligned = align(sums, np.eye(2, dtype=bool))
    assert np.isfinite(aligned.cosine[0, 0, 0])
    assert np.isnan(aligned.cosine[0, 0, 1]) and np.isnan(aligned.cosine[0, 1, 1])
    assert abs(aligned.rollout_cosine[0, 1, 1]) < 0.02
