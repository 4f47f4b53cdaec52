"""One row of a dataset, and how its values are written as JSON."""

from __future__ import annotations

import base64
import datetime
import json
import math
from dataclasses import dataclass
from typing import Any

RAW_LIMIT = 65_536
"""The longest `SourceRow.raw`, in characters."""


@dataclass(frozen=True, slots=True)
class SourceRow:
    """One row as it stands in the source: either its `value`, or the `problem` it has.

    `row` counts from 1: the line number for JSON Lines (blank lines count but are no rows), the
    position among the data rows elsewhere. `text` is the row's own text, of any length, for JSON
    and CSV, with bytes that are no UTF-8 as "surrogateescape"; None for Parquet and Arrow.
    """

    row: int
    value: dict[str, Any] | None
    problem: str | None = None
    text: str | None = None

    @property
    def raw(self) -> str:
        """What to show of the row: its text, or else its value as JSON, cut at RAW_LIMIT."""
        if self.text is not None:
            content = self.text[:RAW_LIMIT].encode("utf-8", "surrogateescape")
            return content.decode("utf-8", "replace")
        return "" if self.value is None else json_text(self.value)[:RAW_LIMIT]


def json_text(value: Any) -> str:
    """One line of strict JSON for a value of any source; NaN and infinities become null.

    Dates and times are written in ISO 8601, decimals as strings, bytes as text where they are
    UTF-8 and as base64 where not.
    """
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=_plain)
    except ValueError:
        return json.dumps(
            _without_nan(value), ensure_ascii=False, allow_nan=False, default=_plain_without_nan
        )


def _plain(value: object) -> object:
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return base64.b64encode(value).decode("ascii")
    tolist = getattr(value, "tolist", None)  # NumPy's scalars and arrays.
    return tolist() if callable(tolist) else str(value)


def _plain_without_nan(value: object) -> object:
    return _without_nan(_plain(value))


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(inner) for inner in value]
    return value
