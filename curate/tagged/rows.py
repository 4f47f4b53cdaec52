"""Opening a tagged dataset, and taking some of its rows, or all in another order."""

from __future__ import annotations

import dataclasses
import json
import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa

from curate.config import TagConfig
from curate.datasets.json_objects import with_names
from curate.datasets.source import Source, SourceRow, open_source
from curate.errors import UsageError
from curate.run.folder import find_run, read_manifest, read_run_config
from curate.run.names import MANIFEST, runs_here
from curate.run.tagged_rows import check_written_by, run_of_rows
from curate.tagged.rules import PREDICTED
from curate.tags import tag_schema

_BATCH_ROWS = 1024
_TYPES = {
    field.name: field.type
    for field in tag_schema([], target=True, judged=True, mixed=True, rewards=True)
}
_PASS_AT = re.compile(r"pass_at_[1-9]\d*")


@dataclass(frozen=True)
class TaggedDataset:
    """A tagged dataset, and the settings of the run that wrote it, where that run is known.

    Attributes:
        run: the run in `./runs` that tagged these rows, where another file is what it wrote.
    """

    source: Source
    config: TagConfig | None
    run: Path | None = None


def open_tagged(path: str | Path) -> TaggedDataset:
    """Open a tagged file, or that of a run folder.

    The run of a file is looked for in `./runs`: that which wrote the file, or else, as for a part
    of such a file, that which tagged its rows.

    Raises:
        UsageError: it cannot be read, is not tagged, or is not what the run folder given wrote.
        RunError: a file of the run is missing or damaged.
    """
    given = Path(path)
    if (given / MANIFEST).exists():
        config: TagConfig | None = _finished_config(given)
        file = Path(config.out) if config else given
    else:
        if len(given.parts) > 1 and given.parent.is_dir() and not given.exists():
            raise UsageError(f"no such run folder or tagged file: {given}{runs_here(given)}")
        config, file = _config_of(given), given
    source = open_source(file)
    if PREDICTED not in source.columns:
        raise UsageError(
            f"{file} is no tagged dataset: it has no column {PREDICTED}; `curate tag` writes one"
        )
    if source.format == "csv":
        source = dataclasses.replace(source, _rows=partial(_csv_rows, source))
    if file != given:
        check_written_by(source, given)
    run = run_of_rows(source) if config is None else None
    return TaggedDataset(source, config if run is None else read_run_config(run), run)


def tag_columns(names: Sequence[str]) -> list[str]:
    """Those of the columns that `curate tag` wrote."""
    return [name for name in names if _tag_type(name) is not None]


def values_of(source: Source) -> Iterator[dict[str, Any]]:
    """Every row's values; none where a row cannot be read."""
    return (row.value or {} for row in source.rows())


def take_rows(source: Source, places: Sequence[int]) -> Source:
    """The rows at these places, counted from 0, in this order, as a dataset of its own.

    Falling places need the rows in memory, as their text where they are JSON; rising ones are
    streamed.
    """
    is_rising = all(a < b for a, b in pairwise(places))
    rows, batches = (_rising_rows, _rising_batches) if is_rising else (_any_rows, _any_batches)
    return dataclasses.replace(
        source,
        _rows=partial(rows, source, places),
        _batches=None if source.schema is None else partial(batches, source, places),
    )


def with_other_names(source: Source, names: Mapping[str, str]) -> Source:
    """A dataset in which some columns have other names."""
    if not names:
        return source
    schema = source.schema
    if schema is not None:
        fields = [field.with_name(names.get(field.name, field.name)) for field in schema]
        schema = pa.schema(fields, metadata=schema.metadata)
    return dataclasses.replace(
        source,
        columns=tuple(names.get(name, name) for name in source.columns),
        schema=schema,
        _rows=partial(_named_rows, source, names),
        _batches=None if schema is None else partial(_named_batches, source, schema),
    )


def _named_rows(source: Source, names: Mapping[str, str]) -> Iterator[SourceRow]:
    for row in source.rows():
        if row.value is None:
            yield row
            continue
        value = {names.get(name, name): inner for name, inner in row.value.items()}
        is_json = source.format in ("jsonl", "json") and row.text is not None
        text = with_names(row.text or "", names) if is_json else row.text
        yield dataclasses.replace(row, value=value, text=text)


def _named_batches(source: Source, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    return (batch.rename_columns(schema.names) for batch in source.batches())


def _rising_rows(source: Source, places: Sequence[int]) -> Iterator[SourceRow]:
    wanted = iter(places)
    next_place = next(wanted, None)
    for place, row in enumerate(source.rows()):
        if place == next_place:
            yield row
            next_place = next(wanted, None)


def _any_rows(source: Source, places: Sequence[int]) -> Iterator[SourceRow]:
    if source.format not in ("jsonl", "json"):
        rows = list(source.rows())
        return (rows[place] for place in places)
    # A row's values take several times the memory of its text, which they can be read from again.
    kept = [dataclasses.replace(row, value=None) for row in source.rows()]
    return (
        row if row.problem else dataclasses.replace(row, value=json.loads(row.text or ""))
        for row in (kept[place] for place in places)
    )


def _rising_batches(source: Source, places: Sequence[int]) -> Iterator[pa.RecordBatch]:
    start = 0
    for batch in source.batches():
        stop = start + batch.num_rows
        inside = places[bisect_left(places, start) : bisect_left(places, stop)]
        if inside:
            yield batch.take(pa.array([place - start for place in inside], pa.int64()))
        start = stop


def _any_batches(source: Source, places: Sequence[int]) -> Iterator[pa.RecordBatch]:
    table = pa.Table.from_batches(source.batches(), schema=source.schema)
    for start in range(0, len(places), _BATCH_ROWS):
        part = table.take(pa.array(places[start : start + _BATCH_ROWS], pa.int64()))
        yield from part.combine_chunks().to_batches()


def _finished_config(run: Path) -> TagConfig:
    if read_manifest(run)["stages"].get("write", {}).get("state") != "done":
        raise UsageError(f"{run} has no tagged file yet: continue it with its `curate tag` command")
    config = read_run_config(run)
    if not Path(config.out).exists():
        raise UsageError(
            f"{run} wrote its tagged file to {config.out}, which is not there (seen from here); "
            "give the file itself"
        )
    return config


def _config_of(file: Path) -> TagConfig | None:
    try:
        return read_run_config(find_run(file))
    except UsageError:
        return None  # Whether the file can be used is another question, asked next.


def _tag_type(name: str) -> pa.DataType | None:
    return pa.float64() if _PASS_AT.fullmatch(name) else _TYPES.get(name)


def _csv_rows(source: Source) -> Iterator[SourceRow]:
    """Give the tag columns of a CSV file their types back: there every cell is text."""
    types = {name: _tag_type(name) for name in tag_columns(source.columns)}
    for row in source.rows():
        if row.value is not None:
            typed = {name: _typed(row, name, kind) for name, kind in types.items()}
            row = dataclasses.replace(row, value=row.value | typed)
        yield row


def _typed(row: SourceRow, name: str, kind: pa.DataType | None) -> object:
    values: Mapping[str, Any] = row.value or {}
    cell = values[name]
    if cell == "":
        return None
    if kind == pa.string():
        return cell
    if kind == pa.bool_() and cell in ("true", "false"):
        return cell == "true"
    try:
        return int(cell) if kind == pa.int64() else float(cell)
    except ValueError as error:
        raise UsageError(f"row {row.row}: {name} is {cell!r:.60}, not a number") from error
