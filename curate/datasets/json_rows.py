"""Rows of JSON: an object a line, or the objects of one array, each with its own text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from curate.datasets import text_files
from curate.datasets.row import SourceRow
from curate.errors import UsageError

MAX_NESTING = 100
"""The deepest JSON value accepted: below what would exhaust the stack of those who handle it."""


def line_rows(path: Path) -> Iterator[SourceRow]:
    """Rows of JSON Lines: an object a line."""
    for number, line in enumerate(text_files.lines(path), 1):
        # Only "\n" is taken off: what else stands after the object is given back.
        content = line.removesuffix(b"\n")
        if content.strip():
            yield _line_row(number, content)


def _line_row(number: int, line: bytes) -> SourceRow:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        problem = f"invalid UTF-8 at byte {error.start + 1}"
        return SourceRow(number, None, problem, line.decode("utf-8", "surrogateescape"))
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        return SourceRow(number, None, f"not JSON: {error.msg} at character {error.pos + 1}", text)
    except ValueError:
        return SourceRow(number, None, "a number is too long to parse", text)
    except RecursionError:
        return SourceRow(number, None, "nested too deep", text)
    return json_row(number, value, text)


def array_rows(path: Path) -> Iterator[SourceRow]:
    """Rows of a JSON array, decoded one by one so that only its text is held whole."""
    try:
        text = text_files.read_text(path)
        decoder = json.JSONDecoder()
        space = re.compile(r"[ \t\r\n]*")

        def skip(position: int) -> int:
            match = space.match(text, position)
            return match.end() if match else position

        position = skip(skip(0) + 1)  # Past "[", which is known to be there.
        number = 0
        while number or text[position : position + 1] != "]":
            value, end = decoder.raw_decode(text, position)
            number += 1
            yield json_row(number, value, text[position:end])
            position = skip(end)
            if text[position : position + 1] == "]":
                break
            if text[position : position + 1] != ",":
                raise json.JSONDecodeError("expecting ',' or ']'", text, position)
            position = skip(position + 1)
        if rest := text[position + 1 :].strip():
            raise json.JSONDecodeError(f"extra data {rest[:20]!r}", text, position + 1)
    except UnicodeDecodeError as error:
        encoding = error.encoding.upper()
        raise UsageError(f"{path}: invalid {encoding} at byte {error.start + 1}") from error
    except json.JSONDecodeError as error:
        raise UsageError(
            f"{path} is not a whole JSON array: {error.msg}, line {error.lineno} column"
            f" {error.colno}"
        ) from error
    except ValueError as error:
        raise UsageError(f"{path}: row {number + 1} has a number too long to parse") from error
    except RecursionError as error:
        raise UsageError(f"{path}: row {number + 1} is nested too deep") from error


def json_row(number: int, value: object, text: str) -> SourceRow:
    """A row of a JSON value, or else the problem it has; `text` is what the value was read from."""
    if isinstance(value, list) and value and all(isinstance(each, dict) for each in value):
        # A list of messages, as Open-Reasoner-Zero has them: `datasets` names the places as well.
        value = {str(place): each for place, each in enumerate(value)}
        text = json.dumps(value, ensure_ascii="\\u" in text)
    if not isinstance(value, dict):
        return SourceRow(number, None, f"not a JSON object but {_kind(value)}", text)
    if text.count("{") + text.count("[") > MAX_NESTING and _is_too_deep(value):
        return SourceRow(number, None, f"nested too deep (more than {MAX_NESTING} levels)", text)
    if "\\u" in text:  # Valid UTF-8 holds no surrogates: they come from escapes only.
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            problem = "half of a \\ud800-style surrogate pair, which UTF-8 cannot hold"
            return SourceRow(number, None, problem, text)
    return SourceRow(number, value, None, text)


def _kind(value: object) -> str:
    names = {list: "an array", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _is_too_deep(value: object) -> bool:
    level = [value]
    for _ in range(MAX_NESTING):
        containers = [inner for inner in level if isinstance(inner, dict | list)]
        if not containers:
            return False
        level = [
            inner
            for container in containers
            for inner in (container.values() if isinstance(container, dict) else container)
        ]
    return any(isinstance(inner, dict | list) for inner in level)
