"""Rows of CSV, each with its own text."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path

from curate.datasets import text_files
from curate.datasets.row import SourceRow
from curate.errors import UsageError

_CELL_LIMIT = 64 * 1024 * 1024  # Characters: a quote never closed stops here, not at the end.


def check_header(path: Path) -> None:
    """Refuse a file whose columns have no names, or one name twice. Raises UsageError."""
    header, _, problem = next(_records(path), ([], "", "no header"))
    if problem:
        raise UsageError(f"{path}: the CSV header cannot be read: {problem}")
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise UsageError(
            f"{path}: the CSV header names {', '.join(map(repr, twice))} more than once"
        )


def csv_rows(path: Path) -> Iterator[SourceRow]:
    """Rows of a CSV file, with the names of its header."""
    records = _records(path)
    header, _, _ = next(records)
    for number, (cells, text, problem) in enumerate(records, 1):
        if not problem and len(cells) != len(header):
            problem = f"{len(cells)} cells where the header has {len(header)}"
        value = None if problem else dict(zip(header, cells, strict=True))
        yield SourceRow(number, value, problem, text)


def _records(path: Path) -> Iterator[tuple[list[str], str, str | None]]:
    """Cells, text and problem of each record, the header's included; blank lines are none."""
    csv.field_size_limit(_CELL_LIMIT)  # The default, 128 KiB, refuses long prompts.
    lines: list[str] = []

    def remember(file: Iterable[str]) -> Iterator[str]:
        for line in file:
            lines.append(line)
            yield line

    with text_files.open_text(path) as file:
        reader = csv.reader(remember(file), strict=True)
        while True:
            lines.clear()
            problem = None
            cells: list[str] = []
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                problem = f"not CSV: {error}"
            except UnicodeDecodeError as error:
                raise UsageError(f"{path} is not whole UTF-16: {error.reason}") from error
            text = "".join(lines).rstrip("\r\n")
            if not cells and not problem:
                continue
            if "\0" in text:
                problem = problem or "a NUL byte"
            try:
                text.encode("utf-8")
            except UnicodeEncodeError as error:  # An undecodable byte came in as a surrogate.
                problem = f"invalid UTF-8 at character {error.start + 1}"
            yield cells, text, problem
