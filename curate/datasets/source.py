"""Opening a dataset of any supported format and streaming its rows in bounded memory.

JSON Lines (also compressed by gzip or zstd), a JSON array, CSV, Parquet, a folder of such files or
one that `datasets` saved, or a dataset of the Hugging Face Hub. What cannot be read as a whole is
one UsageError. A single row that cannot be read never stops the others: it is streamed as a
SourceRow whose `problem` says what is wrong.

Text formats, in UTF-8 or in UTF-16 with a mark of its byte order, keep each row's own text, so that
`curate.tagged.write` can give it back unchanged.
"""

from __future__ import annotations

import base64
import csv
import datetime
import hashlib
import json
import logging
import math
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curate.datasets import arrow, text_files
from curate.datasets.folders import find_files
from curate.errors import RunError, UsageError
from curate.files import file_sha256

RAW_LIMIT = 65_536
"""The longest `SourceRow.raw`, in characters."""

MAX_NESTING = 100
"""The deepest JSON value accepted: below what would exhaust the stack of those who handle it."""

_BATCH_ROWS = 1024
# What `datasets` leaves in a folder that it saves.
_SAVED = ("state.json", "dataset_dict.json", "dataset_info.json")
_COMPRESSED = (".gz", ".zst")
_CSV_CELL_LIMIT = 64 * 1024 * 1024  # Characters: a quote never closed stops here, not at the end.

_FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".jsonl.gz": "jsonl",
    ".ndjson.gz": "jsonl",
    ".jsonl.zst": "jsonl",
    ".ndjson.zst": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".parquet": "parquet",
}
_SUPPORTED = (
    ".jsonl, .ndjson, .jsonl.gz, .jsonl.zst, .json, .csv, .parquet, a folder of such files or one "
    "saved by `datasets`, or a Hub id"
)
# A missing path that ends like one of these was meant as a file, not as a Hub id.
_FILE_ENDING = re.compile(
    r"\.(jsonl|ndjson|json|csv|tsv|txt|parquet|arrow|feather|xlsx?|xml|ya?ml|toml|html|md|py|pkl"
    r"|npy|npz|pt|db|log|gz|zip|zst|bz2|xz|tar)$",
    re.IGNORECASE,
)
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class SourceRow:
    """One row as it stands in the source: either its `value`, or the `problem` it has.

    `row` counts from 1: the line number for JSON Lines (blank lines count but are no rows), the
    position among the data rows elsewhere. `text` is the row's own text, of any length, for JSON
    and CSV, with bytes that are no UTF-8 as "surrogateescape"; None for Parquet and Arrow.
    """

    row: int
    value: dict[str, Any] | None
    problem: str | None = None
    text: str | None = None

    @property
    def raw(self) -> str:
        """What to show of the row: its text, or else its value as JSON, cut at RAW_LIMIT."""
        if self.text is not None:
            content = self.text[:RAW_LIMIT].encode("utf-8", "surrogateescape")
            return content.decode("utf-8", "replace")
        return "" if self.value is None else json_text(self.value)[:RAW_LIMIT]


