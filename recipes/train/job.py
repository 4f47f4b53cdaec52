"""One recipe trained with one seed, in a folder of its own: trained, exported, and then measured.

RUN/validation/<recipe>/<seed> and RUN/pilot/<recipe>/<seed> are such folders; the recipe stands
beside the seeds as `recipe.toml`. Each step is skipped where its result is there already, so that
a killed job goes on: training from its newest checkpoint, measuring from its last file. A folder is
locked while it is worked on, so that seeds may run side by side on several machines.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import sys
import tomllib
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import torch

from curate.config import read_config_file
from curate.errors import UsageError
from curate.files import write_atomically
from curate.run.folder import lock_folder
from curate.run.names import METRICS, POLICY, RECIPE, TRAINING
from curate.run.tables import REWARDS, read_json
from recipes.recipe import Recipe
from recipes.train.checkpoints import checkpoints
from recipes.train.placement import refuse_to_spread_in_each_process
from recipes.train.processes import process_state
from recipes.train.settings import TrainingProgress, trainer_settings
from recipes.train.tagged_run import TaggedRun
from recipes.train.train import Training, train_grpo
from recipes.train.vllm import choose_generation

_PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate")


@dataclass(frozen=True)
class Trained:
    """What a training did: its counts, its seconds over all tries, and its logs."""

    counts: dict[str, int]
    seconds: float
    progress: TrainingProgress


@dataclass
class TrainingJob(ABC):
    """One recipe with one seed, on the items of a run."""

    run: TaggedRun
    recipe: Recipe
    seed: int
    place: ClassVar[str]
    """The folder of the run in which the folders of recipes stand."""
    what: ClassVar[str] = ""
    """What it is called before the recipe's name."""

    @property
    def folder(self) -> Path:
        """Where all of it is."""
        return self.run.path / self.place / self.recipe.name / str(self.seed)

    @property
    def policy(self) -> Path:
        """Where its weights are, from the export until they are dropped."""
        return self.folder / POLICY

    @property
    def checkpoints(self) -> Path:
        """Where those of its training are, until the export."""
        return self.folder / "checkpoints"

    @property
    def is_done(self) -> bool:
        """Whether everything that the folder is to hold is there."""
        return read_facts(self.folder).get("state") == "done"

    @cached_property
    @abstractmethod
    def training(self) -> Training:
        """What it trains on, and with what."""

    @abstractmethod
    def export(self) -> None:
        """Make a policy of the checkpoints, and remove them."""

    @abstractmethod
    def measure(self) -> None:
        """Measure the exported policy, and note that the job is done."""

    def check(self) -> None:
        """Refuse what cannot be trained, before anything is spent."""
        self.check_recipe()
        processes = process_state().num_processes
        trainer_settings(self.recipe, self.seed, self.training.folder, processes=processes)
        if not self._is_trained:
            refuse_to_spread_in_each_process(self.recipe, self.training.files)
            _ = self._generation  # While no model is loaded, and for all seeds alike.

    def work(self, *, last: bool) -> None:
        """Do what is missing, up to the exported policy or with `last` to the end."""
        if self.is_done:
            return
        is_main = process_state().is_main_process
        lock = None
        if is_main:
            lock = lock_folder(self.folder, "choose another seed")
            write_atomically(self.folder.parent / RECIPE, self.recipe.to_toml())
            self.note(recipe=self.recipe.name, seed=self.seed, state="started")
        try:
            if not self._is_trained:
                self._train()
                if is_main:
                    self.export()
            if last:
                self.measure()
        finally:
            if lock is not None:
                os.close(lock)

    def note(self, **facts: Any) -> None:
        """Put facts into `run.json`; tables in it are added to."""
        known = read_facts(self.folder)
        for name, value in facts.items():
            known[name] = known.get(name, {}) | value if isinstance(value, dict) else value
        write_atomically(self.folder / TRAINING, json.dumps(known, indent=2) + "\n")

    def train(self) -> Trained:
        """Train, in every process: by GRPO, unless a kind of job has another method."""
        if process_state().is_main_process:
            self.note(generation=self._generation)
        trainer = train_grpo(replace(self.training, generation=self._generation))
        return Trained(trainer.progress.counts(), trainer.seconds, trainer.progress)

    def log(self, trained: Trained) -> dict[str, Any]:
        """Write what else a kind of job keeps of a training; what `run.json` is to say of it."""
        return {}

    def check_recipe(self) -> None:
        """Refuse to go on beside seeds that were made with another recipe of the same name."""
        file = self.folder.parent / RECIPE
        if not file.exists():
            return
        # Keys that came later stood at their defaults.
        defaults = tomllib.loads(Recipe(name=self.recipe.name).to_toml())
        old, new = defaults | read_config_file(file), tomllib.loads(self.recipe.to_toml())
        changed = [key for key in new if old.get(key) != new[key]]
        if changed:
            what = ", ".join(f"{k}: {old.get(k)!r} -> {new[k]!r}" for k in changed)
            raise UsageError(
                f"{file.parent} was made with another recipe: {what}; "
                "give this one another name, or remove the folder"
            )

    def drop_checkpoints(self) -> None:
        """Remove what is of no use once there is a policy."""
        shutil.rmtree(self.checkpoints, ignore_errors=True)

    @property
    def _is_trained(self) -> bool:
        # Earlier versions dropped a policy before the job was done, and could be killed there.
        return self.is_done or any(self.policy.glob("*config.json"))

    @cached_property
    def _generation(self) -> str:
        """What draws its training rollouts; every process must ask."""
        known: str = read_facts(self.folder).get("generation", "")
        return choose_generation(
            self.recipe,
            self.training.files,
            begun_with=known if checkpoints(self.checkpoints) else "",
            trust_remote_code=self.run.config.trust_remote_code,
        )

    def _train(self) -> None:
        items, name = len(self.training.items), f"{self.what}{self.recipe.name}"
        say(f"{name}, seed {self.seed}: {items:,} items, {self.recipe.max_steps} steps")
        trained = self.train()
        # What is left of the trainer refers to itself, and would stay beside the next model.
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if not process_state().is_main_process:
            return
        rows = [{key: row.get(key) for key in REWARDS.columns} for row in trained.progress.rows]
        REWARDS.write(self.folder, pa.Table.from_pylist(rows, schema=REWARDS.schema))
        lines = "".join(json.dumps(line) + "\n" for line in trained.progress.metrics)
        write_atomically(self.folder / METRICS, lines)
        facts = {
            "counts": trained.counts,
            "seconds": {"training": round(trained.seconds, 1)},
            "items": items,
        }
        self.note(**facts | self.log(trained) | _machine_facts())


def read_facts(folder: Path) -> dict[str, Any]:
    """What `run.json` of a job's folder says; nothing where there is none."""
    file = folder / TRAINING
    return read_json(file) if file.exists() else {}


def say(text: str) -> None:
    """Tell the user, once for all processes of a training."""
    if process_state().is_main_process:
        print(text, file=sys.stderr, flush=True)


def _machine_facts() -> dict[str, Any]:
    """Who trained: `processes`, `device` and `versions` of the packages."""
    device = f"CPU, {torch.get_num_threads()} threads"
    if torch.cuda.is_available():
        device = str(torch.cuda.get_device_name())
    return {
        "processes": process_state().num_processes,
        "device": device,
        "versions": {name: metadata.version(name) for name in _PACKAGES},
    }
