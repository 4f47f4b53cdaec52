"""The sampling stage: rollouts of every item, drawn in shards that each become one file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from curate.progress import Progress
from curate.run_folder import RunFiles, read_parquet, write_parquet
from probes.engine import Engine, Rollout, SampleRequest

ROLLOUT_SCHEMA = pa.schema(
    [
        ("item_id", pa.string()),
        ("sample", pa.int32()),
        ("completion", pa.string()),
        ("completion_token_ids", pa.list_(pa.int32())),
        ("finish_reason", pa.string()),
        ("reward", pa.int8()),
        ("verdict", pa.string()),
        ("answer_found", pa.string()),
    ]
)


def rollout_shards(run: RunFiles) -> list[Path]:
    """List the files of rollouts, in the order in which they were drawn."""
    return sorted((run / "rollouts").glob("*.parquet"), key=lambda file: int(file.stem))


def item_rows(table: pa.Table, row_of: Mapping[str, int]) -> NDArray[np.int64]:
    """Position in `items.parquet` of the item of each line of a table, shape (lines,)."""
    ids = pa.concat_arrays(table["item_id"].chunks) if table.num_rows else pa.array([], pa.string())
    # A file has the same few items on many lines.
    ids = ids.dictionary_encode()
    rows = np.array([row_of[item_id] for item_id in ids.dictionary.to_pylist()], dtype=np.int64)
    return np.asarray(rows[ids.indices.to_numpy()])


def drawn_rollouts(run: RunFiles, row_of: Mapping[str, int]) -> NDArray[np.int64]:
    """Rollouts that each item has, shape (items,)."""
    drawn = np.zeros(len(row_of), dtype=np.int64)
    for file in rollout_shards(run):
        np.add.at(drawn, item_rows(read_parquet(file, ["item_id"]), row_of), 1)
    return drawn


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
    run: RunFiles,
    items: pa.Table,
    drawn: NDArray[np.int64],
    target: NDArray[np.int64],
    engine: Engine,
    tokenizer: Any,
    shard_size: int,
) -> dict[str, Any]:
    """Draw what is missing until every item has its target; return the stage's counts.

    A shard's rollouts depend on the seed and the shard alone, so that a run taken up again after a
    kill goes on with the rollouts that it would have drawn.

    Args:
        run: gets new files in `rollouts/`.
        items: of `items.parquet`: item_id and prompt_token_ids.
        drawn: shape (items,): rollouts that each item has.
        target: shape (items,): rollouts that each item shall have.
        engine: draws them.
        tokenizer: turns them into text.
        shard_size: rollouts of a file, at most.
    """
    files = rollout_shards(run)
    number = int(files[-1].stem) + 1 if files else 0
    have = int(drawn.sum())
    total = int(np.maximum(drawn, target).sum())
    tokens = 0
    with Progress("sampling", total, "rollouts", done=have) as progress:
        for shard in shards(missing_rollouts(items, drawn, target), shard_size):
            finished: list[Rollout] = []
            for rollout in engine.sample(shard):
                finished.append(rollout)
                tokens += len(rollout.completion_token_ids)
                progress.advance(note=f"{tokens / progress.seconds:,.0f} tokens/s")
            write_parquet(
                run / "rollouts" / f"{number:05d}.parquet", _table(shard, finished, tokenizer)
            )
            number += 1
    return {
        "rollouts": total,
        "rollouts_this_time": total - have,
        "tokens_this_time": tokens,
        "seconds_this_time": progress.seconds,
    }


def _table(shard: Sequence[SampleRequest], rollouts: Sequence[Rollout], tokenizer: Any) -> pa.Table:
    order = {request.item_id: position for position, request in enumerate(shard)}
    ordered = sorted(rollouts, key=lambda r: (order[r.item_id], r.sample))
    empty = [None] * len(ordered)
    return pa.table(
        {
            "item_id": [rollout.item_id for rollout in ordered],
            "sample": [rollout.sample for rollout in ordered],
            "completion": tokenizer.batch_decode(
                [rollout.completion_token_ids for rollout in ordered],
                skip_special_tokens=True,
                # The clean-up removes spaces that the policy did write ("x , y").
                clean_up_tokenization_spaces=False,
            ),
            "completion_token_ids": [
                np.array(rollout.completion_token_ids, dtype=np.int32) for rollout in ordered
            ],
            "finish_reason": [rollout.finish_reason for rollout in ordered],
            "reward": empty,
            "verdict": empty,
            "answer_found": empty,
        },
        schema=ROLLOUT_SCHEMA,
    )
