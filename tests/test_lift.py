"""`probes.lift.gradients` against worlds whose truth is a sum over all completions."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom
from scipy.stats import t as student_t

from probes.lift.gradients import (
    GradientLift,
    LiftInputs,
    group_coefficients,
    group_weights,
    measure_lift,
)
from tests.worlds.bandit import GROUP, BanditWorld


def unsolved(inputs: LiftInputs) -> np.ndarray:
    return inputs.pass_rate < 0.1


def measure(inputs: LiftInputs, **options: Any) -> GradientLift:
    """Along the gradient itself, of which the truth is known."""
    return measure_lift(inputs, unsolved(inputs), is_preconditioned=False, **options)


@pytest.mark.parametrize("loss", ["grpo", "dr_grpo"])
def test_a_groups_coefficient_is_that_of_its_advantages(loss):
    """Σ A_r g_r / G = coefficient × (ḡ⁺ − ḡ⁻), by the advantages as TRL computes them."""
    rng = np.random.default_rng(0)
    for k in range(GROUP + 1):
        rewards = np.arange(GROUP) < k
        g = rng.normal(size=(GROUP, 5))
        centred = rewards - rewards.mean()
        spread = rewards.std(ddof=1) + 1e-4 if loss == "grpo" else 1.0
        update = (centred / spread) @ g / GROUP
        difference = g[rewards].mean(axis=0) - g[~rewards].mean(axis=0) if 0 < k < GROUP else 0
        assert np.allclose(update, group_coefficients(GROUP, loss)[k] * difference)


def test_weights_are_unbiased():
    p, n = 0.07, 20
    c = np.arange(n + 1)
    found = group_weights(np.full(n + 1, n), c, GROUP)
    k = np.arange(GROUP + 1)
    truth = binom.pmf(k, GROUP, p)
    chance = binom.pmf(c, n, p)
    assert chance @ found.weight == pytest.approx(truth @ group_coefficients(GROUP), rel=1e-9)
    assert chance @ found.signal == pytest.approx(truth[1:-1].sum(), rel=1e-9)


def test_with_fewer_rollouts_than_a_group_the_rate_itself_is_taken():
    found = group_weights(np.array([4, 0]), np.array([1, 0]), GROUP)
    assert found.signal[0] == pytest.approx(1 - 0.75**8 - 0.25**8)
    assert found.weight[1] == found.signal[1] == 0


def test_impossible_counts_and_groups_are_refused():
    with pytest.raises(ValueError, match="group"):
        group_weights(np.array([8]), np.array([1]), 1)
    with pytest.raises(ValueError, match="correct"):
        group_weights(np.array([8]), np.array([9]), 8)
    with pytest.raises(ValueError, match="loss"):
        group_weights(np.array([8]), np.array([1]), 8, "ppo")


@pytest.fixture(scope="module")
def draws():
    """(world, lifts, errors, freedom, draws): 120 probes of 64 rollouts an item of one world."""
    world = BanditWorld.make(0)
    found = []
    for seed in range(120):
        inputs = world.draw(np.random.default_rng(seed), 64)
        one = measure(inputs, seed=seed)
        found.append((one.lift, one.standard_error, one.degrees_of_freedom, one.draws))
    return world, *(np.array(each) for each in zip(*found, strict=True))


def test_the_lift_is_unbiased():
    world = BanditWorld.make(1, items=60, logit=0.0)
    found, counts = [], []
    for seed in range(200):
        inputs = world.draw(np.random.default_rng(seed), 64)
        found.append(measure(inputs).lift)
        counts.append(inputs.correct)
    # Items that nearly always have several correct rollouts: leaving probes out would bias.
    known = (np.array(counts) >= 2).mean(axis=0) > 0.99
    assert known.sum() >= 15
    lifts = np.array(found)[:, known]
    mean = np.nanmean(lifts, axis=0)
    error = np.nanstd(lifts, axis=0) / np.sqrt(len(lifts))
    away = (mean - world.lift()[known]) / error
    # The mean square of standard normals, within what so many of them leave to chance.
    assert np.mean(away**2) <= 1 + 4 * np.sqrt(2 / known.sum())


@pytest.mark.parametrize("low, high", [(1, 1), (2, 2), (3, 4), (5, 8), (9, 16)])
def test_intervals_cover(draws, low, high):
    """90 % of the nominal level at least, at every number of correct rollouts."""
    world, lifts, errors, freedom, counts = draws
    chosen = (counts >= low) & (counts <= high)
    half = student_t.ppf(0.95, freedom[chosen]) * errors[chosen]
    covered = np.abs(lifts - world.lift())[chosen] <= half
    assert len(covered) >= 50
    assert covered.mean() >= 0.9 * 0.9


def test_no_rollout_meets_itself():
    """Alone in its run, an item has nothing but its own term: pairs of different draws."""
    world = BanditWorld.make(3, items=1, completions=6, logit=1.0)
    updates, signal = world.group_updates()
    truth = float(world.lift()[0])
    found = []
    for seed in range(3000):
        inputs = world.draw(np.random.default_rng(seed), 16, most=16, most_wrong=16)
        if inputs.correct[0] >= 2:
            one = measure(inputs)
            # The estimate of the weight and that of Σ q cancel but for their own draws.
            weight = group_weights(inputs.judged, inputs.correct, GROUP)
            if weight.weight[0] > 0:
                found.append(one.lift[0] * weight.signal[0] / weight.weight[0])
    chances = binom.pmf(np.arange(GROUP + 1), GROUP, world.pass_probability[0])
    wanted = truth * signal / float(chances @ group_coefficients(GROUP))
    error = np.std(found) / np.sqrt(len(found))
    assert abs(np.mean(found) - wanted) <= 4 * error
    assert updates.shape == (1, 96)


def test_direct_answers_are_known_from_a_single_rollout():
    """Where every item has one right completion, repeats show it, and one draw says it all."""
    world = BanditWorld.make(5, items=200, most_correct=1)
    inputs = world.draw(np.random.default_rng(0), 64)
    found = measure(inputs)
    single = found.draws == 1
    assert single.sum() >= 20
    error = (found.lift - world.lift())[single]
    half = student_t.ppf(0.95, found.degrees_of_freedom[single]) * found.standard_error[single]
    assert np.mean(np.abs(error) <= half) >= 0.9 * 0.9
    assert np.corrcoef(found.lift[single], world.lift()[single])[0, 1] >= 0.8


def test_order_of_rows_and_blocks_change_nothing(draws):
    world = draws[0]
    inputs = world.draw(np.random.default_rng(1), 64)
    whole = measure(inputs)
    shuffled = np.lexsort((np.random.default_rng(2).permutation(len(inputs.item)), inputs.item))
    rows = ("features", "item", "weights", "is_correct", "tokens")
    other = dataclasses.replace(inputs, **{name: getattr(inputs, name)[shuffled] for name in rows})
    small = measure(other, block_bytes=16 * 96 * 20)
    assert np.allclose(whole.lift, small.lift, rtol=1e-4, atol=1e-5, equal_nan=True)
    assert np.allclose(whole.teaching, small.teaching, rtol=1e-4, atol=1e-6, equal_nan=True)


def test_teaching_is_the_lift_read_the_other_way(draws):
    """Summed over teachers as over learners."""
    world = draws[0]
    inputs = world.draw(np.random.default_rng(1), 64)
    chosen = unsolved(inputs)
    found = measure(inputs)
    learners = chosen & (found.draws > 0)
    signal = group_weights(inputs.judged, inputs.correct, GROUP).signal.sum()
    count = learners.sum() - learners
    taught = np.nansum(found.from_others[learners]) * signal
    assert np.nansum(found.teaching * count) == pytest.approx(taught, rel=1e-4)


def test_items_without_a_correct_rollout_have_no_lift(draws):
    inputs = draws[0].draw(np.random.default_rng(1), 64)
    found = measure(inputs)
    without = inputs.correct == 0
    assert without.any()
    assert np.isnan(found.lift[without]).all() and np.isfinite(found.lift[~without]).all()


def test_gradients_that_are_not_finite_are_named(draws):
    inputs = draws[0].draw(np.random.default_rng(1), 64)
    inputs.features[7, 3] = np.nan
    with pytest.raises(ValueError, match="row 7"):
        measure(inputs)
