"""Rows with types of their own: of Parquet files, and of what the library `datasets` loads.

Views (`string_view` and the like, as polars and DuckDB write them) become the plain types: Arrow
itself cannot yet take rows of them. A float of 32 or 16 bits becomes the shortest decimal number
that it stands for: 0.1, which was meant, and not 0.10000000149011612.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curate.datasets.row import SourceRow
from curate.errors import UsageError, error_line

_BATCH_ROWS = 1024


def parquet_schema(path: Path) -> pa.Schema:
    """The schema of a Parquet file, as the rest of the house handles types. Raises UsageError."""
    try:
        schema = pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        raise UsageError(f"{path} is not a readable Parquet file: {error_line(error)}") from error
    twice = sorted({name for name in schema.names if schema.names.count(name) > 1})
    if twice:
        raise UsageError(f"{path}: column {', '.join(map(repr, twice))} occurs more than once")
    return pa.schema(
        [field.with_type(_plain(field.type)) for field in schema], metadata=schema.metadata
    )


def parquet_batches(path: Path, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Stream a Parquet file under the schema that `parquet_schema` gave."""
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_BATCH_ROWS):
                yield batch if batch.schema.equals(schema) else batch.cast(schema)
    except (pa.ArrowException, OSError) as error:
        raise UsageError(f"{path} is damaged: {error_line(error)}") from error


def dataset_batches(dataset: Any) -> Iterator[pa.RecordBatch]:
    """Stream what the library `datasets` has loaded."""
    for table in dataset.with_format("arrow").iter(batch_size=_BATCH_ROWS):
        yield from table.combine_chunks().to_batches()


def typed_rows(batches: Callable[[], Iterable[pa.RecordBatch]]) -> Iterator[SourceRow]:
    """The rows of batches, which have no text of their own."""
    number = 0
    for batch in batches():
        try:
            values = _with_short_floats(batch).to_pylist()
        except (ValueError, OverflowError):  # Some row in it: find out which.
            values = [None] * batch.num_rows
        for index, value in enumerate(values):
            number += 1
            if value is None:
                yield _typed_row(number, batch.slice(index, 1))
            else:
                yield SourceRow(number, value)


def _typed_row(number: int, single: pa.RecordBatch) -> SourceRow:
    try:
        return SourceRow(number, _with_short_floats(single).to_pylist()[0])
    except UnicodeDecodeError as error:
        return SourceRow(number, None, f"invalid UTF-8 at byte {error.start + 1} of a cell")
    except (ValueError, OverflowError) as error:
        return SourceRow(number, None, f"a cell cannot be read: {error_line(error)}")


def _with_short_floats(batch: pa.RecordBatch) -> pa.RecordBatch:
    """A batch whose short floats are of 64 bits, of the value that they are written with."""
    for place, field in enumerate(batch.schema):
        if pa.types.is_float32(field.type) or pa.types.is_float16(field.type):
            column = batch.column(place)
            if pa.types.is_float16(field.type):
                shown = pa.array([None if v is None else str(v) for v in column.to_numpy(False)])
                column = pc.if_else(pc.is_null(column), None, shown)
            else:
                column = pc.cast(column, pa.string())
            wide = pc.cast(column, pa.float64())
            batch = batch.set_column(place, field.name, wide)
    return batch


def _plain(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_binary_view(kind):
        return pa.binary()
    if pa.types.is_list_view(kind) or pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_plain(kind.value_type)))
    if pa.types.is_large_list_view(kind) or pa.types.is_large_list(kind):
        return pa.large_list(kind.value_field.with_type(_plain(kind.value_type)))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_plain(field.type)) for field in kind])
    if pa.types.is_map(kind):
        return pa.map_(_plain(kind.key_type), _plain(kind.item_type), kind.keys_sorted)
    return kind
