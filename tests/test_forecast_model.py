"""The forecast: the model of its docstring, drawn at random, and what must hold whatever it is."""

import math

import numpy as np
import pytest
from scipy.special import expit, logit

from curate.run.rollouts import Outcomes
from probes.forecast.model import (
    Constants,
    Forecast,
    Lifts,
    chances_below,
    fit_population,
    forecast_items,
    saturated,
)
from probes.forecast.pass_probability import fit_pass_probability
from probes.stages.forecast import CONSTANTS, is_decided, run_constants, run_forecast
from probes.stages.lift import ItemLift

TAU = 0.1
BUILT_IN = CONSTANTS["gradients"]
NOTHING_MOVES = Constants(drift=0.0, gain=0.0, spread=0.5)


def known(*rates):
    """A posterior that knows the pass rates."""
    return lambda rows: (np.array(rates), np.eye(len(rates))[rows])


def lifts(values, error=1e-9):
    value = np.array(values, dtype=float)
    return Lifts(value, np.where(np.isnan(value), np.nan, np.broadcast_to(error, value.shape)))


def forecast(rates, values, constants=BUILT_IN, population=(0.0, 1e6), error=1e-9, **more):
    """Forecast of items of known pass rates; a wide population leaves the lifts as measured."""
    return forecast_items(
        known(*rates), lifts(values, error), population, constants, tau=TAU, **more
    )


def quantities(found: Forecast):
    return found.pass_rate, found.low, found.high, -found.p_unlearnable


def test_more_pass_rate_is_a_better_forecast():
    rates = np.geomspace(1e-4, 0.09, 12)
    for each in quantities(forecast(rates, np.zeros(12))):
        assert (np.diff(each) > 0).all()


def test_more_lift_is_a_better_forecast():
    for each in quantities(forecast([0.02] * 15, np.linspace(-3, 4, 15))):
        assert (np.diff(each) > 0).all()


def test_a_longer_training_lifts_more_where_the_gain_is_positive():
    horizons = (0.25, 0.5, 1.0, 2.0, 4.0)

    def expected(lift):
        return [
            float(forecast([0.02], [lift], horizon=horizon).pass_rate[0]) for horizon in horizons
        ]

    assert (np.diff(expected(2.0)) > 0).all()
    # What is pulled down goes further down: its median, whatever the growing spread adds on top.
    down = [forecast([0.02], [-2.0], Constants(0.0, 1.5, 1e-3), horizon=h) for h in horizons]
    assert (np.diff([float(each.pass_rate[0]) for each in down]) < 0).all()


def test_nothing_that_moves_is_the_pass_rate_with_the_spread():
    constants = Constants(drift=0.0, gain=0.0, spread=1e-3)
    rates = [0.001, 0.02, 0.3]
    found = forecast(rates, [1.0, -1.0, np.nan], constants)
    np.testing.assert_allclose(found.pass_rate, rates, rtol=0.02)
    np.testing.assert_allclose(found.p_unlearnable, [1, 1, 0], atol=1e-6)
    assert (found.low <= found.pass_rate).all() and (found.pass_rate <= found.high).all()


# --- Against draws of the model --------------------------------------------------------------


DRAWS = 200_000


