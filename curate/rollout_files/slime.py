"""slime: samples as its `Sample.to_dict` gives them, written as JSON Lines.

slime itself saves rollouts by torch.save (`--save-debug-rollout-data`), a pickle, which is code
and is not opened here. A row is a rollout: `prompt` (rendered text or messages), `response`,
`tokens` of both, `response_length`, `label`, `reward`, and `status`: completed, truncated, aborted
or failed, of which the last two have no reward that means anything. Several turns show in
`loss_mask`, which is 0 within the response for what the policy did not write.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from curate.errors import UsageError
from curate.rollout_files.record import (
    Format,
    LoggedRollout,
    Row,
    has,
    known_item,
    last_text,
    number,
    text,
    token_ids,
    whole,
)


def _read(row: Row, columns: Mapping[str, str]) -> Iterator[LoggedRollout]:
    prompt: Any = row["prompt"]
    tokens, length = token_ids(row.get("tokens")), whole(row.get("response_length"))
    read = written = None
    if tokens and length is not None and 0 < length < len(tokens):
        read, written = tokens[:-length], tokens[-length:]
    mask = row.get("loss_mask")
    is_broken = isinstance(mask, list) and 0 in mask
    status = row["status"]
    yield LoggedRollout(
        item_id=known_item(row, columns),
        prompt=prompt if isinstance(prompt, str | list) else None,
        prompt_token_ids=read,
        completion=last_text(row["response"]),
        completion_token_ids=None if is_broken else written,
        reward=None if status in ("aborted", "failed", "pending") else _reward(row, columns),
        step=whole(row.get("rollout_id")),
        answer=text(row.get(columns.get("answer", "label"))),
        finish_reason="length" if status == "truncated" else None,
        turns=2 if is_broken else 1,
    )


def _reward(row: Row, columns: Mapping[str, str]) -> float | None:
    reward, name = row["reward"], columns.get("reward")
    if not isinstance(reward, Mapping):
        return number(row.get(name) if name else reward)
    if name is None or name not in reward:
        raise UsageError(
            f"its reward has parts ({', '.join(reward)}): say which tells right from wrong with "
            "--column reward=NAME"
        )
    return number(reward[name])


SLIME = Format("slime", has("prompt", "response", "reward", "status", "response_length"), _read)
