"""What stands in the place of gradients, lift and forecast in a run that has no policy.

`curate import` without `--model` knows pass rates alone. Whether an item is easy, or was never
right, is said from those; of the other hard items nothing is forecast, and they are undetermined.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from curate.run.folder import RunFolder
from curate.run.tables import PASS_RATES, SIMILARITY, TEACHING, Table
from probes.stages.lift import ItemLift, write_lift

NO_POLICY = "there is no policy: rollouts were imported without --model"


def write_unknown(run: RunFolder) -> dict[str, int]:
    """Write `similarity.parquet`, `lift.parquet` and `teaching.parquet` with nothing known.

    Raises:
        RunError: the disk is full, or a file of the run is damaged.
    """
    item_ids = PASS_RATES.read(run, "item_id")["item_id"]
    for table in (SIMILARITY, TEACHING):
        table.write(run, _unknown(table, item_ids))
    nothing = np.full(len(item_ids), np.nan)
    write_lift(run.path, ItemLift(nothing, nothing), "none", {"why_none": NO_POLICY})
    return {"items_this_time": len(item_ids)}


def _unknown(table: Table, item_ids: pa.ChunkedArray) -> pa.Table:
    columns = {
        name: item_ids if name == "item_id" else pa.nulls(len(item_ids), kind)
        for name, kind in table.columns.items()
    }
    return pa.table(columns)
