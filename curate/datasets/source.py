"""Opening a dataset of any supported format and streaming its rows in bounded memory.

JSON Lines (also compressed by gzip or zstd), a JSON array, CSV, Parquet, a folder of such files or
one that `datasets` saved, or a dataset of the Hugging Face Hub. What cannot be read as a whole is
one UsageError. A single row that cannot be read never stops the others: it is streamed as a
SourceRow whose `problem` says what is wrong.

Text formats, in UTF-8 or in UTF-16 with a mark of its byte order, keep each row's own text, so that
`curate.tagged.write` can give it back unchanged.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from curate.datasets import text_files
from curate.datasets.csv_rows import check_header, csv_rows
from curate.datasets.folders import find_files
from curate.datasets.json_rows import array_rows, line_rows
from curate.datasets.row import SourceRow
from curate.datasets.typed_rows import (
    dataset_batches,
    parquet_batches,
    parquet_schema,
    typed_rows,
)
from curate.errors import RunError, UsageError, error_line
from curate.files import file_sha256

# What `datasets` leaves in a folder that it saves.
_SAVED = ("state.json", "dataset_dict.json", "dataset_info.json")
_COMPRESSED = (".gz", ".zst")
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
        first_line = next(line_rows(path), None)
        if first_line is not None and first_line.value is None:
            raise UsageError(
                f"{path} is neither a JSON array nor one object a line: {first_line.problem}"
            )

    schema = None
    batches = None
    if kind == "parquet":
        schema = parquet_schema(path)
        batches = partial(parquet_batches, path, schema)
        rows = partial(typed_rows, batches)
    elif kind == "csv":
        check_header(path)
        rows = partial(csv_rows, path)
    elif kind == "json":
        for _ in array_rows(path):  # What is broken at its end must show now, not after hours.
            pass
        rows = partial(array_rows, path)
    else:
        rows = partial(line_rows, path)
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
            f" {error_line(error)}"
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


def _open_folder(path: Path, split: str, subset: str | None) -> Source:
    if not any((path / name).exists() for name in _SAVED):
        return _open_files(path, split, subset)
    import datasets  # Slow to import, and needed by few runs.

    try:
        loaded = datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise UsageError(
            f"{path} is not a readable dataset folder: damaged: {error_line(error)}"
        ) from error
    if isinstance(loaded, datasets.DatasetDict):
        if split not in loaded:
            raise UsageError(
                f"{path} has no split {split!r}; it has {', '.join(map(repr, loaded))}"
            )
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
            f" {error_line(error)}"
        ) from error
    return _dataset_source(name.rpartition("/")[2], "hub", None, loaded)


def _dataset_source(name: str, kind: str, path: Path | None, dataset: Any) -> Source:
    if dataset.num_rows == 0:
        raise UsageError(f"{path or name} has no rows")
    batches = partial(dataset_batches, dataset)
    rows = partial(typed_rows, batches)
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
