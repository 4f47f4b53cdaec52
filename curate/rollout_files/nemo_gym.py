"""NeMo Gym: `rollouts.jsonl` of `ng_collect_rollouts`.

A row is a rollout: the task as it was given, `responses_create_params` with the `input`, the
policy's `response` as OpenAI's Responses API has it, and `reward`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from curate.rollout_files.record import (
    Format,
    LoggedRollout,
    Row,
    gold,
    has,
    known_item,
    listed,
    reward_of,
)

_TEXTS = ("text", "input_text", "output_text")


def _read(row: Row, columns: Mapping[str, str]) -> Iterator[LoggedRollout]:
    asked, answered = row["responses_create_params"], row["response"]
    prompt = asked.get("input") if isinstance(asked, Mapping) else None
    if isinstance(prompt, list):
        prompt = [_as_text(each) for each in prompt]
    output = answered.get("output") if isinstance(answered, Mapping) else None
    items = [each for each in listed(output) if isinstance(each, Mapping)]
    calls = sum(each.get("type") == "function_call" for each in items)
    texts = [_text(each) for each in items if each.get("type") == "message"]
    status = answered.get("status") if isinstance(answered, Mapping) else None
    yield LoggedRollout(
        item_id=known_item(row, columns),
        prompt=prompt if isinstance(prompt, str | list) else None,
        completion=texts[-1] if texts else None,
        reward=reward_of(row, columns, "reward"),
        answer=gold(row, columns),
        finish_reason="length" if status == "incomplete" else None,
        # Every call of a tool is answered, and the policy reads the answer in another turn.
        turns=1 + calls,
    )


def _as_text(message: Any) -> Any:
    """A message of the prompt whose parts are text, as one text; any other as it is."""
    parts = message.get("content") if isinstance(message, Mapping) else None
    if not isinstance(parts, list) or not all(
        isinstance(each, Mapping) and each.get("type") in _TEXTS for each in parts
    ):
        return message
    return {**message, "content": _text(message)}


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    parts = [each.get("text") for each in listed(content) if isinstance(each, Mapping)]
    return "".join(each for each in parts if isinstance(each, str))


NEMO_GYM = Format("NeMo Gym", has("responses_create_params", "response", "reward"), _read)
