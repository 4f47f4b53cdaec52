"""Reading what the finished seeds of a recipe left in a run folder's `validation`."""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curate.errors import UsageError
from curate.run_folder import read_parquet
from recipes.outcomes import OUTCOME_SCHEMA
from recipes.partition import SeedOutcomes

# What tags are confirmed against, the first that is there.
_BASELINES = ("baseline", "baseline-small")


@dataclass(frozen=True)
class FinishedSeeds:
    """The seeds of a recipe in a run folder.

    Attributes:
        recipe: its name.
        folders: of each finished seed, in the order of the seeds, at least one.
        runs: each one's `run.json`.
        unfinished: seeds that were started only.
    """

    recipe: str
    folders: dict[int, Path]
    runs: dict[int, dict[str, Any]]
    unfinished: tuple[int, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        """The finished seeds, ascending."""
        return tuple(self.folders)


def finished_seeds(run_dir: Path, recipe: str = "") -> FinishedSeeds:
    """Find the seeds of a recipe that have outcomes.

    Args:
        run_dir: a run folder.
        recipe: a name, or the path of the recipe's file; without it `baseline`, or else
            `baseline-small`, or else the only one there.

    Raises:
        UsageError: no such recipe was validated here (names those that were), several could be
            meant, or none of its seeds is finished.
    """
    folder = run_dir / "validation"
    by_recipe = {
        path.name: seeds
        for path in (sorted(folder.iterdir()) if folder.is_dir() else [])
        if path.is_dir() and (seeds := _seed_folders(path))
    }
    if not by_recipe:
        raise UsageError(f"{run_dir} has no validation yet: `curate validate` makes one")
    name = _choose(recipe, list(by_recipe), folder)
    folders, runs, unfinished = {}, {}, []
    for seed, path in by_recipe[name].items():
        run = _read_run(path / "run.json")
        if run.get("state") == "done":
            folders[seed], runs[seed] = path, run
        else:
            unfinished.append(seed)
    if not folders:
        raise UsageError(
            f"{folder / name} has no finished seed, only {_listed(unfinished)} started: "
            "`curate validate` continues"
        )
    return FinishedSeeds(name, folders, runs, tuple(unfinished))


def _seed_folders(folder: Path) -> dict[int, Path]:
    """Folders that are named by a seed and were used by one, by seed."""
    found = {
        int(path.name): path
        for path in folder.iterdir()
        if path.name.isascii() and path.name.isdigit() and (path / "run.json").is_file()
    }
    return dict(sorted(found.items()))


def _choose(recipe: str, names: list[str], folder: Path) -> str:
    if recipe:
        name = Path(recipe).stem if recipe.endswith(".toml") else recipe
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UsageError(f"no outcomes of {name!r} in {folder}, only of {_listed(names)}{hint}")
        return name
    for name in _BASELINES:
        if name in names:
            return name
    if len(names) == 1:
        return names[0]
    raise UsageError(f"{folder} has outcomes of {_listed(names)}: choose one with --recipe")


def _read_run(path: Path) -> dict[str, Any]:
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    if not isinstance(run, dict) or not isinstance(run.get("seconds", {}), dict):
        raise UsageError(f"{path} is not the record of a training run")
    return run


def _listed(names: list[str] | list[int]) -> str:
    return ", ".join(map(str, names))


def read_outcomes(path: Path, item_ids: pa.ChunkedArray) -> pa.Table:
    """Read the outcomes of one seed, in the order of the run's items.

    Raises:
        UsageError: they are of other items, or are no outcomes.
        RunError: the file is missing or damaged.
    """
    table = read_parquet(path)
    try:
        table = table.select(OUTCOME_SCHEMA.names).cast(OUTCOME_SCHEMA)
    except (KeyError, pa.ArrowException) as error:
        raise UsageError(f"{path} is no table of outcomes: {error}") from error
    # By position: an item that is there twice, or not at all, changes the number of rows.
    places = pc.index_in(item_ids, table["item_id"].combine_chunks())
    if table.num_rows != len(item_ids) or places.null_count:
        raise UsageError(
            f"{path} has outcomes of other items: {len(item_ids) - places.null_count:,} of this "
            f"run's {len(item_ids):,} are among its {table.num_rows:,}"
        )
    table = table.take(places.combine_chunks())
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
        positive_in_training=stacked("positive_in_training").astype(np.bool_),
    )
