"""How full do shards keep an engine? A simulated GPU draws a round of rollouts.

What is simulated is the engine: a step-time model of one H100 that runs a 7B in bfloat16 with
vLLM's continuous batching, and lengths of completions. What is measured is real: the stage that
hands requests over and makes shards (`probes.stages.sample.draw_here`), and the rule by which the
vLLM engine takes them (`RequestStream`, `rollouts_to_add`), and how a Ray worker's stream asks for
shards (`probes.machines.ray_worker.ShardStream`). Nothing was run on a GPU.

A step of `n` rollouts with `c` tokens of context together takes

    WEIGHTS + n * ROLLOUT + c * CONTEXT    seconds

that is: reading 15.2 GB of weights at 80 % of 3.35 TB/s, with 3 ms of launches; 15.2 GFLOP a token
at half of 989 TFLOP/s, with 8 µs for the scheduler; and 57 kB of keys and values a token of
context. A prompt costs its tokens' FLOP once for its samples. At most 1,024 rollouts run, and no
more than the cache holds.

Lengths are lognormal with a sigma of 0.8 in logarithms and a mean of `--mean`, cut at
`--max-tokens`. Six ways, of the same rollouts:

    continuous          all requests in one call, and no shards
    shards, joined      what `curate tag` does: the next shard's rollouts begin beside the last ones
    shards, by turns    a shard is drawn to its last rollout before the next
    small shards        the same with 4,194,304 / max_tokens rollouts: what `curate tag` once did
    N on Ray            workers that ask for a shard when their engines have begun the last
                        rollouts of one: what `--executor ray` does
    N on Ray, by turns  workers that draw a shard to its last rollout: what it once did

A round of N workers is over with the last of them, which the others wait for; its rate is that of
one of them. They draw N times as many items.

    python -m benchmarks.speed.full_engine
    python -m benchmarks.speed.full_engine --mean 1000 --max-tokens 8192 --items 2048

Exit status 1 where joined shards, here or on Ray, have less than 90 % of the continuous
throughput.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import math
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from probes.engines.base import RequestStream, Rollout, SampleRequest, rollouts_to_add
from probes.machines.ray_worker import ShardStream
from probes.stages.sample import Advance, SampleShard, draw_here, rollout_table, shards
from probes.tagging import _SHARD_ROLLOUTS

GOAL = 0.9
SIGMA = 0.8
SAMPLES = 32
PROMPT_TOKENS = 150
AT_ONCE = 1024
WEIGHTS = 15.2e9 / (0.8 * 3.35e12) + 3e-3
TOKEN = 15.2e9 / (0.5 * 989e12)
ROLLOUT = TOKEN + 8e-6
CONTEXT = 57_344 / (0.8 * 3.35e12)
CACHE_TOKENS = 950_000


class SimulatedGpu:
    """An engine whose rollouts take the time of the step-time model, and none of ours.

    Attributes:
        seconds: of simulated time, over all calls.
        tokens: drawn.
        saw: is told the item of every request that is finished.
        passed: is called when time has passed.
    """

    name = "simulated"
    has_own_weights = True
    stops_at = math.inf

    def __init__(self, mean: float, max_tokens: int) -> None:
        self._mean = math.log(mean) - SIGMA**2 / 2
        self._max_tokens = max_tokens
        self.seconds = 0.0
        self.tokens = 0
        self.saw: Callable[[int], None] = lambda item: None
        self.passed: Callable[[], None] = lambda: None

    def lengths(self, request: SampleRequest) -> list[int]:
        """Tokens of a request's rollouts: the same whoever draws them."""
        rng = np.random.default_rng([int(request.item_id), request.first_sample])
        drawn = rng.lognormal(self._mean, SIGMA, request.samples)
        lengths: list[int] = np.clip(drawn, 1, self._max_tokens).astype(int).tolist()
        return lengths

    def sample(self, requests: Iterable[SampleRequest]) -> Iterator[Rollout]:
        """Yield every rollout asked for, all of a request together as vLLM does.

        What is yielded has one token: the lengths are the engine's own affair here.
        """
        stream = RequestStream(requests)
        waiting: deque[tuple[_Request, int]] = deque()
        # By the step after which each ends; and what a rollout's context was before it began.
        running: list[tuple[int, int, _Request, int]] = []
        ties = itertools.count()
        step = context = 0
        while True:
            in_hand = len(waiting) + len(running)
            for request in stream.take(rollouts_to_add(in_hand, AT_ONCE)):
                one = _Request(request, request.samples)
                waiting.extend((one, length) for length in self.lengths(request))
                self.seconds += len(request.prompt_token_ids) * TOKEN
            while waiting and len(running) < AT_ONCE and context < CACHE_TOKENS:
                one, length = waiting.popleft()
                heapq.heappush(running, (step + length, next(ties), one, length))
                context += len(one.request.prompt_token_ids)
            if not running:
                return
            n, steps = len(running), running[0][0] - step
            self.seconds += steps * (WEIGHTS + n * ROLLOUT)
            self.seconds += CONTEXT * (steps * context + n * steps * (steps - 1) / 2)
            step, context = step + steps, context + n * steps
            self.passed()
            while running and running[0][0] == step:
                _, _, one, length = heapq.heappop(running)
                context -= len(one.request.prompt_token_ids) + length
                self.tokens += length
                one.left -= 1
                if not one.left:
                    self.saw(int(one.request.item_id))
                    first = one.request.first_sample
                    for sample in range(first, first + one.request.samples):
                        yield Rollout(one.request.item_id, sample, (0,), "stop")

    def unfinished(self) -> None:
        """Unknown, as of vLLM."""
        return None

    def close(self) -> None:
        """It holds nothing."""

    def facts(self) -> dict[str, Any]:
        """Nothing is known of it but its name."""
        return {"name": self.name}


