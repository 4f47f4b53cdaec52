"""`curate validate`: train by recipes, with several seeds, and write every item's outcome.

RUN/validation/<recipe>/<seed>: train -> export -> final rollouts -> outcomes

Each step is skipped where its result is there already, so that a killed run goes on: training from
its newest checkpoint, final rollouts from their last shard. A folder is locked while it is worked
on, so that seeds may run side by side on several machines.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from curate.config import TagConfig, read_config_file
from curate.datasets import open_source
from curate.errors import UsageError
from curate.files import write_atomically
from curate.reading import choose_layout, read_items
from curate.run_folder import (
    lock_folder,
    read_manifest,
    read_parquet,
    read_run_config,
    write_parquet,
)
from probes.judging import VerifierPool
from probes.models import ModelFiles, load_policy, load_tokenizer, resolve_model
from probes.rendering import render_items
from probes.sampling import rollout_shards
from recipes.checkpoints import checkpoints
from recipes.evaluation import evaluate, write_outcomes
from recipes.outcomes import HELD_OUT_SCHEMA, REWARD_SCHEMA
from recipes.prompts import TrainingItem
from recipes.recipe import Recipe
from recipes.selection import TaggedItem, select_items
from recipes.sft import train_sft
from recipes.training import Training, export_policy, process_state, train_grpo

KEEP = ("none", "policy", "all")
_PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate")


def find_run(path: Path) -> Path:
    """The run folder that a path means: itself, or the run in `runs/` that wrote a tagged file.

    Raises:
        UsageError: neither; or several runs wrote the file.
    """
    if path.is_dir():
        read_manifest(path)
        return path
    if not path.exists():
        raise UsageError(f"no such run folder or tagged file: {path}")
    found = []
    for config in sorted(Path("runs").glob("*/config.toml")):
        out = read_config_file(config).get("out", "")
        if isinstance(out, str) and out and Path(out).resolve() == path.resolve():
            found.append(config.parent)
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f"{path} was written by several runs: {', '.join(map(str, found))}")
    raise UsageError(f"no run in ./runs wrote {path}; give the run folder itself")


@dataclass(frozen=True)
class Wanted:
    """What a `curate validate` command asks for beside run, recipes and seeds.

    Attributes:
        model: where the probed model lies now, if it was moved.
        held_out: a dataset file of items that are evaluated on the way and not trained on.
        keep: `none`: weights are dropped once outcomes are there; `policy`: the final policy is
            kept as a Hugging Face folder; `all`: one for every checkpoint too.
    """

    model: str = ""
    held_out: str = ""
    keep: str = "none"


def validate_run(
    path: Path, recipes: Sequence[Recipe], seeds: Sequence[int], wanted: Wanted
) -> list[Path]:
    """Train and evaluate every recipe with every seed.

    Returns:
        the folders of the runs, each with `outcomes.parquet`.

    Raises:
        UsageError: bad input; nothing was spent.
        RunError: a step failed; the same call continues.
    """
    run = _TaggedRun(find_run(path))
    jobs = [_Job(run, recipe, seed, wanted) for recipe in recipes for seed in dict.fromkeys(seeds)]
    for job in jobs:
        job.check()
    alone = process_state().num_processes == 1
    for job in jobs:
        job.work(outcomes=alone)
    # Other processes have nothing to do with final rollouts, and must not wait for hours.
    if not alone and process_state().is_main_process:
        for job in jobs:
            job.work(outcomes=True)
    return [job.folder for job in jobs]


class _TaggedRun:
    """What `curate tag` left in a run folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = read_manifest(path)
        if self.manifest["stages"].get("tags", {}).get("state") != "done":
            raise UsageError(f"the run in {path} is not finished; repeat its `curate tag` first")
        self.config: TagConfig = read_run_config(path)

    @cached_property
    def items(self) -> pa.Table:
        return read_parquet(self.path / "items.parquet").combine_chunks()

    @cached_property
    def rates(self) -> pa.Table:
        return read_parquet(self.path / "pass_rates.parquet")

    @cached_property
    def tagged(self) -> list[TaggedItem]:
        tags = read_parquet(self.path / "tags.parquet", ["item_id", "trainability"])
        rates = self.rates.select(["pass_rate"])
        if not self.items["item_id"].equals(tags["item_id"]):
            raise UsageError(f"{self.path}: items.parquet and tags.parquet are of different runs")
        return [
            TaggedItem(item, tag, float("nan") if rate is None else rate)
            for item, tag, rate in zip(
                training_items(self.items),
                tags["trainability"].to_pylist(),
                rates["pass_rate"].to_pylist(),
                strict=True,
            )
        ]

    def files(self, recipe: Recipe, moved_to: str) -> ModelFiles:
        """The policy that a recipe begins with: the probed one, or another base model."""
        if not recipe.model:
            files = resolve_model(moved_to or self.config.model)
            if files.weight_hash != self.manifest["model"]["weight_hash"]:
                raise UsageError(
                    f"model {moved_to or self.config.model} is not the one that {self.path} "
                    "probed; give that one with --model"
                )
            return files
        files = resolve_model(recipe.model)
        # Prompts are used as the run tokenized them.
        theirs, ours = load_tokenizer(files), load_tokenizer(resolve_model(self.config.model))
        if theirs.get_vocab() != ours.get_vocab():
            raise UsageError(
                f"model {recipe.model} has another tokenizer than the run's {self.config.model}; "
                "run `curate tag` with it and validate that run"
            )
        return files

    def pool(self) -> VerifierPool:
        """Workers of the run's verifier; the processes of one machine share its cores."""
        processes = process_state().num_processes
        workers = self.config.verifier_workers or max(1, (os.cpu_count() or 1) // processes)
        return VerifierPool(
            self.config.verifier, workers=workers, seconds=self.config.verifier_seconds
        )

    def read_prompts(self, file: str, folder: Path) -> list[TrainingItem]:
        """Items of another file, rendered as the run's were; kept in `folder`."""
        if not (folder / "items.parquet").exists():
            config, source = self.config, open_source(file, split=self.config.split)
            names = [n for n in (config.prompt_field, config.answer_field) if n in source.columns]
            layout = choose_layout(
                source,
                config.prompt_field if config.prompt_field in names else "",
                config.answer_field if config.answer_field in names else "",
            )
            with self.pool() as pool:
                items, _ = read_items(
                    source,
                    layout,
                    0,
                    folder,
                    check_columns=lambda names: None,
                    check_golds=pool.check_golds,
                )
            refused = render_items(
                folder,
                items,
                load_tokenizer(resolve_model(config.model)),
                instruction=config.instruction,
                max_tokens=config.max_tokens,
                context_length=2**31,
            )
            if len(refused) == len(items):
                raise UsageError(f"{file}: no item can be used; {next(iter(refused.values()))}")
        return training_items(read_parquet(folder / "items.parquet"))


def training_items(items: pa.Table) -> list[TrainingItem]:
    """The items of an `items.parquet`."""
    columns = (items[name].to_pylist() for name in ("item_id", "prompt_token_ids", "answer"))
    return [
        TrainingItem(item_id, tuple(prompt), answer)
        for item_id, prompt, answer in zip(*columns, strict=True)
    ]


@dataclass
class _Job:
    """One recipe with one seed."""

    run: _TaggedRun
    recipe: Recipe
    seed: int
    wanted: Wanted
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return self.run.path / "validation" / self.recipe.name / str(self.seed)

    @property
    def is_done(self) -> bool:
        file = self.folder / "run.json"
        return file.exists() and json.loads(file.read_text(encoding="utf-8"))["state"] == "done"

    def check(self) -> None:
        """Refuse what cannot be trained, before anything is spent."""
        file = self.folder.parent / "recipe.toml"
        if file.exists():
            old, new = read_config_file(file), tomllib.loads(self.recipe.to_toml())
            changed = [key for key in new if old.get(key) != new[key]]
            if changed:
                what = ", ".join(f"{k}: {old.get(k)!r} -> {new[k]!r}" for k in changed)
                raise UsageError(
                    f"{self.folder.parent} was made with another recipe: {what}; "
                    "give this one another name, or remove the folder"
                )
        self.run.files(self.recipe, self.wanted.model)
        for dataset in filter(None, (self.recipe.extra_items, self.wanted.held_out)):
            open_source(dataset)
        select_items(self.recipe, self.run.tagged, self.seed)

    def work(self, *, outcomes: bool) -> None:
        """Do what is missing, up to the exported policy or up to the outcomes."""
        if self.is_done:
            return
        state = process_state()
        lock = None
        if state.is_main_process:
            lock = lock_folder(self.folder, "choose another seed")
            write_atomically(self.folder.parent / "recipe.toml", self.recipe.to_toml())
            self._note(state="started")
        try:
            if not (self.folder / "policy" / "config.json").exists():
                self._train()
                if state.is_main_process:
                    self._export()
            if outcomes:
                self._evaluate()
        finally:
            if lock is not None:
                os.close(lock)

    def _note(self, **facts: Any) -> None:
        """Put facts into `run.json`."""
        file = self.folder / "run.json"
        if not self.facts and file.exists():
            self.facts = json.loads(file.read_text(encoding="utf-8"))
        self.facts |= {"recipe": self.recipe.name, "seed": self.seed, **facts}
        write_atomically(file, json.dumps(self.facts, indent=2) + "\n")

    @cached_property
    def _training(self) -> Training:
        recipe, config, validation = self.recipe, self.run.config, self.run.path / "validation"
        selected = select_items(recipe, self.run.tagged, self.seed)
        items = [each.item for each in selected]
        if recipe.extra_items:
            name = open_source(recipe.extra_items).fingerprint[:16]
            items += self.run.read_prompts(recipe.extra_items, validation / ".items" / name)
        held_out: list[TrainingItem] = []
        if self.wanted.held_out:
            name = open_source(self.wanted.held_out).fingerprint[:16]
            held_out = self.run.read_prompts(self.wanted.held_out, validation / ".items" / name)
            known = {item.item_id for item in items}
            held_out = [item for item in held_out if item.item_id not in known]
            if not held_out:
                raise UsageError(f"every item of {self.wanted.held_out} is trained on")
        return Training(
            recipe=recipe,
            seed=self.seed,
            files=self.run.files(recipe, self.wanted.model),
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
        _say(
            f"{self.recipe.name}, seed {self.seed}: {len(training.items):,} items, "
            f"{self.recipe.max_steps} steps"
        )
        if self.recipe.method == "sft":
            counts = train_sft(training, self._demonstrations())
            rows: list[dict[str, Any]] = []
            held_out: list[dict[str, Any]] = []
        else:
            trainer = train_grpo(training)
            counts = {**trainer.progress.counts(), "seconds": trainer.seconds}
            rows, held_out = trainer.progress.rows, trainer.progress.held_out
        if not process_state().is_main_process:
            return
        for name, found, schema in (
            ("rewards", rows, REWARD_SCHEMA),
            ("held_out", held_out, HELD_OUT_SCHEMA),
        ):
            if found or name == "rewards":
                kept = [{key: row[key] for key in schema.names} for row in found]
                write_parquet(
                    self.folder / f"{name}.parquet", pa.Table.from_pylist(kept, schema=schema)
                )
        self._note(
            counts={k: v for k, v in counts.items() if k != "seconds"},
            seconds={"training": round(counts["seconds"], 1)},
            items=len(training.items),
            processes=process_state().num_processes,
            device=_device_name(),
            versions={name: metadata.version(name) for name in _PACKAGES},
        )

    def _demonstrations(self) -> list[tuple[Sequence[int], Sequence[int]]]:
        prompts = {item.item_id: item.prompt_token_ids for item in self._training.items}
        found: list[tuple[Sequence[int], Sequence[int]]] = []
        for file in rollout_shards(self.run.path):
            table = read_parquet(file, ["item_id", "completion_token_ids", "reward"])
            table = table.filter(pc.fill_null(pc.equal(table["reward"], 1), False))
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
                step = int(checkpoint.name.rpartition("-")[2]) // self.recipe.updates_per_step
                export_policy(self._training, checkpoint, self.folder / f"policy-{step}")
        export_policy(self._training, whole[-1], self.folder / "policy")
        shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)

    def _evaluate(self) -> None:
        recipe, config = self.recipe, self.run.config
        policy = load_policy(
            resolve_model(str(self.folder / "policy")), trust_remote_code=config.trust_remote_code
        )
        start = time.monotonic()
        judged, correct = evaluate(
            self.folder,
            policy,
            self.run.items,
            self.run.pool(),
            seed=self.seed,
            rollouts=recipe.evaluation_rollouts,
            temperature=recipe.evaluation_temperature,
            max_tokens=config.max_tokens,
        )
        rewards = read_parquet(self.folder / "rewards.parquet").to_pylist()
        seconds = self.facts.get("seconds", {}) | {"evaluation": time.monotonic() - start}
        write_outcomes(self.folder / "outcomes.parquet", self.run.rates, rewards, judged, correct)
        self._note(
            state="done",
            seconds={name: round(value, 1) for name, value in seconds.items()},
            sampling={
                "final_rollouts": recipe.evaluation_rollouts,
                "temperature": recipe.evaluation_temperature,
                "max_tokens": config.max_tokens,
            },
        )
        if self.wanted.keep == "none":
            shutil.rmtree(self.folder / "policy", ignore_errors=True)


def _device_name() -> str:
    import torch

    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    return f"CPU, {torch.get_num_threads()} threads"


def _say(text: str) -> None:
    if process_state().is_main_process:
        print(text, file=sys.stderr, flush=True)
