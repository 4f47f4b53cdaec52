"""The posterior of every item's pass probability, from its counts and its gold probability.

**Counts alone**: c_i of n_i correct and the distribution of pass rates fitted to the run's items
(`probes.statistics.plan.fit_prior`), smoothed over log odds with a standard deviation of 0.5. The
maximum of the likelihood stands on a few rates, as if all others were impossible: in simulation at
64 and 256 rollouts its posterior's 90 % intervals cover 0.69 to 0.84, smoothed 0.87 to 0.91, and
further rollouts are predicted better everywhere.

**With the gold probability** e_i of `probes.forecast.gold`, calibrated on the run's own counts, the
prior is

    (1 − eps) F_i(p) Normal(logit p; alpha + beta logit e_i, sigma² + (beta s_i / e_i)²) / Z_i
    + eps F_i(p)

s_i is the standard error of e_i, F_i what the counts alone say. alpha takes up a constant factor,
beta a scale, sigma how far the two sources can be trusted together; all four by maximum likelihood
of the counts. Items in which the gold probability means nothing (another form is right as well,
another place) are what eps is for.

**Nothing counts twice.** Where e_i comes from prefixes that differ, it contains how its rollouts
came out (after right reasoning the gold is likely). Those rollouts, m_i with d_i correct, are then
not part of the likelihood, which is that of c_i − d_i of n_i − m_i, and F_i is the posterior given
d_i of m_i; where all prefixes are the same, m_i = 0 and F_i is the fitted distribution. So with the
gold and without it the same counts are predicted from what was seen before them; that e_i and d_i
say partly the same widens sigma. Whether the gold is used, and with how many parameters (alpha = 0
and beta = 1; beta = 1; all four), is decided by BIC: the largest of

    log L(with gold) − log L(counts alone) − (parameters / 2) log(items with a gold probability)

and 0. The distribution of F_i was fitted to all counts, which favours it. Where the gold is not
used, or an item has none, its posterior is that of the counts alone.

Why a normal law in log odds and not a beta with mean expit(alpha + beta logit e): the gold
probability is off by factors, and those are alike at all sizes; a beta of constant precision M has
p within 20 % of its mean at 0.1 and knows nothing of it at 0.001.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import expit, logit, ndtr, xlog1py, xlogy

from probes.statistics.plan import PassRatePrior, fit_prior

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]

FEWEST_ITEMS = 20
"""With a gold probability, below which it is not used."""
FEWEST_CORRECT = 10
"""Correct rollouts of those items that the gold probability has not seen."""

# Of log odds: from a rate of 1e-6 in steps of 6 %, so that one item's counts cannot tell two apart.
_LOG_ODDS = np.arange(-13.8, 9.3, 0.06)
# alpha, beta, log sigma, logit eps.
_BOUNDS = [(-8.0, 8.0), (0.0, 1.5), (np.log(0.02), np.log(5.0)), (-6.0, 6.0)]
_STARTS = [(0.0, 1.0, np.log(0.3), -3.0), (0.0, 1.0, np.log(1.5), -1.0)]
# Places that are not fitted: e as it is, times a factor, to a power as well.
_MODELS: tuple[dict[int, tuple[float, float]], ...] = (
    {0: (0.0, 0.0), 1: (1.0, 1.0)},
    {1: (1.0, 1.0)},
    {},
)
# The fit looks at no more items than this; more hardly change four parameters.
_MOST_FITTED = 1_000
_ROWS_AT_ONCE = 1_024
# Standard deviation of log odds.
_SMOOTHING = 0.5
_NOTHING = 1e-250


@dataclass(frozen=True)
class GoldEvidence:
    """What the gold stage says of a run's items; arrays have shape (items,)."""

    probability: Floats
    """nan where there is none."""
    standard_error: Floats
    """0 where all prefixes are the same; nan where there is none."""
    seen_rollouts: Counts
    """Rollouts whose outcome the probability depends on."""
    seen_correct: Counts
    """Correct ones among them."""

    @classmethod
    def none(cls, items: int) -> GoldEvidence:
        """Of a run without a gold stage."""
        unknown, zero = np.full(items, np.nan), np.zeros(items, dtype=np.int64)
        return cls(unknown, unknown, zero, zero)


