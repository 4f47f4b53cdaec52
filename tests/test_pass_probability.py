"""The posterior of the pass probability: better with a good gold probability, no worse without."""

import numpy as np
import pytest
from scipy.special import expit, logit, logsumexp
from scipy.stats import binom

from probes.forecast.pass_probability import GoldEvidence, fit_pass_probability

ITEMS = 250


def rates(random):
    """Mostly rare, as items are that are worth a thought."""
    return expit(random.normal(-4.0, 1.8, ITEMS))


def direct(probability):
    """Of prefixes that are all alike: it has seen no outcome."""
    zero = np.zeros(len(probability), dtype=np.int64)
    return GoldEvidence(probability, np.zeros(len(probability)), zero, zero)


def log_score(found, more, correct):
    """(items,): log probability of the counts of further rollouts."""
    grid, weights = found.posterior()
    with np.errstate(divide="ignore"):
        terms = np.log(weights) + binom.logpmf(correct[:, None], more, grid)
    return logsumexp(terms, axis=1)


def compare(seed, gold_of, n=64, more=2_000):
    random = np.random.default_rng(seed)
    p = rates(random)
    c = random.binomial(n, p)
    later = random.binomial(more, p)
    counts = np.full(ITEMS, n)
    plain = fit_pass_probability(counts, c)
    found = fit_pass_probability(counts, c, gold_of(p, random))
    gain = log_score(found, more, later) - log_score(plain, more, later)
    return p, c, plain, found, gain


def test_an_exact_gold_probability_says_nearly_everything():
    p, c, plain, found, gain = compare(1, lambda p, random: direct(p))
    assert found.facts()["gold_used"]
    assert (found.calibration.alpha, found.calibration.beta) == (0, 1)
    # The counts' own error at 64 rollouts is several times that of the posterior mean.
    error, before = (np.abs(np.log(x.mean() / p)).mean() for x in (found, plain))
    assert error < 0.15
    assert before > 4 * error
    # And of the items without a correct rollout as well.
    none = c == 0
    assert none.sum() > 60
    assert np.corrcoef(np.log(found.mean()[none]), np.log(p[none]))[0, 1] > 0.9
    assert gain[none].mean() > 0.3
    low, high = found.quantiles(0.05, 0.95)
    assert ((p >= low) & (p <= high)).mean() > 0.85


def test_a_constant_factor_is_taken_up():
    p, _, plain, found, gain = compare(
        2, lambda p, random: direct(0.2 * p * np.exp(random.normal(0, 0.3, ITEMS)))
    )
    calibration = found.calibration
    # logit p is about logit(0.2 p) + log 5 where p is small.
    line = calibration.alpha + calibration.beta * logit(0.2 * 0.02)
    assert line == pytest.approx(logit(0.02), abs=0.4)
    assert np.abs(np.log(found.mean() / p)).mean() < 0.6 * np.abs(np.log(plain.mean() / p)).mean()
    assert gain.mean() > 0.3


@pytest.mark.parametrize("seed", range(3, 7))
def test_a_gold_probability_that_says_nothing_does_no_harm(seed):
    *_, found, gain = compare(
        seed, lambda p, random: direct(expit(random.normal(-6.0, 2.0, ITEMS)))
    )
    assert not found.facts()["gold_used"]
    assert gain == pytest.approx(0)


def test_items_in_which_it_means_nothing_are_borne():
    def gold_of(p, random):
        return direct(np.where(random.random(ITEMS) < 0.2, 1e-3 * p, p))

    p, _, _, found, gain = compare(8, gold_of)
    assert 0.08 < found.calibration.outliers < 0.35
    wrong = found.gold.probability < 0.5 * p
    assert gain.mean() > 0.3
    # Where the gold misleads the counts are still heard: no item is lost by it altogether.
    seen = wrong & (found.c >= 3)
    assert seen.sum() > 5
    assert np.abs(np.log(found.mean() / p))[seen].max() < 1.5


