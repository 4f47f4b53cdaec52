"""Editing the text of a JSON object without parsing and writing anew what is to stay as it is."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from curate.datasets.row import SourceRow

# Huge integers pass as text: what matters here is where a value ends, not what it is.
_DECODER = json.JSONDecoder(parse_int=str)


def row_object(row: SourceRow) -> tuple[Mapping[str, Any], str]:
    """A JSON row as an object and as that object's text; `{}` for what is no object.

    A row may be an object and yet have a problem: half a surrogate pair, or a number too long.
    """
    text = row.text or ""
    if row.value is not None:
        return row.value, text
    try:
        text.encode("utf-8")
        value = _DECODER.decode(text)
    except (UnicodeEncodeError, json.JSONDecodeError, RecursionError):
        value = None
    return (value, text) if isinstance(value, dict) else ({}, "{}")


def with_members(text: str, members: str) -> str:
    """An object's text with the members of another object's text added before its end."""
    if members == "{}":
        return text
    head, _, tail = text.rpartition("}")
    comma = "" if head.rstrip().endswith("{") else ", "
    return f"{head}{comma}{members[1:-1]}}}{tail}"


def without_members(text: str, names: Iterable[str]) -> str:
    """An object's text without some of its members; the text of the others is kept."""
    dropped = set(names)
    kept = [text[start:end] for name, start, _, end in _members(text) if name not in dropped]
    return "{" + ", ".join(kept) + text[text.rindex("}") :]


def with_value(text: str, name: str, value: str) -> str:
    """An object's text with the text of another value for a member that it has."""
    # From the end, so that the places of those before stay right.
    for found, _, start, end in reversed(list(_members(text))):
        if found == name:
            text = text[:start] + value + text[end:]
    return text


def with_names(text: str, names: Mapping[str, str]) -> str:
    """An object's text with other names for some of its members."""
    for found, start, _, _ in reversed(list(_members(text))):
        if found in names:
            _, end = _DECODER.raw_decode(text, start)
            text = text[:start] + json.dumps(names[found], ensure_ascii=False) + text[end:]
    return text


def _members(text: str) -> Iterator[tuple[str, int, int, int]]:
    """Each member's name, and where it, its value and its value's end stand."""
    position = _after_space(text, _after_space(text, 0) + 1)
    while text[position] != "}":
        start = position
        name, position = _DECODER.raw_decode(text, position)
        value = _after_space(text, _after_space(text, position) + 1)  # Past ":".
        _, end = _DECODER.raw_decode(text, value)
        yield name, start, value, end
        position = _after_space(text, end)
        if text[position] == ",":
            position = _after_space(text, position + 1)


def _after_space(text: str, position: int) -> int:
    while text[position] in " \t\r\n":
        position += 1
    return position
