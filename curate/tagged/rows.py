"""Opening a tagged dataset, and taking some of its rows, or all in another order."""

from __future__ import annotations

import dataclasses
import json
import re
from bisect import bisect_left
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa

from curate.config import TagConfig
from curate.datasets.json_objects import row_object, with_names, without_members
from curate.datasets.row import SourceRow
from curate.datasets.source import Source, open_source
from curate.errors import UsageError
from curate.run.folder import find_run, read_manifest, read_run_config
from curate.run.names import MANIFEST, runs_here
from curate.run.tagged_rows import check_written_by, run_of_rows
from curate.tagged.joined import (
    as_of_any,
    as_of_model,
    choose_model,
    columns_of_model,
    joined_models,
)
from curate.tagged.rules import PREDICTED
from curate.tagged.write import columns_of
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
        models: the models of a file of `curate join`; none where one model has tagged it.
        model: that of these whose tags count; "" where none was named.
    """

    source: Source
    config: TagConfig | None
    run: Path | None = None
    models: tuple[str, ...] = ()
    model: str = ""

    def columns(self) -> list[str]:
        """The columns of all rows; those of the model that counts under their plain names too."""
        names = columns_of(self.source)
        plain = columns_of_model(names, self.model) if self.model else {}
        return [*dict.fromkeys([*names, *plain])]

    def values(self) -> Iterator[dict[str, Any]]:
        """Every row's values under the names of `columns`; none where a row cannot be read.

        In a file of several models of which none was named, a row has a tag where any has tagged
        it.
        """
        if not self.models:
            return values_of(self.source)
        if not self.model:
            return (as_of_any(value, self.models) for value in values_of(self.source))
        of_model = columns_of_model(columns_of(self.source), self.model)
        return (as_of_model(value, of_model) for value in values_of(self.source))

    def check_tags(self, what: str) -> None:
        """Refuse to go by tags where those of several models are there and none was named.

        Args:
            what: goes by them.

        Raises:
            UsageError: so it is.
        """
        if self.models and not self.model:
            raise UsageError(
                f"{self.source.path or self.source.name} is of several models: --model says whose "
                f"tags {what} goes by ({', '.join(self.models)})"
            )


def open_tagged(path: str | Path, model: str = "") -> TaggedDataset:
    """Open a tagged file, that of a run folder, or one of several models.

    The run of a file is looked for in `./runs`: that which wrote the file, or else, as for a part
    of such a file, that which tagged its rows.

    Args:
        path: the file or folder.
        model: of a file of several models, the one whose tags count.

    Raises:
        UsageError: it cannot be read, is not tagged, is not what the run folder given wrote, or has
            no such model.
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
    models = joined_models(source.columns)
    if PREDICTED not in source.columns and not models:
        raise UsageError(
            f"{file} is no tagged dataset: it has no column {PREDICTED}; `curate tag` writes one"
        )
    choose_model(models, model, file)
    if source.format == "csv":
        source = dataclasses.replace(source, _rows=partial(_csv_rows, source))
    if file != given:
        check_written_by(source, given)
    of_model = columns_of_model(source.columns, model) if model else {}
    plain = {name: short for short, name in of_model.items()}
    run = run_of_rows(with_other_names(source, plain)) if config is None else None
    config = config if run is None else read_run_config(run)
    return TaggedDataset(source, config, run, models, model)


def tag_columns(names: Sequence[str]) -> list[str]:
    """Those of the columns that `curate tag` wrote, of one model or of each of several."""
    return list(_tag_types(names))


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


def without_columns(source: Source, names: Collection[str]) -> Source:
    """A dataset without some of its columns; what a row has else keeps its text."""
    schema = source.schema
    if schema is not None:
        schema = pa.schema(
            [field for field in schema if field.name not in names], metadata=schema.metadata
        )
    return dataclasses.replace(
        source,
        columns=tuple(name for name in source.columns if name not in names),
        schema=schema,
        _rows=partial(_fewer_rows, source, names),
        _batches=None
        if schema is None
        else lambda: (batch.select(schema.names) for batch in source.batches()),
    )


def _fewer_rows(source: Source, names: Collection[str]) -> Iterator[SourceRow]:
    is_json = source.format in ("jsonl", "json")
    for row in source.rows():
        value, text = row.value, row.text
        if is_json and text is not None:
            # A row that cannot be read as values may be an object all the same.
            members, found = row_object(row)
            text = without_members(found, names) if set(names) & set(members) else text
        if value is not None:
            value = {name: inner for name, inner in value.items() if name not in names}
        yield dataclasses.replace(row, value=value, text=text)


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


def _tag_types(names: Sequence[str]) -> dict[str, pa.DataType]:
    """The types of the columns that `curate tag` wrote."""
    found = {name: _tag_type(name) for name in names}
    for model in joined_models(names):
        found |= {name: _tag_type(plain) for plain, name in columns_of_model(names, model).items()}
    return {name: kind for name, kind in found.items() if kind is not None}


def _tag_type(name: str) -> pa.DataType | None:
    return pa.float64() if _PASS_AT.fullmatch(name) else _TYPES.get(name)


def _csv_rows(source: Source) -> Iterator[SourceRow]:
    """Give the tag columns of a CSV file their types back: there every cell is text."""
    types = _tag_types(source.columns)
    for row in source.rows():
        if row.value is not None:
            typed = {name: _typed(row, name, kind) for name, kind in types.items()}
            row = dataclasses.replace(row, value=row.value | typed)
        yield row


def _typed(row: SourceRow, name: str, kind: pa.DataType) -> object:
    values: Mapping[str, Any] = row.value or {}
    cell = values[name]
    if cell == "":
        return None
    if kind == pa.string():
        return cell
    # Other programs write True, and 32.0 where another row of the column has nothing.
    if kind == pa.bool_() and cell.lower() in ("true", "false"):
        return cell.lower() == "true"
    try:
        number = float(cell)
    except ValueError as error:
        raise UsageError(f"row {row.row}: {name} is {cell!r:.60}, not a number") from error
    if kind != pa.int64():
        return number
    if not number.is_integer():
        raise UsageError(f"row {row.row}: {name} is {cell!r:.60}, not a whole number")
    return int(number)
