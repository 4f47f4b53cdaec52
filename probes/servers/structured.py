"""Answers of a given structure: the schema that a server is asked to keep to, and the check of it.

Both come of one pydantic model, since servers are not trusted to keep to what they are asked for.
What binds the server alone, such as a longest text, stands in a field's `json_schema_extra`.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, StringConstraints, ValidationError

from curate.errors import one_line

_SHOWN_CHARACTERS = 100


def _whole(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("half of a surrogate pair is no text") from None
    return text


Text = Annotated[str, AfterValidator(_whole)]
"""A text that can be written: JSON may hold half of a character."""
NotEmpty = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1), AfterValidator(_whole)
]
"""A text of more than spaces."""


class Structured(BaseModel):
    """A JSON object with these members, all of which are required, and no other."""

    model_config = ConfigDict(extra="forbid", strict=True)


def schema_of(structure: type[Structured]) -> dict[str, Any]:
    """The JSON schema for a server, without the titles and docstrings that pydantic adds."""
    schema: dict[str, Any] = _bare(structure.model_json_schema())
    return schema


def structure_problem(value: Any, structure: type[Structured]) -> str | None:
    """What is wrong with a value, in one line; None where it fits.

    Args:
        value: untrusted, as `json.loads` reads it.
        structure: what it must be.
    """
    try:
        structure.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))[:_SHOWN_CHARACTERS] or "the answer"
        return one_line(f"{place}: {first['msg'][0].lower()}{first['msg'][1:]}")
    return None


def _bare(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_bare(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    # A member may be called as a keyword is: the names of `properties` are no keywords.
    return {
        key: {name: _bare(of) for name, of in each.items()} if key == "properties" else _bare(each)
        for key, each in schema.items()
        if key not in ("title", "description")
    }
