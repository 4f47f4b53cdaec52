"""The outcomes of a recipe's finished seeds, in the order of a run's items."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curate.errors import UsageError
from curate.run.tables import OUTCOMES
from curate.run.validated import read_training_table
from recipes.confirm.partition import SeedOutcomes


def read_outcomes(folder: Path, item_ids: pa.Array) -> pa.Table:
    """Read the outcomes of one seed, from its folder, in the order of the run's items.

    Raises:
        UsageError: they are of other items, or no pass rates.
        RunError: the file is missing or damaged.
    """
    table = read_training_table(folder, OUTCOMES)
    path = OUTCOMES.path(folder)
    # By position: an item that is there twice, or not at all, changes the number of rows.
    places = pc.index_in(item_ids, table["item_id"].combine_chunks())
    if table.num_rows != len(item_ids) or places.null_count:
        raise UsageError(
            f"{path} has outcomes of other items: {len(item_ids) - places.null_count:,} of this "
            f"run's {len(item_ids):,} are among its {table.num_rows:,}"
        )
    table = table.take(places)
    for name in ("initial_pass_rate", "final_pass_rate"):
        if pc.any(pc.or_(pc.less(table[name], 0), pc.greater(table[name], 1))).as_py():
            raise UsageError(f"{path}: {name} is not between 0 and 1 everywhere")
    return table


def stack_outcomes(tables: list[pa.Table]) -> SeedOutcomes:
    """Put the outcomes of the seeds side by side.

    Args:
        tables: one a seed, as `read_outcomes` gives them, at least one.
    """
    # The probe is the same for every seed. Easy and hard are told apart by c/n, as in its tags.
    correct, judged = (
        tables[0][name].to_numpy().astype(np.float64)
        for name in ("initial_correct", "initial_rollouts")
    )
    initial = np.divide(correct, judged, out=np.full(len(judged), np.nan), where=judged > 0)

    def stacked(name: str) -> Any:
        return np.array([table[name].to_numpy() for table in tables])

    return SeedOutcomes(
        initial_pass_rate=initial,
        final_pass_rates=stacked("final_pass_rate").astype(np.float64),
        ever_positive=stacked("ever_positive").astype(np.bool_),
        positive_in_training=None
        if any(table["positive_in_training"].null_count for table in tables)
        else stacked("positive_in_training").astype(np.bool_),
    )
