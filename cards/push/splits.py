"""The tagged dataset as Parquet, one split a tag: the data that `curate push` uploads.

All splits have one Arrow schema, that of the tagged file with the tag columns in their own types,
so that `datasets` reads them as splits of one dataset. Rows that were not probed are in none. The
same tagged file gives the same bytes, so that what was uploaded before is known by its hash.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curate.datasets.source import open_source
from curate.errors import RunError, UsageError
from curate.tagged.write import read_batches, with_types
from curate.tags import Trainability

SHARD_BYTES = 500_000_000
"""About how large a file of a split grows, as `datasets` shards."""

_ROW_GROUP_BYTES = 64 * 1024 * 1024
_KEYS = ("item_id", "trainability")


DATA = "data"
"""The folder of the tagged rows."""


def split_path(place: str, tag: Trainability, shard: int, shards: int) -> str:
    """Where a shard of a tag's split lies in the repository.

    Args:
        place: the folder of the configuration.
        tag: whose split.
        shard: which of its files, from 0.
        shards: how many it has.
    """
    return f"{place}/{tag}-{shard:05d}-of-{shards:05d}.parquet"


def write_splits(
    tagged: Path,
    rows: pa.Table,
    schema: pa.Schema,
    folder: Path,
    *,
    shard_bytes: int = SHARD_BYTES,
) -> list[str]:
    """Write the rows of a tagged file to one or more Parquet files for each tag that occurs.

    Args:
        tagged: the tagged file of a run, in any of its formats.
        rows: `item_id` and `trainability` of every row, as the run has them.
        schema: the tag columns of the file, with their types.
        folder: where `data/` is made.
        shard_bytes: a further file is begun at this size.

    Returns:
        the files' paths in `folder`.

    Raises:
        UsageError: the file cannot be read, or is not the one that the run wrote.
        RunError: the file changed meanwhile, or the disk is full.
    """
    source = open_source(tagged)
    found, batches = read_batches(source)
    missing = [name for name in schema.names if name not in found.names]
    if missing:
        raise UsageError(f"{tagged} is no tagged file of this run: it has no column {missing[0]}")
    for field in schema:
        found = found.set(found.get_field_index(field.name), field)
    shards = {tag: Shards(folder / DATA, tag, found, shard_bytes) for tag in Trainability}
    done = 0
    try:
        for batch in batches:
            table = _typed(tagged, pa.Table.from_batches([batch]), schema, done).cast(found)
            _check_rows(tagged, table, rows.slice(done, len(table)), done)
            for tag in Trainability:
                shards[tag].add(table.filter(pc.equal(table["trainability"], str(tag))))
            done += len(table)
        if done < len(rows):
            raise UsageError(f"{tagged} has {done:,} rows, but the run tagged {len(rows):,}")
        source.check_unchanged()
        return [path for tag in Trainability for path in shards[tag].close()]
    except OSError as error:
        raise RunError(f"cannot write to {folder}: {error.strerror or error}") from error


def _typed(tagged: Path, table: pa.Table, schema: pa.Schema, done: int) -> pa.Table:
    try:
        return with_types(table, schema)
    except pa.ArrowException as error:
        raise UsageError(
            f"{tagged}: a tag column has a value of another type in rows {done + 1:,} to "
            f"{done + len(table):,}: {error}; `curate tag` writes the file anew"
        ) from error


def _check_rows(tagged: Path, table: pa.Table, rows: pa.Table, done: int) -> None:
    """Raise UsageError at the first row that is another than the run's."""
    if table.select(_KEYS).equals(rows.select(_KEYS)):
        return
    if len(rows) < len(table):
        raise UsageError(f"{tagged} has more rows than the {done + len(rows):,} that were tagged")
    for name in _KEYS:
        pairs = zip(table[name].to_pylist(), rows[name].to_pylist(), strict=True)
        for number, (there, here) in enumerate(pairs, done + 1):
            if there != here:
                raise UsageError(
                    f"{tagged} is not the file that this run wrote: {name} of row {number} is "
                    f"{there!r}, and {here!r} in the run; `curate tag` writes it anew"
                )


class Shards:
    """The files of one split, begun one after the other.

    Args:
        folder: of the configuration, with the name that it has in the repository.
        tag: whose split.
        schema: of the rows.
        limit: bytes from which on a further file is begun.
    """

    def __init__(self, folder: Path, tag: Trainability, schema: pa.Schema, limit: int) -> None:
        self.folder, self.tag, self.schema, self.limit = folder, tag, schema, limit
        self.files: list[Path] = []
        self.waiting: list[pa.Table] = []
        self.waiting_bytes = 0
        self.writer: pq.ParquetWriter | None = None

    def add(self, table: pa.Table) -> None:
        """Add rows."""
        if not len(table):
            return
        self.waiting.append(table)
        self.waiting_bytes += table.nbytes
        if self.waiting_bytes >= min(_ROW_GROUP_BYTES, self.limit):
            self._write()

    def _write(self) -> None:
        if self.writer is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.files.append(self.folder / f"{self.tag}-{len(self.files):05d}")
            self.writer = pq.ParquetWriter(self.files[-1], self.schema, compression="zstd")
        self.writer.write_table(pa.concat_tables(self.waiting).combine_chunks())
        self.waiting, self.waiting_bytes = [], 0
        if self.files[-1].stat().st_size >= self.limit:
            self._finish()

    def _finish(self) -> None:
        if self.writer is not None:
            self.writer.close()
            self.writer = None

    def close(self) -> list[str]:
        """Finish the last file, and name each by its number and how many there are."""
        if self.waiting:
            self._write()
        self._finish()
        place, files = self.folder.name, len(self.files)
        names = [split_path(place, self.tag, n, files) for n in range(files)]
        for file, name in zip(self.files, names, strict=True):
            file.rename(self.folder.parent / name)
        return names
