"""The verifying stage: a reward and a verdict for every rollout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from curate.progress import Progress
from curate.run.rollouts import item_rows, rollout_shards
from curate.run.tables import (
    ROLLOUT_TESTS,
    ROLLOUT_TURNS,
    ROLLOUTS,
    Folder,
    read_parquet,
    write_parquet,
)
from probes.verifiers.by_row import CODE
from probes.verifiers.pool import VerifierPool
from probes.verifiers.verdict import Verdict

# A completion that was cut has not given its answer, whatever it wrote on the way.
TRUNCATED = Verdict(reward=0, verdict="truncated", answer_found=None)


def verify_rollouts(
    run: Folder,
    pool: VerifierPool,
    answers: pa.ChunkedArray,
    row_of: Mapping[str, int],
    verifiers: pa.ChunkedArray | None = None,
) -> dict[str, Any]:
    """Judge every rollout that has no verdict yet, shard by shard, in place.

    Args:
        run: its `rollouts/*.parquet` are rewritten with reward, verdict and answer_found.
        pool: of the run's verifier, not entered: nothing starts where nothing is to be judged.
        answers: gold answers, shape (items,).
        row_of: position in `answers` by item_id.
        verifiers: of the items, shape (items,), null for the pool's; None: all have the pool's.

    Returns:
        the stage's counts.
    """
    unjudged = {
        file: pending
        for file in rollout_shards(run)
        if (pending := read_parquet(file, ["verdict"])["verdict"].null_count)
    }
    total = sum(unjudged.values())
    if not total:
        return {"rollouts_this_time": 0}
    has_tests = pool.verifier == CODE or (
        verifiers is not None and pc.any(pc.equal(verifiers, CODE)).as_py() is True
    )
    with pool, Progress("verifying", total, "rollouts") as progress:
        for file in unjudged:
            table = read_parquet(file)
            cut = pc.equal(table["finish_reason"], "length").to_pylist()
            rows = pa.array(item_rows(table, row_of))
            golds = answers.take(rows).to_pylist()
            names = [None] * len(golds) if verifiers is None else verifiers.take(rows).to_pylist()
            pairs = [
                (completion, gold, verifier)
                for completion, gold, verifier, is_cut in zip(
                    table["completion"].to_pylist(), golds, names, cut, strict=True
                )
                if not is_cut
            ]
            before = progress.done

            def judged_so_far(done: int, before: int = before) -> None:
                progress.reach(before + done)

            judged = iter(pool.judge(pairs, judged_so_far))
            verdicts = [TRUNCATED if is_cut else next(judged) for is_cut in cut]
            progress.advance(sum(cut))
            write_parquet(file, _with_verdicts(table, verdicts, has_tests))
    return {"rollouts_this_time": total}


def _with_verdicts(table: pa.Table, verdicts: list[Verdict], has_tests: bool) -> pa.Table:
    columns: dict[str, Any] = {name: table[name] for name in table.column_names}
    rewards = [verdict.reward for verdict in verdicts]
    # Only where rewards are no 1 for correct and 0 for wrong are they of another type.
    is_whole = all(v.reward is None or v.reward == v.is_correct for v in verdicts)
    columns["reward"] = rewards
    columns["verdict"] = [verdict.verdict for verdict in verdicts]
    columns["answer_found"] = [verdict.answer_found for verdict in verdicts]
    # Rollouts drawn by earlier versions have none.
    columns.setdefault("log_probability", pa.nulls(table.num_rows, pa.float32()))
    place = ROLLOUTS.schema.get_field_index("reward")
    number = pa.field("reward", pa.int8() if is_whole else pa.float64())
    schema = ROLLOUTS.schema.set(place, number)
    if has_tests:
        columns |= {name: [getattr(v, name) for v in verdicts] for name in ROLLOUT_TESTS}
        schema = pa.schema([*schema, *ROLLOUT_TESTS.items()])
    if "turns" in columns:
        schema = pa.schema([*schema, *ROLLOUT_TURNS.items()])
    return pa.table(columns, schema=schema)
