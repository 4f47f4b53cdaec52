"""The write stage: the dataset with what is known of each row, as the tables of the run have it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from curate.config import TagConfig
from curate.datasets.source import Source
from curate.run.folder import RunFolder
from curate.run.quality import read_reasoning_quality
from curate.run.tables import (
    CONFIRMED,
    ITEM_ANSWERS,
    ITEMS,
    LIFT,
    PASS_RATES,
    ROWS,
    SIMILARITY,
    TAGS,
    TEACHING,
)
from curate.run.tagged_rows import why_untagged
from curate.tagged.write import write_tagged
from curate.tags import REASONING_QUALITY

# Rows of which the evidence is held as Python objects.
_ROWS_AT_ONCE = 4096


def write_rows(
    run: RunFolder, config: TagConfig, source: Source, schema: pa.Schema, row_of: Mapping[str, int]
) -> dict[str, Any]:
    """Write the tagged file; return the stage's counts.

    Args:
        run: whose items have tags.
        config: of the run, which says where the file goes.
        source: the dataset.
        schema: of the columns that are added.
        row_of: position of each item by item_id.

    Raises:
        UsageError: the dataset has such columns already.
        RunError: the disk is full, the dataset changed, or a file of the run is damaged.
    """
    columns: dict[str, pa.ChunkedArray] = {}
    for written in (PASS_RATES, ITEM_ANSWERS, SIMILARITY, LIFT, TEACHING, TAGS):
        # A run of an earlier version that `curate forecast` tags anew has no teaching.
        if written is not TEACHING or TEACHING.is_in(run):
            table = written.read(run)
            columns |= dict(zip(table.column_names, table.columns, strict=True))
    if config.verifier_field:
        columns["verified_by"] = ITEMS.read(run, "verifier")["verifier"]
    if CONFIRMED.is_in(run):  # Written by `curate confirm`, in the order of the items.
        name = "confirmed_trainability"
        columns[name] = CONFIRMED.read(run, name)[name]
    judged = read_reasoning_quality(run.path, columns["item_id"].combine_chunks())
    if judged is not None:
        columns |= {name: judged[name] for name in REASONING_QUALITY.names}
    evidence = pa.table({name: columns[name] for name in schema.names if name in columns})
    rows = write_tagged(
        source,
        Path(config.out),
        _annotations(run, evidence, row_of),
        schema,
        replace_columns=config.replace_columns,
    )
    return {"rows": rows, "rows_this_time": rows, "file": config.out}


def _annotations(
    run: RunFolder, evidence: pa.Table, row_of: Mapping[str, int]
) -> Iterator[dict[str, object]]:
    """Yield what is said of each row of the dataset, some rows at a time."""
    rows = ROWS.read(run, "item_id", "reason")
    for batch in rows.to_batches(max_chunksize=_ROWS_AT_ONCE):
        item_ids, reasons = (column.to_pylist() for column in batch.columns)
        places = pa.array([None if i is None else row_of[i] for i in item_ids], pa.int64())
        found = evidence.take(places).to_pylist()
        for item_id, reason, values in zip(item_ids, reasons, found, strict=True):
            if item_id is None:
                yield {"tag_reason": why_untagged(reason)}
            else:
                yield values