@dataclass(frozen=True)
class Source:
    """A dataset that was opened, has at least one readable row, and streams any number of times.

    `path` is its file, or the folder of its files. `format` is jsonl, json (an array), csv,
    parquet, arrow or hub. `columns` are those known up front: the header's or the schema's, for
    JSON those of the first readable row. `fingerprint` is the SHA-256 of the file's bytes, or of
    those of several files, or the fingerprint that `datasets` keeps. `schema` is the Arrow schema
    of a typed source (parquet, arrow, hub), None for the others.
    """

    name: str
    format: str
    path: Path | None
    columns: tuple[str, ...]
    fingerprint: str
    schema: pa.Schema | None = None
    parts: tuple[Source, ...] = ()
    """The files of a dataset that has several."""
    _rows: Callable[[], Iterator[SourceRow]] = field(repr=False, kw_only=True)
    _batches: Callable[[], Iterator[pa.RecordBatch]] | None = field(
        default=None, repr=False, kw_only=True
    )

    def rows(self) -> Iterator[SourceRow]:
        """Stream the rows from the first. Raises UsageError where the file breaks off."""
        return self._rows()

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Stream a typed source as Arrow batches of at most 1,024 rows, with its own types."""
        if self._batches is None:
            raise TypeError(f"a {self.format} source has no Arrow batches")
        return self._batches()

    def check_unchanged(self) -> None:
        """Raise RunError if a file is no longer the one that was opened."""
        for part in self.parts:
            part.check_unchanged()
        if self.path is not None and self.path.is_file():
            try:
                unchanged = file_sha256(self.path) == self.fingerprint
            except OSError as error:
                raise RunError(f"cannot read {self.path} again: {error.strerror}") from error
            if not unchanged:
                raise RunError(f"{self.path} changed while it was in use; start again")


def check_dataset_name(dataset: str | Path) -> None:
    """Refuse what is no file, folder or Hub id, without reading any file.

    Raises:
        UsageError: it is none.
    """
    path = Path(dataset)
    if path.exists():
        return
    if "/" in str(dataset) and path.parent.is_dir():
        raise UsageError(f"no such file: {str(dataset)!r} (the folder {path.parent} is here)")
    if not _HUB_ID.fullmatch(str(dataset)) or _FILE_ENDING.search(str(dataset)):
        raise UsageError(f"no such file: {str(dataset)!r}")


def open_source(dataset: str | Path, *, split: str = "train", subset: str | None = None) -> Source:
    """Open a file, a folder that `datasets` saved, or (where no such path exists) a Hub dataset.

    `split` and `subset` choose inside a saved DatasetDict or a Hub dataset; a file has neither.
    Only a Hub id uses the network, and none is `ORG/NAME` where a folder ORG is here. Raises
    UsageError, in one line, for all that cannot be read.
    """
    path = Path(dataset)
    try:
        check_dataset_name(dataset)
        if path.is_dir():
            source = _open_folder(path, split, subset)
        elif path.exists():
            source = _open_file(path, split, subset)
        else:
            source = _open_hub(str(dataset), split, subset)
    except OSError as error:
        raise UsageError(f"cannot read {dataset}: {error.strerror or error}") from error
    return source


def json_text(value: Any) -> str:
    """One line of strict JSON for a value of any source; NaN and infinities become null.

    Dates and times are written in ISO 8601, decimals as strings, bytes as text where they are
    UTF-8 and as base64 where not.
    """
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=_plain)
    except ValueError:
        return json.dumps(
            _without_nan(value), ensure_ascii=False, allow_nan=False, default=_plain_without_nan
        )


def _plain(value: object) -> object:
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return base64.b64encode(value).decode("ascii")
    tolist = getattr(value, "tolist", None)  # NumPy's scalars and arrays.
    return tolist() if callable(tolist) else str(value)


def _plain_without_nan(value: object) -> object:
    return _without_nan(_plain(value))


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(inner) for inner in value]
    return value


# --- Files -----------------------------------------------------------------------------------


def _suffix(path: Path) -> str:
    is_packed = path.suffix.lower() in _COMPRESSED
    return "".join(path.suffixes[-2:]) if is_packed else path.suffix


def _kind_of(path: Path) -> str | None:
    return _FORMATS.get(_suffix(path).lower())


def _open_file(path: Path, split: str, subset: str | None) -> Source:
    if not path.is_file():
        raise UsageError(f"{path} is not a regular file")
    _refuse_choice(path, split, subset, has="train")
    suffix, kind = _suffix(path), _kind_of(path)
    if kind is None:
        raise UsageError(f"{path}: unknown format {suffix or '(no suffix)'!r}; give {_SUPPORTED}")
    if path.stat().st_size == 0:
        raise UsageError(f"{path} is empty")
    if kind == "json" and text_files.first_character(path) != b"[":
        kind = "jsonl"  # A common misnomer, but not what one object over many lines is.
        first_line = next(_line_rows(path), None)
        if first_line is not None and first_line.value is None:
            raise UsageError(
                f"{path} is neither a JSON array nor one object a line: {first_line.problem}"
            )

    schema = None
    batches = None
    if kind == "parquet":
        stored = _parquet_schema(path)
        schema = arrow.plain_schema(stored)
        batches = partial(_parquet_batches, path, schema)
        rows = partial(_typed_rows, batches)
    elif kind == "csv":
        _check_csv_header(path)
        rows = partial(_csv_rows, path)
    elif kind == "json":
        for _ in _array_rows(path):  # What is broken at its end must show now, not after hours.
            pass
        rows = partial(_array_rows, path)
    else:
        rows = partial(_line_rows, path)
    first = _first_readable(path, kind, rows())
    return Source(
        name=path.name[: -len(suffix)],
        format=kind,
        path=path,
        columns=tuple(schema.names if schema is not None else first),
        fingerprint=file_sha256(path),
        schema=schema,
        _rows=rows,
        _batches=batches,
    )


def _open_files(folder: Path, split: str, subset: str | None) -> Source:
    """Open the files of a folder as one dataset, in the order of their names."""
    files = find_files(folder, split, subset, _kind_of)
    parts = tuple(_open_file(file, "train", None) for file in files)
    first = parts[0]
    for part in parts[1:]:
        # The columns of JSON are those of its first row, and each row may have others.
        if first.format in ("csv", "parquet") and set(part.columns) != set(first.columns):
            raise UsageError(f"{part.path} has other columns than {first.path}; give one of them")
    schema = first.schema
    if schema is not None:
        schema = _common_schema(parts)
    content = "".join(f"{part.path and part.path.name}\0{part.fingerprint}\n" for part in parts)
    return Source(
        name=folder.resolve().name,
        format=first.format,
        path=folder,
        columns=first.columns,
        fingerprint=hashlib.sha256(content.encode()).hexdigest(),
        schema=schema,
        parts=parts,
        _rows=partial(_rows_of, parts),
        _batches=None if schema is None else partial(_batches_of, parts, schema),
    )


def _common_schema(parts: tuple[Source, ...]) -> pa.Schema:
    first = parts[0].schema
    schemas = [part.schema for part in parts if part.schema is not None]
    try:
        unified = pa.unify_schemas(schemas, promote_options="permissive")
    except pa.ArrowException as error:
        raise UsageError(
            f"{parts[0].path} and the files beside it have columns of different types:"
            f" {_one_line(error)}"
        ) from error
    return unified.with_metadata(first.metadata if first is not None else None)


def _rows_of(parts: tuple[Source, ...]) -> Iterator[SourceRow]:
    number = 0
    for part in parts:
        for row in part.rows():
            number += 1
            yield replace(row, row=number)


def _batches_of(parts: tuple[Source, ...], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    for part in parts:
        for batch in part.batches():
            yield batch.select(schema.names).cast(schema)


def _refuse_choice(path: Path, split: str, subset: str | None, has: str) -> None:
    if split not in ("train", has):
        raise UsageError(f"{path} has no split {split!r}; it is one dataset ({has})")
    if subset is not None:
        raise UsageError(f"{path} has no subset {subset!r}; only a Hub dataset has subsets")


def _first_readable(name: object, kind: str, rows: Iterable[SourceRow]) -> dict[str, Any]:
    """The first row with a value: a source in which no row can be read is no dataset at all."""
    problem = None
    for row in rows:
        if row.value is not None:
            return row.value
        problem = problem or f"row {row.row}: {row.problem}"
    if problem is None:
        raise UsageError(f"{name} has no rows")
    raise UsageError(f"{name}: no row can be read as {kind}; {problem}")


# --- JSON ------------------------------------------------------------------------------------


def _line_rows(path: Path) -> Iterator[SourceRow]:
    for number, line in enumerate(text_files.lines(path), 1):
        # Only "\n" is taken off: what else stands after the object is given back.
        content = line.removesuffix(b"\n")
        if content.strip():
            yield _line_row(number, content)


def _line_row(number: int, line: bytes) -> SourceRow:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        problem = f"invalid UTF-8 at byte {error.start + 1}"
        return SourceRow(number, None, problem, line.decode("utf-8", "surrogateescape"))
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        return SourceRow(number, None, f"not JSON: {error.msg} at character {error.pos + 1}", text)
    except ValueError:
        return SourceRow(number, None, "a number is too long to parse", text)
    except RecursionError:
        return SourceRow(number, None, "nested too deep", text)
    return json_row(number, value, text)


def _array_rows(path: Path) -> Iterator[SourceRow]:
    """Rows of a JSON array, decoded one by one so that only its text is held whole."""
    try:
        text = text_files.read_text(path)
        decoder = json.JSONDecoder()
        space = re.compile(r"[ \t\r\n]*")

        def skip(position: int) -> int:
            match = space.match(text, position)
            return match.end() if match else position

        position = skip(skip(0) + 1)  # Past "[", which is known to be there.
        number = 0
        while number or text[position : position + 1] != "]":
            value, end = decoder.raw_decode(text, position)
            number += 1
            yield json_row(number, value, text[position:end])
            position = skip(end)
            if text[position : position + 1] == "]":
                break
            if text[position : position + 1] != ",":
                raise json.JSONDecodeError("expecting ',' or ']'", text, position)
            position = skip(position + 1)
        if rest := text[position + 1 :].strip():
            raise json.JSONDecodeError(f"extra data {rest[:20]!r}", text, position + 1)
    except UnicodeDecodeError as error:
        encoding = error.encoding.upper()
        raise UsageError(f"{path}: invalid {encoding} at byte {error.start + 1}") from error
    except json.JSONDecodeError as error:
        raise UsageError(
            f"{path} is not a whole JSON array: {error.msg}, line {error.lineno} column"
            f" {error.colno}"
        ) from error
    except ValueError as error:
        raise UsageError(f"{path}: row {number + 1} has a number too long to parse") from error
    except RecursionError as error:
        raise UsageError(f"{path}: row {number + 1} is nested too deep") from error


def json_row(number: int, value: object, text: str) -> SourceRow:
    """A row of a JSON value, or else the problem it has; `text` is what the value was read from."""
    if isinstance(value, list) and value and all(isinstance(each, dict) for each in value):
        # A list of messages, as Open-Reasoner-Zero has them: `datasets` names the places as well.
        value = {str(place): each for place, each in enumerate(value)}
        text = json.dumps(value, ensure_ascii="\\u" in text)
    if not isinstance(value, dict):
        return SourceRow(number, None, f"not a JSON object but {_kind(value)}", text)
    if text.count("{") + text.count("[") > MAX_NESTING and _is_too_deep(value):
        return SourceRow(number, None, f"nested too deep (more than {MAX_NESTING} levels)", text)
    if "\\u" in text:  # Valid UTF-8 holds no surrogates: they come from escapes only.
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            problem = "half of a \\ud800-style surrogate pair, which UTF-8 cannot hold"
            return SourceRow(number, None, problem, text)
    return SourceRow(number, value, None, text)


def _kind(value: object) -> str:
    names = {list: "an array", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _is_too_deep(value: object) -> bool:
    level = [value]
    for _ in range(MAX_NESTING):
        containers = [inner for inner in level if isinstance(inner, dict | list)]
        if not containers:
            return False
        level = [
            inner
            for container in containers
            for inner in (container.values() if isinstance(container, dict) else container)
        ]
    return any(isinstance(inner, dict | list) for inner in level)


# --- CSV -------------------------------------------------------------------------------------


def _check_csv_header(path: Path) -> None:
    header, _, problem = next(_csv_records(path), ([], "", "no header"))
    if problem:
        raise UsageError(f"{path}: the CSV header cannot be read: {problem}")
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise UsageError(f"{path}: the CSV header names {_listed(twice)} more than once")


def _csv_rows(path: Path) -> Iterator[SourceRow]:
    records = _csv_records(path)
    header, _, _ = next(records)
    for number, (cells, text, problem) in enumerate(records, 1):
        if not problem and len(cells) != len(header):
            problem = f"{len(cells)} cells where the header has {len(header)}"
        value = None if problem else dict(zip(header, cells, strict=True))
        yield SourceRow(number, value, problem, text)


def _csv_records(path: Path) -> Iterator[tuple[list[str], str, str | None]]:
    """Cells, text and problem of each record, the header's included; blank lines are none."""
    csv.field_size_limit(_CSV_CELL_LIMIT)  # The default, 128 KiB, refuses long prompts.
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


