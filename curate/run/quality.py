"""The reasoning quality of a run's items: where `curate judge` leaves it, and how it is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curate.config import TagConfig
from curate.errors import RunError
from curate.run.folder import read_parquet
from curate.tags import REASONING_QUALITY, tag_schema

QUALITY_FILE = Path("judging") / "quality.parquet"
SUMMARY_FILE = Path("judging") / "summary.json"
"""In the run folder."""
QUALITY_SCHEMA = pa.schema([("item_id", pa.string()), *REASONING_QUALITY])
"""A row an item: the mean score, 0 to 5, of its correct rollouts that were judged, over both
passes, null where none was; and how many were."""
_MOST = 5.0


def run_schema(run_dir: Path, config: TagConfig) -> pa.Schema:
    """The columns that a run's tagged file has, in their order."""
    judged = (run_dir / QUALITY_FILE).exists()
    return tag_schema(config.k, target=bool(config.target), judged=judged)


def read_reasoning_quality(run_dir: Path, item_ids: pa.Array) -> pa.Table | None:
    """Read the judged quality of items, of `QUALITY_SCHEMA` and in their order.

    An item without a row there was not judged: its quality is null, and its count 0.

    Args:
        run_dir: a run folder.
        item_ids: (items,).

    Returns:
        None where the run was not judged.

    Raises:
        RunError: the file is damaged, has an item twice, or a score beyond the scale.
    """
    file = run_dir / QUALITY_FILE
    if not file.exists():
        return None
    again = f"`curate judge {run_dir}` writes it anew"
    try:
        table = read_parquet(file, QUALITY_SCHEMA.names).cast(QUALITY_SCHEMA).combine_chunks()
    except (pa.ArrowException, ValueError) as error:
        raise RunError(f"{file} is damaged: {error}; {again}") from error
    if len(table["item_id"].unique()) < table.num_rows:
        raise RunError(f"{file} is damaged: an item is in it twice; {again}")
    score = table["reasoning_quality"].drop_null().to_numpy()
    if not np.all((score >= 0) & (score <= _MOST)):
        raise RunError(f"{file} is damaged: a reasoning_quality is not between 0 and 5; {again}")
    found = table.take(pc.index_in(item_ids, value_set=table["item_id"]))
    count = pc.fill_null(found["reasoning_quality_n"], 0)
    arrays = [pa.chunked_array([item_ids]), found["reasoning_quality"], count]
    return pa.Table.from_arrays(arrays, schema=QUALITY_SCHEMA)


def read_judging(run_dir: Path) -> dict[str, Any]:
    """Read what `curate judge` tells of its work, empty where there is nothing to be read.

    `model` is the judge, `rubric_sha256` what it graded by, `agreement` how far its passes agree.
    """
    try:
        summary = json.loads((run_dir / SUMMARY_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return summary if isinstance(summary, dict) else {}
