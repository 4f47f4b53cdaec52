"""The rewards of a run as Parquet, one split a tag: a row a rollout, without any text of it.

From it the pass rates of the tagged rows can be recomputed. What a completion or an answer says is
left out; `completion_token_ids` would say it too, and only their number is kept.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from cards.card.metadata import REWARDS
from cards.push.splits import SHARD_BYTES, Shards
from curate.errors import RunError
from curate.run.rollouts import real_rewards, rollout_outcomes, rollout_shards
from curate.run.run import Run
from curate.run.tables import ROLLOUT_TESTS, ROLLOUTS, read_schema
from curate.tags import Trainability

_KEPT = ("item_id", "sample", "reward", "verdict", "finish_reason", "log_probability")
_LENGTH_OF = "completion_token_ids"


def rewards_schema(run: Run) -> pa.Schema:
    """The columns of the rewards of a run."""
    files = rollout_shards(run.path)
    tests = ROLLOUT_TESTS if files and set(ROLLOUT_TESTS) <= set(_stored(files[0])) else {}
    reward = pa.float64() if real_rewards(run.path) else pa.int8()
    types = {name: ROLLOUTS.columns[name] for name in _KEPT} | {"reward": reward}
    types |= {"correct": pa.bool_(), "truncated": pa.bool_(), "tokens": pa.int32(), **tests}
    order = ("item_id", "sample", "reward", "correct", "verdict", "finish_reason", "truncated")
    return pa.schema(
        [(name, types[name]) for name in (*order, "tokens", "log_probability", *tests)]
    )


def write_rewards(run: Run, folder: Path, *, shard_bytes: int = SHARD_BYTES) -> list[str]:
    """Write the rewards of the items of each tag to one or more Parquet files.

    Args:
        run: finished.
        folder: where `rewards/` is made.
        shard_bytes: a further file is begun at this size.

    Returns:
        the files' paths in `folder`; none of a tag whose items have no rollout.

    Raises:
        RunError: a file of the run is damaged, or the disk is full.
    """
    schema = rewards_schema(run)
    tags = pa.table({"item_id": run.ids, "tag": run.tags()})
    shards = {tag: Shards(folder / REWARDS, tag, schema, shard_bytes) for tag in Trainability}
    files = rollout_shards(run.path)
    stored = [name for name in (*_KEPT, *ROLLOUT_TESTS) if files and name in _stored(files[0])]
    try:
        for batch in run.rollout_batches(*stored, _LENGTH_OF):
            table = _rewards(batch, schema)
            places = pc.index_in(table["item_id"], value_set=tags["item_id"])
            if places.null_count:
                raise RunError(f"{run.path}: a rollout is of no item of the run")
            of_rollouts = tags["tag"].take(places)
            for tag in Trainability:
                shards[tag].add(table.filter(pc.equal(of_rollouts, str(tag))))
        return [path for tag in Trainability for path in shards[tag].close()]
    except OSError as error:
        raise RunError(f"cannot write to {folder}: {error.strerror or error}") from error


def _stored(file: Path) -> list[str]:
    names: list[str] = read_schema(file).names
    return names


def _rewards(batch: pa.RecordBatch, schema: pa.Schema) -> pa.Table:
    outcome = pa.array(rollout_outcomes(batch))
    tokens = pc.list_value_length(batch[_LENGTH_OF])
    known = {
        "correct": pc.if_else(pc.equal(outcome, -1), None, pc.equal(outcome, 1)),
        "truncated": pc.equal(batch["finish_reason"], "length"),
        # What was logged as text of several turns has no tokens of ours.
        "tokens": pc.if_else(pc.equal(tokens, 0), None, tokens),
    }
    columns = [
        known[field.name]
        if field.name in known
        # Runs of earlier versions lack some.
        else batch[field.name]
        if field.name in batch.schema.names
        else pa.nulls(len(batch))
        for field in schema
    ]
    return pa.table(
        [column.cast(field.type) for column, field in zip(columns, schema, strict=True)],
        schema=schema,
    )
