"""A few rollouts drawn, judged and differentiated before a run, to see what it will cost.

The transformers engine on a CPU, where the rollouts of a large batch come slowly, first draws a few
for some seconds, which tell most of the lengths, and then a batch about as large as the run's,
which tells the speed. On a GPU and at servers a batch takes hardly longer the larger it is, so
there is one. Where that was quick, it is drawn again, of other items or other samples.

    a sampled token   where the engine tells what is in the making: seconds until a quarter of the
                      last wave was finished, by all tokens that were drawn by then. That is a batch
                      that is full, as it is in the run, where new rollouts join. Of n rollouts at
                      once, fewer than the engine takes, a token costs a/n + b: a and b from two
                      waves. Where the engine does not tell: seconds of the wave by its tokens, and
                      less by mean by longest length, as far as a step takes as long for few as
                      for many
    a gradient        seconds by tokens of the last of up to three batches: one rollout, a few, and
                      as many as the run takes at once, which also shows the memory that it needs

A wave that the clock ends leaves rollouts in the making, which `probes.estimate` counts as such.
"""

from __future__ import annotations

import math
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from curate.config import TagConfig
from curate.progress import Progress, say
from probes.engines.base import Engine, Rollout, SampleRequest
from probes.estimate import Prices, Sample, Span
from probes.gradients.batch import TokenizedRollout
from probes.gradients.lora import GradientProbe
from probes.verifiers.pool import VerifierPool

SECONDS = 60.0
"""After which nothing more is drawn."""
MOST_SECONDS = 90.0
"""Of drawing and gradients together: none is begun that is expected to end later."""
_TICK_SECONDS = 1.0
_ENOUGH_SECONDS = 20.0
"""Below which a last wave is drawn again, of other rollouts, for steadier figures."""
_WAVES = ((4, 15.0), (128, math.inf))
"""Rollouts and most seconds of each wave of an engine on a CPU that tells what is in the making."""
_ONE_WAVE = ((256, math.inf),)
_LEAST_PROMPTS = 8
_MOST_OF_AN_ITEM = 8
_FEW_TOKENS = 512
_GRADIENT_SECONDS = 25.0
"""That a batch of gradients is expected to take at most, where as much time is left."""
_FULL_SHARE = 0.25
"""Of a wave: as long as fewer are finished, the batch is as full as in the run."""
_STEADY = (0.8, 1.0, 1.25)
"""How far the speed of a full batch may be from that of the run."""
_GRADIENT = (0.7, 1.0, 1.3)


Gold = tuple[str, str | None]
"""An answer, and the verifier where it may be another than the pool's."""


@dataclass(frozen=True)
class Trial:
    """What was drawn and what it took."""

    sample: Sample
    prices: Prices
    tokens: int
    """Drawn, those of unfinished rollouts too."""
    seconds: float
    """Of drawing."""
    differentiated: int
    """Rollouts."""
    took: float
    """Seconds of all of it."""

    def facts(self) -> dict[str, Any]:
        """In plain values."""
        judged, correct = np.asarray(self.sample.judged), np.asarray(self.sample.correct)
        return {
            "prompts": self.sample.prompts,
            "rollouts": self.sample.rollouts,
            "unfinished": len(np.asarray(self.sample.unfinished)),
            "tokens": self.tokens,
            "seconds": round(self.seconds, 3),
            "judged": int(judged.sum()),
            "correct": int(correct.sum()),
            "cut": int(np.asarray(self.sample.is_cut).sum()),
            "differentiated": self.differentiated,
        }


@dataclass(frozen=True)
class _Wave:
    """Rollouts that were drawn at once."""

    asked: int
    rollouts: list[Rollout]
    unfinished: list[int]
    seconds: float
    token_seconds: float
    """Of a token, while the batch was full; nan where none was drawn."""
    is_steady: bool
    """Whether the engine told what was in the making."""

    @property
    def tokens(self) -> int:
        """Drawn, of unfinished rollouts too."""
        finished = sum(len(rollout.completion_token_ids) for rollout in self.rollouts)
        return finished + sum(self.unfinished)


