"""`curate validate`: train by recipes, with several seeds, and write every item's outcome.

RUN/validation/<recipe>/<seed>: train -> export -> final rollouts -> outcomes

Each step is done once (`recipes.train.job`); final rollouts go on from their last shard.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch

from curate.config import AUTO, TagConfig
from curate.datasets.source import open_source
from curate.errors import UsageError
from curate.run.folder import find_run
from curate.run.names import VALIDATION
from curate.run.rollouts import read_outcomes, rollout_outcomes, rollout_shards
from curate.run.tables import HELD_OUT, OUTCOMES, REWARDS
from probes.engines.choose import SERVER, TRANSFORMERS, LoadedModel
from probes.models.files import resolve_model
from probes.models.load import describe_machine, load_tokenizer
from probes.stages.sample import DrawShards, draw_here
from probes.tagging import shard_rollouts
from recipes.recipe import Recipe
from recipes.train.checkpoints import checkpoints
from recipes.train.items import select_items
from recipes.train.job import Trained, TrainingJob, say
from recipes.train.placement import is_spread
from recipes.train.processes import gathered, process_state
from recipes.train.prompts import TrainingItem
from recipes.train.settings import TrainingProgress
from recipes.train.sft import train_sft
from recipes.train.tagged_run import TaggedRun
from recipes.train.train import Training, export_policy
from recipes.validate.command import Validate
from recipes.validate.evaluation import FINAL_SEED, evaluate, write_outcomes


def validate_run(wanted: Validate, recipes: Sequence[Recipe]) -> list[Path]:
    """Train and evaluate every recipe with every seed.

    Args:
        wanted: the run, the seeds, and what else is asked for.
        recipes: with all that they ask the user for.

    Returns:
        the folders of the runs, each with `outcomes.parquet`.

    Raises:
        UsageError: bad input; nothing was spent.
        RunError: a step failed; the same call continues.
    """
    run, seeds = TaggedRun(find_run(Path(wanted.path))), dict.fromkeys(wanted.seeds)
    jobs = [_Job(run, recipe, seed, wanted) for recipe in recipes for seed in seeds]
    for job in jobs:
        job.check()
    alone = process_state().num_processes == 1
    if alone and torch.cuda.device_count() > 1 and not all(job.is_spread for job in jobs):
        say(
            f"one of {torch.cuda.device_count()} GPUs trains; all do with accelerate launch "
            "--multi_gpu -m curate validate ..."
        )
    for job in jobs:
        job.work(last=alone)
    # Other processes have nothing to do with final rollouts, and must not wait for hours.
    if not alone and process_state().is_main_process:
        for job in jobs:
            job.work(last=True)
    return [job.folder for job in jobs]


@dataclass
class _Job(TrainingJob):
    """One recipe with one seed, whose outcomes are wanted."""

    place = VALIDATION

    wanted: Validate

    @property
    def is_spread(self) -> bool:
        """Whether its model is spread over all GPUs; every process must ask."""
        return any(gathered(is_spread(self.recipe, self.training.files)))

    def check(self) -> None:
        """Refuse what cannot be trained, before anything is spent."""
        if self.recipe.method != "sft":
            super().check()
            return
        self.check_recipe()
        if self.is_spread:
            raise UsageError(
                f"recipe {self.recipe.name}: {self.training.files.name} is too large to be trained "
                "on one GPU, and sft is not spread over several; recipes with method grpo are"
            )
        self._demonstrations()
        if self.training.held_out:
            say(f"{self.recipe.name}: sft is not evaluated on held-out items")

    @cached_property
    def training(self) -> Training:
        """Also on extra items, and with held-out ones, where these are asked for."""
        recipe, config, validation = self.recipe, self.run.config, self.run.path / VALIDATION
        files = self.run.files(recipe, str(self.wanted.model))
        selected = select_items(recipe, self.run.tagged, self.seed)
        items = [each.item for each in selected]
        if recipe.extra_items:
            name = open_source(recipe.extra_items).fingerprint[:16]
            items += self.run.read_prompts(recipe.extra_items, validation / ".items" / name)
        held_out: list[TrainingItem] = []
        if file := str(self.wanted.held_out):
            name = open_source(file).fingerprint[:16]
            held_out = self.run.read_prompts(file, validation / ".items" / name)
            known = {item.item_id for item in items}
            held_out = [item for item in held_out if item.item_id not in known]
            if not held_out:
                raise UsageError(f"every item of {file} is trained on")
        return Training(
            recipe=recipe,
            seed=self.seed,
            files=files,
            items=items,
            held_out=held_out,
            max_tokens=recipe.max_completion_length or config.max_tokens,
            pool=self.run.pool(),
            folder=self.checkpoints,
            keep_checkpoints=self.wanted.keep == "all",
            trust_remote_code=config.trust_remote_code,
        )

    def train(self) -> Trained:
        """Train by the recipe's method."""
        if self.recipe.method != "sft":
            return super().train()
        counts = train_sft(self.training, self._demonstrations())
        seconds = counts.pop("seconds")
        return Trained(counts, seconds, TrainingProgress())

    def log(self, trained: Trained) -> dict[str, Any]:
        """Held-out items, where there are any."""
        if rows := trained.progress.held_out:
            HELD_OUT.write(self.folder, pa.Table.from_pylist(rows, schema=HELD_OUT.schema))
        return {}

    def _demonstrations(self) -> list[tuple[Sequence[int], Sequence[int]]]:
        prompts = {item.item_id: item.prompt_token_ids for item in self.training.items}
        found: list[tuple[Sequence[int], Sequence[int]]] = []
        for file in rollout_shards(self.run.path):
            table = read_outcomes(file, "item_id", "completion_token_ids")
            table = table.filter(pa.array(rollout_outcomes(table) == 1))
            found += [
                (prompts[row["item_id"]], row["completion_token_ids"])
                for row in table.to_pylist()
                if row["item_id"] in prompts
            ]
        if not found:
            raise UsageError(f"recipe {self.recipe.name}: its items have no correct rollout")
        return found

    def export(self) -> None:
        """Make a model folder of the newest checkpoint, and of all where they are to stay."""
        whole = checkpoints(self.checkpoints)
        if self.wanted.keep == "all":
            for checkpoint in whole[:-1]:
                step = int(checkpoint.name.rpartition("-")[2])
                if self.recipe.method == "grpo":
                    step //= self.recipe.updates_per_step
                export_policy(self.training, checkpoint, self.folder / f"policy-{step}")
        export_policy(self.training, whole[-1], self.policy)
        self.drop_checkpoints()

    def measure(self) -> None:
        """Draw final rollouts of every item from the policy, and write the outcomes."""
        recipe, config = self.recipe, self.run.config
        files = resolve_model(str(self.policy))
        start = time.monotonic()
        with closing(LoadedModel(self._final_config(), files)) as model:
            lengths = pc.list_value_length(self.run.items["prompt_token_ids"])
            model.longest_prompt = pc.max(lengths).as_py()

            def draw() -> DrawShards:
                trusted = config.trust_remote_code
                tokenizer = load_tokenizer(files, trust_remote_code=trusted)
                return draw_here(model.engine(), tokenizer)

            judged, correct = evaluate(
                self.folder,
                self.run.items,
                self.run.pool(),
                draw,
                rollouts=recipe.evaluation_rollouts,
                shard_rollouts=shard_rollouts(
                    model.config, describe_machine()["device"], is_served=False
                ),
            )
        self.drop_checkpoints()
        rewards = REWARDS.read(self.folder).to_pylist()
        seconds = round(time.monotonic() - start, 1)
        write_outcomes(OUTCOMES.path(self.folder), self.run.rates, rewards, judged, correct)
        self.note(
            state="done",
            seconds={"evaluation": seconds},
            sampling={
                "final_rollouts": recipe.evaluation_rollouts,
                "temperature": recipe.evaluation_temperature,
                "max_tokens": config.max_tokens,
                "engine": model.choice,
            },
        )
        if self.wanted.keep == "none":
            shutil.rmtree(self.policy, ignore_errors=True)

    def _final_config(self) -> TagConfig:
        """How the final rollouts are drawn: by the run's engine, whatever the run left out.

        The run's servers have the model before training, so the engine is then the one of this
        machine. In a process of several a vLLM would take their process group for its own.
        """
        recipe, config = self.recipe, self.run.config
        engine = AUTO if config.engine == SERVER else config.engine
        if process_state().num_processes > 1:
            engine = TRANSFORMERS
        return config.replace(
            engine=engine,
            base_url=(),
            seed=FINAL_SEED + self.seed,
            temperature=recipe.evaluation_temperature,
            top_p=1.0,
            top_k=0,
            min_p=0.0,
        )