@pytest.mark.parametrize("horizon", [0.5, 1.0, 2.0])
@pytest.mark.parametrize(
    ("rate", "lift", "error"),
    [(0.02, 1.0, 0.5), (0.02, -0.5, 1.5), (0.001, 4.0, 0.2), (0.08, np.nan, 0.3), (0.05, 0.3, 0.0)],
)
def test_the_forecast_is_that_of_the_model(rate, lift, error, horizon):
    """p from a posterior of three rates, the lift from its own, the rest by the equation."""
    population = (0.7, 1.3)
    constants = Constants(drift=-0.4, gain=1.8, spread=0.9)
    rates, weights = np.array([rate / 3, rate, rate * 2]), np.array([0.3, 0.5, 0.2])
    found = forecast_items(
        lambda rows: (rates, np.tile(weights, (len(rows), 1))),
        lifts([lift], error),
        population,
        constants,
        tau=TAU,
        horizon=horizon,
        confidence=0.8,
    )
    random = np.random.default_rng(0)
    p = random.choice(rates, p=weights, size=DRAWS)
    mean, variance = population
    # The posterior of a normal mean with a normal prior.
    share = 0.0 if math.isnan(lift) else variance / (variance + error**2)
    center = mean if math.isnan(lift) else mean + share * (lift - mean)
    drawn = center + math.sqrt((1 - share) * variance) * random.normal(size=DRAWS)
    moved = constants.drift + constants.gain * np.sign(drawn) * np.log1p(np.abs(drawn))
    noise = constants.spread * math.sqrt(horizon) * random.normal(size=DRAWS)
    after = expit(logit(p) + horizon * moved + noise)
    below = (after < TAU).mean()
    # Three standard errors of the draws, and what seven nodes miss of a wide lift.
    within = 3 * math.sqrt(below * (1 - below) / DRAWS) + 0.02
    assert found.p_unlearnable[0] == pytest.approx(below, abs=within)
    assert found.pass_rate[0] == pytest.approx(after.mean(), abs=0.01)
    for end, level in ((found.low, 0.1), (found.high, 0.9)):
        assert (after < end[0]).mean() == pytest.approx(level, abs=0.015)
    log_odds = logit(p) + horizon * moved
    assert found.evidence_spread[0] == pytest.approx(log_odds.std(), rel=0.05)


def test_the_interval_of_a_normal_is_that_of_its_quantiles():
    found = forecast([0.02], [0.0], NOTHING_MOVES, confidence=0.9)
    ends = expit(logit(0.02) + 0.5 * 1.6448536 * np.array([-1, 1]))
    np.testing.assert_allclose([found.low[0], found.high[0]], ends, rtol=0.02)
    wider = forecast([0.02], [0.0], NOTHING_MOVES, confidence=0.99)
    assert wider.low[0] < found.low[0] < found.high[0] < wider.high[0]


def test_many_items_are_forecast_as_few_are():
    """Blocks of the items change nothing."""
    random = np.random.default_rng(1)
    items = 5000
    rates = np.geomspace(1e-3, 0.5, 40)
    weights = random.dirichlet(np.ones(40), size=items)
    values = Lifts(random.normal(size=items), random.uniform(0.1, 2, size=items))
    every = forecast_items(
        lambda rows: (rates, weights[rows]), values, (0.5, 1.0), BUILT_IN, tau=TAU
    )
    for row in (0, 2047, 2048, 4999):
        one = forecast_items(
            lambda _, row=row: (rates, weights[[row]]),
            Lifts(values.lift[[row]], values.standard_error[[row]]),
            (0.5, 1.0),
            BUILT_IN,
            tau=TAU,
        )
        for name in vars(one):
            assert getattr(every, name)[row] == pytest.approx(getattr(one, name)[0])


# --- Lifts that are badly known --------------------------------------------------------------


def test_a_badly_measured_lift_goes_to_the_mean_of_the_population():
    population = (0.8, 0.5)
    errors = np.array([1e-6, 0.3, 1.0, 10.0, 1e4])
    found = forecast([0.02] * 5, [3.0] * 5, population=population, error=errors)
    unknown = forecast([0.02], [np.nan], population=population)
    assert (np.diff(found.pass_rate) < 0).all()
    assert found.pass_rate[-1] == pytest.approx(unknown.pass_rate[0], rel=1e-4)
    assert found.p_unlearnable[-1] == pytest.approx(unknown.p_unlearnable[0], rel=1e-4)
    alone = forecast([0.02], [3.0])
    assert found.pass_rate[0] == pytest.approx(alone.pass_rate[0], rel=1e-4)


def test_an_unknown_lift_is_the_population():
    unknown = forecast([0.02], [np.nan], population=(1.2, 0.0))
    measured = forecast([0.02], [1.2])
    assert unknown.pass_rate[0] == pytest.approx(measured.pass_rate[0], rel=1e-4)
    spread_out = forecast([0.02], [np.nan], population=(1.2, 4.0))
    assert spread_out.evidence_spread[0] > unknown.evidence_spread[0] + 0.3


