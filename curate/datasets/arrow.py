"""Arrow's types as the rest of the house handles them.

Views (`string_view` and the like, as polars and DuckDB write them) become the plain types: Arrow
itself cannot yet take rows of them. A float of 32 or 16 bits becomes the shortest decimal number
that it stands for: 0.1, which was meant, and not 0.10000000149011612.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc


def plain_schema(schema: pa.Schema) -> pa.Schema:
    """A schema without views; its metadata stays."""
    fields = [field.with_type(_plain(field.type)) for field in schema]
    return pa.schema(fields, metadata=schema.metadata)


def plain_batch(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """A batch under the plain schema of its own."""
    return batch if batch.schema.equals(schema) else batch.cast(schema)


def with_short_floats(batch: pa.RecordBatch) -> pa.RecordBatch:
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
    if pa.types.is_list_view(kind):
        return pa.list_(kind.value_field.with_type(_plain(kind.value_type)))
    if pa.types.is_large_list_view(kind):
        return pa.large_list(kind.value_field.with_type(_plain(kind.value_type)))
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_plain(kind.value_type)))
    if pa.types.is_large_list(kind):
        return pa.large_list(kind.value_field.with_type(_plain(kind.value_type)))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_plain(field.type)) for field in kind])
    if pa.types.is_map(kind):
        return pa.map_(_plain(kind.key_type), _plain(kind.item_type), kind.keys_sorted)
    return kind
