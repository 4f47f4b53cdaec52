"""The sampling stage: rollouts of every item, drawn in shards that each become one file."""

from __future__ import annotations

import math
import shutil
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from curate.progress import Progress
from curate.run.rollouts import rollout_shards
from curate.run.tables import ROLLOUTS, Folder, read_parquet, write_parquet
from probes.engines.base import LATER, Engine, Rollout, SampleRequest

# Files that were drawn before one of a lower number, until that one is there.
_EARLY = "early"
# Shards that are decoded or written while others are drawn; where more are finished, it is waited.
_BESIDE = 2

Advance = Callable[[int, int], None]
"""Told of finished work: rollouts, and their tokens."""


@dataclass(frozen=True)
class SampleShard:
    """What one file of rollouts is to hold, and the file's number."""

    number: int
    requests: Sequence[SampleRequest]

    @property
    def rollouts(self) -> int:
        """How many are asked for."""
        return sum(request.samples for request in self.requests)


NO_SHARD = SampleShard(-1, (LATER,))
"""In the place of a shard: there is none now, but more may come while others are drawn."""

DrawShards = Callable[[Iterable[SampleShard], Advance], Iterator[tuple[int, pa.Table]]]
"""Draws shards, in any order: yields the number and the table of each as it is finished."""


def missing_rollouts(
    items: pa.Table, drawn: NDArray[np.int64], target: NDArray[np.int64]
) -> Iterator[SampleRequest]:
    """Ask for what each item lacks of its target, in the items' order.

    Args:
        items: of `items.parquet`: item_id and prompt_token_ids.
        drawn: shape (items,): rollouts that each item has.
        target: shape (items,): rollouts that each item shall have.
    """
    ids, prompts = items["item_id"], items["prompt_token_ids"]
    for row in np.flatnonzero(drawn < target).tolist():
        have, wanted = int(drawn[row]), int(target[row])
        yield SampleRequest(ids[row].as_py(), prompts[row].values.to_numpy(), have, wanted - have)


def shards(requests: Iterable[SampleRequest], most_rollouts: int) -> Iterator[list[SampleRequest]]:
    """Cut requests into shards of at most `most_rollouts`, of whole items where they fit.

    What a shard holds depends on the requests from its first on, so that where the first shards
    are drawn already the others are cut as they would have been.
    """
    shard: list[SampleRequest] = []
    size = 0
    for request in requests:
        for part in _parts(request, most_rollouts):
            if shard and size + part.samples > most_rollouts:
                yield shard
                shard, size = [], 0
            shard.append(part)
            size += part.samples
    if shard:
        yield shard


def _parts(request: SampleRequest, most_rollouts: int) -> Iterator[SampleRequest]:
    end = request.first_sample + request.samples
    for first in range(request.first_sample, end, most_rollouts):
        yield replace(request, first_sample=first, samples=min(most_rollouts, end - first))


