"""open-instruct: `--save_traces`, JSON Lines files `*_rollouts_*.jsonl`.

A row is a rollout: `step`, `prompt_tokens` and `response_tokens`, `reward`, `finish_reason`;
`ground_truth` are tokens or text. A reward is 10 for a right answer by default
(`verification_reward`).
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
    token_ids,
    whole,
)


def _read(row: Row, columns: Mapping[str, str]) -> Iterator[LoggedRollout]:
    yield LoggedRollout(
        item_id=known_item(row, columns),
        prompt_token_ids=token_ids(row["prompt_tokens"]),
        completion_token_ids=token_ids(row["response_tokens"]),
        reward=reward_of(row, columns, "reward"),
        step=whole(row.get("step")),
        answer=gold(row, columns),
        finish_reason=text(row.get("finish_reason")),
    )


OPEN_INSTRUCT = Format("open-instruct", has("prompt_tokens", "response_tokens", "reward"), _read)
