"""Filling in columns of a tagged file in place: every other value, row and column stays.

JSON rows keep their own text but for the one value; Parquet keeps its schema, metadata and row
groups; CSV is written as `curate.tagged.write` writes it.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curate.datasets.json_objects import row_object, with_value
from curate.datasets.source import Source, json_text, open_source
from curate.errors import RunError, UsageError
from curate.files import atomic_writer
from curate.tagged import write as tagged
from curate.tagged.write import Annotation

_KEY = "item_id"
# What a row is known by, and what the column shall say of it.
_Filled = tuple[str | None, str | None]


def fill_column(path: Path, column: str, rows: Sequence[_Filled]) -> None:
    """Write the values of one column of a tagged file; the file is replaced at one stroke.

    Args:
        path: a tagged file, in any of its formats.
        column: that it has, of text or null.
        rows: `item_id` and the new value of every row, in order; None is null.

    Raises:
        UsageError: the file cannot be read, or is another: its rows are not these; it stays as it
            is.
        RunError: the disk fails, or the file changed meanwhile.
    """
    if not path.is_file():
        raise UsageError(f"no such file: {path}")
    source = open_source(path)
    missing = [name for name in (_KEY, column) if name not in source.columns]
    if missing:
        raise UsageError(f"{path} is no tagged file: it has no column {' or '.join(missing)}")
    try:
        with atomic_writer(path) as file:
            _WRITERS[source.format](file, source, _Rows(path, column, rows))
            source.check_unchanged()
    except (OSError, pa.ArrowException) as error:
        raise RunError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from (
            error
        )


def set_columns(
    path: Path, schema: pa.Schema, rows: Sequence[tuple[str | None, Annotation]]
) -> None:
    """Write columns of a tagged file, which may have them or not, at its end; at one stroke.

    Args:
        path: a tagged file, in any of its formats.
        schema: the columns.
        rows: `item_id` and the values of every row, in order; what is missing is null.

    Raises:
        UsageError: the file cannot be read, or is another: its rows are not these; it stays as it
            is.
        RunError: the disk fails, or the file changed meanwhile.
    """
    if not path.is_file():
        raise UsageError(f"no such file: {path}")
    source = open_source(path)
    if _KEY not in source.columns:
        raise UsageError(f"{path} is no tagged file: it has no column {_KEY}")
    expected = _Rows(path, _KEY, [(item_id, item_id) for item_id, _ in rows])
    is_json = source.format in ("jsonl", "json")
    for row in source.rows():
        value = row_object(row)[0] if is_json else row.value or {}
        expected.take([value.get(_KEY)])
    expected.check_complete()
    tagged.set_columns(source, [values for _, values in rows], schema)


class _Rows:
    """Hands out the new values in order, and refuses a file whose rows are others."""

    def __init__(self, path: Path, column: str, rows: Sequence[_Filled]) -> None:
        self.path = path
        self.column = column
        self.rows = rows
        self.taken = 0

    def take(self, item_ids: Sequence[str | None]) -> list[str | None]:
        taken = self.rows[self.taken : self.taken + len(item_ids)]
        for place, item_id in enumerate(item_ids):
            # In CSV null is an empty cell.
            if place >= len(taken) or (item_id or None) != taken[place][0]:
                raise UsageError(
                    f"{self.path} is not the file that this run wrote: its row "
                    f"{self.taken + place + 1} is another item"
                )
        self.taken += len(taken)
        return [value for _, value in taken]

    def check_complete(self) -> None:
        if self.taken < len(self.rows):
            raise UsageError(
                f"{self.path} is not the file that this run wrote: it has {self.taken:,} rows, "
                f"not {len(self.rows):,}"
            )


def _json_rows(source: Source, rows: _Rows) -> Iterator[str]:
    for row in source.rows():
        value, text = row_object(row)
        filled = rows.take([value.get(_KEY)])
        if rows.column not in value:
            raise UsageError(f"{source.path}: row {row.row} has no {rows.column}")
        yield with_value(text, rows.column, json_text(filled[0]))
    rows.check_complete()


def _fill_jsonl(file: IO[bytes], source: Source, rows: _Rows) -> None:
    for text in _json_rows(source, rows):
        file.write(text.encode("utf-8") + b"\n")


def _fill_json(file: IO[bytes], source: Source, rows: _Rows) -> None:
    before = b"[\n"
    for text in _json_rows(source, rows):
        file.write(before + text.encode("utf-8"))
        before = b",\n"
    file.write(b"\n]\n")


def _fill_csv(file: IO[bytes], source: Source, rows: _Rows) -> None:
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(source.columns)
    for row in source.rows():
        if row.value is None:
            raise UsageError(f"{source.path}: row {row.row} cannot be read: {row.problem}")
        filled = rows.take([row.value[_KEY]])
        writer.writerow((row.value | {rows.column: filled[0] or ""}).values())
    rows.check_complete()
    text.flush()
    text.detach()  # Or it would close the file under its owner.


def _fill_parquet(file: IO[bytes], source: Source, rows: _Rows) -> None:
    with pq.ParquetFile(source.path) as given:
        schema = given.schema_arrow
        place = schema.get_field_index(rows.column)
        field = schema.field(place)
        if pa.types.is_null(field.type):  # Written by a program that types nulls as such.
            field = field.with_type(pa.string())
        with pq.ParquetWriter(file, schema.set(place, field)) as writer:
            for group in range(given.num_row_groups):
                table = given.read_row_group(group)
                item_ids = pc.cast(table[_KEY], pa.string()).to_pylist()
                filled = pa.array(rows.take(item_ids), field.type)
                writer.write_table(table.set_column(place, field, filled))
    rows.check_complete()


_WRITERS: dict[str, Callable[[IO[bytes], Source, _Rows], None]] = {
    "jsonl": _fill_jsonl,
    "json": _fill_json,
    "csv": _fill_csv,
    "parquet": _fill_parquet,
}
