"""Any table with a reward: a row a rollout, or a row an item and step with the mean of several.

Columns have these names, or are named by `--column WHAT=NAME`: item_id, prompt (text, messages or
token ids), completion, reward, step, rollouts (how many the reward is the mean of), answer,
finish_reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from curate.errors import UsageError
from curate.rollout_files.record import (
    Format,
    LoggedRollout,
    Row,
    gold,
    known_item,
    last_text,
    reward_of,
    sampled_turns,
    text,
    token_ids,
    whole,
)


def _read(row: Row, columns: Mapping[str, str]) -> Iterator[LoggedRollout]:
    def named(what: str) -> Any:
        return row.get(columns.get(what, what))

    prompt, completion = named("prompt"), named("completion")
    read, written = token_ids(prompt), token_ids(completion)
    rollouts = whole(named("rollouts"))
    if rollouts is not None and rollouts < 1:
        raise UsageError(f"its reward is the mean of {rollouts} rollouts")
    yield LoggedRollout(
        item_id=known_item(row, columns),
        prompt=prompt if read is None and isinstance(prompt, str | list) else None,
        prompt_token_ids=read,
        completion=None if written else last_text(completion),
        completion_token_ids=written,
        reward=reward_of(row, columns, "reward"),
        step=whole(named("step")),
        rollouts=rollouts or 1,
        answer=gold(row, columns),
        finish_reason=text(named("finish_reason")),
        turns=sampled_turns(completion),
    )


TABLE = Format("a table", lambda row: True, _read)
