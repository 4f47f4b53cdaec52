"""Writing the tagged dataset: every row and column of the source, in its order, plus the tags.

What a format can keep, it keeps. JSON in and JSON out splices the tags into each row's own text,
so that NaN, 1e5, huge integers and the order of keys survive; Parquet in and Parquet out copies
the Arrow batches under the original schema, with its metadata. The other ways go through values:

- to JSON, NaN and infinities become null, dates ISO 8601, decimals strings, bytes text or else
  base64;
- to CSV, strings stand as they are, null is an empty cell (NaN and infinities too), all else is
  JSON;
- to Parquet from JSON or CSV, each column's type is inferred over all rows in a first pass.
  Columns whose values cannot share one type (ints and floats among them, lest 72 become 72.0)
  become strings, in which values that were no strings are JSON.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curate.datasets.json_objects import row_object, with_members, without_members
from curate.datasets.row import SourceRow, json_text
from curate.datasets.source import Source
from curate.errors import RunError, UsageError
from curate.files import atomic_writer
from curate.tagged.csv_files import as_string, csv_cell, csv_writer

Annotation = Mapping[str, object]

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
"""Of the files that can be written; the suffix decides the format."""

_BATCH_ROWS = 1024
_ROW_GROUP_BYTES = 64 * 1024 * 1024


def write_tagged(
    source: Source,
    out: Path,
    annotations: Iterable[Annotation],
    schema: pa.Schema,
    *,
    replace_columns: bool = False,
    suffix: str = "",
) -> int:
    """Write the source with the columns of `schema` added to `out`; the number of rows written.

    One annotation a source row, in order, rows that cannot be read included: a key that it lacks
    is null, a key that the schema lacks is left out. The suffix of `out`, or another that is
    given, decides the format: .jsonl, .json, .csv or .parquet. A row that is no JSON object has
    only the tag columns, or null elsewhere. `out` appears whole or not at all.

    Raises UsageError for what `check_out` and `check_columns` refuse, and RunError where rows and
    annotations differ in number, the source has changed since it was opened, or the disk fails.
    """
    check_out(source, out, suffix)
    check_columns(source.columns, schema, replace_columns)
    write = _WRITERS[suffix or out.suffix.lower()]
    counted = _Counted(source, annotations)
    try:
        with atomic_writer(out) as file:
            write(file, source, counted, schema, replace_columns)
            counted.check_complete()
            source.check_unchanged()
    except (OSError, pa.ArrowException) as error:
        reason = getattr(error, "strerror", None) or error
        raise RunError(f"cannot write {out}: {reason}") from error
    return counted.rows


def check_out(source: Source, out: Path, suffix: str = "", *, make_folder: bool = True) -> None:
    """Raise UsageError if `out` is no place to write the tagged dataset; may make its folder."""
    if not suffix and out.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{out}: the suffix must be one of {', '.join(SUFFIXES)}")
    try:
        if out.exists():
            if source.path is not None and out.samefile(source.path):
                raise UsageError(f"{out} is the dataset itself; write to another file")
            if not out.is_file():
                raise UsageError(f"cannot write {out}: not a regular file")
        for part in source.parts:
            if part.path is not None and part.path.resolve().parent == out.resolve().parent:
                raise UsageError(f"{out} lies among the files of the dataset; write elsewhere")
        if make_folder:
            out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write {out}: {error.strerror}") from error
    there = next(folder for folder in out.absolute().parents if folder.exists())
    if not os.access(there, os.W_OK | os.X_OK) or not there.is_dir():
        raise UsageError(f"cannot write {out}: its folder is not writable")


def check_columns(source_columns: Iterable[str], schema: pa.Schema, replace_columns: bool) -> None:
    """Raise UsageError if tag columns are in the dataset already and are not to be replaced."""
    present = set(source_columns)
    clashing = [name for name in schema.names if name in present]
    if clashing and not replace_columns:
        more = f" and {len(clashing) - 3} more" if len(clashing) > 3 else ""
        raise UsageError(
            "--replace-columns writes new columns in the place of those that the dataset "
            f"already has: {', '.join(clashing[:3])}{more}"
        )


class _Counted:
    """Pairs rows with annotations, and counts: neither may be longer than the other."""

    def __init__(self, source: Source, annotations: Iterable[Annotation]) -> None:
        self.source = source
        self.annotations = iter(annotations)
        self.rows = 0

    def take(self, count: int) -> list[Annotation]:
        taken = list(islice(self.annotations, count))
        if len(taken) < count:
            raise RunError(
                f"{self.source.name}: more rows than the {self.rows + len(taken)} that were tagged"
            )
        self.rows += count
        return taken

    def pairs(self) -> Iterator[tuple[SourceRow, Annotation]]:
        for row in self.source.rows():
            yield row, self.take(1)[0]

    def check_complete(self) -> None:
        if next(self.annotations, None) is not None:
            raise RunError(f"{self.source.name}: only {self.rows} rows, fewer than were tagged")


# --- JSON ------------------------------------------------------------------------------------


def _write_jsonl(
    file: IO[bytes], source: Source, counted: _Counted, schema: pa.Schema, replace: bool
) -> None:
    for text in _json_objects(source, counted, schema, replace):
        # An object of a JSON array may span lines; between its tokens any space is as good.
        file.write(text.replace("\n", " ").encode("utf-8") + b"\n")


def _write_json(
    file: IO[bytes], source: Source, counted: _Counted, schema: pa.Schema, replace: bool
) -> None:
    before = b"[\n"
    for text in _json_objects(source, counted, schema, replace):
        file.write(before + text.encode("utf-8"))
        before = b",\n"
    file.write(b"\n]\n")


def _json_objects(
    source: Source, counted: _Counted, schema: pa.Schema, replace: bool
) -> Iterator[str]:
    is_json = source.format in ("jsonl", "json")
    for row, annotation in counted.pairs():
        value, text = row_object(row) if is_json else (row.value or {}, json_text(row.value or {}))
        if any(name in value for name in schema.names):
            check_columns(value, schema, replace)
            text = without_members(text, schema.names)
        yield with_members(text, json_text({name: annotation.get(name) for name in schema.names}))


# --- CSV -------------------------------------------------------------------------------------


def _write_csv(
    file: IO[bytes], source: Source, counted: _Counted, schema: pa.Schema, replace: bool
) -> None:
    found = columns_of(source)
    check_columns(found, schema, replace)
    columns = [name for name in found if name not in schema.names]
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    writer = csv_writer(text)
    writer.writerow([*columns, *schema.names])
    for row, annotation in counted.pairs():
        value = row.value or {}
        cells = [value.get(name) for name in columns]
        tags = [annotation.get(name) for name in schema.names]
        writer.writerow([csv_cell(item) for item in cells + tags])
    text.flush()
    text.detach()  # Or it would close the file under its owner.


def columns_of(source: Source) -> list[str]:
    """The columns of all rows, in the order in which they first occur."""
    if source.schema is not None or source.format == "csv":
        return list(source.columns)
    columns: dict[str, None] = {}
    for row in source.rows():
        columns.update(dict.fromkeys(row.value or ()))
    return list(columns)


# --- Parquet ---------------------------------------------------------------------------------


def _write_parquet(
    file: IO[bytes], source: Source, counted: _Counted, schema: pa.Schema, replace: bool
) -> None:
    original = source.schema
    if original is None:
        original = _inferred_schema(source)
        check_columns(original.names, schema, replace)
        batches = _inferred_batches(source, original)
    else:
        batches = source.batches()
    kept = [field for field in original if field.name not in schema.names]
    full = pa.schema([*kept, *schema], metadata=original.metadata)
    waiting: list[pa.RecordBatch] = []
    waiting_bytes = 0
    with pq.ParquetWriter(file, full) as writer:
        for batch in batches:
            annotations = counted.take(batch.num_rows)
            columns = [batch.column(field.name) for field in kept]
            for field in schema:
                tags = [annotation.get(field.name) for annotation in annotations]
                # from_pandas: NaN is no number to show; unknown is null.
                columns.append(pa.array(tags, type=field.type, from_pandas=True))
            waiting.append(pa.RecordBatch.from_arrays(columns, schema=full))
            waiting_bytes += waiting[-1].nbytes
            if waiting_bytes >= _ROW_GROUP_BYTES:
                writer.write_table(pa.Table.from_batches(waiting))
                waiting.clear()
                waiting_bytes = 0
        if waiting:
            writer.write_table(pa.Table.from_batches(waiting))


class _Mixed(Exception):
    """Values have no Arrow type in common that keeps each as it is."""


def _inferred_schema(source: Source) -> pa.Schema:
    """One type a column, over all rows; string for a column that has no one type."""
    types: dict[str, pa.DataType] = {}
    mixed: set[str] = set()
    for row in source.rows():
        for name, value in (row.value or {}).items():
            if name not in mixed:
                try:
                    types[name] = _widened(types.get(name, pa.null()), value)
                except _Mixed:
                    types[name] = pa.string()
                    mixed.add(name)
    return pa.schema(
        [(name, known if _is_storable(known) else pa.string()) for name, known in types.items()]
    )


def _widened(known: pa.DataType, value: object) -> pa.DataType:
    """`known` made wide enough for one more JSON value; null is the type of no value yet."""
    if value is None:
        return known
    is_new = pa.types.is_null(known)
    if isinstance(value, list) and (is_new or pa.types.is_list(known)):
        inner = pa.null() if is_new else known.value_type
        for item in value:
            inner = _widened(inner, item)
        return pa.list_(inner)
    if isinstance(value, dict) and (is_new or pa.types.is_struct(known)):
        fields = {} if is_new else {field.name: field.type for field in known}
        for name, item in value.items():
            fields[name] = _widened(fields.get(name, pa.null()), item)
        return pa.struct(list(fields.items()))
    scalar = _scalar_type(value)
    if scalar is not None and (is_new or known == scalar):
        return scalar
    raise _Mixed


def _scalar_type(value: object) -> pa.DataType | None:
    if isinstance(value, bool):
        return pa.bool_()
    if isinstance(value, int):
        return pa.int64() if -(2**63) <= value < 2**63 else None
    if isinstance(value, float):
        return pa.float64()
    return pa.string() if isinstance(value, str) else None


def _is_storable(known: pa.DataType) -> bool:
    """Whether Parquet can hold the type: it has no struct without fields."""
    if pa.types.is_list(known):
        return _is_storable(known.value_type)
    if pa.types.is_struct(known):
        return known.num_fields > 0 and all(_is_storable(field.type) for field in known)
    return True


def _inferred_batches(source: Source, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    rows = source.rows()
    while chunk := [row.value or {} for row in islice(rows, _BATCH_ROWS)]:
        columns = []
        for field in schema:
            values = [value.get(field.name) for value in chunk]
            if pa.types.is_string(field.type):
                values = [None if value is None else as_string(value) for value in values]
            columns.append(pa.array(values, type=field.type))
        yield pa.RecordBatch.from_arrays(columns, schema=schema)


_Writer = Callable[[IO[bytes], Source, _Counted, pa.Schema, bool], None]
_WRITERS: dict[str, _Writer] = {
    ".jsonl": _write_jsonl,
    ".json": _write_json,
    ".csv": _write_csv,
    ".parquet": _write_parquet,
}


def read_table(source: Source) -> pa.Table:
    """Read a whole source as one Arrow table, typed as `write_tagged` types Parquet."""
    schema, batches = read_batches(source)
    return pa.Table.from_batches(batches, schema=schema)


def read_batches(source: Source) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """Read a source as `read_table` does, but some rows at a time: its schema, and its batches."""
    if source.schema is not None:
        return source.schema, source.batches()
    schema = _inferred_schema(source)
    return schema, _inferred_batches(source, schema)


def with_types(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Give the tag columns their types, which a CSV or JSON file does not keep.

    Raises pa.ArrowInvalid for a value that is none of its column.
    """
    for field in schema:
        column = table[field.name]
        if pa.types.is_string(column.type):  # In CSV null is an empty cell.
            column = pc.if_else(pc.equal(column, ""), None, column)
        place = table.schema.get_field_index(field.name)
        table = table.set_column(place, field, column.cast(field.type))
    return table
