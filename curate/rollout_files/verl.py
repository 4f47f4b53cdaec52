"""verl: `trainer.rollout_data_dir` and `validation_data_dir`, a JSON Lines file a step.

A row is a rollout: `input` and `output` are its tokens decoded without special tokens, `gts` the
gold answer, `score` the reward, `step`; what the reward function returns stands beside them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from curate.rollout_files.record import (
    Format,
    LoggedRollout,
    Row,
    gold,
    has,
    known_item,
    reward_of,
    text,
    whole,
)


def _read(row: Row, columns: Mapping[str, str]) -> Iterator[LoggedRollout]:
    yield LoggedRollout(
        item_id=known_item(row, columns),
        prompt=text(row["input"]),
        completion=text(row["output"]) or "",
        reward=reward_of(row, columns, "score"),
        step=whole(row.get(columns.get("step", "step"))),
        answer=gold(row, columns),
    )


VERL = Format("verl", has("input", "output", "score"), _read)