def test_nothing_counts_twice():
    """Of long reasoning the gold is likely after right prefixes only: it repeats the outcomes."""
    random = np.random.default_rng(9)
    p = rates(random)
    first = random.random((ITEMS, 16)) < p[:, None]
    values = np.where(first, 0.9, 0.002)
    c = first.sum(axis=1) + random.binomial(48, p)
    gold = GoldEvidence(
        values.mean(axis=1),
        values.std(axis=1, ddof=1) / 4,
        np.full(ITEMS, 16),
        first.sum(axis=1),
    )
    found = fit_pass_probability(np.full(ITEMS, 64), c, gold)
    plain = fit_pass_probability(np.full(ITEMS, 64), c)
    low, high = found.quantiles(0.05, 0.95)
    assert ((p >= low) & (p <= high)).mean() > 0.85
    later = random.binomial(2_000, p)
    assert (log_score(found, 2_000, later) - log_score(plain, 2_000, later)).mean() > -0.05


def test_items_without_gold_have_the_posterior_of_their_counts():
    random = np.random.default_rng(10)
    p = rates(random)
    n, c = np.full(ITEMS, 64), random.binomial(64, p)
    probability = np.where(np.arange(ITEMS) % 5 == 0, np.nan, p)
    found = fit_pass_probability(n, c, direct(probability))
    assert found.facts()["gold_used"]
    rows = np.arange(0, ITEMS, 5)
    _, weights = found.posterior(rows)
    plain = fit_pass_probability(n, c)
    assert weights == pytest.approx(plain.posterior(rows)[1])
    others = np.arange(1, ITEMS, 5)
    assert np.abs(found.mean() - plain.mean())[others].max() > 0.01


@pytest.mark.parametrize(("middle", "spread", "rare"), [(-4.0, 1.8, 1.0), (-1.0, 1.5, 0.01)])
def test_intervals_of_the_counts_alone_hold(middle, spread, rare):
    covered = []
    for seed in range(4):
        random = np.random.default_rng(seed)
        p = expit(random.normal(middle, spread, ITEMS))
        p[: ITEMS // 3] *= rare
        found = fit_pass_probability(np.full(ITEMS, 128), random.binomial(128, p))
        low, high = found.quantiles(0.05, 0.95)
        covered.append((p >= low) & (p <= high))
    # 0.9 less three standard errors of 1,000 items, and something for the fit.
    assert np.mean(covered) > 0.84


@pytest.mark.parametrize(("items", "rate"), [(19, 0.5), (200, 0.0)])
def test_too_little_to_calibrate_with(items, rate):
    random = np.random.default_rng(11)
    n, c = np.full(items, 32), random.binomial(32, rate, items)
    found = fit_pass_probability(n, c, direct(np.full(items, 0.1)))
    assert found.facts() == {"items": items, "items_with_gold": items, "gold_used": False}


def test_an_empty_run():
    found = fit_pass_probability([], [])
    assert found.mean().shape == (0,)
    assert found.posterior()[1].shape == (0, len(found.rates))


def test_rows_and_quantiles_agree_with_the_posterior():
    random = np.random.default_rng(12)
    n, c = np.full(1_500, 64), random.binomial(64, 0.1, 1_500)
    found = fit_pass_probability(n, c)
    grid, weights = found.posterior([7, 1_400])
    assert weights.sum(axis=1) == pytest.approx(1)
    assert found.mean()[[7, 1_400]] == pytest.approx(weights @ grid)
    low, high = found.quantiles(0.05, 0.95)
    for row, at in ((0, 7), (1, 1_400)):
        assert weights[row, grid <= high[at]].sum() >= 0.95 - 1e-9
        assert weights[row, grid < low[at]].sum() < 0.05


@pytest.mark.parametrize(
    ("n", "c", "gold"),
    [
        ([4], [5], None),
        ([4], [2, 1], None),
        ([4], [2], GoldEvidence.none(2)),
        ([4], [2], direct(np.array([1.5]))),
        ([4], [2], GoldEvidence(*np.array([[0.5], [0.1]]), np.array([4]), np.array([3]))),
        ([4], [2], GoldEvidence(*np.array([[0.5], [0.1]]), np.array([4]), np.array([1]))),
    ],
)
def test_what_contradicts_itself_is_refused(n, c, gold):
    with pytest.raises(ValueError, match=r"counts|one number|lie between"):
        fit_pass_probability(n, c, gold)
