"""Rows with types of their own: of Parquet files, and of what the library `datasets` loads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curate.datasets import arrow
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
    return arrow.plain_schema(schema)


def parquet_batches(path: Path, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Stream a Parquet file under the schema that `parquet_schema` gave."""
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_BATCH_ROWS):
                yield arrow.plain_batch(batch, schema)
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
            values = arrow.with_short_floats(batch).to_pylist()
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
        return SourceRow(number, arrow.with_short_floats(single).to_pylist()[0])
    except UnicodeDecodeError as error:
        return SourceRow(number, None, f"invalid UTF-8 at byte {error.start + 1} of a cell")
    except (ValueError, OverflowError) as error:
        return SourceRow(number, None, f"a cell cannot be read: {error_line(error)}")