def sample_items(
    run: Folder,
    items: pa.Table,
    drawn: NDArray[np.int64],
    target: NDArray[np.int64],
    draw: DrawShards,
    shard_size: int,
    saw: Callable[[pa.Table], None] = lambda table: None,
    engine: Engine | None = None,
    max_tokens: float = math.inf,
) -> dict[str, Any]:
    """Draw what is missing until every item has its target; return the stage's counts.

    Where the engine is deterministic a rollout depends on the seed, its item and its number alone,
    so that a run taken up again after a kill goes on with the rollouts that it would have drawn. A
    shard that is finished before one of a lower number waits in `rollouts/early`: so the files in
    `rollouts` are always the first ones, and the others are cut as before. Files are written in a
    thread, so that what draws need not wait.

    Args:
        run: gets new files in `rollouts/`.
        items: of `items.parquet`: item_id and prompt_token_ids.
        drawn: shape (items,): rollouts that each item has.
        target: shape (items,): rollouts that each item shall have.
        draw: draws shards.
        shard_size: rollouts of a file, at most.
        saw: told of every shard that is finished; what it raises ends the stage, and what is
            finished is kept.
        engine: what draws, where it is in this process: what it has in the making counts for the
            time that is left.
        max_tokens: of a rollout, for that too.
    """
    files = rollout_shards(run)
    first = int(files[-1].stem) + 1 if files else 0
    place = _Files(run / ROLLOUTS.folder, first)

    def wanted() -> Iterator[SampleShard]:
        cut = shards(missing_rollouts(items, drawn, target), shard_size)
        for number, requests in enumerate(cut, first):
            shard = SampleShard(number, requests)
            if place.holds_early(shard):
                progress.skip(shard.rollouts)
            else:
                yield shard

    have = int(drawn.sum())
    total = int(np.maximum(drawn, target).sum())
    tokens = count = 0
    with Progress("sampling", total, "rollouts", done=have) as progress:

        def advance(rollouts: int, new_tokens: int) -> None:
            nonlocal tokens, count
            tokens, count = tokens + new_tokens, count + rollouts
            making = engine.unfinished() if engine else None
            drawn = tokens + sum(making or ())
            if making is not None and count:
                waiting = max(total - progress.done - rollouts - len(making), 0)
                left = tokens_left(waiting, making, count, tokens, max_tokens)
                progress.seconds_left = left * progress.seconds / max(drawn, 1)
            progress.advance(rollouts, f"{drawn / progress.seconds:,.0f} tokens/s")

        with ThreadPoolExecutor(1, "writing") as thread:
            written: deque[Future[None]] = deque()
            for number, table in draw(wanted(), advance):
                written.append(thread.submit(place.write, number, table))
                while written and (written[0].done() or len(written) > _BESIDE):
                    written.popleft().result()
                saw(table)
            for each in written:
                each.result()
        place.close()
    return {
        "rollouts": total,
        "rollouts_this_time": count,
        "tokens_this_time": tokens,
        "seconds_this_time": progress.seconds,
    }


def tokens_left(
    waiting: int, making: Sequence[int], finished: int, tokens: int, most: float
) -> float:
    """How many tokens are to be drawn yet, of rollouts that run side by side.

    The first to finish are short ones, so that their mean says too little. Rollouts are taken to
    end as often late as early: one in as many tokens as were drawn for each that ended.

    Args:
        waiting: rollouts that are not begun.
        making: tokens so far of those that are.
        finished: rollouts, at least 1.
        tokens: of these.
        most: of a rollout.
    """
    apart = max(tokens + sum(making), 1) / finished
    room = most - np.array([0.0, *making])
    rest = -apart * np.expm1(-room / apart)
    return float(waiting * rest[0] + rest[1:].sum())


class _Files:
    """Writes shards to a folder in which no number below that of a file may be missing.

    One thread may write while another one asks what is there.
    """

    def __init__(self, folder: Path, first: int) -> None:
        self._folder = folder
        self._next = first
        self._waiting: set[int] = set()
        self._moving = Lock()

    def _file(self, number: int) -> Path:
        return self._folder / f"{number:05d}.parquet"

    def _early_file(self, number: int) -> Path:
        return self._folder / _EARLY / f"{number:05d}.parquet"

    def holds_early(self, shard: SampleShard) -> bool:
        """Whether an earlier try drew this shard and was killed before it was its turn."""
        file = self._early_file(shard.number)
        if not file.exists():
            return False
        table = read_parquet(file, ["item_id", "sample"])
        asked = [
            (request.item_id, sample)
            for request in shard.requests
            for sample in range(request.first_sample, request.first_sample + request.samples)
        ]
        pairs = zip(table["item_id"].to_pylist(), table["sample"].to_pylist(), strict=True)
        if list(pairs) != asked:  # Cut on another device: it is drawn again.
            return False
        with self._moving:
            self._waiting.add(shard.number)
        return True

    def write(self, number: int, table: pa.Table) -> None:
        """Write a shard: into the folder if its turn has come, else where it waits."""
        self._follow()
        if number == self._next:
            write_parquet(self._file(number), table)
            self._next += 1
            self._follow()
        else:
            write_parquet(self._early_file(number), table)
            with self._moving:
                self._waiting.add(number)

    def _follow(self) -> None:
        with self._moving:
            while self._next in self._waiting:
                self._early_file(self._next).replace(self._file(self._next))
                self._waiting.remove(self._next)
                self._next += 1

    def close(self) -> None:
        """Let the last files follow; every shard is there now."""
        self._follow()
        shutil.rmtree(self._folder / _EARLY, ignore_errors=True)


