"""Groups of rollouts: which have a learning signal, their advantages, and replay of positives."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from probes.verifiers.verdict import reaches

# As in TRL and the paper's code; keeps a group of nearly equal rewards finite.
_EPSILON = 1e-4
# Times what is expected to be enough that is asked for, so that one more round is rarely needed.
_SPARE = 1.1
# Of one item; older ones were drawn by a policy that is long gone.
_MOST_BUFFERED = 4


@dataclass(frozen=True)
class Group:
    """The rollouts of one prompt that were sampled together.

    Attributes:
        number: of the group in its run, from 0: its place in the stream of prompts.
        item_id: the item.
        prompt_token_ids: the item's prompt.
        completions: token ids of each completion.
        rewards: of each: 1, 0 or another number, or nan where it could not be judged.
        truncated: whether each was cut at the length limit.
        samples: of a group made of the probe's rollouts, as it was made, their numbers there.
        threshold: the reward from which on a completion is correct.
        log_probs: of each completion's tokens, in what drew them; empty for a completion, or for
            all, where they are not known or not needed.
    """

    number: int
    item_id: str
    prompt_token_ids: Sequence[int]
    completions: Sequence[Sequence[int]]
    rewards: Sequence[float]
    truncated: Sequence[bool]
    samples: Sequence[int] = ()
    threshold: float = 1
    log_probs: Sequence[Sequence[float]] = ()

    @property
    def is_correct(self) -> NDArray[np.bool_]:
        """Whether each was judged and reached the threshold, (rollouts,)."""
        return np.array([reaches(reward, self.threshold) for reward in self.rewards], dtype=bool)

    @property
    def has_signal(self) -> bool:
        """Whether the rewards that could be judged differ, so that advantages are not all zero."""
        judged = [reward for reward in self.rewards if not math.isnan(reward)]
        return len(set(judged)) > 1

    @property
    def mean_reward(self) -> float | None:
        """Mean of the rewards that could be judged; None where none could."""
        judged = [reward for reward in self.rewards if not math.isnan(reward)]
        return sum(judged) / len(judged) if judged else None

    @property
    def truncated_fraction(self) -> float:
        """Share of the completions that were cut."""
        return sum(self.truncated) / len(self.truncated)

    def take(self, places: Sequence[int]) -> Group:
        """The group of some of its rollouts only."""
        return replace(
            self,
            completions=[self.completions[i] for i in places],
            rewards=[self.rewards[i] for i in places],
            truncated=[self.truncated[i] for i in places],
            samples=(),
            log_probs=[self.log_probs[i] for i in places] if self.log_probs else (),
        )


def prompts_to_ask(missing: int, signals: int, groups: int, most: int) -> int:
    """How many prompts to sample where groups with a signal are missing.

    A round of sampling takes as long as its longest rollout, so it asks for what is expected to be
    enough by the share of groups with a signal so far, and a tenth more.

    Args:
        missing: groups with a signal.
        signals: groups that had one, of all that were sampled so far.
        groups: all of these, at least 1.
        most: not more than so many.
    """
    return min(most, math.ceil(_SPARE * missing * groups / max(signals, 1)))


def advantages(rewards: Sequence[float]) -> NDArray[np.float64]:
    """Advantages within a group: (r - mean) / (std + 1e-4), shape (rollouts,).

    GRPO (Shao et al. 2024), with the sample standard deviation, as TRL computes it. Rewards of nan
    take no part and have advantage 0; where fewer than two were judged all advantages are 0.
    """
    values = np.asarray(rewards, dtype=np.float64)
    judged = ~np.isnan(values)
    found = np.zeros(len(values))
    if judged.sum() >= 2:
        centred = values[judged] - values[judged].mean()
        found[judged] = centred / (values[judged].std(ddof=1) + _EPSILON)
    return found


@dataclass
class _Buffered:
    completion: NDArray[np.int32]
    uses: int = 0
    reward: float = 1.0


@dataclass
class ReplayBuffer:
    """Correct rollouts of each item, each handed out a limited number of times.

    Attributes:
        reuse: times that a rollout is handed out at most.
        completions: what is kept, by item.
    """

    reuse: int
    completions: dict[str, deque[_Buffered]] = field(default_factory=dict)

    def add(self, group: Group) -> None:
        """Keep the correct rollouts of a group."""
        kept = self.completions.setdefault(group.item_id, deque(maxlen=_MOST_BUFFERED))
        for place in np.flatnonzero(group.is_correct).tolist():
            completion = np.array(group.completions[place], dtype=np.int32)
            kept.append(_Buffered(completion, reward=float(group.rewards[place])))

    def take(self, item_id: str, rng: np.random.Generator) -> tuple[list[int], float] | None:
        """Hand out a rollout of an item and its reward; None where none is left, or was there."""
        kept = self.completions.get(item_id)
        if not kept:
            return None
        place = int(rng.integers(len(kept)))
        chosen = kept[place]
        chosen.uses += 1
        if chosen.uses >= self.reuse:
            del kept[place]
        return [int(token) for token in chosen.completion], chosen.reward

    def to_rows(self) -> list[dict[str, object]]:
        """What is kept, as rows for a file."""
        return [
            {
                "item_id": item_id,
                "completion_token_ids": each.completion.tolist(),
                "uses": each.uses,
                "reward": each.reward,
            }
            for item_id, kept in self.completions.items()
            for each in kept
        ]

    @classmethod
    def from_rows(cls, reuse: int, rows: Sequence[dict[str, object]]) -> ReplayBuffer:
        """The buffer that `to_rows` described."""
        buffer = cls(reuse)
        for row in rows:
            kept = buffer.completions.setdefault(str(row["item_id"]), deque(maxlen=_MOST_BUFFERED))
            ids, uses, reward = row["completion_token_ids"], row["uses"], row.get("reward", 1.0)
            assert isinstance(ids, list) and isinstance(uses, int) and isinstance(reward, float)
            kept.append(_Buffered(np.array(ids, dtype=np.int32), uses, reward))
        return buffer


def with_replay(
    group: Group, positives: int, size: int, buffer: ReplayBuffer, rng: np.random.Generator
) -> Group:
    """Cut an oversampled group down to a fixed share of correct rollouts.

    As in the paper's oversampling with replay: where no rollout is right, one wrong one is swapped
    for a buffered right one; then `positives` right and `size - positives` wrong ones are drawn.
    Where there are too few of one kind the other fills up, so that the group may be without signal.
    Correct rollouts of this group go into the buffer afterwards: a group never replays itself.

    Args:
        group: all rollouts that were sampled, at least `size` of them judged or not.
        positives: right rollouts that are kept.
        size: rollouts that are kept.
        buffer: right rollouts of earlier groups; changed.
        rng: decides which are kept and which is replayed.
    """
    sampled = group
    is_right, is_unjudged = group.is_correct, np.isnan(group.rewards)
    if not is_right.any() and (wrong := np.flatnonzero(~is_unjudged)).size:
        replayed = buffer.take(group.item_id, rng)
        if replayed is not None:
            group = _swap(group, int(rng.choice(wrong)), *replayed)
            is_right, is_unjudged = group.is_correct, np.isnan(group.rewards)
    right = rng.permutation(np.flatnonzero(is_right)).tolist()
    wrong_first = rng.permutation(np.flatnonzero(~is_right & ~is_unjudged)).tolist()
    unjudged = rng.permutation(np.flatnonzero(is_unjudged)).tolist()
    chosen = right[:positives] + wrong_first[: size - positives]
    rest = right[positives:] + wrong_first[size - positives :] + unjudged
    chosen += rest[: size - len(chosen)]
    buffer.add(sampled)
    return group.take(sorted(chosen))


def _swap(group: Group, place: int, completion: list[int], reward: float) -> Group:
    """Put a correct rollout in the place of another."""
    completions, rewards = list(group.completions), list(group.rewards)
    truncated = list(group.truncated)
    log_probs = list(group.log_probs)
    completions[place], rewards[place], truncated[place] = completion, reward, False
    if log_probs:
        log_probs[place] = ()
    return replace(
        group,
        completions=completions,
        rewards=rewards,
        truncated=truncated,
        log_probs=log_probs,
    )