@dataclass(frozen=True)
class Calibration:
    """How the run's counts follow its gold probabilities."""

    alpha: float
    beta: float
    sigma: float
    """Standard deviation of the log odds around the line."""
    outliers: float
    """eps: share of the items in which the gold probability means nothing."""


@dataclass(frozen=True)
class PassProbability:
    """The posterior of every item's pass probability, on one grid."""

    rates: Floats
    """(grid,) ascending from 0 to 1."""
    n: Counts
    c: Counts
    gold: GoldEvidence
    prior: PassRatePrior
    """Of the counts alone, smoothed; on `rates`."""
    calibration: Calibration | None
    """None where the gold is not used."""
    gain: float
    """Log likelihood that the gold adds, in nats; 0 where it is not used."""
    price: float
    """What BIC asks of it."""
    items_fitted: int
    """Items with a gold probability that decided; 0 where it was not tried."""

    def posterior(self, rows: ArrayLike | None = None) -> tuple[Floats, Floats]:
        """The posterior of some items, all of them by default: `rates`, and (rows, grid) weights.

        A block of 1,000 items takes some megabytes; `mean` and `quantiles` go by blocks.
        """
        chosen = np.arange(len(self.n)) if rows is None else np.asarray(rows, dtype=np.int64)
        weights = _normalized(self.prior.weights * _likelihood(self.rates, self.n, self.c, chosen))
        if self.calibration is None:
            return self.rates, weights
        has_gold = np.isfinite(self.gold.probability[chosen])
        if has_gold.any():
            terms = _Terms.of(self, chosen[has_gold])
            weights[has_gold] = _normalized(terms.prior(self.calibration) * terms.likelihood)
        return self.rates, weights

    def mean(self) -> Floats:
        """(items,): posterior mean."""
        return np.concatenate(
            [np.zeros(0), *(self.posterior(rows)[1] @ self.rates for rows in self._blocks())]
        )

    def quantiles(self, *levels: float) -> tuple[Floats, ...]:
        """For each level the rate, (items,), at or below which the item's is with that probability.

        Raises ValueError for a level outside (0, 1).
        """
        if not all(0 < level < 1 for level in levels):
            raise ValueError(f"levels must lie between 0 and 1, got {levels}")
        found = np.zeros((len(levels), len(self.n)))
        for rows in self._blocks():
            reached = np.cumsum(self.posterior(rows)[1], axis=1)
            for number, level in enumerate(levels):
                at = np.minimum((reached < level - 1e-12).sum(axis=1), len(self.rates) - 1)
                found[number, rows] = self.rates[at]
        return tuple(found)

    def facts(self) -> dict[str, Any]:
        """What a manifest or a report says of it."""
        facts: dict[str, Any] = {
            "items": len(self.n),
            "items_with_gold": int(np.isfinite(self.gold.probability).sum()),
            "gold_used": self.calibration is not None,
        }
        if self.calibration is not None:
            facts["log_likelihood_gain"] = round(self.gain, 3)
            facts["log_likelihood_price"] = round(self.price, 3)
            facts |= {name: round(value, 4) for name, value in vars(self.calibration).items()}
        return facts

    def _blocks(self) -> list[Counts]:
        starts = range(0, len(self.n), _ROWS_AT_ONCE)
        return [np.arange(at, min(at + _ROWS_AT_ONCE, len(self.n))) for at in starts]


