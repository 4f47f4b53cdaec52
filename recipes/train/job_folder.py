"""The folder of one recipe with one seed: `run.json`, and what it was made with.

RUN/validation/<recipe>/<seed> and RUN/pilot/<recipe>/<seed> are such folders; the recipe stands
beside the seeds as `recipe.toml`.
"""

from __future__ import annotations

import json
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from curate.config import read_config_file
from curate.errors import UsageError
from curate.files import write_atomically
from curate.run.names import RECIPE, TRAINING
from recipes.recipe import Recipe
from recipes.train.checkpoints import checkpoints
from recipes.train.processes import process_state

_PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate")


def read_facts(folder: Path) -> dict[str, Any]:
    """What `run.json` says; nothing where there is none."""
    file = folder / TRAINING
    facts: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return facts


def note(folder: Path, **facts: Any) -> None:
    """Put facts into `run.json`; tables in it are added to."""
    known = read_facts(folder)
    for name, value in facts.items():
        known[name] = known.get(name, {}) | value if isinstance(value, dict) else value
    write_atomically(folder / TRAINING, json.dumps(known, indent=2) + "\n")


def is_done(folder: Path) -> bool:
    """Whether everything that the folder is to hold is there."""
    return read_facts(folder).get("state") == "done"


def begun_with(folder: Path) -> str:
    """What drew the rollouts of a training that has a checkpoint to go on from; "" where none."""
    known: str = read_facts(folder).get("generation", "")
    return known if checkpoints(folder / "checkpoints") else ""


def check_recipe(folder: Path, recipe: Recipe) -> None:
    """Refuse to go on in a folder of seeds that was made with another recipe of the same name."""
    file = folder / RECIPE
    if not file.exists():
        return
    # Keys that came later stood at their defaults.
    defaults = tomllib.loads(Recipe(name=recipe.name).to_toml())
    old, new = defaults | read_config_file(file), tomllib.loads(recipe.to_toml())
    changed = [key for key in new if old.get(key) != new[key]]
    if changed:
        what = ", ".join(f"{k}: {old.get(k)!r} -> {new[k]!r}" for k in changed)
        raise UsageError(
            f"{folder} was made with another recipe: {what}; "
            "give this one another name, or remove the folder"
        )


def machine_facts() -> dict[str, Any]:
    """Who trained: `processes`, `device` and `versions` of the packages."""
    device = f"CPU, {torch.get_num_threads()} threads"
    if torch.cuda.is_available():
        device = str(torch.cuda.get_device_name())
    return {
        "processes": process_state().num_processes,
        "device": device,
        "versions": {name: metadata.version(name) for name in _PACKAGES},
    }


def say(text: str) -> None:
    """Tell the user, once for all processes of a training."""
    if process_state().is_main_process:
        print(text, file=sys.stderr, flush=True)
