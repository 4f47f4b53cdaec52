"""The finished training runs of a run folder: which there are, and the tables that they left."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa

from curate.errors import RunError
from curate.run_folder import read_parquet


def validated_recipes(run_dir: Path) -> list[str]:
    """Names of the recipes with at least one finished run, in alphabetical order."""
    folder = run_dir / "validation"
    if not folder.is_dir():
        return []
    # Beside the recipes there are the tables of `confirm` and, hidden, prepared items.
    paths = (path for path in folder.iterdir() if path.is_dir())
    names = sorted(path.name for path in paths if not path.name.startswith("."))
    return [name for name in names if finished_runs(run_dir, name)]


def finished_runs(run_dir: Path, recipe: str) -> dict[str, Path]:
    """Folders of a recipe's finished runs by their seed, in the order of the seeds.

    Raises:
        RunError: a run's state cannot be read.
    """
    files = (run_dir / "validation" / recipe).glob("*/run.json")
    done = {file.parent.name: file.parent for file in files if _state(file) == "done"}
    return {seed: done[seed] for seed in sorted(done, key=lambda seed: (len(seed), seed))}


def _state(file: Path) -> str:
    try:
        return str(json.loads(file.read_text(encoding="utf-8"))["state"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{file} is damaged; remove its folder and validate again") from error


def read_run_table(folder: Path, name: str, schema: pa.Schema) -> pa.Table:
    """Read a table of a finished run.

    Raises:
        RunError: it is missing or damaged, or has other columns than `schema` says.
    """
    file = folder / f"{name}.parquet"
    table = read_parquet(file)
    missing = set(schema.names) - set(table.column_names)
    if missing:
        raise RunError(f"{file} has no column {sorted(missing)[0]}; validate again")
    return table.select(schema.names)
