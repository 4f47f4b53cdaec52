"""Rollouts that exist, in the place of the sampling stage: `curate tag --rollouts`.

Every rollout that is of an item of the run is taken, in the order of the files. The policy's tokens
are taken as they were logged; where only text was, it is encoded by the policy's tokenizer, with
its end of a sequence behind what was not cut, which need not be what was sampled; without a policy
it has no tokens. Rollouts of several turns are counted, and have no tokens: their gradients are not
those of one completion.
Rewards are those of the files, 1 from `correct_from` on and 0 below, or are left to the verifier.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from curate.config import TagConfig
from curate.datasets.layouts import run_layout
from curate.datasets.source import Source
from curate.errors import UsageError
from curate.rollout_files.matching import ItemMatcher, last_turns
from curate.rollout_files.own_prompts import OwnPrompts, is_own, own_places
from curate.rollout_files.read import RolloutFiles
from curate.rollout_files.record import LoggedRollout
from curate.run.folder import RunFolder
from curate.run.rollouts import rollout_shards
from curate.run.tables import (
    ITEMS,
    ROLLOUT_TURNS,
    ROLLOUTS,
    ROUNDS,
    ROWS,
    Folder,
    write_parquet,
)

_SHARD_ROLLOUTS = 8192
NO_REWARD = "no_reward"
"""Verdict of a rollout whose reward the files do not have."""


class Matcher(Protocol):
    """What finds the item of a rollout: `curate.rollout_files.matching.ItemMatcher`."""

    ids: Sequence[str]
    ways: Counter[str]
    unmatched: int
    example: str

    def find(self, rollout: LoggedRollout, number: int = 1) -> int | None:
        """The position of its item; None where none is found."""


def run_matcher(
    run: RunFolder,
    config: TagConfig,
    source: Source,
    files: RolloutFiles,
    tokenizer: Any,
    row_of: Mapping[str, int],
) -> Matcher:
    """What finds the item of a rollout of files, where the dataset is that of its prompts too.

    Args:
        run: has items.
        config, source: of the run.
        files: of rollouts.
        tokenizer: the policy's; None without one.
        row_of: position of each item by item_id, in the order of the positions.
    """
    if is_own(run.path, source):
        rows = ROWS.read(run, "row", "item_id").to_pydict()
        item_of_row = dict(zip(rows["row"], rows["item_id"], strict=True))
        places = dict(own_places(source, item_of_row, row_of))
        return OwnPrompts(list(row_of), files, tokenizer.decode if tokenizer else None, places)
    items = ITEMS.read(run).to_pydict()
    return ItemMatcher(
        items["item_id"],
        items["prompt"],
        items["prompt_token_ids"],
        items["answer"],
        last_turns(source, run_layout(source, config), row_of),
    )


def take_rollouts(
    run: Folder,
    matcher: Matcher,
    files: RolloutFiles,
    tokenizer: Any,
    *,
    judged: bool,
    correct_from: float,
) -> dict[str, Any]:
    """Write the rollouts of files as those of a run; return what there is to tell of them.

    Args:
        run: has items; rollouts of a try that was killed are taken anew.
        matcher: of its items.
        files: of rollouts.
        tokenizer: the policy's; None without one.
        judged: whether the verifier judges them anew.
        correct_from: the reward from which a rollout is correct, where it does not.

    Returns:
        `sha256` of the files, `rollouts` taken, `most` of an item, `matched_by` what, `unmatched`
        with an `example`, `encoded` (of text only), `several_turns`, `without_tokens` (of one turn,
        of which no tokens are known), `without_reward`, `graded`, `unreadable` rows with an
        `unreadable_example`, and `drawn`, what the files tell of who drew them.

    Raises:
        UsageError: none is of an item of the run, rewards are means, or none can be right.
        RunError: the disk is full.
    """
    drawn: NDArray[np.int64] = np.zeros(len(matcher.ids), dtype=np.int64)
    counts = dict.fromkeys(
        ("encoded", "several_turns", "without_tokens", "without_reward", "graded"), 0
    )
    for file in rollout_shards(run):
        file.unlink()
    # As they are before they are read: what is added meanwhile is not known to be taken.
    sha256 = files.fingerprint()
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
        "sha256": sha256,
        "format": files.format,
        "rollouts": int(drawn.sum()),
        "most": int(drawn.max()),
        "items_without": int((drawn == 0).sum()),
        "matched_by": dict(matcher.ways),
        "unmatched": matcher.unmatched,
        "example": matcher.example or None,
        "unreadable": len(files.unreadable),
        "unreadable_example": files.unreadable[0] if files.unreadable else None,
        "has_policy": tokenizer is not None,
        "drawn": asdict(files.drawn()),
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
        "several_turns": "are of several turns: they count, and their gradients are not measured",
        "without_tokens": "have no tokens or text: they count, and have no gradients"
        if found["has_policy"]
        else "have no token ids, which only a policy's tokenizer gives",
        "without_reward": "have no reward, and do not count",
        "graded": "have a reward between 0 and --correct-from, and count as wrong",
        "unreadable": f"rows could not be read, such as {found.get('unreadable_example')}",
    }.items():
        if found[key]:
            lines.append(f"    {found[key]:,} {words}")
    return "\n".join(lines)


def drawn_words(taken: Mapping[str, Any], config: TagConfig) -> tuple[str, str]:
    """Who drew rollouts that were taken, and how; and what of it is not known, "" for nothing.

    What the settings say goes before what the files tell.
    """
    told = taken.get("drawn") or {}
    policy = config.rollouts_by or told.get("policy")
    temperature = _first(config.rollouts_temperature, told.get("temperature"))
    most = _first(config.rollouts_max_tokens, told.get("max_tokens"))
    words = [f"drawn by {policy}"] if policy else []
    words += [] if temperature is None else [f"temperature {temperature:g}"]
    words += [] if most is None else [f"at most {most:,} tokens"]
    known = ", ".join(words)
    if not words:
        return known, "which policy drew them, and how, is not known"
    unknown = [] if policy else ["which policy drew them"]
    # Words for the card may tell all three.
    if not config.rollouts_by:
        unknown += ["at which temperature"] if temperature is None else []
        unknown += ["where they were cut"] if most is None else []
    return known, f"{' and '.join(unknown)} is not known" if unknown else ""


def _first(*values: Any) -> Any:
    return next((each for each in values if each is not None), None)


def _row(rollout: LoggedRollout, tokenizer: Any, counts: dict[str, int]) -> dict[str, Any]:
    """Completion, tokens and finish reason; what is not told counts as ended."""
    is_cut = rollout.finish_reason == "length"
    tokens, completion = rollout.completion_token_ids, rollout.completion
    is_one_turn = rollout.turns == 1
    if tokens is None and completion is not None and is_one_turn and tokenizer is not None:
        tokens = list(tokenizer(completion, add_special_tokens=False)["input_ids"])
        if not is_cut and tokenizer.eos_token_id is not None:
            tokens.append(tokenizer.eos_token_id)
        counts["encoded"] += 1
    if not is_one_turn or not tokens:
        tokens = []
        counts["without_tokens" if is_one_turn else "several_turns"] += 1
    if completion is None:
        completion = tokenizer.decode(tokens, skip_special_tokens=True) if tokenizer else ""
    return {
        "completion": completion,
        "completion_token_ids": tokens,
        "finish_reason": "length" if is_cut else "stop",
        "turns": rollout.turns,
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
    schema = pa.schema([*ROLLOUTS.schema, *ROLLOUT_TURNS.items()])
    write_parquet(ROLLOUTS.path(run, number), pa.Table.from_pylist(rows, schema))


def _check(
    files: RolloutFiles,
    matcher: Matcher,
    drawn: NDArray[np.int64],
    *,
    best: float,
    judged: bool,
    correct_from: float,
) -> None:
    where = f"{files.where} ({files.format})"
    if not drawn.any() and not matcher.unmatched and files.unreadable:
        raise UsageError(f"{where}: no row can be read; the first: {files.unreadable[0]}")
    if not drawn.any():
        raise UsageError(
            f"{where}: none of its {matcher.unmatched:,} rollouts is of an item of this dataset; "
            f"the first is {matcher.example or 'missing'}"
        )
    if not judged and best == -np.inf:
        raise UsageError(
            f"{where}: no rollout has a reward; they are judged with --verifier NAME of curate "
            "import, or --rollout-rewards judged of curate tag"
        )
    if not judged and 0 < best < correct_from:
        raise UsageError(
            f"{where}: the highest reward is {best:g}, none reaches {correct_from:g}: say from "
            "which on a rollout is correct with --correct-from"
        )
