"""A plan spends what it may, finishes, and what it reports of items that stopped early is honest.

Coverage and bias are computed exactly, by the distribution of (look, c) for each true pass rate.
"""

import dataclasses

import numpy as np
import pytest
from scipy.stats import binom

from probes.statistics.pass_rates import pass_rate_interval
from probes.statistics.plan import (
    Plan,
    fit_prior,
    label_risk,
    next_round,
    sequential_interval,
    sequential_pass_rate,
    still_open,
    unbiased_rates,
)

PLAN = Plan()
RATES = np.concatenate([np.geomspace(0.001, 0.09, 60), np.linspace(0.091, 0.99, 120)])


def stopping_rule(plan, zero_stops_at):
    """Share that goes on at each (look, c): the plan's rule, with c = 0 stopped at some look."""
    shares = []
    for look in plan.looks:
        c = np.arange(look + 1)
        goes = still_open(plan, np.full(look + 1, look), c)
        goes &= (c > 0) | (look < zero_stops_at)
        shares.append(goes.astype(float) if look < plan.max_rollouts else np.zeros(look + 1))
    return shares


def stopped(plan, shares, p):
    """P(stopped at look k with c correct) for every c, by look."""
    arrived = binom.pmf(np.arange(plan.looks[0] + 1), plan.looks[0], p)
    for k, look in enumerate(plan.looks):
        yield look, arrived * (1 - shares[k])
        if look < plan.max_rollouts:
            more = plan.looks[k + 1] - look
            arrived = np.convolve(arrived * shares[k], binom.pmf(np.arange(more + 1), more, p))


@pytest.mark.parametrize("zero_stops_at", [64, 128, 1024])
def test_the_rate_is_unbiased_and_the_interval_covers_whatever_the_true_rate(zero_stops_at):
    shares = stopping_rule(PLAN, zero_stops_at)
    tables = []
    for k, look in enumerate(PLAN.looks):
        low, high = sequential_interval(PLAN, np.full(look + 1, look), np.arange(look + 1))
        rates = unbiased_rates(list(PLAN.looks[: k + 1]), shares, look)
        tables.append((np.clip(np.nan_to_num(rates), low, high), low, high))
    naive_bias = 0.0
    for p in RATES:
        mean = covered = naive = total = 0.0
        for (look, chance), (rates, low, high) in zip(
            stopped(PLAN, shares, p), tables, strict=True
        ):
            total += chance.sum()
            mean += chance @ rates
            naive += chance @ np.arange(look + 1) / look
            covered += chance[(low <= p) & (p <= high)].sum()
        assert total == pytest.approx(1)
        assert abs(mean - p) < 0.0005
        assert covered >= 0.95
        naive_bias = max(naive_bias, abs(naive - p))
    assert naive_bias > 0.02  # else the estimator would not be needed


@pytest.mark.parametrize("plan", [PLAN, Plan(8, 100), Plan(32, 32), Plan(16, 256, confidence=0.8)])
def test_the_intervals_of_all_looks_hold_at_once(plan):
    # So the interval holds at whichever look sampling stops, for whatever reason.
    bounds = [sequential_interval(plan, np.full(n + 1, n), np.arange(n + 1)) for n in plan.looks]
    for p in RATES:
        inside = [((low <= p) & (p <= high)).astype(float) for low, high in bounds]
        shares = [*inside[:-1], np.zeros(plan.max_rollouts + 1)]
        *_, (_, chance) = stopped(plan, shares, p)
        assert chance @ inside[-1] >= plan.confidence


def test_one_look_is_the_fixed_n_design():
    plan = Plan(64, 64)
    c = np.arange(65)
    n = np.full(65, 64)
    for mine, fixed in zip(sequential_interval(plan, n, c), pass_rate_interval(c, n), strict=True):
        np.testing.assert_array_equal(mine, fixed)
    np.testing.assert_array_equal(sequential_pass_rate(plan, n[:, None], c[:, None]), c / 64)
    zeros = np.zeros(65, dtype=int)
    np.testing.assert_array_equal(next_round(plan, zeros, zeros), n)
    assert not next_round(plan, n, c).any()
    np.testing.assert_allclose(label_risk(plan, n, c), 0, atol=1e-12)