@dataclass
class _Request:
    request: SampleRequest
    left: int
    """Rollouts that are not finished."""


class NoText:
    """A tokenizer whose texts are empty."""

    def decode(self, token_ids: list[int], **options: Any) -> str:
        """No text."""
        return ""


def draw_shard(
    requests: Sequence[SampleRequest], engine: SimulatedGpu, advance: Advance
) -> pa.Table:
    """Draw one shard alone, so that the engine runs empty at its end."""
    finished: list[Rollout] = []
    for rollout in engine.sample(requests):
        finished.append(rollout)
        advance(1, len(rollout.completion_token_ids))
    return rollout_table(requests, finished, NoText())


@dataclass(frozen=True)
class Found:
    """What one way came to.

    Attributes:
        tokens, seconds: drawn, and of simulated time.
        unwritten: rollouts finished and in no whole shard yet, at most: what a kill can lose,
            beside those in the making.
    """

    tokens: int
    seconds: float
    unwritten: int

    @property
    def tokens_per_second(self) -> float:
        """Throughput."""
        return self.tokens / self.seconds


def simulate(items: int, mean: float, max_tokens: int) -> dict[str, tuple[int, Found]]:
    """Draw a round in each of the ways.

    Returns:
        of each, by its name: rollouts of a shard (0: there are none), and what it came to.
    """
    prompt = [0] * PROMPT_TOKENS
    requests = [SampleRequest(str(item), prompt, 0, SAMPLES) for item in range(items)]
    large = max(_SHARD_ROLLOUTS["cuda"], 4 * 1024 * 1024 // max_tokens)
    small = 4 * 1024 * 1024 // max_tokens

    def by_turns(engine: SimulatedGpu, cut: Iterable[SampleShard], advance: Any) -> Iterator[int]:
        for shard in cut:
            yield draw_shard(shard.requests, engine, advance).num_rows

    def joined(engine: SimulatedGpu, cut: Iterable[SampleShard], advance: Any) -> Iterator[int]:
        for _, table in draw_here(engine, NoText())(cut, advance):
            yield table.num_rows

    def continuous(engine: SimulatedGpu, cut: Iterable[SampleShard], advance: Any) -> Iterator[int]:
        for shard in cut:
            yield sum(1 for _ in engine.sample(shard.requests))

    Way = Callable[[SimulatedGpu, Iterable[SampleShard], Any], Iterator[int]]
    ways: dict[str, tuple[int, Way]] = {
        "continuous": (0, continuous),
        "shards, joined": (large, joined),
        "shards, by turns": (large, by_turns),
        "small shards": (small, by_turns),
    }
    return {
        name: (size, _draw(way, size, requests, SimulatedGpu(mean, max_tokens)))
        for name, (size, way) in ways.items()
    }


def _draw(way: Any, size: int, requests: list[SampleRequest], engine: SimulatedGpu) -> Found:
    cut = [
        SampleShard(number, some)
        for number, some in enumerate(shards(requests, size or len(requests) * SAMPLES))
    ]
    shard_of = {int(each.item_id): shard.number for shard in cut for each in shard.requests}
    missing = [len(shard.requests) for shard in cut]
    in_hand = most = 0

    def saw(item: int) -> None:
        nonlocal in_hand, most
        shard = shard_of[item]
        missing[shard] -= 1
        in_hand += 1
        most = max(most, in_hand)
        if not missing[shard]:
            in_hand -= len(cut[shard].requests)

    engine.saw = saw
    written = sum(way(engine, cut, lambda rollouts, tokens: None))
    assert written == len(requests) * SAMPLES
    return Found(engine.tokens, engine.seconds, most * SAMPLES)


class SharedShards:
    """Shards that several workers take from, each at the simulated time at which it asks.

    Whoever asks waits until no other worker's clock is behind its own.

    Args:
        shards: to draw.
        engines: of the workers.
    """

    def __init__(self, shards: list[SampleShard], engines: list[SimulatedGpu]) -> None:
        self._shards = deque(shards)
        self._engines = engines
        self._is_at_work = [True] * len(engines)
        self._changed = threading.Condition()
        for engine in engines:
            engine.passed = self._pass

    def _pass(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _is_first(self, worker: int) -> bool:
        now = (self._engines[worker].seconds, worker)
        return all(
            now <= (engine.seconds, other)
            for other, engine in enumerate(self._engines)
            if self._is_at_work[other]
        )

    def next(self, worker: int) -> SampleShard | None:
        """Take the next shard for a worker; None where none is left."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_first(worker))
            return self._shards.popleft() if self._shards else None

    def leave(self, worker: int) -> None:
        """A worker has nothing more to do."""
        with self._changed:
            self._is_at_work[worker] = False
            self._changed.notify_all()


class _OfWorker:
    """A worker's `probes.machines.ray_worker.ShardSource`: a driver that answers at once."""

    def __init__(self, shared: SharedShards, worker: int) -> None:
        self._shared = shared
        self._worker = worker
        self._sent: SampleShard | None = None

    def take(self) -> SampleShard | None:
        sent, self._sent = self._sent, None
        return sent

    def ask(self) -> None:
        self._sent = self._shared.next(self._worker)


def simulate_workers(
    workers: int, items: int, mean: float, max_tokens: int, *, by_turns: bool
) -> tuple[int, Found]:
    """Draw a round with several workers.

    Returns:
        rollouts of a shard, and what it came to; the throughput is that of one worker, on average.
    """
    requests = [
        SampleRequest(str(item), [0] * PROMPT_TOKENS, 0, SAMPLES) for item in range(items * workers)
    ]
    large = max(_SHARD_ROLLOUTS["cuda"], 4 * 1024 * 1024 // max_tokens)
    cut = [SampleShard(*each) for each in enumerate(shards(requests, large))]
    engines = [SimulatedGpu(mean, max_tokens) for _ in range(workers)]
    shared = SharedShards(cut, engines)
    written: list[int] = []

    def work(worker: int) -> None:
        try:
            while first := shared.next(worker):
                if by_turns:
                    table = draw_shard(
                        first.requests, engines[worker], lambda rollouts, tokens: None
                    )
                    written.append(table.num_rows)
                    continue
                stream = ShardStream(_OfWorker(shared, worker), first)
                draw = draw_here(engines[worker], NoText())
                written.extend(t.num_rows for _, t in draw(stream.shards(), stream.advance))
        finally:
            shared.leave(worker)

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(written) == len(requests) * SAMPLES
    tokens = sum(engine.tokens for engine in engines) // workers
    return large, Found(tokens, max(engine.seconds for engine in engines), 0)


def main() -> int:
    """Print the table; 1 where the goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--items", type=int, default=2048)
    parser.add_argument("--mean", type=float, default=1000)
    parser.add_argument("--max-tokens", type=int, default=8192)
    parser.add_argument("--workers", type=int, default=4)
    options = parser.parse_args()
    size = (options.items, options.mean, options.max_tokens)
    found = simulate(*size)
    on_ray = f"{options.workers} on Ray"
    found[on_ray] = simulate_workers(options.workers, *size, by_turns=False)
    found[f"{on_ray}, by turns"] = simulate_workers(options.workers, *size, by_turns=True)
    most = found["continuous"][1].tokens_per_second
    print(
        f"{options.items:,} items × {SAMPLES} rollouts, lognormal, mean {options.mean:,.0f}, "
        f"cut at {options.max_tokens:,}; simulated"
    )
    print(f"{'':18s} {'a shard':>8s} {'tokens/s':>9s} {'of continuous':>14s} {'unwritten':>10s}")
    for name, (a_shard, one) in found.items():
        rate, share = one.tokens_per_second, one.tokens_per_second / most
        unwritten = f"{one.unwritten:,}" if one.unwritten else ""
        print(f"{name:18s} {a_shard or '':>8} {rate:9,.0f} {share:14.1%} {unwritten:>10s}")
    is_met = all(
        found[name][1].tokens_per_second >= GOAL * most for name in ("shards, joined", on_ray)
    )
    print(f"goal {GOAL:.0%}: {'met' if is_met else 'missed'}")
    return 0 if is_met else 1


if __name__ == "__main__":
    sys.exit(main())
