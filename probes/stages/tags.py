"""The tags stage: what each item is, by its pass rate, its lift and the forecast."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from curate.config import TagConfig
from curate.run.folder import RunFolder
from curate.run.tables import FORECAST, LIFT, PASS_RATES, TAGS
from curate.tags import Trainability
from probes.stages.forecast import forecast_columns, read_forecast
from probes.stages.without_policy import NO_POLICY
from probes.tag_rules import BuiltInProbability, Evidence, LearnedProbability, predict

# Items of which the evidence is held as Python objects.
_ITEMS_AT_ONCE = 4096


def tag_items(
    run: RunFolder,
    config: TagConfig,
    learned: Mapping[str, LearnedProbability],
    fitted: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Write `tags.parquet`, and how many items have each tag; return the stage's counts.

    Args:
        run: its pass rates, similarities and lift are written.
        config: of the run; without a model there is no forecast.
        learned: by item_id, what a predictor says in the place of the forecast.
        fitted: constants of the forecast, as for `read_forecast`.

    Raises:
        RunError: a file of the run is missing or damaged.
    """
    rates, lifted = PASS_RATES.read(run), LIFT.read(run)
    if config.has_policy:
        made = read_forecast(run.path, config, fitted)
        run.update(forecast=made.facts())
        # What nothing could be judged of has no forecast either.
        is_judged = made.found.judged > 0
        columns = {
            name: pc.if_else(pa.array(is_judged), values, None)
            for name, values in forecast_columns(made.forecast).items()
        }
        p = np.where(is_judged, made.forecast.p_unlearnable, np.nan)
    else:
        run.update(forecast={"source": None, "why_none": NO_POLICY})
        columns = {name: pa.nulls(rates.num_rows, pa.float64()) for name in FORECAST}
        p = np.full(rates.num_rows, np.nan)
    expected = pa.table({"item_id": rates["item_id"], **columns})
    parts = [
        _tags_of(rates[part], lifted[part], expected[part], p[part], learned, config.tau)
        for start in range(0, rates.num_rows, _ITEMS_AT_ONCE)
        for part in (slice(start, start + _ITEMS_AT_ONCE),)
    ]
    table = pa.concat_tables(parts)
    TAGS.write(run, table)
    counted = {
        entry["values"]: entry["counts"]
        for entry in pc.value_counts(table["trainability"]).to_pylist()
    }
    tags = {str(tag): counted.get(str(tag), 0) for tag in Trainability}
    run.update(counts={**run.manifest["counts"], "tags": tags})
    return {"items_this_time": table.num_rows}


def _tags_of(
    rates: pa.Table,
    lifted: pa.Table,
    expected: pa.Table,
    p_unlearnable: NDArray[np.float64],
    learned: Mapping[str, LearnedProbability],
    tau: float,
) -> pa.Table:
    """Tag some items, whose rows stand in the same order in all tables."""
    evidence = [
        Evidence.from_rows(*rows)
        for rows in zip(rates.to_pylist(), lifted.to_pylist(), expected.to_pylist(), strict=True)
    ]
    predictions = [
        predict(
            each,
            learned.get(item_id) or BuiltInProbability(None if np.isnan(p) else float(p)),
            tau=tau,
        )
        for each, item_id, p in zip(
            evidence, rates["item_id"].to_pylist(), p_unlearnable, strict=True
        )
    ]
    is_known = pa.array([not each.mostly_cut for each in evidence])
    return pa.table(
        {
            "item_id": rates["item_id"],
            "trainability": pa.array([str(p.trainability) for p in predictions]),
            "p_unlearnable": pa.array([p.p_unlearnable for p in predictions], pa.float64()),
            **{
                name: pc.if_else(is_known, expected[name], None)
                for name in expected.column_names[1:]
            },
            "tag_reason": pa.array([p.tag_reason for p in predictions]),
        }
    )
