"""Filling columns of a tagged file in place: every other value, row and column stays.

JSON rows keep their own text but for the values; Parquet keeps its metadata and row groups; CSV is
written as `curate.tagged.write` writes it. A column that the file does not have comes at its end.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curate.datasets.json_objects import row_object, with_members, with_value
from curate.datasets.row import json_text
from curate.datasets.source import Source, open_source
from curate.errors import CurateError, RunError, UsageError
from curate.files import atomic_writer
from curate.run.run import Run
from curate.tagged.csv_files import csv_cell, csv_writer
from curate.tagged.write import Annotation

_KEY = "item_id"
_NOTHING: Annotation = {}


def fill_tagged(run: Run, schema: pa.Schema, found: Mapping[str, Annotation]) -> list[str]:
    """Fill columns of the tagged file of a run; a note where that file is not there to be filled.

    Args:
        run: that wrote the file.
        schema: the columns.
        found: their values by item_id; what is missing is null.
    """
    rows = [(each, found.get(each, _NOTHING)) for each in run.rows(_KEY)[_KEY].to_pylist()]
    try:
        set_columns(Path(run.config.out), schema, rows)
    except CurateError as error:
        return [f"the tagged file was not filled in: {error}; `curate tag` writes it anew"]
    return []


def set_columns(
    path: Path, schema: pa.Schema, rows: Sequence[tuple[str | None, Annotation]]
) -> None:
    """Write the values of columns of a tagged file; the file is replaced at one stroke.

    Args:
        path: a tagged file, in any of its formats.
        schema: the columns, which the file may have or not.
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
    values = _Values(path, rows)
    try:
        with atomic_writer(path) as file:
            _WRITERS[source.format](file, source, values, schema)
            values.check_complete()
            source.check_unchanged()
    except (OSError, pa.ArrowException) as error:
        raise RunError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from (
            error
        )


class _Values:
    """Hands out the new values in order, and refuses a file whose rows are others."""

    def __init__(self, path: Path, rows: Sequence[tuple[str | None, Annotation]]) -> None:
        self.path = path
        self.rows = rows
        self.taken = 0

    def take(self, item_ids: Sequence[str | None]) -> list[Annotation]:
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


def _json_rows(source: Source, values: _Values, schema: pa.Schema) -> Iterator[str]:
    for row in source.rows():
        value, text = row_object(row)
        (new,) = values.take([value.get(_KEY)])
        for name in schema.names:
            if name in value:
                text = with_value(text, name, json_text(new.get(name)))
            elif name in source.columns:
                raise UsageError(f"{source.path}: row {row.row} has no {name}")
            else:
                text = with_members(text, json_text({name: new.get(name)}))
        yield text


def _fill_jsonl(file: IO[bytes], source: Source, values: _Values, schema: pa.Schema) -> None:
    for text in _json_rows(source, values, schema):
        file.write(text.encode("utf-8") + b"\n")


def _fill_json(file: IO[bytes], source: Source, values: _Values, schema: pa.Schema) -> None:
    before = b"[\n"
    for text in _json_rows(source, values, schema):
        file.write(before + text.encode("utf-8"))
        before = b",\n"
    file.write(b"\n]\n")


def _fill_csv(file: IO[bytes], source: Source, values: _Values, schema: pa.Schema) -> None:
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    writer = csv_writer(text)
    writer.writerow(dict.fromkeys([*source.columns, *schema.names]))
    for row in source.rows():
        if row.value is None:
            raise UsageError(f"{source.path}: row {row.row} cannot be read: {row.problem}")
        (new,) = values.take([row.value[_KEY]])
        cells = {name: csv_cell(new.get(name)) for name in schema.names}
        writer.writerow((row.value | cells).values())
    text.flush()
    text.detach()  # Or it would close the file under its owner.


def _fill_parquet(file: IO[bytes], source: Source, values: _Values, schema: pa.Schema) -> None:
    with pq.ParquetFile(source.path) as given:
        filled = given.schema_arrow
        for field in schema:
            place = filled.get_field_index(field.name)
            if place < 0:
                filled = filled.append(field)
            elif pa.types.is_null(filled.field(place).type):  # As some programs type nulls.
                filled = filled.set(place, field)
        with pq.ParquetWriter(file, filled) as writer:
            for group in range(given.num_row_groups):
                table = given.read_row_group(group)
                new = values.take(pc.cast(table[_KEY], pa.string()).to_pylist())
                columns = {name: table[name] for name in table.column_names}
                for name in schema.names:
                    kind = filled.field(name).type
                    columns[name] = pa.array([each.get(name) for each in new], kind)
                writer.write_table(pa.table(list(columns.values()), schema=filled))


_WRITERS: dict[str, Callable[[IO[bytes], Source, _Values, pa.Schema], None]] = {
    "jsonl": _fill_jsonl,
    "json": _fill_json,
    "csv": _fill_csv,
    "parquet": _fill_parquet,
}
