"""Groups of rollouts: signal, advantages, and oversampling with replay."""

import math
from dataclasses import replace

import numpy as np
import pytest

from recipes.train.groups import Group, ReplayBuffer, advantages, with_replay
from recipes.train.prompts import PromptStream, TrainingItem

NAN = math.nan


def group(rewards, number=0):
    """A group whose completions say which rollout they are: token 100 + i."""
    return Group(
        number=number,
        item_id="item",
        prompt_token_ids=[1, 2],
        completions=[[100 * (number + 1) + i] for i in range(len(rewards))],
        rewards=rewards,
        truncated=[False] * len(rewards),
    )


@pytest.mark.parametrize(
    ("rewards", "has_signal"),
    [
        ([1, 1, 1], False),
        ([0, 0, 0], False),
        ([0, 1, 0], True),
        ([NAN, 1, 1], False),
        ([NAN, 1, 0], True),
        ([NAN, NAN, NAN], False),
    ],
)
def test_a_group_has_a_signal_where_judged_rewards_differ(rewards, has_signal):
    assert group(rewards).has_signal is has_signal
    assert bool(np.any(advantages(rewards))) is has_signal


def test_advantages_are_standardized_within_the_group():
    # Mean 1/4, sample standard deviation 1/2.
    assert advantages([1, 0, 0, 0]) == pytest.approx([1.5, -0.5, -0.5, -0.5], rel=1e-3)
    assert advantages([1, 0, 0, 0, NAN]) == pytest.approx([1.5, -0.5, -0.5, -0.5, 0], rel=1e-3)


def test_means_leave_out_what_could_not_be_judged():
    assert group([1, 0, NAN]).mean_reward == 0.5
    assert group([NAN]).mean_reward is None


# --- Oversampling with replay ------------------------------------------------------------------


def replayed(rewards, buffer, number=1, positives=1, size=4):
    rng = np.random.default_rng(number)
    return with_replay(group(rewards, number), positives, size, buffer, rng)


def test_one_right_and_the_rest_wrong_are_kept():
    buffer = ReplayBuffer(reuse=2)
    kept = replayed([1, 1, 1, 0, 0, 0, 0, 0], buffer)
    assert sorted(kept.rewards) == [0, 0, 0, 1]
    own = group([0] * 8, number=1).completions
    assert all(completion in own for completion in kept.completions)
    # All of its right rollouts wait for later groups, not only the one that was kept.
    assert len(buffer.completions["item"]) == 3


def test_which_are_kept_is_drawn():
    kept = {
        tuple(map(tuple, replayed([1, 1, 0, 0, 0, 0, 0, 0], ReplayBuffer(2), number).completions))
        for number in range(20)
    }
    firsts = {completions[0][0] % 100 for completions in kept}
    assert firsts == {0, 1}


def test_all_wrong_and_an_empty_buffer_stay_without_a_signal():
    kept = replayed([0] * 8, ReplayBuffer(reuse=2))
    assert list(kept.rewards) == [0, 0, 0, 0]
    assert not kept.has_signal


def test_all_wrong_gets_a_buffered_right_one():
    buffer = ReplayBuffer(reuse=2)
    buffer.add(group([0, 1, 0], number=0))
    kept = replayed([0] * 8, buffer)
    assert sorted(kept.rewards) == [0, 0, 0, 1]
    assert [101] in list(kept.completions)
    assert advantages(kept.rewards).max() == pytest.approx(1.5, rel=1e-3)


def test_a_buffered_rollout_is_used_no_more_than_it_may():
    buffer = ReplayBuffer(reuse=2)
    buffer.add(group([0, 1, 0], number=0))
    signals = [replayed([0] * 8, buffer, number).has_signal for number in (1, 2, 3)]
    assert signals == [True, True, False]


def test_a_group_does_not_replay_itself_and_replays_are_not_buffered_again():
    buffer = ReplayBuffer(reuse=1)
    assert not replayed([0] * 8, buffer, number=1).has_signal
    replayed([1] + [0] * 7, buffer, number=2)
    assert replayed([0] * 8, buffer, number=3).has_signal
    assert not replayed([0] * 8, buffer, number=4).has_signal


def test_all_right_stays_without_a_signal():
    assert list(replayed([1] * 8, ReplayBuffer(reuse=2)).rewards) == [1, 1, 1, 1]


def test_too_few_wrong_ones_are_filled_up_with_right_ones():
    assert sorted(replayed([0] + [1] * 7, ReplayBuffer(reuse=2)).rewards) == [0, 1, 1, 1]


def test_unjudged_rollouts_are_taken_last():
    kept = replayed([1, 0, 0, 0, NAN, NAN, NAN, NAN], ReplayBuffer(reuse=2))
    assert sorted(kept.rewards) == [0, 0, 0, 1]


def test_a_buffer_survives_its_rows():
    buffer = ReplayBuffer(reuse=2)
    buffer.add(group([1, 1, 0]))
    buffer.take("item", np.random.default_rng(0))
    again = ReplayBuffer.from_rows(2, buffer.to_rows())
    assert again.to_rows() == buffer.to_rows()
    assert [row["uses"] for row in again.to_rows()].count(1) == 1


# --- The stream of prompts ----------------------------------------------------------------------


def items(count):
    return [TrainingItem(str(i), (i,), "1") for i in range(count)]


def test_every_epoch_holds_every_item_once_in_an_order_of_its_own():
    stream = PromptStream(items(10), seed=3, shuffle=True)
    epochs = [[stream[10 * epoch + i].item_id for i in range(10)] for epoch in range(3)]
    assert all(sorted(epoch) == sorted(map(str, range(10))) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_a_place_holds_the_same_item_whatever_was_asked_before():
    stream, other = (PromptStream(items(7), seed=3, shuffle=True) for _ in range(2))
    forwards = [stream[place].item_id for place in range(30)]
    assert [other[place].item_id for place in reversed(range(30))] == forwards[::-1]
    differently = PromptStream(items(7), seed=4, shuffle=True)
    assert [differently[place].item_id for place in range(30)] != forwards


def test_without_shuffling_the_order_is_kept():
    stream = PromptStream(items(3), seed=3, shuffle=False)
    assert [stream[place].item_id for place in range(6)] == ["0", "1", "2", "0", "1", "2"]


def test_with_other_rewards_the_threshold_tells_right_from_wrong():
    kept = replace(group([0.9, 0.4, -1, NAN, 0.8]), threshold=0.8)
    assert kept.is_correct.tolist() == [True, False, False, False, True]
    assert kept.mean_reward == pytest.approx(1.1 / 4)
    buffer = ReplayBuffer(2)
    buffer.add(kept)
    again = ReplayBuffer.from_rows(2, buffer.to_rows())
    rng = np.random.default_rng(0)
    assert {again.take("item", rng)[1], again.take("item", rng)[1]} <= {0.9, 0.8}
    # Where none is right a right one of before is replayed, with the reward that it had.
    hopeless = replace(group([0.4, 0.1, 0.2, NAN]), threshold=0.8)
    chosen = with_replay(hopeless, 1, 2, buffer, rng)
    assert sorted(chosen.rewards)[-1] in (0.9, 0.8)
    assert chosen.is_correct.sum() == 1 and len(chosen.rewards) == 2
    # What an earlier version kept was right, with the reward 1.
    rows = [{"item_id": "item", "completion_token_ids": [5], "uses": 0}]
    assert ReplayBuffer.from_rows(2, rows).take("item", rng) == ([5], 1.0)