def test_the_population_is_estimated_without_the_noise():
    random = np.random.default_rng(2)
    items = 4000
    truth = 0.5 + 1.2 * random.normal(size=items)
    error = random.uniform(0.2, 2.0, size=items)
    measured = Lifts(truth + error * random.normal(size=items), error)
    mean, variance = fit_population(measured, np.ones(items, dtype=bool))
    assert mean == pytest.approx(0.5, abs=0.1)
    assert variance == pytest.approx(1.44, abs=0.25)
    noise = Lifts(error * random.normal(size=items), error)
    assert fit_population(noise, np.ones(items, dtype=bool))[1] < 0.15
    # A few of no worth must not hide what the others show.
    error[:400] = 20.0
    mixed = Lifts(truth + error * random.normal(size=items), error)
    assert fit_population(mixed, np.ones(items, dtype=bool))[1] == pytest.approx(1.44, abs=0.4)
    # Only the chosen speak.
    chosen = np.arange(items) < 2
    two = Lifts(np.where(chosen, 2.0, truth), np.full(items, 0.1))
    assert fit_population(two, chosen) == (2.0, 0.0)


def test_a_population_of_none_or_one():
    nobody = lifts([np.nan, np.nan])
    assert fit_population(nobody, np.ones(2, dtype=bool)) == (0.0, 0.0)
    mean, variance = fit_population(lifts([1.5, np.nan], 0.4), np.ones(2, dtype=bool))
    assert (mean, variance) == (1.5, pytest.approx(0.16))


def test_saturated_is_odd_and_flattens():
    values = np.array([-3.0, 0.0, math.e - 1, 100.0])
    assert saturated(values) == pytest.approx([-math.log(4), 0, 1, math.log(101)])


# --- A run -----------------------------------------------------------------------------------


def _run(counts, lift, error, judged=64, source="gradients"):
    c = np.array(counts)
    n = np.full(len(c), judged)
    return run_forecast(
        Outcomes(n, n, c),
        ItemLift(np.array(lift, float), np.array(error, float)),
        source,
        CONSTANTS[source],
        fit_pass_probability(n, c),
        tau=TAU,
        horizon=1.0,
    )


def test_an_item_with_a_direct_answer_is_tagged_like_any_other():
    """One completion drawn many times: no spread between rollouts, and the lift known exactly."""
    counts = [3] * 6 + [40] * 6
    error = [0.0, 0.2, 0.2, 0.2, 0.2, 0.2] + [0.1] * 6
    for lift, side in ((4.0, 0), (-2.0, 1)):
        values = [lift, 0.1, 0.4, 0.8, 1.0, 1.4] + [1.0] * 6
        found = _run(counts, values, error)
        assert np.isfinite(found.p_unlearnable).all()
        assert abs(found.p_unlearnable[0] - side) < 0.2
        # It is drawn towards the others less than one that is known as badly as they differ.
        worse = _run(counts, values, [3.0, *error[1:]])
        assert abs(worse.p_unlearnable[0] - side) > abs(found.p_unlearnable[0] - side)


def test_easy_items_are_no_population_of_the_hard():
    base = _run([2, 2, 2, 0, 50, 50], [1, 1.5, 0.5, np.nan, 1, 1], [0.3] * 6)
    moved = _run([2, 2, 2, 0, 50, 50], [1, 1.5, 0.5, np.nan, 9, 9], [0.3] * 6)
    np.testing.assert_array_equal(base.p_unlearnable[:4], moved.p_unlearnable[:4])