def fit_pass_probability(
    n: ArrayLike, c: ArrayLike, gold: GoldEvidence | None = None
) -> PassProbability:
    """Fit the posterior of every item's pass probability to a run's counts and gold probabilities.

    The gold is used where it predicts the counts better than they predict one another, by BIC, and
    not at all with fewer than 20 items that have one, or 10 correct rollouts that it has not seen.

    Args:
        n: judged rollouts, shape (items,).
        c: correct ones, shape (items,).
        gold: of the same items; None: there is none.

    Raises:
        ValueError: shapes that differ, counts that are impossible, a probability outside [0, 1].
    """
    n, c = np.asarray(n, dtype=np.int64), np.asarray(c, dtype=np.int64)
    gold = GoldEvidence.none(len(n)) if gold is None else gold
    _check(n, c, gold)
    rates, prior = _on_fine_grid(fit_prior(n, c) if len(n) else None)
    plain = PassProbability(rates, n, c, gold, prior, None, 0.0, 0.0, 0)
    usable = np.flatnonzero(np.isfinite(gold.probability) & (n > gold.seen_rollouts))
    unseen_correct = (c - gold.seen_correct)[usable].sum()
    if len(usable) < FEWEST_ITEMS or unseen_correct < FEWEST_CORRECT:
        return plain
    # Equally spaced, so that any order of the items that is not by chance does little harm.
    fitted = usable[np.unique(np.linspace(0, len(usable) - 1, _MOST_FITTED).astype(int))]
    terms = _Terms.of(plain, fitted)

    def loss(parameters: Floats) -> float:
        return -terms.log_likelihood(_calibration(parameters))

    base = terms.log_likelihood(None)
    found = [replace(plain, items_fitted=len(fitted))]
    starts = _STARTS
    for fixed in _MODELS:
        bounds = [fixed.get(place, bound) for place, bound in enumerate(_BOUNDS)]
        tries = [minimize(loss, start, method="L-BFGS-B", bounds=bounds) for start in starts]
        best = min(tries, key=lambda one: float(one.fun))
        # What is freed next goes on from here, and from where e says less.
        starts = [tuple(best.x), (-2.0, 0.5, *best.x[2:])]
        price = 0.5 * (len(_BOUNDS) - len(fixed)) * float(np.log(len(fitted)))
        found.append(
            replace(
                found[0],
                calibration=_calibration(best.x),
                gain=-float(best.fun) - base,
                price=price,
            )
        )
    return max(found, key=lambda one: one.gain - one.price)


def _calibration(parameters: Floats) -> Calibration:
    alpha, beta, log_sigma, log_odds = map(float, parameters)
    return Calibration(alpha, beta, float(np.exp(log_sigma)), float(expit(log_odds)))


def _check(n: Counts, c: Counts, gold: GoldEvidence) -> None:
    shapes = {n.shape, c.shape, *(np.shape(value) for value in vars(gold).values())}
    if len(shapes) > 1 or n.ndim != 1:
        raise ValueError("n, c and the gold's arrays must have one number for each item")
    if np.any(c < 0) or np.any(c > n):
        raise ValueError("counts must satisfy 0 ≤ correct ≤ judged for every item")
    if np.any(gold.seen_correct > c) or np.any(gold.seen_rollouts - gold.seen_correct > n - c):
        raise ValueError("the gold has seen rollouts that are not among the counts")
    known = gold.probability[np.isfinite(gold.probability)]
    if np.any(known < 0) or np.any(known > 1):
        raise ValueError("a gold probability must lie between 0 and 1")


def _on_fine_grid(prior: PassRatePrior | None) -> tuple[Floats, PassRatePrior]:
    """A grid that holds the prior's rates and is fine everywhere, and the prior smoothed on it."""
    fine = np.concatenate([[0.0], expit(_LOG_ODDS), [1.0]])
    if prior is None:
        return fine, PassRatePrior(fine, np.full(len(fine), 1 / len(fine)))
    rates = np.union1d(fine, prior.rates)
    weights = np.zeros(len(rates))
    weights[np.searchsorted(rates, prior.rates)] = prior.weights
    inner = logit(rates[1:-1])
    kernel = _masses(_edges(inner), inner[:, None], _SMOOTHING)
    weights[1:-1] = weights[1:-1] @ kernel
    return rates, PassRatePrior(rates, weights)


