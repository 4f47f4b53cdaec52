"""What it saves to compute a group's prompt once: our trainer's update against TRL's own rows.

    OMP_NUM_THREADS=1 .venv/bin/python -m benchmarks.speed.shared_prompts --run RUN [--model MODEL]

takes real groups from the rollouts of a tagged run (8 prompts, 16 rollouts each), and times loss
and gradient of one update of `baseline-small` with shared prompts and with a row for every rollout,
in turns. Both must give the same gradient: the relative difference is printed beside.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from curate.run.folder import read_run_config
from curate.run.rollouts import rollout_shards
from curate.run.tables import read_parquet
from probes.models.files import resolve_model
from recipes.recipe import read_recipe
from recipes.train.groups import Group
from recipes.train.grpo import RecipeTrainer
from recipes.train.prompts import PromptStream
from recipes.train.settings import trainer_settings
from recipes.train.tagged_run import training_items
from recipes.train.train import Training, lora_config, trainable_policy

GROUPS, ROLLOUTS, TURNS = 8, 16, 3


def main() -> None:
    """Print seconds of each way, their ratio, and how far the gradients are apart."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--model", default="")
    arguments = parser.parse_args()
    trainer = make_trainer(arguments.run, arguments.model)
    trainer.model.train()
    batch = trainer._to_tensors(real_groups(arguments.run))
    parameters = [p for p in trainer.model.parameters() if p.requires_grad]
    # At its start an adapter's B is zero, and with it the gradient of A.
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(0.01 * torch.randn_like(parameter))
    packed = trainer._packed
    ways = {"shared": packed, "plain": lambda *_: None}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    gradients = {}
    for _ in range(TURNS):
        for name, way in ways.items():
            trainer._packed = way  # type: ignore[method-assign]
            trainer.model.zero_grad()
            start = time.perf_counter()
            for part in passes(batch):
                trainer.compute_loss(trainer.model, part).backward()
            seconds[name].append(time.perf_counter() - start)
            gradients[name] = torch.cat([p.grad.flatten().float() for p in parameters])
    apart = (gradients["shared"] - gradients["plain"]).norm() / gradients["plain"].norm()
    best = {name: min(values) for name, values in seconds.items()}
    tokens = int(batch["completion_mask"].sum()), int(batch["prompt_mask"].sum())
    print(
        f"{GROUPS} x {ROLLOUTS} rollouts: {tokens[0]:,} completion and {tokens[1]:,} prompt tokens"
    )
    print(f"plain {best['plain']:.1f} s, shared {best['shared']:.1f} s (best of {TURNS} turns)")
    print(f"ratio {best['plain'] / best['shared']:.2f}; gradients {apart:.1%} apart")


def passes(batch: dict[str, torch.Tensor]) -> Iterator[dict[str, torch.Tensor]]:
    """Two groups at a time: all rows at once do not fit into 16 GB."""
    size = 2 * ROLLOUTS
    for first in range(0, len(batch["group"]), size):
        yield {
            name: value[first : first + size] if value.ndim else value
            for name, value in batch.items()
        }


def make_trainer(run: Path, model: str) -> RecipeTrainer:
    """A trainer of `baseline-small` that does not begin."""
    recipe, config = read_recipe("baseline-small"), read_run_config(run)
    items = training_items(read_parquet(run / "items.parquet"))
    folder = Path(tempfile.mkdtemp())
    files = resolve_model(model or config.model)
    pool = None  # Nothing is judged here.
    training = Training(recipe, 1, files, items, (), config.max_tokens, pool, folder)  # type: ignore[arg-type]
    trainer = RecipeTrainer(
        trainable_policy(training),
        recipe,
        PromptStream(items, seed=1, shuffle=False),
        pool,  # type: ignore[arg-type]
        seed=1,
        max_tokens=config.max_tokens,
        settings=trainer_settings(recipe, 1, folder),
        adapter=lora_config(recipe),
    )
    trainer.current_gradient_accumulation_steps = 1
    trainer.beta = 0.0  # The reference's pass is no part of loss and gradient.
    return trainer


def real_groups(run: Path) -> list[Group]:
    """The first rollouts of items that have right and wrong ones among them."""
    prompts = {
        item.item_id: item.prompt_token_ids
        for item in training_items(read_parquet(run / "items.parquet"))
    }
    by_item: dict[str, list[dict[str, object]]] = {}
    for file in rollout_shards(run):
        for row in read_parquet(file).to_pylist():
            by_item.setdefault(row["item_id"], []).append(row)
    groups: list[Group] = []
    for item_id, rows in by_item.items():
        rows = rows[:ROLLOUTS]
        group = Group(
            number=len(groups),
            item_id=item_id,
            prompt_token_ids=prompts[item_id],
            completions=[row["completion_token_ids"] for row in rows],  # type: ignore[misc]
            rewards=[float(row["reward"] or 0) for row in rows],  # type: ignore[arg-type]
            truncated=[row["finish_reason"] == "length" for row in rows],
        )
        if group.has_signal:
            groups.append(group)
        if len(groups) == GROUPS:
            break
    return groups


if __name__ == "__main__":
    main()