# --- Parquet, Arrow and the Hub --------------------------------------------------------------


def _parquet_schema(path: Path) -> pa.Schema:
    try:
        schema = pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        raise UsageError(f"{path} is not a readable Parquet file: {_one_line(error)}") from error
    twice = sorted({name for name in schema.names if schema.names.count(name) > 1})
    if twice:
        raise UsageError(f"{path}: column {_listed(twice)} occurs more than once")
    return schema


def _parquet_batches(path: Path, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_BATCH_ROWS):
                yield arrow.plain_batch(batch, schema)
    except (pa.ArrowException, OSError) as error:
        raise UsageError(f"{path} is damaged: {_one_line(error)}") from error


def _dataset_batches(dataset: Any) -> Iterator[pa.RecordBatch]:
    for table in dataset.with_format("arrow").iter(batch_size=_BATCH_ROWS):
        yield from table.combine_chunks().to_batches()


def _typed_rows(batches: Callable[[], Iterable[pa.RecordBatch]]) -> Iterator[SourceRow]:
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
        return SourceRow(number, None, f"a cell cannot be read: {_one_line(error)}")


def _open_folder(path: Path, split: str, subset: str | None) -> Source:
    if not any((path / name).exists() for name in _SAVED):
        return _open_files(path, split, subset)
    import datasets  # Slow to import, and needed by few runs.

    try:
        loaded = datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise UsageError(
            f"{path} is not a readable dataset folder: damaged: {_one_line(error)}"
        ) from error
    if isinstance(loaded, datasets.DatasetDict):
        if split not in loaded:
            raise UsageError(f"{path} has no split {split!r}; it has {_listed(loaded)}")
        _refuse_choice(path, "train", subset, has=split)
        loaded = loaded[split]
    else:
        _refuse_choice(path, split, subset, has=str(loaded.split or "train"))
    return _dataset_source(path.resolve().name, "arrow", path, loaded)


