"""Reading what `curate confirm` found of the hard items of runs, with the evidence on them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curate.config import TagConfig
from curate.errors import UsageError
from curate.run_folder import read_manifest, read_parquet, read_run_config
from curate.tags import Trainability
from probes.forecast_stage import read_forecast
from probes.predictor import run_settings
from probes.predictor_features import read_features

FEWEST_OF_EACH = 10
"""With fewer learnable or unlearnable items than this nothing is fitted."""

Floats = NDArray[np.float64]
Booleans = NDArray[np.bool_]
Groups = NDArray[np.str_]


@dataclass(frozen=True)
class ConfirmedItems:
    """Hard items whose outcome GRPO confirmed: arrays of shape (items, …)."""

    item_ids: Groups
    values: Floats
    """Shape (items, features), in the order of `FEATURES`; nan is unknown."""
    is_unlearnable: Booleans
    built_in: Floats
    """The built-in p_unlearnable; nan where there is none."""


def read_confirmed(run_dirs: Sequence[Path]) -> tuple[ConfirmedItems, list[dict[str, Any]]]:
    """Read the hard items with a correct rollout that are confirmed learnable or unlearnable.

    Args:
        run_dirs: run folders with `validation/confirmed.parquet`.

    Returns:
        the items of all runs, and for each run what the predictor file tells of it.

    Raises:
        UsageError: a run is not finished or not confirmed, or given twice; the runs differ in a
            setting that the features or the outcome depend on; or there are fewer than 10
            learnable or 10 unlearnable items.
        RunError: a file of a run is missing or damaged.
    """
    _refuse_same(run_dirs)
    read = [_read_run(run_dir) for run_dir in run_dirs]
    settings = read[0][1]["settings"]
    for run_dir, (_, facts) in zip(run_dirs, read, strict=True):
        changed = [n for n, value in settings.items() if facts["settings"][n] != value]
        if changed:
            raise UsageError(
                f"{run_dir} and {run_dirs[0]} differ in {', '.join(changed)}: what was measured or "
                "confirmed in them cannot be pooled; calibrate on each"
            )
    items = _pooled([each for each, _ in read])
    _require_enough(items)
    return items, [facts for _, facts in read]


def _refuse_same(run_dirs: Sequence[Path]) -> None:
    seen = [run_dir.resolve() for run_dir in run_dirs]
    for run_dir, path in zip(run_dirs, seen, strict=True):
        if seen.count(path) > 1:
            raise UsageError(f"{run_dir} is given twice; its items would count twice")


def _read_run(run_dir: Path) -> tuple[ConfirmedItems, dict[str, Any]]:
    """Read a run's confirmed items, and what the predictor file tells of the run."""
    manifest, config = read_manifest(run_dir), read_run_config(run_dir)
    if manifest["stages"].get("tags", {}).get("state") != "done":
        raise UsageError(f"{run_dir} is not finished: continue it with `curate tag`")
    confirmed = _confirmed(run_dir)
    features = read_features(run_dir, config.tau)
    if features.scale.easy is None:
        raise UsageError(f"{run_dir} gives similarities no scale: {features.scale.source}")
    outcomes = [confirmed.get(item_id) for item_id in features.item_ids]
    known = [
        row
        for row, outcome in enumerate(outcomes)
        if outcome in (Trainability.LEARNABLE, Trainability.UNLEARNABLE)
    ]
    built_in = _built_in(run_dir, config)
    items = ConfirmedItems(
        np.array([features.item_ids[row] for row in known], dtype=np.str_),
        features.values[known],
        np.array([outcomes[row] == Trainability.UNLEARNABLE for row in known], dtype=np.bool_),
        np.array([built_in[features.item_ids[row]] for row in known], dtype=np.float64),
    )
    facts = {
        "model": manifest["model"]["name"],
        "weight_hash": manifest["model"]["weight_hash"],
        "dataset": manifest["dataset"]["name"],
        "dataset_fingerprint": manifest["dataset"]["fingerprint"],
        "settings": run_settings(config),
        "seeds": manifest["seeds"],
        "hard_items_with_a_positive": len(outcomes),
        "learnable": int((~items.is_unlearnable).sum()),
        "unlearnable": int(items.is_unlearnable.sum()),
        **_validation_facts(run_dir),
    }
    return items, facts


def _confirmed(run_dir: Path) -> dict[str, str]:
    """confirmed_trainability by item_id."""
    file = run_dir / "validation" / "confirmed.parquet"
    if not file.is_file():
        raise UsageError(f"{run_dir} has no {file.name}: run `curate confirm {run_dir}` first")
    table = read_parquet(file)
    missing = {"item_id", "confirmed_trainability"} - set(table.column_names)
    if missing:
        raise UsageError(f"{file} has no column {', '.join(sorted(missing))}")
    item_ids = table["item_id"].to_pylist()
    known = set(read_parquet(run_dir / "items.parquet", ["item_id"])["item_id"].to_pylist())
    if len(set(item_ids)) < len(item_ids) or not known.issuperset(item_ids):
        raise UsageError(
            f"{file} does not belong to this run: run `curate confirm {run_dir}` again"
        )
    return dict(zip(item_ids, table["confirmed_trainability"].to_pylist(), strict=True))


def _validation_facts(run_dir: Path) -> dict[str, Any]:
    """The recipe and seeds that confirmed the items, as `curate confirm` wrote them."""
    try:
        summary = json.loads((run_dir / "validation" / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(summary, dict):
        return {}
    return {f"validation_{n}": summary[n] for n in ("recipe", "seeds") if n in summary}


def _built_in(run_dir: Path, config: TagConfig) -> dict[str, float]:
    """The built-in p_unlearnable by item_id, nan for none.

    Computed anew, since the run itself may have been tagged by a predictor.
    """
    found = read_forecast(run_dir, config)
    ids = read_parquet(run_dir / "items.parquet", ["item_id"])["item_id"].to_pylist()
    return dict(zip(ids, found.forecast.p_unlearnable.tolist(), strict=True))


def _pooled(parts: Sequence[ConfirmedItems]) -> ConfirmedItems:
    return ConfirmedItems(
        np.concatenate([part.item_ids for part in parts]),
        np.concatenate([part.values for part in parts]),
        np.concatenate([part.is_unlearnable for part in parts]),
        np.concatenate([part.built_in for part in parts]),
    )


def _require_enough(items: ConfirmedItems) -> None:
    counts = {
        Trainability.LEARNABLE: len(set(items.item_ids[~items.is_unlearnable])),
        Trainability.UNLEARNABLE: len(set(items.item_ids[items.is_unlearnable])),
    }
    if min(counts.values()) < FEWEST_OF_EACH:
        found = " and ".join(f"{count} {tag}" for tag, count in counts.items())
        raise UsageError(
            f"too few confirmed items to fit a predictor: {found} with a correct rollout, and "
            f"{FEWEST_OF_EACH} of each are needed; tag and validate more items, or pool runs"
        )
