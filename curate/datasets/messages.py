"""Reading a prompt from a value of a row: a text, or a conversation.

A conversation is a list of messages, each with `role` and `content`; ShareGPT's `from` and `value`
do as well, and a list that is written as JSON text, as a CSV file has it. What a policy of text
cannot be shown makes the row a reject: an image that the prompt speaks of would be guessed at.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from curate.datasets.fields import RowRejected, object_in, type_name

Messages = tuple[tuple[str, str], ...]
"""(role, content) of every turn."""

_ROLES = {"human": "user", "gpt": "assistant"}
# Marks that processors of images, not of text, replace.
_IMAGE_MARK = re.compile(r"<image(?:_\d+)?>|<\|image(?:_\d+|_pad)?\|>|<\|vision_start\|>")
_MEDIA_COLUMN = re.compile(
    r"(?:(?:decoded|input|question|problem)_)?(?:image|img|picture|figure|video|audio)s?(?:_?\d+)?",
    re.IGNORECASE,
)
# Characters of a text that are looked at to tell a file from words.
_LOOKED_AT = 200
# What else templates read of a message.
_CALLS = ("tool_calls", "function_call", "tool_call_id", "name")


def read_messages(prompt: Any) -> tuple[Messages, bool]:
    """The turns of a prompt, and whether it is plain text, which is one turn of the user.

    Raises:
        RowRejected: it is neither text nor a conversation of text.
    """
    if isinstance(prompt, str):
        listed = _conversation_in(prompt)
        if listed is None:
            return (("user", prompt),), True
        prompt = listed
    if not isinstance(prompt, list):
        raise RowRejected(f"the prompt is {type_name(prompt)}, not text or a list of messages")
    if not prompt:
        raise RowRejected("empty prompt")
    return tuple(_read_message(message, number) for number, message in enumerate(prompt, 1)), False


def _conversation_in(text: str) -> list[Any] | None:
    """The messages of a conversation that is written as JSON text; None for any other text."""
    if text.lstrip()[:1] != "[" or '"role"' not in text:
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, list) or not found:
        return None
    is_one = all(isinstance(each, dict) and {"role", "content"} <= set(each) for each in found)
    return found if is_one else None


def _read_message(message: Any, number: int) -> tuple[str, str]:
    if not isinstance(message, Mapping):
        raise RowRejected(f"message {number} of the prompt is {type_name(message)}, not an object")
    role = message.get("role")
    if role is None and isinstance(message.get("from"), str):
        role = _ROLES.get(message["from"], message["from"])
    if not isinstance(role, str) or not role:
        raise RowRejected(f"message {number} of the prompt has no role")
    content = message.get("content", message.get("value"))
    if isinstance(content, list):
        content = "".join(_read_part(part, number) for part in content)
    if content is None and any(message.get(name) for name in _CALLS):
        content = ""  # A call of a tool needs no words.
    if not isinstance(content, str):
        raise RowRejected(f"message {number} of the prompt has no text as its content")
    return role, content


def _read_part(part: Any, number: int) -> str:
    """The text of one part of a multimodal content; only text can be used."""
    kind = part.get("type") if isinstance(part, Mapping) else type_name(part)
    if kind != "text" or not isinstance(part.get("text"), str):
        raise RowRejected(f"message {number} of the prompt holds {kind!r}, not only text")
    return str(part["text"])


def ends_with_reply(prompt: Any) -> bool:
    """Whether a prompt is a conversation that the assistant ends."""
    try:
        messages, is_plain = read_messages(prompt)
    except RowRejected:
        return False
    return not is_plain and messages[-1][0] == "assistant"


# --- What text cannot show ---------------------------------------------------------------------


def refuse_media(row: Mapping[str, Any], messages: Messages, prompt_field: str) -> None:
    """Refuse a row whose question a policy of text cannot see whole.

    Raises:
        RowRejected: a column holds an image, video or sound, or the prompt has an image's mark.
    """
    for name, value in row.items():
        if value and _is_media_column(name) and name != prompt_field and _is_media(value):
            raise RowRejected(
                f"its question comes with {name!r}, which a policy of text cannot see"
            )
    for _, content in messages:
        has_any = "<image" in content or "<|" in content
        mark = _IMAGE_MARK.search(content) if has_any else None
        if mark and "</image>" not in content:  # An element of XML has an end.
            raise RowRejected(
                f"the prompt has {mark[0]!r} in an image's place, which a policy of text cannot see"
            )


@lru_cache(maxsize=1024)
def _is_media_column(name: str) -> bool:
    return _MEDIA_COLUMN.fullmatch(name) is not None


def _is_media(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(_is_media(each) for each in value)
    if isinstance(value, Mapping):
        return any(value.get(name) for name in ("bytes", "path", "url", "src", "array"))
    if isinstance(value, str):
        # A path, a link or base64; words would be a description.
        return bool(value.strip()) and not re.search(r"\s", value[:_LOOKED_AT].strip())
    return isinstance(value, bytes) and bool(value)


# --- Tools -------------------------------------------------------------------------------------


def read_calls(row: Mapping[str, Any], prompt: Any) -> str:
    """What a row's prompt holds besides text: its tools, and calls of tools in its messages.

    Returns:
        an object as JSON text with sorted keys: `tools`, the descriptions, and `turns`, by their
        position what a message holds besides role and content; "" where there is neither.

    Raises:
        RowRejected: the column `tools` holds no list of objects.
    """
    found: dict[str, Any] = {}
    tools = row.get("tools")
    if isinstance(tools, str):
        tools = object_in(tools) if tools.strip() else None
        if tools is None and row["tools"].strip():
            raise RowRejected("its 'tools' are text that is no JSON")
    if tools:
        if not isinstance(tools, list) or not all(isinstance(each, Mapping) for each in tools):
            raise RowRejected("its 'tools' are no list of objects")
        found["tools"] = [_without_nulls(each) for each in tools]
    listed = _conversation_in(prompt) if isinstance(prompt, str) else prompt
    turns = {
        str(place): held
        for place, message in enumerate(listed if isinstance(listed, list) else ())
        if isinstance(message, Mapping)
        and (held := {n: _without_nulls(message[n]) for n in _CALLS if message.get(n)})
    }
    # The name of a speaker alone is a matter of the template; with a call it says who answers.
    if any(set(held) != {"name"} for held in turns.values()):
        found["turns"] = turns
    return json.dumps(found, sort_keys=True, default=str) if found else ""


def _without_nulls(value: Any) -> Any:
    """A value without the fields that Arrow fills with null because another row has them."""
    if isinstance(value, Mapping):
        return {name: _without_nulls(each) for name, each in value.items() if each is not None}
    if isinstance(value, list):
        return [_without_nulls(each) for each in value]
    return value
