"""Checking a JSON value against a schema: the few keywords that structured answers here use.

The schema that a server is asked to keep to and the one that its answer is checked against are the
same value, since servers are not trusted to keep to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

_KINDS: dict[str, Callable[[Any], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    # In Python true is a number.
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
}


def json_object(properties: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of an object with these members, all required, and no other."""
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }


def schema_problem(value: Any, schema: Mapping[str, Any], place: str = "the answer") -> str | None:
    """Return what is wrong with a value, in one line; None where it fits the schema.

    Args:
        value: as `json.loads` reads it.
        schema: with `type` (object, array, string or integer), `properties` of which all are
            required and no other allowed, `items`, `minItems`, `maxItems`, `enum`, `minLength`.
            Other keywords are for the server only.
        place: what the value is called.
    """
    kind = schema["type"]
    if not _KINDS[kind](value):
        return f"{place} is no {kind}"
    if "enum" in schema and value not in schema["enum"]:
        return f"{place} is not one of {', '.join(map(str, schema['enum']))}"
    if kind == "string" and len(value.strip()) < schema.get("minLength", 0):
        return f"{place} is empty"
    if kind == "object":
        return _object_problem(value, schema["properties"], place)
    if kind == "array":
        return _array_problem(value, schema, place)
    return None


def _object_problem(
    value: Mapping[str, Any], properties: Mapping[str, Any], place: str
) -> str | None:
    for name in properties:
        if name not in value:
            return f"{place} has no {name!r}"
    if len(value) > len(properties):
        return f"{place} has more than {', '.join(properties)}"
    problems = (schema_problem(value[name], each, name) for name, each in properties.items())
    return next(filter(None, problems), None)


def _array_problem(value: list[Any], schema: Mapping[str, Any], place: str) -> str | None:
    fewest, most = schema.get("minItems", 0), schema.get("maxItems", len(value))
    if not fewest <= len(value) <= most:
        return f"{place} has {len(value)} entries, not {fewest} to {most}"
    problems = (schema_problem(each, schema["items"], f"an entry of {place}") for each in value)
    return next(filter(None, problems), None)
