"""Looking into a row: columns, dotted paths inside them, and what kind of value stands there.

A path also leads through a value that is text: JSON, as CSV and many Parquet files keep objects, or
the literal that Python shows of one.
"""

from __future__ import annotations

import ast
import difflib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from curate.errors import UsageError

MISSING = object()
"""What a path leads to that a row does not have."""

# Longer text is no description of one answer; the parser of Python's literals is slow and hungry.
_LONGEST_LITERAL = 65_536
_DEEPEST_LITERAL = 50
# At difflib's own 0.6 'solution' is near 'question'.
_NEAR = 0.7


class RowRejected(Exception):
    """A row that cannot be used. Its text is the reason, one line that a person can read."""


def lookup(row: Mapping[str, Any], field: str) -> Any:
    """The value at a dotted path, MISSING where there is none; a column so named comes first."""
    if field in row:
        return row[field]
    value: Any = row
    for part in field.split("."):
        if isinstance(value, str):
            value = object_in(value)
        if not isinstance(value, Mapping) or part not in value:
            return MISSING
        value = value[part]
    return value


def object_in(text: str) -> Any:
    """What a text that stands for an object or a list holds: JSON, or Python's literal; else None.

    Text is untrusted: nothing is evaluated, and what is long or deep is left alone.
    """
    stripped = text.strip()
    if stripped[:1] not in ("{", "["):
        return None
    try:
        return json.loads(stripped)
    except (ValueError, RecursionError):
        pass
    if len(stripped) > _LONGEST_LITERAL or _depth(stripped) > _DEEPEST_LITERAL:
        return None
    try:
        return ast.literal_eval(stripped)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


def _depth(text: str) -> int:
    """How deep brackets nest at most, those in strings included."""
    depth = deepest = 0
    for character in text:
        if character in "([{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in ")]}":
            depth -= 1
    return deepest


def first_filled(rows: list[Mapping[str, Any]], fields: Iterable[str]) -> str | None:
    """The first of the fields that any row fills."""
    for field in fields:
        if any(lookup(row, field) not in (MISSING, None) for row in rows):
            return field
    return None


def given_field(
    rows: list[Mapping[str, Any]], field: str | None, option: str, known: str | None = None
) -> str | None:
    """A field that an option names.

    Args:
        rows: to look into.
        field: the one that is named; None where the option is not given.
        option: how errors call it.
        known: what is taken without the option.

    Raises:
        UsageError: it is in none of the rows; names one that is called nearly so, and `known`.
    """
    if field is None or any(lookup(row, field) is not MISSING for row in rows):
        return field
    paths = _paths(rows)
    near = [path for path in paths if path.rpartition(".")[2] == field]
    near += difflib.get_close_matches(field, paths, n=1, cutoff=_NEAR)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    if known is not None and known not in near[:1]:
        hint += f"{'' if near else ';'} without {option} it is {known!r}"
    raise UsageError(f"{option} {field!r}: no such column among {columns_line(rows)}{hint}")


def _paths(rows: list[Mapping[str, Any]]) -> list[str]:
    """The columns, and the fields inside them one level down."""
    paths: dict[str, None] = {}
    for row in rows:
        for name, value in row.items():
            paths[name] = None
            inside = object_in(value) if isinstance(value, str) else value
            if isinstance(inside, Mapping):
                paths.update(dict.fromkeys(f"{name}.{inner}" for inner in inside))
    return list(paths)


def columns_line(rows: list[Mapping[str, Any]]) -> str:
    """The columns of some rows, for an error's line."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    shown = ", ".join(repr(name) for name in columns[:30])
    return "the columns " + shown + (", …" if len(columns) > 30 else "") if columns else "no column"


def type_name(value: Any) -> str:
    """What kind of value it is, in words."""
    names = {dict: "an object", list: "a list", bool: "true or false", int: "a number"}
    names |= {float: "a number", str: "a string", type(None): "null"}
    return names.get(type(value), f"of type {type(value).__name__}")
