"""`probes.lift.rewards`: GRPO's advantages of rewards that are not 0 or 1, and the lift by them."""

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import multivariate_hypergeom

from probes.lift.gradients import GradientLift, LiftInputs, group_weights, measure_lift
from probes.lift.rewards import ItemRewards, expected_advantages, group_advantages
from recipes.train.groups import advantages
from tests.worlds.bandit import GROUP, BanditWorld

VALUES = np.array([-0.5, 0.0, 0.4, 1.0])


def compositions(total: int, parts: int) -> NDArray[np.int64]:
    """All ways to write a number as a sum of so many, (ways, parts)."""
    bars = itertools.combinations(range(total + parts - 1), parts - 1)
    ways = [np.diff([-1, *each, total + parts - 1]) - 1 for each in bars]
    return np.array(ways)


def advantage_among(own: float, others: NDArray[np.int64], loss: str) -> float:
    """Of a rollout with a reward in a group with so many others of each value."""
    group = np.concatenate([[own], np.repeat(VALUES, others)])
    return float(group_advantages(group, loss)[0])


def test_advantages_are_the_trainers() -> None:
    rng = np.random.default_rng(0)
    for rewards in (rng.normal(size=8), rng.choice(VALUES, 8), np.ones(8)):
        np.testing.assert_allclose(group_advantages(rewards), advantages(rewards), atol=1e-12)


@pytest.mark.parametrize("loss", ["grpo", "dr_grpo"])
def test_expected_advantages_are_those_of_all_groups(loss: str) -> None:
    counts = np.array([20, 9, 6, 5])
    own = np.repeat(VALUES, counts)
    expected = []
    for at, value in enumerate(VALUES):
        rest = counts - (np.arange(len(VALUES)) == at)
        ways = [way for way in compositions(GROUP - 1, len(VALUES)) if (way <= rest).all()]
        chance = multivariate_hypergeom.pmf(np.array(ways), rest, GROUP - 1)
        expected.append(chance @ [advantage_among(value, way, loss) for way in ways])
    truth = np.array(expected)
    share = counts / counts.sum()
    found = expected_advantages(
        ItemRewards(own, np.array([0, len(own)])),
        np.zeros(4, np.int64), VALUES, VALUES >= 0.4, np.array([40]), np.array([11]),
        group_size=GROUP, loss=loss,
    )  # fmt: skip
    assert found.weight[0] == pytest.approx(share @ np.abs(truth) / 2, rel=0.02)
    side = np.where(VALUES >= 0.4, 11 / 40, -29 / 40)
    np.testing.assert_allclose(found.scale * found.weight[0], side * truth, atol=0.03)
    nothing = math.prod(range(20, 12, -1)) / math.prod(range(40, 32, -1))
    others = math.prod(range(9, 1, -1)) / math.prod(range(40, 32, -1))
    assert found.signal[0] == pytest.approx(1 - nothing - others, abs=0.01)


def test_rewards_of_0_and_1_are_weighted_as_ever() -> None:
    """Exactly where the group is all that was drawn, else to what drawing groups leaves."""
    for n, tolerance in ((GROUP, 1e-9), (64, 0.02), (5, 0.03)):
        c = np.arange(1, n)
        rewards = np.concatenate([np.arange(n) < each for each in c]).astype(float)
        item = np.repeat(np.arange(len(c)), n)
        known = group_weights(np.full(len(c), n), c, GROUP)
        if n == GROUP:
            # Then a step is sure to have this group, as the exact sum over counts has it.
            assert known.signal == pytest.approx(np.ones(len(c)))
        found = expected_advantages(
            ItemRewards.of(item, rewards, len(c)),
            item, rewards, rewards == 1, np.full(len(c), n), c, group_size=GROUP,
        )  # fmt: skip
        np.testing.assert_allclose(found.weight, known.weight, rtol=3 * tolerance)
        np.testing.assert_allclose(found.signal, known.signal, rtol=3 * tolerance)
        # Both sides of an item are scaled by 1.
        np.testing.assert_allclose(found.scale, 1, rtol=3 * tolerance)


def test_equal_and_single_rewards_teach_nothing() -> None:
    rewards = np.array([0.5, 0.5, 0.5, 0.3, np.nan])
    item = np.array([0, 0, 0, 1, 1])
    found = expected_advantages(
        ItemRewards.of(item, rewards, 3),
        np.array([0, 1]), np.array([0.5, 0.3]), np.array([True, False]),
        np.array([3, 1, 0]), np.array([3, 0, 0]), group_size=GROUP,
    )  # fmt: skip
    assert not found.weight.any() and not found.signal.any()
    np.testing.assert_array_equal(found.scale, 1)


