"""A recipe in TRL's terms, and what a training run keeps count of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from transformers import TrainingArguments
from trl import GRPOConfig

from curate.errors import RunError
from recipes.recipe import Recipe
from recipes.train.processes import COLLECTIVES


@dataclass
class TrainingProgress:
    """What a run has done so far: all that a checkpoint needs beside weights and optimizer.

    Attributes:
        place: prompts taken from the stream.
        rollouts, tokens: of the groups that training was given.
        kept_rollouts, kept_tokens: those of them that the probe had drawn already.
        groups, kept, without_signal, surplus, unfilled: groups generated; those that reached the
            loss; those dropped because their rewards were equal; those with a signal that a full
            batch had no room for; and places of a batch that no group with a signal filled.
        sampling_rounds: batches of prompts sampled.
        replayed: groups that a buffered rollout gave their signal.
        rows: of the log, a row a group.
        held_out: a row for every held-out item each time that it was evaluated.
        metrics: what TRL logged.
    """

    place: int = 0
    rollouts: int = 0
    tokens: int = 0
    kept_rollouts: int = 0
    kept_tokens: int = 0
    groups: int = 0
    kept: int = 0
    without_signal: int = 0
    surplus: int = 0
    unfilled: int = 0
    sampling_rounds: int = 0
    replayed: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    held_out: list[dict[str, Any]] = field(default_factory=list)
    metrics: list[dict[str, Any]] = field(default_factory=list)

    def counts(self) -> dict[str, int]:
        """The numbers alone."""
        return {name: value for name, value in vars(self).items() if isinstance(value, int)}


def trainer_settings(
    recipe: Recipe,
    seed: int,
    folder: Path,
    *,
    processes: int = 1,
    generation: Mapping[str, Any] = MappingProxyType({}),
) -> GRPOConfig:
    """TRL's settings for a recipe; checkpoints go to `folder`.

    Args:
        processes: that train.
        generation: further settings, of `vllm_settings`.

    Raises:
        RunError: the batch cannot be shared out among so many processes.
    """
    if recipe.prompts_per_step % (processes * recipe.updates_per_step):
        raise RunError(
            f"{recipe.prompts_per_step} prompts a step in {recipe.updates_per_step} updates cannot "
            f"be shared out among {processes} processes; change prompts_per_step"
        )
    groups = recipe.prompts_per_step // (processes * recipe.updates_per_step)
    most = max(1, recipe.rows_per_pass // recipe.num_generations)
    at_once = max(n for n in range(1, min(groups, most) + 1) if groups % n == 0)
    passes = groups // at_once
    settings = GRPOConfig(
        output_dir=str(folder),
        seed=seed,
        max_steps=recipe.max_steps * recipe.updates_per_step,
        per_device_train_batch_size=at_once * recipe.num_generations,
        gradient_accumulation_steps=passes,
        steps_per_generation=passes * recipe.updates_per_step,
        num_generations=recipe.num_generations,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=recipe.max_grad_norm,
        beta=recipe.beta,
        epsilon=recipe.epsilon,
        epsilon_high=recipe.epsilon_high,
        entropy_coef=recipe.entropy_coefficient,
        temperature=recipe.temperature,
        # Equation 1 of the paper: tokens are averaged within a rollout, then rollouts.
        loss_type="grpo",
        # TRL's default multiplies the KL term by the ratio, which changes its gradient.
        use_bias_correction_kl=False,
        save_strategy="steps",
        save_steps=recipe.save_every * recipe.updates_per_step,
        # Old checkpoints are removed by us, once the new one is complete.
        save_total_limit=None,
        logging_strategy="steps",
        logging_steps=recipe.log_every * recipe.updates_per_step,
        report_to="none",
        disable_tqdm=True,
        gradient_checkpointing=torch.cuda.is_available(),
        bf16=recipe.lora_rank == 0 and torch.cuda.is_available() and torch.cuda.is_bf16_supported(),
        use_cpu=not torch.cuda.is_available(),
        # The stream knows its place; rows that TRL's loader hands out are not looked at.
        ignore_data_skip=True,
        shuffle_dataset=False,
        ddp_find_unused_parameters=False,
        ddp_timeout=int(COLLECTIVES.total_seconds()),
        **generation,
    )
    use_one_gpu(settings)
    return settings


def use_one_gpu(settings: TrainingArguments) -> None:
    """Keep a process to one GPU: with several in sight transformers would split every batch.

    TRL refuses that; several GPUs take a process each (`accelerate launch`).
    """
    _ = settings.device  # Which counts them, once.
    settings._n_gpu = min(settings.n_gpu, 1)
