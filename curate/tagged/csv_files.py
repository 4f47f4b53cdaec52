"""CSV as it is written: cells, line ends, and whether a row can be read again from it."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from curate.datasets.fields import RowRejected
from curate.datasets.golds import decimal_text
from curate.datasets.layouts import Layout, Question, read_question
from curate.datasets.row import json_text
from curate.errors import UsageError

if TYPE_CHECKING:
    from _csv import Writer as CsvWriter


class _LineEnds:
    """A text file whose rows come ended by CR LF, and are written ended by LF."""

    def __init__(self, file: io.TextIOBase) -> None:
        self.file = file

    def write(self, row: str) -> int:
        return self.file.write(row.removesuffix("\r\n") + "\n")


def csv_writer(file: io.TextIOBase) -> CsvWriter:
    """A writer of CSV with lines ended by LF, in which a cell with any line end is quoted.

    Before Python 3.13 the `csv` module leaves a lone CR unquoted unless rows end in one.
    """
    return csv.writer(_LineEnds(file), lineterminator="\r\n")


def csv_cell(value: object) -> str:
    """A value as it stands in CSV."""
    if value is None or (isinstance(value, float | Decimal) and not math.isfinite(value)):
        return ""
    # As a gold answer is read from it, lest it be another answer when it is read again.
    return decimal_text(value) if isinstance(value, float | Decimal) else as_string(value)


def as_string(value: object) -> str:
    """A string as it is; anything else as JSON, but without quotes around a date or a decimal."""
    text = value if isinstance(value, str) else json_text(value)
    return text if isinstance(value, str) or text[:1] != '"' else str(json.loads(text))


def check_reads_back(
    number: int, value: Mapping[str, Any], question: Question, layout: Layout
) -> None:
    """Refuse CSV for a row whose question would be another one when it is read again.

    Raises:
        UsageError: so it would.
    """
    cells = {name: csv_cell(inner) for name, inner in value.items()}
    try:
        again: Question | None = read_question(cells, layout)
    except RowRejected:
        again = None
    if (
        again is None
        or again.item_id != question.item_id
        or again.is_plain_text != question.is_plain_text
    ):
        raise UsageError(
            f"row {number}: in CSV, where all is text, its prompt and answer would be read as "
            "others; write .jsonl or .parquet"
        )
