"""The training runs of a run folder: which are finished, and the tables that they left."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from curate.errors import RunError, UsageError
from curate.run.names import RECIPE, TRAINING, VALIDATION
from curate.run.tables import Table
from curate.settings import did_you_mean

# What tags are confirmed against, the first that is there.
_BASELINES = ("baseline", "baseline-small")


@dataclass(frozen=True)
class FinishedSeeds:
    """The seeds of a recipe in a run folder.

    Attributes:
        recipe: its name.
        folders: of each finished seed, in the order of the seeds.
        runs: each one's `run.json`.
        unfinished: seeds that were started only.
    """

    recipe: str
    folders: dict[int, Path]
    runs: dict[int, dict[str, Any]]
    unfinished: tuple[int, ...]

    @property
    def recipe_file(self) -> Path:
        """The recipe as it was trained by."""
        return next(iter(self.folders.values())).parent / RECIPE

    def tables(self, wanted: Table) -> list[pa.Table]:
        """A table of each finished seed.

        Raises:
            RunError: one is missing or damaged.
        """
        return [read_training_table(folder, wanted) for folder in self.folders.values()]

    @property
    def seeds(self) -> tuple[int, ...]:
        """The finished seeds, ascending."""
        return tuple(self.folders)


def finished_seeds(run_dir: Path, recipe: str = "") -> FinishedSeeds:
    """Find the seeds of a recipe that have outcomes, one at least.

    Args:
        run_dir: a run folder.
        recipe: a name, or the path of the recipe's file; without it `baseline`, or else
            `baseline-small`, or else the only one there.

    Raises:
        UsageError: no such recipe was validated here (names those that were), several could be
            meant, or none of its seeds is finished.
        RunError: a run's state cannot be read.
    """
    folder = run_dir / VALIDATION
    by_recipe = _seed_folders(folder)
    if not by_recipe:
        raise UsageError(f"{run_dir} has no validation yet: `curate validate` makes one")
    names = list(by_recipe)
    if not recipe:
        names = list(finished_recipes(run_dir)) or names
    name = _choose(recipe, names, folder)
    found = _sorted_out(name, by_recipe[name])
    if not found.folders:
        raise UsageError(
            f"{folder / name} has no finished seed, only {_listed(found.unfinished)} started: "
            "the command that began it continues"
        )
    return found


def finished_recipes(run_dir: Path) -> dict[str, FinishedSeeds]:
    """Find the recipes with a finished seed, by name, in alphabetical order.

    Raises:
        RunError: a run's state cannot be read.
    """
    every = (_sorted_out(*each) for each in _seed_folders(run_dir / VALIDATION).items())
    return {found.recipe: found for found in every if found.folders}


def _seed_folders(validation: Path) -> dict[str, dict[int, Path]]:
    """Folders that are named by a seed and were used by one, by recipe and seed, in order."""
    if not validation.is_dir():
        return {}
    # Beside the recipes there are the tables of `confirm` and, hidden, prepared items.
    recipes = sorted(
        path for path in validation.iterdir() if path.is_dir() and not path.name.startswith(".")
    )
    found = {
        recipe.name: {
            int(path.name): path
            for path in recipe.iterdir()
            if path.name.isascii() and path.name.isdigit() and (path / TRAINING).is_file()
        }
        for recipe in recipes
    }
    return {name: dict(sorted(seeds.items())) for name, seeds in found.items() if seeds}


def _sorted_out(recipe: str, seeds: dict[int, Path]) -> FinishedSeeds:
    runs = {seed: _read_run(path / TRAINING) for seed, path in seeds.items()}
    done = [seed for seed, run in runs.items() if run.get("state") == "done"]
    return FinishedSeeds(
        recipe,
        {seed: seeds[seed] for seed in done},
        {seed: runs[seed] for seed in done},
        tuple(seed for seed in seeds if seed not in done),
    )


def _read_run(path: Path) -> dict[str, Any]:
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path} is damaged; remove its folder and validate again") from error
    if not isinstance(run, dict) or not isinstance(run.get("seconds", {}), dict):
        raise RunError(f"{path} is damaged; remove its folder and validate again")
    return run


def _choose(recipe: str, names: list[str], folder: Path) -> str:
    if recipe:
        name = Path(recipe).stem if recipe.endswith(".toml") else recipe
        if name not in names:
            hint = did_you_mean(name, names)
            raise UsageError(f"no outcomes of {name!r} in {folder}, only of {_listed(names)}{hint}")
        return name
    for name in _BASELINES:
        if name in names:
            return name
    if len(names) == 1:
        return names[0]
    raise UsageError(f"{folder} has outcomes of {_listed(names)}: choose one with --recipe")


def _listed(names: Sequence[object]) -> str:
    return ", ".join(map(str, names))


def read_training_table(folder: Path, wanted: Table) -> pa.Table:
    """Read a table of a finished training, from its folder.

    Raises:
        RunError: it is missing or damaged, or has other columns.
    """
    file, names = wanted.path(folder), list(wanted.columns)
    table = wanted.read(folder)
    missing = set(names) - set(table.column_names)
    if missing:
        raise RunError(f"{file} has no column {sorted(missing)[0]}; validate again")
    try:
        return table.select(names).cast(wanted.schema)
    except pa.ArrowException as error:
        raise RunError(f"{file} is damaged: {error}; validate again") from error