def try_out(
    engine: Engine,
    items: pa.Table,
    tokenizer: Any,
    pool: VerifierPool,
    probe: Callable[[], GradientProbe],
    config: TagConfig,
    *,
    is_slow: bool = True,
) -> Trial:
    """Draw, judge and differentiate a few rollouts of a run's items.

    Args:
        engine: the run's own.
        items: of `items.parquet`: item_id, prompt_token_ids and answer.
        tokenizer: decodes as the sampling stage does.
        pool: of the run's verifier, not entered.
        probe: gives the gradients; called once all is drawn.
        config: of the run.
        is_slow: whether the engine decodes on a CPU, where larger waves take longer.

    Raises:
        RunError: the engine failed, or a single rollout or gradient does not fit into memory.
    """
    begun = time.monotonic()
    say(
        f"trying: drawing rollouts for up to {SECONDS:.0f} s, then gradients, together up to "
        f"{MOST_SECONDS:.0f} s"
    )
    waves = _draw(engine, items, config, grows=is_slow and engine.unfinished() is not None)
    rollouts = [rollout for wave in waves for rollout in wave.rollouts]
    unfinished = [tokens for wave in waves for tokens in wave.unfinished]
    asked = list(dict.fromkeys(rollout.item_id for rollout in rollouts))
    number = {item_id: place for place, item_id in enumerate(asked)}
    prompt_of = np.array([number[rollout.item_id] for rollout in rollouts], np.int64)
    row_of = {item_id: row for row, item_id in enumerate(items["item_id"].to_pylist())}
    golds = [gold_of(items, row_of[item_id]) for item_id in asked]
    is_cut = np.array([rollout.finish_reason == "length" for rollout in rollouts], bool)
    texts = tokenizer.batch_decode(
        [rollout.completion_token_ids for rollout in rollouts],
        skip_special_tokens=True,
        clean_up_tokenization_spaces=False,
    )
    judged, correct, verdict_seconds = judge(texts, is_cut, prompt_of, golds, pool)
    price, differentiated = _gradient_price(rollouts, items, row_of, probe, begun + MOST_SECONDS)
    sample = Sample(
        prompts=len(asked),
        lengths=np.array([len(rollout.completion_token_ids) for rollout in rollouts], np.int64),
        prompt_of=prompt_of,
        is_cut=is_cut,
        unfinished=np.array(unfinished, np.int64),
        judged=judged,
        correct=correct,
        distinct=_distinct(rollouts),
    )
    prices = Prices(
        token=_token_price(waves, engine, items, config),
        verdict=verdict_seconds,
        gradient_token=price,
        memory_bytes=peak_memory(),
    )
    seconds = sum(wave.seconds for wave in waves)
    tokens = sum(wave.tokens for wave in waves)
    took = time.monotonic() - begun
    return Trial(sample, prices, tokens, seconds, differentiated, took)


def gold_of(items: pa.Table, row: int) -> Gold:
    """The gold of an item, and what judges answers to it; None where all have the pool's."""
    is_mixed = "verifier" in items.column_names
    return items["answer"][row].as_py(), items["verifier"][row].as_py() if is_mixed else None


def judge(
    texts: Sequence[str],
    is_cut: NDArray[np.bool_],
    prompt_of: NDArray[np.int64],
    golds: Sequence[Gold],
    pool: VerifierPool,
) -> tuple[NDArray[np.int64], NDArray[np.int64], float]:
    """Judge completions: how many of each prompt were judged and correct, and seconds a verdict.

    Args:
        texts: the completions.
        is_cut: whether each was cut, and so is wrong, unread; shape (completions,).
        prompt_of: which of the prompts each is of, shape (completions,).
        golds: of the prompts, each with what judges it.
        pool: of the verifier, not entered.
    """
    judged, correct = np.zeros((2, len(golds)), np.int64)
    ended = np.flatnonzero(~is_cut).tolist()
    with pool:
        start = time.monotonic()
        verdicts = pool.judge([(texts[n], *golds[prompt_of[n]]) for n in ended])
        seconds = time.monotonic() - start
    rewards = dict(zip(ended, (verdict.reward for verdict in verdicts), strict=True))
    for n, prompt in enumerate(prompt_of):
        reward = rewards.get(n, 0)
        if reward is not None:
            judged[prompt] += 1
            correct[prompt] += reward
    return judged, correct, seconds / max(len(texts), 1)


