"""pass@k is exact, and the pass-rate interval covers what it promises."""

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy.stats import binom

from probes.statistics.pass_rates import pass_at_k, pass_at_k_of_items, pass_rate_interval


def exact_pass_at_k(n, c, k):
    """1 − Π (n−c−i)/(n−i): another route to the estimator, in rational numbers."""
    none_correct = Fraction(1)
    for i in range(k):
        none_correct *= Fraction(max(n - c - i, 0), n - i)
    return 1 - none_correct


def test_pass_at_k_equals_the_rational_value_for_all_small_counts():
    for n in range(1, 17):
        for c in range(n + 1):
            for k in range(1, n + 1):
                assert pass_at_k(n, c, k) == float(exact_pass_at_k(n, c, k))


@pytest.mark.parametrize("n", [32, 128, 1024])
@pytest.mark.parametrize("c", [0, 1, 2, 13, 31])
def test_pass_at_k_is_exact_for_many_rollouts(n, c):
    for k in (1, 2, 8, n // 2, n - 1, n):
        exact = exact_pass_at_k(n, c, k)
        assert abs(Fraction(pass_at_k(n, c, k)) - exact) < Fraction(1, 10**15)


def test_pass_at_k_is_the_share_of_subsets_with_a_correct_rollout():
    from itertools import combinations

    rewards = [1, 0, 0, 1, 0, 0, 0]
    subsets = list(combinations(rewards, 3))
    assert pass_at_k(7, 2, 3) == sum(any(subset) for subset in subsets) / len(subsets)


def test_pass_at_k_undefined_with_fewer_rollouts_than_k():
    assert pass_at_k(7, 7, 8) is None
    assert pass_at_k(0, 0, 1) is None
    assert pass_at_k(8, 8, 8) == 1.0
    assert pass_at_k(8, 0, 8) == 0.0


@pytest.mark.parametrize(("n", "c", "k"), [(4, 5, 1), (4, -1, 1), (4, 2, 0), (4, 2, -3)])
def test_pass_at_k_refuses_impossible_counts(n, c, k):
    with pytest.raises(ValueError, match=r"impossible|at least 1"):
        pass_at_k(n, c, k)


def test_pass_at_k_of_items_agrees_with_the_scalar():
    n = np.array([32, 1024, 3, 32, 8, 0])
    c = np.array([1, 7, 3, 1, 0, 0])
    values = pass_at_k_of_items(n, c, 8)
    assert values.shape == (6,)
    for value, n_, c_ in zip(values, n, c, strict=True):
        expected = pass_at_k(int(n_), int(c_), 8)
        assert math.isnan(value) if expected is None else value == expected
    assert pass_at_k_of_items(np.array([], int), np.array([], int), 8).shape == (0,)
    with pytest.raises(ValueError, match="impossible"):
        pass_at_k_of_items([4, 4], [1, 5], 1)


PASS_RATES = np.concatenate([np.linspace(0.01, 0.9, 179), [0.0001, 0.001, 0.005, 0.99, 0.999]])


@pytest.mark.parametrize("n", [16, 32, 128])
def test_interval_covers_at_least_95_percent_exactly(n):
    c = np.arange(n + 1)
    low, high = pass_rate_interval(c, np.full(n + 1, n))
    coverage = np.array([binom.pmf(c, n, p)[(low <= p) & (p <= high)].sum() for p in PASS_RATES])
    assert coverage.min() >= 0.95
    # An interval of everything would cover too: near the middle it may not be far above 95 %.
    assert coverage[np.abs(PASS_RATES - 0.5) < 0.1].mean() < 0.98


def test_interval_covers_in_simulation():
    rng = np.random.default_rng(20261123)
    for n in (16, 32, 128):
        for p in (0.01, 0.05, 0.1, 0.3, 0.9):
            c = rng.binomial(n, p, size=20_000)
            low, high = pass_rate_interval(c, np.full_like(c, n))
            assert np.mean((low <= p) & (p <= high)) >= 0.94


def test_interval_known_values_and_ends():
    low, high = pass_rate_interval(0, 32)
    assert low == 0.0
    assert high == pytest.approx(1 - 0.025 ** (1 / 32), abs=1e-12)
    assert f"{high:.3f}" == "0.109"
    low, high = pass_rate_interval(32, 32)
    assert high == 1.0
    assert low == pytest.approx(0.025 ** (1 / 32), abs=1e-12)
    # The defining equations: each tail has exactly 2.5 % at the bound.
    low, high = pass_rate_interval(3, 32)
    assert binom.sf(2, 32, low) == pytest.approx(0.025, abs=1e-9)
    assert binom.cdf(3, 32, high) == pytest.approx(0.025, abs=1e-9)


def test_interval_of_arrays_agrees_with_scalars_and_is_nan_without_rollouts():
    c, n = np.array([0, 3, 16, 0]), np.array([16, 16, 16, 0])
    low, high = pass_rate_interval(c, n)
    for i in range(3):
        assert (low[i], high[i]) == pass_rate_interval(int(c[i]), int(n[i]))
    assert math.isnan(low[3]) and math.isnan(high[3])
    assert all(math.isnan(bound) for bound in pass_rate_interval(0, 0))


def test_interval_widens_with_confidence():
    narrow, wide = pass_rate_interval(3, 32, 0.5), pass_rate_interval(3, 32, 0.99)
    assert wide[0] < narrow[0] < 3 / 32 < narrow[1] < wide[1]


@pytest.mark.parametrize(("c", "n", "confidence"), [(5, 4, 0.95), (-1, 4, 0.95), (1, 4, 1.0)])
def test_interval_refuses_impossible_input(c, n, confidence):
    with pytest.raises(ValueError, match=r"interval needs|confidence"):
        pass_rate_interval(c, n, confidence)
