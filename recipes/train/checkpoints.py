"""Checkpoints of a training run: the newest that is whole, and our part of its contents.

A checkpoint is TRL's folder (weights, optimizer, random state) and what `save_state` adds. That is
written last, so a folder without it was cut off in the writing and does not count.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curate.errors import RunError
from curate.files import atomic_writer, write_atomically

_STATE = "curate.json"
_BUFFER_SCHEMA = pa.schema(
    {
        "item_id": pa.string(),
        "completion_token_ids": pa.list_(pa.int32()),
        "uses": pa.int32(),
    }
)


def save_state(
    checkpoint: Path,
    state: dict[str, Any],
    tables: dict[str, list[dict[str, Any]]],
) -> None:
    """Add a run's own state to a checkpoint; with it the checkpoint is whole.

    Args:
        state: plain values.
        tables: rows, by name; the columns are those of the first row.
    """
    for name, rows in tables.items():
        schema = _BUFFER_SCHEMA if name == "replay" else None
        with atomic_writer(checkpoint / f"{name}.parquet") as file:
            pq.write_table(pa.Table.from_pylist(rows, schema=schema), file, compression="zstd")
    write_atomically(checkpoint / _STATE, json.dumps(state, indent=2) + "\n")


def load_state(checkpoint: Path) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """Read what `save_state` wrote.

    Raises:
        RunError: it is damaged.
    """
    try:
        state = json.loads((checkpoint / _STATE).read_text(encoding="utf-8"))
        tables = {
            file.stem: pq.read_table(file).to_pylist()
            for file in sorted(checkpoint.glob("*.parquet"))
        }
    except (OSError, ValueError, pa.ArrowException) as error:
        raise RunError(
            f"checkpoint {checkpoint} is damaged: {error}; remove it to go on from an earlier one"
        ) from error
    return state, tables


def checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints in a folder, oldest first."""
    found = [file.parent for file in folder.glob(f"checkpoint-*/{_STATE}")]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


def remove_older(folder: Path, newest: Path) -> None:
    """Remove every other checkpoint, those that were never whole among them."""
    for path in folder.glob("checkpoint-*"):
        if path != newest:
            shutil.rmtree(path, ignore_errors=True)