def peak_memory() -> int:
    """Bytes that this process held at most."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


@contextmanager
def _ticking(
    progress: Progress, begun: float, most: float, note: Callable[[], str] = lambda: ""
) -> Iterator[None]:
    """Show how far the time is while nothing is finished, too, after a `note`."""
    is_over = threading.Event()

    def tick() -> None:
        while not is_over.wait(_TICK_SECONDS):
            progress.tick(f"{note()}{time.monotonic() - begun:.0f} s of at most {most:.0f} s")

    ticker = threading.Thread(target=tick, daemon=True)
    ticker.start()
    try:
        yield
    finally:
        is_over.set()
        ticker.join()


# --- Drawing -------------------------------------------------------------------------------------


def _draw(engine: Engine, items: pa.Table, config: TagConfig, *, grows: bool) -> list[_Wave]:
    rng = np.random.default_rng(0)
    waiting = [int(row) for row in rng.permutation(len(items))]
    taken = np.zeros(len(items), np.int64)
    sizes = list(_WAVES if grows else _ONE_WAVE)
    # Of what waits until there is room nothing would be known.
    room = int(_at_once(engine, items, config)) if grows else max(size for size, _ in sizes)
    waves: list[_Wave] = []
    begun = time.monotonic()

    def making() -> str:
        tokens = sum(engine.unfinished() or ())
        return f"{tokens:,} tokens in the making, " if tokens else ""

    try:
        with (
            Progress("trying", None, "rollouts") as progress,
            _ticking(progress, begun, SECONDS, making),
        ):
            while sizes:
                size, most = sizes[0]
                requests = _requests(items, config, min(size, room), waiting, taken)
                if not requests:
                    break
                engine.stops_at = min(begun + SECONDS, time.monotonic() + most)
                waves.append(_wave(engine, requests, progress))
                if len(sizes) > 1 or time.monotonic() - begun > _ENOUGH_SECONDS:
                    sizes.pop(0)
                if time.monotonic() - begun >= SECONDS:
                    break
    finally:
        engine.stops_at = math.inf
    return waves


def _requests(
    items: pa.Table, config: TagConfig, size: int, waiting: list[int], taken: np.ndarray
) -> list[SampleRequest]:
    """About `size` rollouts that were not drawn yet, of items whose turn it is."""
    most = config.min_rollouts
    samples = min(most, max(size // _LEAST_PROMPTS, 1))
    requests: list[SampleRequest] = []
    # An item comes again only once all others had their turn.
    for _ in range(min(math.ceil(size / samples), len(waiting))):
        row = waiting.pop(0)
        waiting.append(row)
        first = int(taken[row])
        count = min(samples, most - first)
        if count > 0:
            ids = items["prompt_token_ids"][row].values.to_numpy()
            requests.append(SampleRequest(items["item_id"][row].as_py(), ids, first, count))
            taken[row] += count
    return requests


def _wave(engine: Engine, requests: list[SampleRequest], progress: Progress) -> _Wave:
    asked = sum(request.samples for request in requests)
    rollouts: list[Rollout] = []
    start, full = time.monotonic(), math.nan
    for rollout in engine.sample(requests):
        rollouts.append(rollout)
        progress.advance()
        making = engine.unfinished()
        if making is not None and len(rollouts) == math.ceil(asked * _FULL_SHARE):
            tokens = sum(len(each.completion_token_ids) for each in rollouts) + sum(making)
            full = (time.monotonic() - start) / max(tokens, 1)
    seconds = time.monotonic() - start
    making = engine.unfinished()
    left: list[int] = []
    if len(rollouts) < asked:
        # Where the engine does not tell, they are at least as long as the longest one so far.
        longest = max((len(each.completion_token_ids) for each in rollouts), default=0)
        left = [longest] * (asked - len(rollouts)) if making is None else list(making)
    tokens = sum(len(rollout.completion_token_ids) for rollout in rollouts) + sum(left)
    price = seconds / max(tokens, 1) if math.isnan(full) else full
    return _Wave(asked, rollouts, left, seconds, price, making is not None)


def _token_price(
    waves: Sequence[_Wave], engine: Engine, items: pa.Table, config: TagConfig
) -> Span:
    """Seconds a token with as many rollouts at once as the engine takes."""
    last = waves[-1]
    price = last.token_seconds
    if not last.is_steady:
        lengths = [len(rollout.completion_token_ids) for rollout in last.rollouts] or [1]
        least = price * float(np.mean(lengths)) / max(lengths)
        return Span(least, math.sqrt(least * price), price)
    # Of waves as large as the last one the middle is steadier.
    alike = [wave.token_seconds for wave in waves if wave.asked >= last.asked]
    price = float(np.median(alike))
    wide = Span(*(price * factor for factor in _STEADY))
    room = _at_once(engine, items, config)
    before = next((wave for wave in reversed(waves) if wave.asked < last.asked), None)
    if last.asked >= room:
        return wide
    if before is None:
        # Nothing says what a larger batch gains: nothing, or all that there is to gain.
        least = wide.low * last.asked / room
        return Span(least, math.sqrt(least * wide.high), wide.high)
    # a/n + b through two waves, for a full batch; each part is at least 0.
    each = (price * last.asked - before.token_seconds * before.asked) / (last.asked - before.asked)
    of_token = min(max(each, 0.0), price)
    full = (price - of_token) * last.asked / room + of_token
    return Span(min(full, wide.low), full, wide.high)


def _at_once(engine: Engine, items: pa.Table, config: TagConfig) -> float:
    """Rollouts that the run decodes at once, as far as the engine says."""
    options = engine.facts().get("options", {})
    rows, tokens = options.get("max_rows", math.inf), options.get("batch_tokens", math.inf)
    prompt = len(items["prompt_token_ids"][0])
    room = min(rows, max(tokens // (prompt + config.max_tokens), 1))
    return float(min(room, len(items) * config.min_rollouts))


def _distinct(rollouts: Sequence[Rollout]) -> float:
    """Share of the rollouts that are not equal to another of their prompt."""
    keys = {(rollout.item_id, tuple(rollout.completion_token_ids)) for rollout in rollouts}
    return len(keys) / max(len(rollouts), 1)


# --- Gradients -----------------------------------------------------------------------------------


def _gradient_price(
    rollouts: Sequence[Rollout],
    items: pa.Table,
    row_of: dict[str, int],
    probe: Callable[[], GradientProbe],
    until: float,
) -> tuple[Span | None, int]:
    """Seconds a token of a gradient, and of how many rollouts.

    None where none was finished, or nothing is left of the time, which ends at `until`.
    """
    by_item: dict[str, dict[tuple[int, ...], None]] = {}
    for rollout in rollouts:
        by_item.setdefault(rollout.item_id, {})[tuple(rollout.completion_token_ids)] = None
    # Items of many distinct rollouts first: in the run, too, rollouts share their prompt.
    chosen = [
        TokenizedRollout(items["prompt_token_ids"][row_of[item_id]].as_py(), list(ids))
        for item_id, completions in sorted(by_item.items(), key=lambda each: -len(each[1]))
        for ids in list(completions)[:_MOST_OF_AN_ITEM]
    ]
    if not chosen or time.monotonic() >= until:
        return None, 0
    gradients, begun = probe(), time.monotonic()
    done, price = 0, 0.0
    with (
        Progress("trying", None, "gradients") as progress,
        _ticking(progress, begun, max(until - begun, 0.0)),
    ):
        # The first also pays for what is made once; the last is as large as a batch of the run.
        for tokens in (1, _FEW_TOKENS, gradients.batch_tokens):
            if time.monotonic() >= until:
                break
            batch = _up_to(chosen[done:], tokens)
            left = min(_GRADIENT_SECONDS, until - time.monotonic())
            if not batch or price * sum(each.tokens for each in batch) > left:
                break
            price = _timed(gradients, batch)
            done += len(batch)
            progress.advance(len(batch))
    return Span(*(price * factor for factor in _GRADIENT)) if done else None, done


def _up_to(rollouts: Sequence[TokenizedRollout], tokens: int) -> list[TokenizedRollout]:
    """The first rollouts whose padded batch has at most so many tokens; one at least."""
    count = widest = 0
    for rollout in rollouts:
        widest = max(widest, rollout.tokens)
        if count and widest * (count + 1) > tokens:
            break
        count += 1
    return list(rollouts[:count])


def _timed(probe: GradientProbe, rollouts: list[TokenizedRollout]) -> float:
    start = time.monotonic()
    for _ in probe.gradients(rollouts):
        pass
    return (time.monotonic() - start) / sum(rollout.tokens for rollout in rollouts)