def _open_hub(name: str, split: str, subset: str | None) -> Source:
    import datasets
    import httpx

    # To `datasets`, "json" or "pandas" is no Hub id but a reader of whatever files lie around,
    # of pickles too in older versions.
    if name in datasets.packaged_modules._PACKAGED_DATASETS_MODULES:
        raise UsageError(f"no such file: {name!r}")
    try:
        with _quiet("huggingface_hub"):
            loaded = datasets.load_dataset(name, name=subset, split=split)
    except ConnectionError as error:
        raise UsageError(
            f"no file {name!r} here, and the Hub cannot be reached to look for a dataset of that"
            " name; check the path, or the network"
        ) from error
    except (
        datasets.exceptions.DatasetsError,
        pa.ArrowException,
        httpx.HTTPError,
        OSError,
        ValueError,
        RuntimeError,
    ) as error:
        raise UsageError(
            f"no file {name!r} here, and the Hub dataset of that name cannot be read:"
            f" {_one_line(error)}"
        ) from error
    return _dataset_source(name.rpartition("/")[2], "hub", None, loaded)


def _dataset_source(name: str, kind: str, path: Path | None, dataset: Any) -> Source:
    if dataset.num_rows == 0:
        raise UsageError(f"{path or name} has no rows")
    batches = partial(_dataset_batches, dataset)
    rows = partial(_typed_rows, batches)
    _first_readable(path or name, kind, rows())
    return Source(
        name=name,
        format=kind,
        path=path,
        columns=tuple(dataset.column_names),
        fingerprint=dataset._fingerprint,
        schema=dataset.features.arrow_schema,
        _rows=rows,
        _batches=batches,
    )


@contextmanager
def _quiet(logger_name: str) -> Iterator[None]:
    """Keep a library's warnings about its retries off stderr: the one error line says it all."""
    logger = logging.getLogger(logger_name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _listed(names: Iterable[object]) -> str:
    return ", ".join(repr(str(name)) for name in names)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:500] or type(error).__name__
