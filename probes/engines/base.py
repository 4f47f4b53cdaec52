"""What every sampling engine takes and gives: token ids in, token ids out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np


@dataclass(frozen=True)
class SampleRequest:
    """`samples` rollouts of one item's prompt, numbered from `first_sample`."""

    item_id: str
    prompt_token_ids: Sequence[int]
    first_sample: int
    samples: int


LATER = SampleRequest("", (), 0, 0)
"""In the place of a request: there is none now, but more may come. Only while others are drawn."""


@dataclass(frozen=True)
class Truncation:
    """What tokens are drawn from, of the policy's distribution at the sampling temperature.

    Applied in vLLM's order: min_p, then top_k, then top_p of what is left. By default, to all.

    Attributes:
        top_p: of the most probable tokens, as many as have this probability together; (0, 1].
        top_k: the most probable tokens, so many of them; 0 for all.
        min_p: tokens at least so many times as probable as the most probable one; [0, 1].
    """

    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0

    @property
    def is_whole(self) -> bool:
        """Whether nothing is left out."""
        return self == Truncation()


WHOLE = Truncation()


@dataclass(frozen=True)
class Rollout:
    """One sampled completion.

    Attributes:
        item_id: the item that it belongs to.
        sample: its number within the item, from 0.
        completion_token_ids: what was sampled, the end-of-sequence token included.
        finish_reason: `stop` when the policy ended it, `length` when it was cut.
        log_probability: of the completion under the policy at temperature 1 and nothing left out,
            whatever it was sampled with, in nats, summed over its tokens; None where the engine
            does not give it.
    """

    item_id: str
    sample: int
    completion_token_ids: Sequence[int]
    finish_reason: str
    log_probability: float | None = None


class RequestStream:
    """Requests that are taken as an engine has room for them."""

    def __init__(self, requests: Iterable[SampleRequest]) -> None:
        self._requests = iter(requests)
        self.is_over = False
        """Whether it was seen that no more come."""

    def take(self, rollouts: int) -> list[SampleRequest]:
        """Take the next requests, of so many rollouts or a few more; fewer where there are none."""
        taken: list[SampleRequest] = []
        while rollouts > 0 and not self.is_over:
            request = next(self._requests, None)
            if request is LATER:
                break
            if request is None:
                self.is_over = True
            else:
                taken.append(request)
                rollouts -= request.samples
        return taken


def rollouts_to_add(in_hand: int, at_once: int) -> int:
    """How many rollouts an engine that decodes `at_once` side by side is to take beside its own.

    None while half as many again wait: so it never runs short, and takes them in large lots.

    Args:
        in_hand: rollouts that it has been given and that are not finished.
        at_once: those that it can decode side by side.
    """
    return 2 * at_once - in_hand if in_hand < at_once + at_once // 2 else 0


class Engine(Protocol):
    """Draws rollouts from a policy.

    Attributes:
        name: as users choose it.
        has_own_weights: it loads the policy's weights on this machine, beside those that are
            differentiated.
        stops_at: when, by `time.monotonic`, `sample` ends with rollouts still in the making, as
            soon as it can; never, unless a trial sets it.
    """

    name: str
    has_own_weights: bool
    stops_at: float

    def sample(self, requests: Iterable[SampleRequest]) -> Iterator[Rollout]:
        """Yield every rollout asked for, in the order in which they finish.

        Requests are taken as there is room for them, a bounded number ahead of what is drawn, so
        that whoever has more of them keeps the engine full. Randomness comes from the seed and the
        requests: so no two shards of a run share random numbers, whichever process draws them.
        Engines that load weights here go on without more where they are given `LATER`.
        """
        ...

    def unfinished(self) -> list[int] | None:
        """Tokens so far of every rollout in the making; None where the engine cannot tell."""
        ...

    def close(self) -> None:
        """Free weights and memory; sampling again takes them anew."""
        ...

    def facts(self) -> dict[str, Any]:
        """Say what draws the rollouts, for the manifest.

        Returns:
            `name`; `version` of its software; `seed`; `options` that it runs with; `token_ids`:
            whether the engine gave the ids that it drew, or only text; `deterministic`: whether
            the same command draws the same rollouts again.
        """
        ...


def uniform_draws(seed: int, item_id: str, sample: int, count: int) -> np.ndarray:
    """Return the `count` uniform numbers in [0, 1) that drive one rollout, shape (count,) float32.

    Counter-based (Philox) and keyed by item and sample, so that a rollout's randomness does not
    depend on what else is in its batch or on where an interrupted run was taken up again.
    """
    key = hashlib.sha256(f"{seed}\0{item_id}\0{sample}".encode()).digest()[:16]
    generator = np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))
    return generator.random(count, dtype=np.float32)
