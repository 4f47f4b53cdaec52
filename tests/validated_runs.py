"""Writing training runs into a run folder, by the formats and not by the code under test."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curate.run.folder import read_run_config
from curate.run.run import Run
from curate.run.tables import HELD_OUT, OUTCOMES


def make_run_folder(folder: Path, *, tau: float = 0.1) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.toml").write_text(f'dataset = "d.jsonl"\nmodel = "m"\ntau = {tau}\n')
    # What the probe spent: two items of 64 rollouts.
    rates = pa.table({"item_id": ["a", "b"], "total_rollouts": [64, 64]})
    pq.write_table(rates, folder / "pass_rates.parquet")
    pq.write_table(rates.select(["item_id"]), folder / "items.parquet")
    return folder


def opened(run: Path) -> Run:
    """A run folder of which nothing but the trainings is looked at."""
    return Run(run, read_run_config(run), {})


def write_run(
    run_dir: Path,
    recipe: str,
    seed: int | str,
    *,
    outcomes: Sequence[Mapping[str, Any]] = (),
    held_out: Sequence[Mapping[str, Any]] = (),
    state: str = "done",
    hypothesis: str = "it helps",
) -> Path:
    """Write one run; each row of outcomes needs item_id and final_pass_rate."""
    folder = run_dir / "validation" / recipe / str(seed)
    folder.mkdir(parents=True)
    (folder.parent / "recipe.toml").write_text(f'hypothesis = "{hypothesis}"\n')
    (folder / "run.json").write_text(json.dumps({"state": state, "recipe": recipe, "seed": seed}))
    if outcomes:
        usual: dict[str, Any] = {
            **{"initial_pass_rate": 0.05, "initial_rollouts": 64, "initial_correct": 3},
            **{"final_rollouts": 32, "final_correct": 0},
            **{"positive_in_training": True, "ever_positive": True, "visits": 4},
        }
        rows = [usual | row for row in outcomes]
        pq.write_table(pa.Table.from_pylist(rows, OUTCOMES.schema), folder / "outcomes.parquet")
    if held_out:
        table = pa.Table.from_pylist([dict(row) for row in held_out], HELD_OUT.schema)
        pq.write_table(table, folder / "held_out.parquet")
    return folder
