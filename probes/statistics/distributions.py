"""Binomial and Student's t, by the functions of scipy.special.

`scipy.stats` has them too. Importing it takes a second and 50 MB, in every process that tags.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betainc, gammaln, stdtr, stdtrit, xlog1py, xlogy

Floats = NDArray[np.float64]


def binomial_pmf(count: ArrayLike, draws: ArrayLike, rate: ArrayLike) -> Floats:
    """P(X = count) of X ~ Binomial(draws, rate); arguments broadcast, 0 <= count <= draws."""
    k, n, p = (np.asarray(each, np.float64) for each in (count, draws, rate))
    ways = gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
    return np.asarray(np.exp(ways + xlogy(k, p) + xlog1py(n - k, -p)))


def binomial_tail(count: ArrayLike, draws: ArrayLike, rate: ArrayLike) -> Floats:
    """P(X > count) of X ~ Binomial(draws, rate); arguments broadcast, and count may be any."""
    k, n, p = (np.asarray(each, np.float64) for each in (count, draws, rate))
    inside = betainc(np.maximum(k + 1, 1), np.maximum(n - k, 1), p)
    return np.asarray(np.where(k < 0, 1.0, np.where(k >= n, 0.0, inside)))


def student_t_quantile(probability: ArrayLike, degrees_of_freedom: ArrayLike) -> Floats:
    """The value below which Student's t lies with this probability; nan without a degree."""
    return np.asarray(stdtrit(degrees_of_freedom, probability))


def student_t_tail(value: ArrayLike, degrees_of_freedom: ArrayLike) -> Floats:
    """The probability that Student's t is above a value."""
    return np.asarray(stdtr(degrees_of_freedom, -np.asarray(value, np.float64)))