def test_a_pilot_tells_the_level_by_items_with_room_and_the_rest_in_deviations():
    counts, error = [2, 2, 2, 0, 30, 40, 64], [0.1] * 7
    hard = [1.0, 1.5, 0.5, np.nan]
    base = _run(counts, [*hard, 0.2, 0.4, 0.0], error, source="pilot")
    # What all hard items share, and their unit, is not what the forecast goes by.
    again = [3.0, 5.0, 1.0, np.nan]
    far = _run(counts, [*again, 0.2, 0.4, 0.0], [0.4] * 4 + [0.1] * 3, source="pilot")
    assert far.p_unlearnable[:4] == pytest.approx(base.p_unlearnable[:4], abs=1e-4)
    # The level is; the solved item has no room to tell it.
    lifted = _run(counts, [*hard, 1.2, 1.4, 0.0], error, source="pilot")
    same = _run(counts, [*hard, 0.2, 0.4, 9.0], error, source="pilot")
    assert (lifted.p_unlearnable[:4] < base.p_unlearnable[:4] - 0.05).all()
    np.testing.assert_array_equal(same.p_unlearnable[:4], base.p_unlearnable[:4])
    by_gradients = [_run(counts, [*hard, each, 0.4, 0.0], error) for each in (0.2, 1.2)]
    np.testing.assert_array_equal(*(each.p_unlearnable[:4] for each in by_gradients))


def test_more_rollouts_without_a_correct_one_expect_less():
    few, many = (_run([0, 5, 5, 30], [np.nan, 1, 1, 1], [0.3] * 4, n) for n in (64, 1024))
    assert many.pass_rate[0] < few.pass_rate[0]


def test_decided_is_a_tag_or_nothing_left_to_learn():
    size = 4
    found = Forecast(
        *np.zeros((3, size)), np.array([0.05, 0.97, 0.5, 0.5]), np.array([3.0, 3.0, 3.0, 0.2])
    )
    np.testing.assert_array_equal(is_decided(found, BUILT_IN), [True, True, False, True])


# --- Constants -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [(math.nan, 1.0, 1.0), (0.0, math.inf, 1.0), (0.0, 1.0, 0.0), (0.0, 1.0, -1.0),
     (0.0, 1.0, math.nan)],
)  # fmt: skip
def test_constants_are_checked(values):
    with pytest.raises(ValueError, match="finite"):
        Constants(*values)


@pytest.mark.parametrize(
    "values", [{"drift": 0, "gain": 1}, {"drift": 0, "gain": None, "spread": 1}, {}]
)
def test_constants_of_a_file_are_checked(values):
    with pytest.raises(ValueError, match="drift, gain and spread"):
        Constants.from_mapping(values)
    assert Constants.from_mapping({"drift": 0, "gain": 1, "spread": 2, "more": "x"}) == Constants(
        0.0, 1.0, 2.0
    )


def test_refitted_constants_are_of_their_source_only():
    fitted = {"source": "pilot", "drift": 0.1, "gain": 2.0, "spread": 0.7}
    assert run_constants("pilot", fitted) == Constants(0.1, 2.0, 0.7)
    assert run_constants("gradients", fitted) == CONSTANTS["gradients"]
    assert run_constants("pilot", None) == CONSTANTS["pilot"]


@pytest.mark.parametrize(("tau", "horizon"), [(0, 1), (1, 1), (0.1, 0), (0.1, math.nan)])
def test_impossible_settings_are_refused(tau, horizon):
    with pytest.raises(ValueError, match="tau must lie in"):
        forecast_items(known(0.1), lifts([1.0]), (0.0, 1.0), BUILT_IN, tau=tau, horizon=horizon)


def test_the_chances_alone_are_those_of_the_forecast():
    random = np.random.default_rng(0)
    rates = np.linspace(0, 1, 101)
    weights = random.dirichlet(np.ones(101), 40)
    values = np.where(random.random(40) < 0.2, np.nan, random.normal(size=40))
    # Some end beyond the bins.
    for constants in (Constants(-0.8, 2.5, 0.6), Constants(9.0, 4.0, 0.2)):
        given = (lifts(values, 0.3), (1.0, 2.0), constants)
        more = {"tau": TAU, "horizon": 1.5, "level": 0.2}
        whole = forecast_items(lambda rows: (rates, weights[rows]), *given, **more)
        alone = chances_below(rates, weights, *given, **more)
        np.testing.assert_allclose(alone, whole.p_unlearnable, rtol=0, atol=1e-12)
