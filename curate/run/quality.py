"""The reasoning quality of a run's items: where `curate judge` leaves it, and how it is read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curate.config import TagConfig
from curate.errors import RunError
from curate.run.tables import QUALITY
from curate.tags import tag_schema

_MOST = 5.0


def run_schema(run_dir: Path, config: TagConfig) -> pa.Schema:
    """The columns that a run's tagged file has, in their order."""
    judged = QUALITY.is_in(run_dir)
    return tag_schema(
        config.k,
        target=bool(config.target),
        judged=judged,
        mixed=bool(config.verifier_field),
        rewards=config.has_own_rewards,
    )


def read_reasoning_quality(run_dir: Path, item_ids: pa.Array) -> pa.Table | None:
    """Read the judged quality of items, of `QUALITY.schema` and in their order.

    An item without a row there was not judged: its quality is null, and its count 0.

    Args:
        run_dir: a run folder.
        item_ids: (items,).

    Returns:
        None where the run was not judged.

    Raises:
        RunError: the file is damaged, has an item twice, or a score beyond the scale.
    """
    if not QUALITY.is_in(run_dir):
        return None
    file = QUALITY.path(run_dir)
    again = f"`curate judge {run_dir}` writes it anew"
    try:
        table = QUALITY.read(run_dir, *QUALITY.columns).cast(QUALITY.schema).combine_chunks()
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
    return pa.Table.from_arrays(arrays, schema=QUALITY.schema)