def test_the_interval_grows_with_c_and_contains_its_ends():
    for look in PLAN.looks:
        low, high = sequential_interval(PLAN, np.full(look + 1, look), np.arange(look + 1))
        assert np.all(np.diff(low) > 0) and np.all(np.diff(high) > 0)
        assert low[0] == 0 and high[-1] == 1
    assert np.isnan(sequential_interval(PLAN, [0], [0])).all()


def simulate(plan, rates, *, decided_at=None, unjudged=0.0, seed=0, ties=None):
    """Run a plan to its end; counts of every round, and the number of rounds."""
    rng = np.random.default_rng(seed)
    judged = rng.random((len(rates), plan.max_rollouts)) >= unjudged
    correct = judged & (rng.random(judged.shape) < rates[:, None])
    rows = np.arange(len(rates))
    totals = [np.column_stack([0 * rows, np.cumsum(x, axis=1)]) for x in (judged, correct)]
    drawn = np.zeros(len(rates), dtype=int)
    rounds = 0
    while True:
        n, c = (total[rows, drawn] for total in totals)
        decided = None if decided_at is None else c >= decided_at
        extra = next_round(plan, n, c, decided, drawn=drawn, ties=ties)
        assert np.all(extra >= 0)
        if not extra.any():
            break
        drawn, rounds = drawn + extra, rounds + 1
        assert drawn.max() <= plan.max_rollouts
        assert plan.rollout_budget is None or drawn.sum() <= plan.rollout_budget
        assert rounds < 60
    took = np.array(plan.looks) <= drawn[:, None]
    history = [np.where(took, total[:, list(plan.looks)], -1) for total in totals]
    return drawn, n, c, history


def mixture(items, seed=1):
    rng = np.random.default_rng(seed)
    half = items // 2
    return np.concatenate([rng.uniform(0.1, 1, half), rng.beta(0.5, 30, items - half)])


