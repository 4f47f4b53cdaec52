"""`curate validate`: train by recipes, with several seeds, and write every item's outcome.

RUN/validation/<recipe>/<seed>: train -> export -> final rollouts -> outcomes

Each step is skipped where its result is there already, so that a killed run goes on: training from
its newest checkpoint, final rollouts from their last shard. A folder is locked while it is worked
on, so that seeds may run side by side on several machines.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch

from curate.config import AUTO, TagConfig
from curate.datasets.source import open_source
from curate.errors import UsageError
from curate.files import write_atomically
from curate.run.folder import find_run, lock_folder
from curate.run.names import METRICS, POLICY, RECIPE, VALIDATION
from curate.run.rollouts import read_outcomes, rollout_outcomes, rollout_shards
from curate.run.tables import HELD_OUT, OUTCOMES, REWARDS
from probes.engines.choose import SERVER, TRANSFORMERS, LoadedModel
from probes.models.files import resolve_model
from probes.models.load import load_tokenizer
from probes.stages.sample import DrawShards, draw_here
from recipes.recipe import Recipe
from recipes.train.checkpoints import checkpoints
from recipes.train.items import select_items
from recipes.train.job_folder import begun_with, check_recipe, is_done, machine_facts, note, say
from recipes.train.placement import is_spread, refuse_to_spread_in_each_process
from recipes.train.processes import gathered, process_state
from recipes.train.prompts import TrainingItem
from recipes.train.settings import trainer_settings
from recipes.train.sft import train_sft
from recipes.train.tagged_run import TaggedRun
from recipes.train.train import Training, export_policy, train_grpo
from recipes.train.vllm import choose_generation
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
        job.work(outcomes=alone)
    # Other processes have nothing to do with final rollouts, and must not wait for hours.
    if not alone and process_state().is_main_process:
        for job in jobs:
            job.work(outcomes=True)
    return [job.folder for job in jobs]


@dataclass
class _Job:
    """One recipe with one seed."""

    run: TaggedRun
    recipe: Recipe
    seed: int
    wanted: Validate

    @property
    def folder(self) -> Path:
        return self.run.path / VALIDATION / self.recipe.name / str(self.seed)

    @property
    def is_spread(self) -> bool:
        """Whether its model is spread over all GPUs; every process must ask."""
        return any(gathered(is_spread(self.recipe, self._training.files)))

    @property
    def _is_trained(self) -> bool:
        return is_done(self.folder) or (self.folder / POLICY / "config.json").exists()

    @cached_property
    def _generation(self) -> str:
        """What draws its training rollouts; every process must ask."""
        return choose_generation(
            self.recipe,
            self._training.files,
            begun_with=begun_with(self.folder),
            trust_remote_code=self.run.config.trust_remote_code,
        )

    def check(self) -> None:
        """Refuse what cannot be trained, before anything is spent."""
        check_recipe(self.folder.parent, self.recipe)
        self.run.files(self.recipe, str(self.wanted.model))
        training = self._training
        if self.recipe.method == "sft":
            if self.is_spread:
                raise UsageError(
                    f"recipe {self.recipe.name}: {training.files.name} is too large to be trained "
                    "on one GPU, and sft is not spread over several; recipes with method grpo are"
                )
            self._demonstrations()
            if training.held_out:
                say(f"{self.recipe.name}: sft is not evaluated on held-out items")
        else:
            processes = process_state().num_processes
            trainer_settings(self.recipe, self.seed, self.folder, processes=processes)
            if not self._is_trained:
                refuse_to_spread_in_each_process(self.recipe, training.files)
                _ = self._generation  # While no model is loaded, and for all seeds alike.

    def work(self, *, outcomes: bool) -> None:
        """Do what is missing, up to the exported policy or up to the outcomes."""
        if is_done(self.folder):
            return
        state = process_state()
        lock = None
        if state.is_main_process:
            lock = lock_folder(self.folder, "choose another seed")
            write_atomically(self.folder.parent / RECIPE, self.recipe.to_toml())
            self._note(state="started")
        try:
            if not self._is_trained:
                self._train()
                if state.is_main_process:
                    self._export()
            if outcomes:
                self._evaluate()
        finally:
            if lock is not None:
                os.close(lock)

    def _note(self, **facts: Any) -> None:
        note(self.folder, recipe=self.recipe.name, seed=self.seed, **facts)

    @cached_property
    def _training(self) -> Training:
        recipe, config, validation = self.recipe, self.run.config, self.run.path / VALIDATION
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
            files=self.run.files(recipe, str(self.wanted.model)),
            items=items,
            held_out=held_out,
            max_tokens=recipe.max_completion_length or config.max_tokens,
            pool=self.run.pool(),
            folder=self.folder / "checkpoints",
            keep_checkpoints=self.wanted.keep == "all",
            trust_remote_code=config.trust_remote_code,
        )

    def _train(self) -> None:
        training = self._training
        say(
            f"{self.recipe.name}, seed {self.seed}: {len(training.items):,} items, "
            f"{self.recipe.max_steps} steps"
        )
        if self.recipe.method == "sft":
            counts = train_sft(training, self._demonstrations())
            rows: list[dict[str, Any]] = []
            held_out: list[dict[str, Any]] = []
            metrics: list[dict[str, Any]] = []
        else:
            if process_state().is_main_process:
                self._note(generation=self._generation)
            trainer = train_grpo(replace(training, generation=self._generation))
            counts = {**trainer.progress.counts(), "seconds": trainer.seconds}
            rows, held_out = trainer.progress.rows, trainer.progress.held_out
            metrics = trainer.progress.metrics
            del trainer
        # What is left of the run refers to itself, and would stay beside the next model.
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if not process_state().is_main_process:
            return
        for table, found in ((REWARDS, rows), (HELD_OUT, held_out)):
            if found or table is REWARDS:
                kept = [{key: row.get(key) for key in table.columns} for row in found]
                table.write(self.folder, pa.Table.from_pylist(kept, schema=table.schema))
        lines = "".join(json.dumps(line) + "\n" for line in metrics)
        write_atomically(self.folder / METRICS, lines)
        self._note(
            counts={k: v for k, v in counts.items() if k != "seconds"},
            seconds={"training": round(counts["seconds"], 1)},
            items=len(training.items),
            **machine_facts(),
        )

    def _demonstrations(self) -> list[tuple[Sequence[int], Sequence[int]]]:
        prompts = {item.item_id: item.prompt_token_ids for item in self._training.items}
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

    def _export(self) -> None:
        whole = checkpoints(self.folder / "checkpoints")
        if self.wanted.keep == "all":
            for checkpoint in whole[:-1]:
                step = int(checkpoint.name.rpartition("-")[2])
                if self.recipe.method == "grpo":
                    step //= self.recipe.updates_per_step
                export_policy(self._training, checkpoint, self.folder / f"policy-{step}")
        export_policy(self._training, whole[-1], self.folder / POLICY)
        shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)

    def _evaluate(self) -> None:
        recipe, config = self.recipe, self.run.config
        files = resolve_model(str(self.folder / POLICY))
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
            )
        if self.wanted.keep == "none":
            shutil.rmtree(self.folder / POLICY, ignore_errors=True)
        shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)
        rewards = REWARDS.read(self.folder).to_pylist()
        seconds = round(time.monotonic() - start, 1)
        write_outcomes(OUTCOMES.path(self.folder), self.run.rates, rewards, judged, correct)
        self._note(
            state="done",
            seconds={"evaluation": seconds},
            sampling={
                "final_rollouts": recipe.evaluation_rollouts,
                "temperature": recipe.evaluation_temperature,
                "max_tokens": config.max_tokens,
                "engine": model.choice,
            },
        )

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
