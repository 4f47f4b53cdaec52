"""What training takes from a tagged run: its items and their tags, its policy, its verifier."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path

import pyarrow as pa

from curate.datasets.layouts import choose_layout
from curate.datasets.source import open_source
from curate.errors import UsageError
from curate.run.folder import no_policy
from curate.run.run import Run
from curate.run.tables import ITEMS, PASS_RATES
from probes.models.chat import run_tokenizer
from probes.models.files import ModelFiles, resolve_model
from probes.models.load import load_tokenizer
from probes.models.probed import probed_model
from probes.stages.items import read_items
from probes.stages.render import PromptForm, render_items
from probes.verifiers.by_row import RowVerifiers, run_pool
from probes.verifiers.pool import VerifierPool
from recipes.recipe import Recipe
from recipes.train.items import TaggedItem
from recipes.train.processes import process_state
from recipes.train.prompts import TrainingItem


class TaggedRun:
    """A finished run of `curate tag`, as one trains on it.

    Raises UsageError where the run is not finished, or has no policy.
    """

    def __init__(self, path: Path) -> None:
        self.run = Run.open(path)
        self.path, self.manifest, self.config = path, self.run.manifest, self.run.config
        if not self.config.has_policy:
            raise UsageError(no_policy(path))

    @cached_property
    def items(self) -> pa.Table:
        """The run's `items.parquet`."""
        return self.run.columns(ITEMS, *ITEMS.columns).combine_chunks()

    @cached_property
    def rates(self) -> pa.Table:
        """The run's `pass_rates.parquet`."""
        return self.run.columns(PASS_RATES, *PASS_RATES.columns)

    @cached_property
    def tagged(self) -> list[TaggedItem]:
        """Every item with its tag and pass rate."""
        return [
            TaggedItem(item, tag, float("nan") if rate is None else rate)
            for item, tag, rate in zip(
                training_items(self.items),
                self.run.tags(),
                self.rates["pass_rate"].to_pylist(),
                strict=True,
            )
        ]

    def files(self, recipe: Recipe, moved_to: str) -> ModelFiles:
        """The policy that a recipe begins with: the probed one, or another base model."""
        if not recipe.model:
            return probed_model(self.path, self.config, moved_to)
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
        return run_pool(self.config, max(1, (os.cpu_count() or 1) // processes))

    def read_prompts(self, file: str, folder: Path) -> list[TrainingItem]:
        """Items of another file, rendered as the run's were; kept in `folder`."""
        if not ITEMS.is_in(folder):
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
                    verifiers=RowVerifiers(config),
                    check_columns=lambda names: None,
                    check_golds=lambda golds, names, solutions: pool.check_golds(
                        golds, verifiers=names, solutions=solutions
                    ),
                )
            refused = render_items(
                folder,
                items,
                run_tokenizer(resolve_model(config.model), config),
                PromptForm.from_config(config, self.manifest.get("date", "")),
                is_mixed=bool(config.verifier_field),
                max_tokens=config.max_tokens,
                context_length=2**31,
            )
            if len(refused) == len(items):
                raise UsageError(f"{file}: no item can be used; {next(iter(refused.values()))}")
        found = training_items(ITEMS.read(folder))
        if not found:
            raise UsageError(f"{file}: no item can be used")
        return found


def training_items(items: pa.Table) -> list[TrainingItem]:
    """The items of an `items.parquet`."""
    columns = [items[name].to_pylist() for name in ("item_id", "prompt_token_ids", "answer")]
    is_there = "verifier" in items.column_names
    verifiers = items["verifier"].to_pylist() if is_there else [None] * len(items)
    return [
        TrainingItem(item_id, tuple(prompt), answer, verifier)
        for item_id, prompt, answer, verifier in zip(*columns, verifiers, strict=True)
    ]
