"""A pilot: a few steps of GRPO by a recipe, and the kept rollouts scored under what it gives.

RUN/pilot/<recipe>/<seed>: train -> policy -> log_probabilities.parquet

The first step trains on rollouts of the probe where they are what it would sample: drawn by the
same policy, at the recipe's temperature, and not cut sooner. Those that reached the loss with a
signal are in `trained.parquet` and are left out of the scoring: their own log-probabilities rise
because they were trained on, and would tell of them and not of the item. (Whether a rollout is left
out depends on the rewards of its group alone, not on what it says, so that means over the correct
and over the wrong ones that are left stay means over draws.)

Each step is done once (`recipes.train.job`); scoring goes on from its last file. Weights are
dropped in the end.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from curate.errors import UsageError
from curate.run.names import PILOTS
from curate.run.tables import SCORED, TRAINED
from probes.rescoring.rollout_scores import RolloutScores
from recipes.recipe import Recipe
from recipes.train.checkpoints import checkpoints
from recipes.train.items import select_items
from recipes.train.job import Trained, TrainingJob, say
from recipes.train.kept_rollouts import KeptRollouts
from recipes.train.processes import process_state
from recipes.train.tagged_run import TaggedRun
from recipes.train.train import Training, export_policy

_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


def run_pilot(
    path: Path, recipe: Recipe, seeds: Sequence[int], *, model: str = "", keep: bool = False
) -> list[Path]:
    """Train a few steps by a recipe with every seed, and score the kept rollouts after them.

    Under `accelerate launch` all processes train, and the main one scores.

    Args:
        path: the folder of a finished run.
        recipe: by GRPO, from the run's own model and on its own items.
        seeds: one pilot each; one that is there already is not run again.
        model: where the probed model lies now, if it was moved.
        keep: whether the pilots' weights stay, as the folder `policy`.

    Returns:
        the folders of the pilots, each with `log_probabilities.parquet` (as `rescore_run` returns
        it) and `run.json`.

    Raises:
        UsageError: bad input; nothing was spent.
        RunError: a step failed; the same call continues.
    """
    _check(recipe)
    run = TaggedRun(path)
    pilots = [_Pilot(run, recipe, seed, model, keep) for seed in dict.fromkeys(seeds)]
    for pilot in pilots:
        pilot.check()
    for pilot in pilots:
        pilot.work(last=process_state().num_processes == 1)
    # Other processes have nothing to do with the scoring, and must not wait for it.
    if process_state().is_main_process:
        for pilot in pilots:
            pilot.work(last=True)
    return [pilot.folder for pilot in pilots]


def _check(recipe: Recipe) -> None:
    for is_wrong, what in (
        (recipe.method != "grpo", f"its method is {recipe.method}, not grpo"),
        (bool(recipe.model), f"it begins with another model, {recipe.model}"),
        (bool(recipe.extra_items), f"it trains on extra_items, {recipe.extra_items}"),
    ):
        if is_wrong:
            raise UsageError(
                f"recipe {recipe.name} cannot be a pilot: {what}; a pilot trains the run's own "
                "model on its own items by GRPO, as the recipe pilot does"
            )


@dataclass
class _Pilot(TrainingJob):
    """One recipe with one seed, under whose policy the kept rollouts are scored."""

    place = PILOTS
    what = "pilot "

    model: str
    keep: bool

    def check(self) -> None:
        """Refuse what cannot be trained, and weights that are gone."""
        super().check()
        if self.keep and self.is_done and not self.policy.exists():
            raise UsageError(
                f"{self.folder} was run without --keep and its weights are gone; "
                "remove it to run it again"
            )

    @cached_property
    def training(self) -> Training:
        """Its first step is on rollouts of the probe where that can be."""
        recipe, config = self.recipe, self.run.config
        items = [each.item for each in select_items(recipe, self.run.tagged, self.seed)]
        max_tokens = recipe.max_completion_length or config.max_tokens
        kept = None
        if not self._why_sampled:
            kept = KeptRollouts(
                self.run.path,
                len(items),
                first=config.min_rollouts,
                seed=self.seed,
                max_tokens=max_tokens,
            )
        return Training(
            recipe=recipe,
            seed=self.seed,
            files=self.run.files(recipe, self.model),
            items=items,
            held_out=(),
            max_tokens=max_tokens,
            pool=self.run.pool(),
            folder=self.checkpoints,
            trust_remote_code=config.trust_remote_code,
            kept=kept,
        )

    @cached_property
    def _why_sampled(self) -> str:
        """Why the first step cannot train on the probe's rollouts; "" where it can."""
        config, recipe = self.run.config, self.recipe
        if config.temperature != recipe.temperature:
            return f"drawn at temperature {config.temperature:g}, not {recipe.temperature:g}"
        if (config.top_p, config.top_k, config.min_p) != (1.0, 0, 0.0):
            return "drawn from a part of the distribution (--top-p, --top-k, --min-p)"
        if config.max_tokens < recipe.max_completion_length:
            return f"cut at {config.max_tokens:,} tokens, not at {recipe.max_completion_length:,}"
        if not self.run.manifest.get("engine", {}).get("token_ids", False):
            return "of an engine that gave text and not the tokens that it drew"
        return ""

    def train(self) -> Trained:
        """Say whether the first step is sampled, and train."""
        if self._why_sampled:
            say(f"its first step is sampled: the probe's rollouts are {self._why_sampled}")
        return super().train()

    def log(self, trained: Trained) -> dict[str, Any]:
        """The kept rollouts that were trained on, and what the first step was."""
        rows = [
            {"item_id": row["item_id"], "sample": sample}
            for row in trained.progress.rows
            if row["trained"]
            for sample in row["samples"]
        ]
        TRAINED.write(self.folder, pa.Table.from_pylist(rows, schema=TRAINED.schema))
        counts = trained.counts
        return {
            "counts": {
                **counts,
                "sampled_rollouts": counts["rollouts"] - counts["kept_rollouts"],
                "sampled_tokens": counts["tokens"] - counts["kept_tokens"],
                "trained_on_kept": len(rows),
            },
            "first_step": f"sampled: {self._why_sampled}" if self._why_sampled else "kept rollouts",
        }

    def export(self) -> None:
        """Make the policy a folder of its own: a model in float32, or the adapter as it is.

        In bfloat16 the weights would swallow steps as small as these, an adapter's too.
        """
        newest = checkpoints(self.checkpoints)[-1]
        if self.recipe.lora_rank:
            aside = self.folder / ".policy.tmp"
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir()
            for name in _ADAPTER_FILES:
                shutil.copyfile(newest / name, aside / name)
            shutil.rmtree(self.policy, ignore_errors=True)
            aside.rename(self.policy)
        else:
            export_policy(self.training, newest, self.policy, dtype=torch.float32)
        self.drop_checkpoints()

    def measure(self) -> None:
        """Score the kept rollouts that were not trained on."""
        start = time.monotonic()
        trained = TRAINED.read(self.folder)
        leave_out: dict[str, set[int]] = {}
        for row in trained.to_pylist():
            leave_out.setdefault(row["item_id"], set()).add(row["sample"])
        scores = RolloutScores(
            self.run.path,
            self.training.files,
            trust_remote_code=self.run.config.trust_remote_code,
        )
        scored = scores.under(
            scores.open(str(self.policy)),
            self.folder / "scored",
            leave_out=leave_out,
            label=f"scoring, pilot {self.seed}",
        )
        SCORED.write(self.folder, scored)
        shutil.rmtree(self.folder / "scored", ignore_errors=True)
        self.drop_checkpoints()
        self.note(
            state="done",
            counts={
                "scored_rollouts": int(scored["weight"].to_numpy().sum()),
                "scored_completions": scored.num_rows,
            },
            seconds={"scoring": round(time.monotonic() - start, 1)},
        )
        if not self.keep:
            shutil.rmtree(self.policy, ignore_errors=True)
