"""The pass-rate stage: count every item's rollouts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curate.run_folder import RunFolder, read_parquet, write_parquet
from probes.pass_rates import pass_at_k_of_items, pass_rate_interval
from probes.sampling import rollout_shards

_COUNTS = ("drawn", "judged", "correct", "truncated")


def count_rollouts(run: RunFolder, item_ids: Sequence[str], ks: Sequence[int]) -> dict[str, int]:
    """Write `pass_rates.parquet`, a row an item in the given order; return the totals of the run.

    Only judged rollouts count for a rate: a reward of null is left out.
    """
    row_of = {item_id: row for row, item_id in enumerate(item_ids)}
    count = {name: np.zeros(len(item_ids), dtype=np.int64) for name in (*_COUNTS, "tokens")}
    columns = ["item_id", "reward", "finish_reason", "completion_token_ids"]
    for file in rollout_shards(run):
        table = read_parquet(file, columns)
        rows = np.array([row_of[item_id] for item_id in table["item_id"].to_pylist()])
        reward, ids = table["reward"], table["completion_token_ids"]
        found = {
            "drawn": np.ones(len(rows)),
            "judged": pc.is_valid(reward).to_numpy(),
            "correct": pc.fill_null(reward, 0).to_numpy(),
            "truncated": pc.equal(table["finish_reason"], "length").to_numpy(),
            "tokens": pc.list_value_length(ids).to_numpy(),
        }
        for name, values in found.items():
            np.add.at(count[name], rows, values.astype(np.int64))
    n, c = count["judged"], count["correct"]
    low, high = pass_rate_interval(c, n)
    with np.errstate(invalid="ignore", divide="ignore"):
        rate, mean_tokens = c / n, count["tokens"] / count["drawn"]
    table = pa.table(
        {
            "item_id": pa.array(item_ids, pa.string()),
            "total_rollouts": n,
            "total_correct_rollouts": c,
            "pass_rate": nullable(rate),
            "pass_rate_low": nullable(low),
            "pass_rate_high": nullable(high),
            **{f"pass_at_{k}": nullable(pass_at_k_of_items(n, c, k)) for k in ks},
            "unjudged_rollouts": count["drawn"] - n,
            "truncated_rollouts": count["truncated"],
            "mean_completion_tokens": nullable(mean_tokens),
        }
    )
    write_parquet(run / "pass_rates.parquet", table)
    totals = {f"rollouts_{name}": int(count[name].sum()) for name in _COUNTS}
    return totals | {"completion_tokens": int(count["tokens"].sum())}


def nullable(values: Any) -> pa.Array:
    """Turn numbers into a column of floats in which nan is null."""
    return pa.array(np.asarray(values, dtype=np.float64), from_pandas=True)