def draw_here(engine: Engine, tokenizer: Any) -> DrawShards:
    """Draw shards with an engine of this process, which is kept full from one to the next.

    The engine is asked for the rollouts of all shards in one go: so those of the next begin while
    the last of one are in the making, which `NO_SHARD` does not keep waiting. Texts are decoded in
    a thread.
    """

    def draw(shards: Iterable[SampleShard], advance: Advance) -> Iterator[tuple[int, pa.Table]]:
        begun = _Begun()
        with ThreadPoolExecutor(1, "decoding") as thread:
            tables: deque[tuple[int, Future[pa.Table]]] = deque()
            try:
                for rollout in engine.sample(begun.requests(shards)):
                    advance(1, len(rollout.completion_token_ids))
                    whole = begun.take(rollout)
                    if whole:
                        table = thread.submit(
                            rollout_table, whole.shard.requests, whole.rollouts, tokenizer
                        )
                        tables.append((whole.shard.number, table))
                    while tables and (tables[0][1].done() or len(tables) > _BESIDE):
                        number, table = tables.popleft()
                        yield number, table.result()
            except (Exception, KeyboardInterrupt):
                # What is finished is not lost with what is in the making.
                yield from ((number, table.result()) for number, table in tables)
                raise
            yield from ((number, table.result()) for number, table in tables)

    return draw


@dataclass
class _Shard:
    """A shard that an engine is at."""

    shard: SampleShard
    missing: int
    rollouts: list[Rollout] = field(default_factory=list)


class _Begun:
    """The shards that an engine is at, and what of them it has finished."""

    def __init__(self) -> None:
        # By item: of a large number of samples, several shards can each have some.
        self._parts: dict[str, list[tuple[SampleRequest, _Shard]]] = {}

    def requests(self, shards: Iterable[SampleShard]) -> Iterator[SampleRequest]:
        """Ask for the rollouts of one shard after the other."""
        for shard in shards:
            if shard is NO_SHARD:
                yield LATER
                continue
            begun = _Shard(shard, shard.rollouts)
            for request in shard.requests:
                self._parts.setdefault(request.item_id, []).append((request, begun))
            yield from shard.requests

    def take(self, rollout: Rollout) -> _Shard | None:
        """Put a rollout to its shard; return that if it is whole now."""
        begun = next(
            begun
            for request, begun in self._parts[rollout.item_id]
            if 0 <= rollout.sample - request.first_sample < request.samples
        )
        # As numbers of 4 bytes: hundreds of millions of tokens can be in the making.
        token_ids = array("i", rollout.completion_token_ids)
        begun.rollouts.append(replace(rollout, completion_token_ids=token_ids))
        begun.missing -= 1
        if begun.missing:
            return None
        for request in begun.shard.requests:
            left = [part for part in self._parts[request.item_id] if part[1] is not begun]
            if left:
                self._parts[request.item_id] = left
            else:
                del self._parts[request.item_id]
        return begun


def rollout_table(
    shard: Sequence[SampleRequest], rollouts: Sequence[Rollout], tokenizer: Any
) -> pa.Table:
    """The table of rollouts of a shard, in the order of its requests, not judged yet."""
    order = {request.item_id: position for position, request in enumerate(shard)}
    ordered = sorted(rollouts, key=lambda r: (order[r.item_id], r.sample))
    empty = [None] * len(ordered)
    return pa.table(
        {
            "item_id": [rollout.item_id for rollout in ordered],
            "sample": [rollout.sample for rollout in ordered],
            "completion": [
                tokenizer.decode(
                    list(rollout.completion_token_ids),
                    skip_special_tokens=True,
                    # The clean-up removes spaces that the policy did write ("x , y").
                    clean_up_tokenization_spaces=False,
                )
                for rollout in ordered
            ],
            "completion_token_ids": [
                np.array(rollout.completion_token_ids, dtype=np.int32) for rollout in ordered
            ],
            "finish_reason": [rollout.finish_reason for rollout in ordered],
            "reward": empty,
            "verdict": empty,
            "answer_found": empty,
            "log_probability": [rollout.log_probability for rollout in ordered],
        },
        schema=ROLLOUTS.schema,
    )
