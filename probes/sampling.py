"""The sampling stage: rollouts of every item, drawn in shards that each become one file."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curate.progress import Progress
from curate.run_folder import RunFolder, read_parquet, write_parquet
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


def rollout_shards(run: RunFolder) -> list[Path]:
    """List the files of rollouts, in the order in which they were drawn."""
    return sorted((run / "rollouts").glob("*.parquet"))


def missing_rollouts(items: pa.Table, drawn: dict[str, int], rollouts: int) -> list[SampleRequest]:
    """Ask for what each item lacks of `rollouts`, in the items' order.

    Args:
        items: of `items.parquet`: item_id and prompt_token_ids.
        drawn: rollouts that each item has.
        rollouts: that each item shall have.
    """
    return [
        SampleRequest(item_id, prompt.values.to_numpy(), have, rollouts - have)
        for item_id, prompt in zip(
            items["item_id"].to_pylist(), items["prompt_token_ids"], strict=True
        )
        if (have := drawn.get(item_id, 0)) < rollouts
    ]


def shards(requests: Sequence[SampleRequest], most_rollouts: int) -> Iterator[list[SampleRequest]]:
    """Cut requests into shards of whole items, of at most `most_rollouts` where items allow."""
    shard: list[SampleRequest] = []
    size = 0
    for request in requests:
        if shard and size + request.samples > most_rollouts:
            yield shard
            shard, size = [], 0
        shard.append(request)
        size += request.samples
    if shard:
        yield shard


def sample_items(
    run: RunFolder, items: pa.Table, engine: Engine, tokenizer: Any, rollouts: int, shard_size: int
) -> dict[str, Any]:
    """Draw what is missing until every item has `rollouts`; return the stage's counts.

    A shard's rollouts depend on the seed and the shard alone, so that a run taken up again after a
    kill goes on with the rollouts that it would have drawn.
    """
    drawn: dict[str, int] = defaultdict(int)
    files = rollout_shards(run)
    for file in files:
        for entry in pc.value_counts(read_parquet(file, ["item_id"])["item_id"].combine_chunks()):
            drawn[entry["values"].as_py()] += entry["counts"].as_py()
    total = rollouts * len(items)
    have = sum(drawn.values())
    tokens = 0
    number = len(files)
    with Progress("sampling", total, "rollouts", done=have) as progress:
        for shard in shards(missing_rollouts(items, drawn, rollouts), shard_size):
            finished: list[Rollout] = []
            for rollout in engine.sample(shard):
                finished.append(rollout)
                tokens += len(rollout.completion_token_ids)
                progress.advance(note=f"{tokens / progress.seconds:,.0f} tokens/s")
            write_parquet(
                run / "rollouts" / f"{number:05d}.parquet", _table(shard, finished, tokenizer)
            )
            number += 1
    return {"rollouts": total, "tokens_this_time": tokens, "seconds_this_time": progress.seconds}


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