def _edges(log_odds: Floats) -> Floats:
    """Between the grid's log odds."""
    return np.asarray((log_odds[:-1] + log_odds[1:]) / 2)


def _masses(edges: Floats, middle: Floats, spread: Floats | float) -> Floats:
    """(rows, grid): of a normal law in the cells between edges, the outer ones without end."""
    below = ndtr((edges - middle) / spread)
    ends = np.zeros((len(below), 1))
    return np.asarray(np.diff(below, axis=1, prepend=ends, append=ends + 1))


@dataclass(frozen=True)
class _Terms:
    """What the likelihood of some items with a gold probability is made of."""

    center: Floats
    """(rows,) logit e."""
    variance: Floats
    """(rows,) (s / e)², of the log."""
    edges: Floats
    """(grid − 3,) log odds between the rates of the grid that are not 0 or 1."""
    alone: Floats
    """(rows, grid): F, the posterior given the rollouts that the gold has seen."""
    density: Floats
    """(rows, grid): F as a density of log odds, 0 for the rates 0 and 1."""
    likelihood: Floats
    """(rows, grid): of the others; an item's largest is 1."""

    @classmethod
    def of(cls, run: PassProbability, rows: Counts) -> _Terms:
        gold, inner = run.gold, logit(run.rates[1:-1])
        e = np.clip(gold.probability[rows], run.rates[1], run.rates[-2])
        seen, right = gold.seen_rollouts, gold.seen_correct
        alone = _normalized(run.prior.weights * _likelihood(run.rates, seen, right, rows))
        edges = _edges(inner)
        widths = np.diff(edges, prepend=2 * inner[0] - edges[0], append=2 * inner[-1] - edges[-1])
        return cls(
            logit(e),
            np.minimum(gold.standard_error[rows] / e, 3.0) ** 2,
            edges,
            alone,
            np.pad(alone[:, 1:-1] / widths, ((0, 0), (1, 1))),
            _likelihood(run.rates, run.n - seen, run.c - right, rows),
        )

    def prior(self, calibration: Calibration) -> Floats:
        """(rows, grid): before the counts that the gold has not seen."""
        middle = calibration.alpha + calibration.beta * self.center
        # In log odds as in logs: the error of e is scaled with it.
        spread = np.sqrt(calibration.sigma**2 + calibration.beta**2 * self.variance)
        masses = _masses(self.edges, middle[:, None], spread[:, None])
        by_gold = np.pad(masses, ((0, 0), (1, 1))) * self.density
        total = by_gold.sum(axis=1, keepdims=True)
        # Where the two are so far apart that nothing is left, the counts alone are.
        by_gold = np.where(total > _NOTHING, by_gold / np.maximum(total, _NOTHING), self.alone)
        return np.asarray((1 - calibration.outliers) * by_gold + calibration.outliers * self.alone)

    def log_likelihood(self, calibration: Calibration | None) -> float:
        """Of the counts, up to a constant; None: of the counts alone."""
        prior = self.alone if calibration is None else self.prior(calibration)
        return float(np.log((prior * self.likelihood).sum(axis=1)).sum())


def _likelihood(rates: Floats, n: Counts, c: Counts, rows: Counts) -> Floats:
    """(rows, grid): of each rate, scaled so that an item's largest is 1."""
    correct, wrong = c[rows][:, None], (n - c)[rows][:, None]
    log = xlogy(correct, rates) + xlog1py(wrong, -rates)
    return np.asarray(np.exp(log - log.max(axis=1, keepdims=True)))


def _normalized(weights: Floats) -> Floats:
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))