@pytest.mark.parametrize("share", [0.04, 0.1, 0.3, None])
@pytest.mark.parametrize("unjudged", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("with_forecast", [False, True])
def test_sampling_finishes_within_the_budget(share, unjudged, with_forecast):
    rates = mixture(60)
    budget = None if share is None else int(share * 256 * 60 + 8 * 60)
    plan = Plan(8, 256, rollout_budget=budget)
    decided_at = np.random.default_rng(2).geometric(0.1, 60) if with_forecast else None
    drawn, n, c, (judged, correct) = simulate(plan, rates, decided_at=decided_at, unjudged=unjudged)
    assert np.all(drawn >= 8)
    rate = sequential_pass_rate(plan, judged, correct)
    low, high = sequential_interval(plan, n, c)
    assert np.array_equal(np.isnan(rate), n == 0)
    assert np.all((low <= rate) & (rate <= high) | (n == 0))
    if unjudged == 1:
        assert np.all(drawn == 8)  # nothing is to be had from an item that cannot be judged


def test_the_order_of_the_items_does_not_matter():
    plan = Plan(rollout_budget=200 * 60)
    rates = mixture(200)
    _, n, c, _ = simulate(dataclasses.replace(plan, rollout_budget=200 * 40), rates)
    rng = np.random.default_rng(3)
    ties, order = rng.random(200), rng.permutation(200)
    extra = next_round(plan, n, c, ties=ties)
    assert extra.any()
    np.testing.assert_array_equal(
        next_round(plan, n[order], c[order], ties=ties[order]), extra[order]
    )
    # Nor where the budget serves a part of items that have equal claims.
    n, c = np.full(200, 64), np.zeros(200, int)
    plan = Plan(rollout_budget=200 * 64 + 30 * 64)
    extra = next_round(plan, n, c, ties=ties)
    assert np.array_equal(np.flatnonzero(extra), np.sort(np.argsort(ties)[:30]))


def test_without_a_budget_only_what_is_decided_stops():
    rates = mixture(300)
    drawn, n, c, _ = simulate(PLAN, rates)
    low, high = sequential_interval(PLAN, n, c)
    early = drawn < PLAN.max_rollouts
    assert np.all((low >= PLAN.tau) | ((high < PLAN.tau) & (c > 0)) | ~early)
    assert early.mean() > 0.5
    # The rest go on, and an undecided forecast keeps a hard item going.
    assert next_round(PLAN, [128], [2]).tolist() == [0]
    assert next_round(PLAN, [128], [2], [True]).tolist() == [0]
    assert next_round(PLAN, [128], [2], [False]).tolist() == [128]
    assert next_round(PLAN, [128], [90], [False]).tolist() == [0]


def test_the_budget_goes_where_labels_are_in_doubt():
    # 100 items at 64 of each kind: easy by far, in doubt, and without a positive among many such.
    n = np.full(300, 64)
    c = np.repeat([50, 7, 0], 100)
    plan = Plan(rollout_budget=300 * 64 + 50 * 64)
    extra = next_round(plan, n, c)
    assert extra[:100].sum() == 0
    assert extra.sum() == 50 * 64
    prior = fit_prior(n, c)
    assert prior.weights.sum() == pytest.approx(1)
    risk = label_risk(plan, n, c, prior)
    assert risk[0] < 1e-6 < risk[100] and risk[0] < risk[200] < 1


@pytest.mark.parametrize("correct", [0, 64])
def test_items_that_are_all_alike_get_equal_parts_of_the_budget(correct):
    n = np.full(50, 64)
    plan = Plan(rollout_budget=50 * 64 + 10 * 64)
    with np.errstate(all="raise", under="ignore"):
        extra = next_round(plan, n, np.full(50, correct))
    # Only the hopeless may still surprise; a tie is settled by position.
    assert extra.tolist() == ([64] * 10 + [0] * 40 if correct == 0 else [0] * 50)


def test_a_round_that_was_cut_short_is_made_up_for():
    assert next_round(PLAN, [0, 20, 32], [0, 3, 3]).tolist() == [32, 12, 0]
    assert next_round(PLAN, [40], [3]).tolist() == [24]


def test_the_labels_are_those_of_all_the_rollouts():
    rates = mixture(400)
    _, n, c, _ = simulate(PLAN, rates)
    rng = np.random.default_rng(0)
    rng.random((400, 1024))  # the verifier's luck, which `simulate` draws first
    every = rng.random((400, 1024)) < rates[:, None]
    full = every.sum(axis=1)
    assert np.mean((c / n >= 0.1) == (full / 1024 >= 0.1)) > 0.99
    assert np.mean((c == 0) == (full == 0)) == 1


@pytest.mark.parametrize(
    "settings",
    [
        {"min_rollouts": 0},
        {"max_rollouts": 8},
        {"tau": 0.0},
        {"confidence": 1.0},
        {"rollout_budget": 31},
    ],
)
def test_a_plan_that_contradicts_itself_is_refused(settings):
    with pytest.raises(ValueError):
        Plan(**settings)


def test_impossible_counts_are_refused():
    for n, c, drawn in [([32], [33], [32]), ([32], [-1], [32]), ([32], [1], [31]), ([32], [1], [])]:
        with pytest.raises(ValueError):
            next_round(PLAN, n, c, drawn=drawn)
    with pytest.raises(ValueError, match="rollout_budget 100 is below the 128 rollouts"):
        next_round(Plan(rollout_budget=100), np.zeros(4, int), np.zeros(4, int))
    with pytest.raises(ValueError):
        sequential_pass_rate(PLAN, [[32]], [[1]])
