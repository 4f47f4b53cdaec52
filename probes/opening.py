"""The estimate that opens a run: from its own first rollouts, which are drawn as ever.

Nothing is drawn for it, so that the same seed gives the same rollouts with it and without. It is
told once: after some seconds of sampling, with the first file of rollouts that comes later, or
where all of round one is over by then, once that is judged.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curate.progress import say
from probes.engines.base import Engine, Rollout, SampleRequest
from probes.estimate import Prices, Sample, Span, Work, estimate, smaller_plans
from probes.estimate_words import basis, estimate_lines
from probes.stages.sample import Advance, DrawShards, SampleShard, rollout_table
from probes.trial import Gold, judge, peak_memory
from probes.verifiers.pool import VerifierPool

SECONDS = 20.0
"""Of sampling, after which it is told where the engine knows what is in the making."""
_SECONDS_BLIND = 120.0
"""The same where it does not: the rollouts that finish first are short ones."""
_STEADY = (0.8, 1.0, 1.25)
"""How far the speed of the first rollouts may be from that of the run."""
_VERDICT_SECONDS = 1 / 2000
"""Of a judged rollout where none was judged: docs/benchmarks.md has 4,500 a second and worker."""
COLUMNS = ["item_id", "completion", "completion_token_ids", "finish_reason", "reward"]
"""Of a file of rollouts."""


class Opening:
    """Watches the first rollouts of a run, and tells what it will cost.

    Args:
        work: of the run.
        asked: rollouts that are still missing of round one.
        gold_of: answers by item_id, with what judges them.
        tokenizer: decodes as the sampling stage does.
        pool: gives the run's verifier, not entered.
    """

    def __init__(
        self,
        work: Work,
        asked: int,
        gold_of: Callable[[str], Gold],
        tokenizer: Any,
        pool: Callable[[], VerifierPool],
    ) -> None:
        self.is_told = False
        self._work = work
        self._asked = asked
        self._gold_of = gold_of
        self._tokenizer = tokenizer
        self._pool = pool
        self._begun = time.monotonic()
        self._tokens = 0

    def watch(self, draw: DrawShards) -> DrawShards:
        """Draw as `draw` does, and tell of its files once it has taken some seconds."""

        def watched(
            shards: Iterable[SampleShard], advance: Advance
        ) -> Iterator[tuple[int, pa.Table]]:
            def counted(rollouts: int, tokens: int) -> None:
                self._tokens += tokens
                advance(rollouts, tokens)

            self._begun = time.monotonic()
            tables: list[pa.Table] = []
            for number, table in draw(shards, counted):
                if not self.is_told:
                    tables.append(table)
                    drawn, seconds = sum(map(len, tables)), time.monotonic() - self._begun
                    if drawn < self._asked and seconds >= SECONDS:
                        self.tell(pa.concat_tables(tables), self._tokens, seconds)
                        tables = []
                yield number, table

        return watched

    def watch_engine(self, engine: Engine) -> Engine:
        """An engine that draws as `engine` does, and tells while it is at the first file."""
        return _Watched(engine, self)

    def saw(
        self, requests: Sequence[SampleRequest], rollouts: Sequence[Rollout], engine: Engine
    ) -> None:
        """Look at the rollouts that a call of an engine has finished so far; tell if it is time."""
        seconds = time.monotonic() - self._begun
        if seconds < SECONDS:
            return
        making = engine.unfinished()
        if making is None and seconds < _SECONDS_BLIND:
            return
        table = rollout_table(requests, rollouts, self._tokenizer)
        tokens = sum(len(rollout.completion_token_ids) for rollout in rollouts)
        note = "" if making is not None else ", the first to finish, so rather more than that"
        self.tell(table, tokens + sum(making or ()), seconds, making or (), note)

    def tell(
        self,
        table: pa.Table,
        tokens: int,
        seconds: float,
        unfinished: Sequence[int] = (),
        note: str = "",
    ) -> None:
        """Tell what the run will cost.

        Args:
            table: rollouts that are finished, some of an item or all: `COLUMNS`.
            tokens: drawn in `seconds`, those of unfinished rollouts too.
            unfinished: tokens so far of those that are in the making.
            note: what else is to be said of them.
        """
        self.is_told = True
        sample, verdict_seconds = self._sample(table, unfinished)
        speed = seconds / max(tokens, 1)
        prices = Prices(
            token=Span(*(speed * factor for factor in _STEADY)),
            verdict=verdict_seconds or _VERDICT_SECONDS,
            memory_bytes=peak_memory(),
        )
        cost = estimate(self._work, sample, prices)
        smaller = smaller_plans(self._work, sample, prices) if cost.is_long else []
        lines = [
            f"estimate, {basis(sample, tokens, seconds, prices, first=True)}{note}:",
            *estimate_lines(self._work, sample, prices, cost, smaller),
        ]
        # Over the line that progress rewrites.
        say(("\r\x1b[K" if sys.stderr.isatty() else "") + "\n".join(lines))

    def _sample(self, table: pa.Table, unfinished: Sequence[int]) -> tuple[Sample, float]:
        ids = table["item_id"].combine_chunks().dictionary_encode()
        item_ids, prompt_of = ids.dictionary.to_pylist(), ids.indices.to_numpy()
        is_cut = pc.equal(table["finish_reason"], "length").to_numpy()
        judged, correct = np.zeros((2, len(item_ids)), np.int64)
        seconds = 0.0
        rewards = table["reward"]
        if rewards.null_count < len(rewards):
            known = ~pc.is_null(rewards).to_numpy()
            judged = np.bincount(prompt_of[known], minlength=len(item_ids))
            right = pc.fill_null(rewards, 0).to_numpy() == 1
            correct = np.bincount(prompt_of[right], minlength=len(item_ids))
        elif self._work.plan.max_rollouts > self._work.plan.min_rollouts:
            # How many rounds follow depends on them.
            golds = [self._gold_of(item_id) for item_id in item_ids]
            texts = table["completion"].to_pylist()
            judged, correct, seconds = judge(texts, is_cut, prompt_of, golds, self._pool())
        completions = table["completion_token_ids"]
        keys = {
            (int(prompt), completion.values.to_numpy().tobytes())
            for prompt, completion in zip(prompt_of, completions, strict=True)
        }
        sample = Sample(
            prompts=len(item_ids),
            lengths=pc.list_value_length(completions).to_numpy(),
            prompt_of=prompt_of,
            is_cut=is_cut,
            unfinished=np.array(unfinished, np.int64),
            judged=judged,
            correct=correct,
            distinct=len(keys) / max(table.num_rows, 1),
        )
        return sample, seconds


class _Watched:
    """An engine whose first rollouts are looked at."""

    def __init__(self, engine: Engine, opening: Opening) -> None:
        self._engine = engine
        self._opening = opening
        self.name, self.has_own_weights = engine.name, engine.has_own_weights
        self.stops_at = engine.stops_at

    def sample(self, requests: Iterable[SampleRequest]) -> Iterator[Rollout]:
        """Yield every rollout asked for."""
        taken: list[SampleRequest] = []
        finished: list[Rollout] = []

        def noted() -> Iterator[SampleRequest]:
            for request in requests:
                if not self._opening.is_told:
                    taken.append(request)
                yield request

        for rollout in self._engine.sample(noted()):
            if not self._opening.is_told:
                finished.append(rollout)
                self._opening.saw(taken, finished, self._engine)
            yield rollout

    def unfinished(self) -> list[int] | None:
        """Tokens so far of every rollout in the making."""
        return self._engine.unfinished()

    def close(self) -> None:
        """Free what the engine holds."""
        self._engine.close()

    def facts(self) -> dict[str, Any]:
        """Say what draws the rollouts."""
        return self._engine.facts()
