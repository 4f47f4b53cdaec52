"""Our binomial and Student's t are those of scipy.stats."""

import numpy as np
from scipy.stats import binom
from scipy.stats import t as student_t

from probes.statistics.distributions import (
    binomial_pmf,
    binomial_tail,
    student_t_quantile,
    student_t_tail,
)

RATES = np.array([0.0, 1e-6, 0.001, 0.1, 0.5, 0.999, 1.0])


def test_the_binomial_is_that_of_scipy() -> None:
    for draws in (0, 1, 7, 64, 4096):
        k = np.unique(np.linspace(0, draws, 60).astype(int))[:, None]
        assert np.allclose(binomial_pmf(k, draws, RATES), binom.pmf(k, draws, RATES), rtol=1e-9)
        assert np.isclose(binomial_pmf(np.arange(draws + 1), draws, 0.3).sum(), 1)
        any_count = np.concatenate([[[-5], [-1]], k, [[draws + 3]]])
        expected = binom.sf(any_count, draws, RATES)
        assert np.allclose(binomial_tail(any_count, draws, RATES), expected, rtol=1e-9, atol=0)


def test_draws_may_differ_by_element() -> None:
    draws = np.array([[0], [3], [64]])
    assert np.allclose(binomial_tail(2, draws, RATES), binom.sf(2, draws, RATES), rtol=1e-9)


def test_students_t_is_that_of_scipy() -> None:
    freedom = np.array([0.5, 1, 4.2, 60, np.inf])
    assert np.array_equal(student_t_quantile(0.95, freedom), student_t.ppf(0.95, freedom))
    values = np.array([-3.0, 0.0, 2.5, np.inf])[:, None]
    assert np.allclose(student_t_tail(values, freedom), student_t.sf(values, freedom))
    assert np.isnan(student_t_quantile(0.95, 0))
