"""TRL: `log_completions=True`, a Parquet file a logging step under `completions/`.

A row is a rollout: `step`, `prompt`, `completion` (text or messages), `advantage`, and a column for
each reward function. What a trainer adds these up to is not written, so that of several one has to
be named. A file holds the newest batch: with `logging_steps` above 1 the batches between are lost.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from curate.errors import UsageError
from curate.rollout_files.record import (
    Format,
    LoggedRollout,
    Row,
    gold,
    has,
    known_item,
    last_text,
    number,
    sampled_turns,
    whole,
)

_OWN = ("step", "prompt", "completion", "advantage", "item_id", "answer")


def _read(row: Row, columns: Mapping[str, str]) -> Iterator[LoggedRollout]:
    prompt, completion = row["prompt"], row["completion"]
    yield LoggedRollout(
        item_id=known_item(row, columns),
        prompt=prompt if isinstance(prompt, str | list) else None,
        completion=last_text(completion),
        reward=_reward(row, columns),
        step=whole(row["step"]),
        answer=gold(row, columns),
        turns=sampled_turns(completion),
    )


def _reward(row: Row, columns: Mapping[str, str]) -> float | None:
    rewards = {
        name: value
        for name, value in row.items()
        # A reward that could not be given is null.
        if name not in _OWN and (value is None or isinstance(value, bool | int | float))
    }
    name = columns.get("reward")
    if name is not None and name not in row:
        raise UsageError(f"there is no reward {name!r}, only {', '.join(rewards) or 'none'}")
    if name is None and len(rewards) != 1:
        raise UsageError(
            f"there are {len(rewards)} rewards ({', '.join(rewards)}): say which tells right from "
            "wrong with --column reward=NAME"
        )
    return number(row[name] if name is not None else next(iter(rewards.values())))


TRL = Format("TRL", has("step", "prompt", "completion", "advantage"), _read)
