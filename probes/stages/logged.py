"""Rollouts that exist, in the place of the sampling stage: `curate tag --rollouts`.

Every rollout that is of an item of the run is taken, in the order of the files. The policy's tokens
are taken as they were logged; where only text was, it is encoded by the policy's tokenizer, with
its end of a sequence behind what was not cut, which need not be what was sampled. Rollouts of
several turns are counted, and have no tokens: their gradients are not those of one completion.
Rewards are those of the files, 1 from `correct_from` on and 0 below, or are left to the verifier.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from curate.errors import UsageError
from curate.rollout_files.matching import ItemMatcher
from curate.rollout_files.read import RolloutFiles
from curate.rollout_files.record import LoggedRollout
from curate.run.tables import ROLLOUTS, ROUNDS, Folder, write_parquet

_SHARD_ROLLOUTS = 8192
NO_REWARD = "no_reward"
"""Verdict of a rollout whose reward the files do not have."""


def take_rollouts(
    run: Folder,
    matcher: ItemMatcher,
    files: RolloutFiles,
    tokenizer: Any,
    *,
    judged: bool,
    correct_from: float,
) -> dict[str, Any]:
    """Write the rollouts of files as those of a run; return what there is to tell of them.

    Args:
        run: has items, and no rollouts yet.
        matcher: of its items.
        files: of rollouts.
        tokenizer: the policy's.
        judged: whether the verifier judges them anew.
        correct_from: the reward from which a rollout is correct, where it does not.

    Returns:
        `rollouts` taken, `most` of an item, `matched_by` what, `unmatched` with an `example`,
        `encoded` (of text only), `without_tokens` (of several turns, or without any),
        `without_reward`, `graded`, `unreadable` rows.

    Raises:
        UsageError: none is of an item of the run, rewards are means, or none can be right.
        RunError: the disk is full.
    """
    drawn: NDArray[np.int64] = np.zeros(len(matcher.ids), dtype=np.int64)
    counts = {"encoded": 0, "without_tokens": 0, "without_reward": 0, "graded": 0}
    best, shard, number = -np.inf, list[dict[str, Any]](), 0
    for rollout in files.rollouts():
        if rollout.rollouts > 1:
            raise UsageError(
                f"{files.where}: its rewards are means of several rollouts; --rollouts takes the "
                "rollouts themselves"
            )
        item = matcher.find(rollout)
        if item is None:
            continue
        row = _row(rollout, tokenizer, counts)
        row |= {"item_id": matcher.ids[item], "sample": int(drawn[item])}
        if not judged:
            row |= _reward(rollout, correct_from, counts)
            best = max(best, -np.inf if rollout.reward is None else rollout.reward)
        elif rollout.completion is None and not row["completion"]:
            row |= {"verdict": NO_REWARD}
        drawn[item] += 1
        shard.append(row)
        if len(shard) == _SHARD_ROLLOUTS:
            _write(run, number, shard)
            shard, number = [], number + 1
    if shard:
        _write(run, number, shard)
    _check(files, matcher, drawn, best=best, judged=judged, correct_from=correct_from)
    # As a round that was drawn: what each item was to have is what it has.
    target = pa.table({"item_id": list(matcher.ids), "rollouts": drawn})
    write_parquet(ROUNDS.path(run, 0), target)
    return {
        "path": files.where,
        "files": len(files.files),
        "format": files.format,
        "rollouts": int(drawn.sum()),
        "most": int(drawn.max()),
        "items_without": int((drawn == 0).sum()),
        "matched_by": dict(matcher.ways),
        "unmatched": matcher.unmatched,
        "example": matcher.example or None,
        "unreadable": len(files.unreadable),
        **counts,
    }


def taken_words(found: Mapping[str, Any]) -> str:
    """What was taken, in lines."""
    lines = [
        f"rollouts of {found['path']} ({found['format']}): {found['rollouts']:,}, at most "
        f"{found['most']:,} of an item; {found['items_without']:,} items have none"
    ]
    for key, words in {
        "unmatched": f"are of no item of the dataset, such as {found['example']}",
        "encoded": "came as text only: their tokens are encoded anew, for the gradients",
        "without_tokens": "are of several turns or have no tokens: they count, without gradients",
        "without_reward": "have no reward, and do not count",
        "graded": "have a reward between 0 and --correct-from, and count as wrong",
        "unreadable": "rows could not be read",
    }.items():
        if found[key]:
            lines.append(f"    {found[key]:,} {words}")
    return "\n".join(lines)


def _row(rollout: LoggedRollout, tokenizer: Any, counts: dict[str, int]) -> dict[str, Any]:
    """Completion, tokens and finish reason; what is not told counts as ended."""
    is_cut = rollout.finish_reason == "length"
    tokens, completion = rollout.completion_token_ids, rollout.completion
    if tokens is None and completion is not None and rollout.turns == 1:
        tokens = list(tokenizer(completion, add_special_tokens=False)["input_ids"])
        if not is_cut and tokenizer.eos_token_id is not None:
            tokens.append(tokenizer.eos_token_id)
        counts["encoded"] += 1
    if rollout.turns > 1 or not tokens:
        tokens = []
        counts["without_tokens"] += 1
    if completion is None:
        completion = tokenizer.decode(tokens, skip_special_tokens=True)
    return {
        "completion": completion,
        "completion_token_ids": tokens,
        "finish_reason": "length" if is_cut else "stop",
    }


def _reward(
    rollout: LoggedRollout, correct_from: float, counts: dict[str, int]
) -> Mapping[str, Any]:
    if rollout.reward is None:
        counts["without_reward"] += 1
        return {"verdict": NO_REWARD}
    is_correct = rollout.reward >= correct_from
    counts["graded"] += 0 < rollout.reward < correct_from
    return {"reward": int(is_correct), "verdict": "correct" if is_correct else "wrong"}


def _write(run: Folder, number: int, rows: list[dict[str, Any]]) -> None:
    write_parquet(ROLLOUTS.path(run, number), pa.Table.from_pylist(rows, ROLLOUTS.schema))


def _check(
    files: RolloutFiles,
    matcher: ItemMatcher,
    drawn: NDArray[np.int64],
    *,
    best: float,
    judged: bool,
    correct_from: float,
) -> None:
    where = f"{files.where} ({files.format})"
    if not drawn.any():
        raise UsageError(
            f"{where}: none of its {matcher.unmatched:,} rollouts is of an item of this dataset; "
            f"the first is {matcher.example or 'missing'}"
        )
    if not judged and best == -np.inf:
        raise UsageError(f"{where}: no rollout has a reward; --rollout-rewards judged judges them")
    if not judged and 0 < best < correct_from:
        raise UsageError(
            f"{where}: the highest reward is {best:g}, none reaches {correct_from:g}: say from "
            "which on a rollout is correct with --correct-from"
        )
