"""The lift of every item, from whatever source: `lift.parquet`, and `lift.json` about the source.

The lift of an item is the change of its log odds by a unit of training, and what that unit is the
facts about the source tell: the steps of a pilot, or an early checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from curate.errors import RunError
from curate.files import write_atomically
from curate.run_folder import read_parquet, write_parquet
from probes.counting import nullable

LIFT_FILE, FACTS_FILE = "lift.parquet", "lift.json"


@dataclass(frozen=True)
class ItemLift:
    """What a source says of each item: arrays (items,), nan where it is unknown."""

    lift: NDArray[np.float64]
    """Change of the item's log odds by the unit of training, as it was measured."""
    standard_error: NDArray[np.float64]
    """Of the lift, in the same unit."""


def write_lift(run: Path, lift: ItemLift, source: str, facts: Mapping[str, Any]) -> None:
    """Write `lift.parquet`, a line an item in the run's order, and where it comes from.

    Args:
        run: the run folder.
        lift: arrays in the order of `items.parquet`.
        source: gradients, pilot or checkpoint.
        facts: plain values about the source.

    Raises:
        RunError: the arrays are not of the run's items, or the disk is full.
    """
    item_ids = read_parquet(run / "items.parquet", ["item_id"])["item_id"]
    if len(lift.lift) != len(item_ids):
        raise RunError(f"{run} has {len(item_ids):,} items, and the lift is of {len(lift.lift):,}")
    table = pa.table(
        {
            "item_id": item_ids,
            "lift": nullable(lift.lift),
            "standard_error": nullable(lift.standard_error),
        }
    )
    write_parquet(run / LIFT_FILE, table)
    write_atomically(run / FACTS_FILE, json.dumps({"source": source, **facts}, indent=2) + "\n")