# --- The lift, in a world that can be listed ------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class RewardWorld:
    """A bandit world whose completions have rewards: correct from 0.4 on."""

    world: BanditWorld
    value: NDArray[np.int64]
    """(items, completions): position in `VALUES`."""

    @classmethod
    def make(cls, seed: int, **options: Any) -> "RewardWorld":
        world = BanditWorld.make(seed, **options)
        rng = np.random.default_rng(seed + 1000)
        wrong, right = (
            rng.integers(0, 2, world.is_correct.shape),
            rng.integers(2, 4, world.is_correct.shape),
        )
        return cls(world, np.where(world.is_correct, right, wrong))

    def lift(self) -> NDArray[np.float64]:
        """(items,), exactly: by all groups that there can be."""
        world = self.world
        shares = np.stack(
            [(world.probabilities * (self.value == v)).sum(axis=1) for v in range(4)], 1
        )
        ways = compositions(GROUP - 1, 4)
        log_count = [math.lgamma(GROUP) - sum(math.lgamma(n + 1) for n in way) for way in ways]
        advantage = np.array(
            [[advantage_among(value, way, "grpo") for way in ways] for value in VALUES]
        )
        with np.errstate(divide="ignore"):
            chance = np.exp(np.array(log_count) + np.log(np.maximum(shares, 1e-300)) @ ways.T)
        a = chance @ advantage.T
        per_token = world.scores / world.lengths[..., None]
        weights = world.probabilities * np.take_along_axis(a, self.value, axis=1)
        updates = np.einsum("iy,iyd->id", weights, per_token)
        signal = (1 - (shares**GROUP).sum(axis=1)).sum()
        slope = world.conditional(world.scores, True) / (1 - world.pass_probability)[:, None]
        return np.asarray(slope @ updates.sum(axis=0) / signal)

    def draw(self, rng: np.random.Generator, rollouts: int) -> LiftInputs:
        """What a probe keeps: 16 correct and 4 wrong ones, and every reward."""
        world, rows, features, rewards = self.world, [], [], []
        items, completions = world.probabilities.shape
        correct = np.zeros(items, dtype=np.int64)
        for item in range(items):
            drawn = rng.choice(completions, size=rollouts, p=world.probabilities[item])
            rewards.append(VALUES[self.value[item, drawn]])
            right = world.is_correct[item, drawn]
            correct[item] = right.sum()
            for flag, most in ((True, 16), (False, 4)):
                kept, counts = np.unique(drawn[right == flag][:most], return_counts=True)
                for each, count in zip(kept.tolist(), counts.tolist(), strict=True):
                    length = int(world.lengths[item, each])
                    features.append(-world.scores[item, each] / length)
                    rows.append((item, count, flag, length, VALUES[self.value[item, each]]))
        item_of, weights, is_correct, tokens, reward = map(np.array, zip(*rows, strict=True))
        return LiftInputs(
            np.array(features, np.float32),
            item_of, weights, is_correct, tokens, np.full(items, rollouts), correct,
            world.pass_probability,
            ItemRewards.of(
                np.repeat(np.arange(items), rollouts), np.concatenate(rewards), items
            ),
            reward,
        )  # fmt: skip


def measure(inputs: LiftInputs) -> GradientLift:
    return measure_lift(inputs, inputs.pass_rate < 0.1, is_preconditioned=False)


def test_the_lift_by_real_rewards_is_unbiased() -> None:
    made = RewardWorld.make(1, items=40, logit=0.0)
    truth = made.lift()
    found, counts = [], []
    for seed in range(100):
        inputs = made.draw(np.random.default_rng(seed), 32)
        found.append(measure(inputs).lift)
        counts.append(inputs.correct)
    known = (np.array(counts) >= 2).mean(axis=0) > 0.99
    assert known.sum() >= 10
    lifts = np.array(found)[:, known]
    mean = np.nanmean(lifts, axis=0)
    error = np.nanstd(lifts, axis=0) / np.sqrt(len(lifts))
    away = (mean - truth[known]) / error
    assert np.mean(away**2) <= 1 + 4 * np.sqrt(2 / known.sum())
    # And it is another one than with the rewards rounded to right and wrong.
    binary = made.world.lift()[known]
    assert np.mean(((mean - binary) / error) ** 2) > 4


def test_rewards_of_0_and_1_give_the_lift_of_counts() -> None:
    world = BanditWorld.make(2, items=30, logit=-1.0)
    inputs = world.draw(np.random.default_rng(0), GROUP)
    rewards = [np.arange(GROUP) < each for each in inputs.correct]
    as_numbers = dataclasses.replace(
        inputs,
        rewards=ItemRewards.of(
            np.repeat(np.arange(30), GROUP), np.concatenate(rewards).astype(float), 30
        ),
        reward=inputs.is_correct.astype(float),
    )
    one, other = measure(inputs), measure(as_numbers)
    for name in ("lift", "standard_error", "from_others", "teaching", "weight"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-4, atol=1e-7)


def test_an_item_that_is_never_right_teaches_by_its_rewards() -> None:
    made = RewardWorld.make(3, items=30, logit=-1.0)
    inputs = made.draw(np.random.default_rng(0), 32)
    # The same rollouts by a threshold that item 0 never reaches.
    is_first = inputs.item == 0
    never = dataclasses.replace(
        inputs,
        is_correct=inputs.is_correct & ~is_first,
        correct=np.where(np.arange(30) == 0, 0, inputs.correct),
    )
    found = measure(never)
    assert np.isnan(found.lift[0]) and found.draws[0] == 0
    assert found.weight[0] > 0 and np.isfinite(found.teaching[0]) and found.teaching[0] != 0
    others = measure(inputs)
    assert np.isfinite(others.lift[1:][found.draws[1:] > 0]).all()


def test_rewards_that_do_not_fit_are_refused() -> None:
    inputs = BanditWorld.make(0, items=5).draw(np.random.default_rng(0), 8)
    rewards = ItemRewards.of(np.array([0]), np.array([1.0]), 5)
    with pytest.raises(ValueError, match="go together"):
        dataclasses.replace(inputs, rewards=rewards)
    with pytest.raises(ValueError, match=r"reward must be \(\d+,\)"):
        dataclasses.replace(inputs, rewards=rewards, reward=np.ones(1))
