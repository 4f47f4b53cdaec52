"""Supervised fine-tuning (SFT) on the correct rollouts of the probe."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from curate.errors import RunError
from curate.progress import Progress
from probes.models.adapters import add_before_rounding
from recipes.train.checkpoints import checkpoints, load_state, remove_older, save_state
from recipes.train.processes import COLLECTIVES, process_state
from recipes.train.settings import use_one_gpu
from recipes.train.train import Training, lora_config, trainable_policy

_NO_LOSS = -100  # the label of a token that the loss leaves out


class _Saving(TrainerCallback):
    """Shows progress, and makes checkpoints whole."""

    def __init__(self, training: Training, rollouts: int, seconds: float) -> None:
        self.training = training
        self.rollouts = rollouts
        self.seconds = seconds
        self.started = time.monotonic()
        self.progress: Progress | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        recipe = self.training.recipe
        if process_state().is_main_process:
            label = f"training {recipe.name}, seed {self.training.seed}"
            self.progress = Progress(label, recipe.max_steps, "updates", done=state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.progress:
            self.progress.advance()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if process_state().is_main_process:
            newest = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            seconds = self.seconds + time.monotonic() - self.started
            save_state(newest, {"demonstrations": self.rollouts, "seconds": seconds}, {})
            if not self.training.keep_checkpoints:
                remove_older(Path(args.output_dir), newest)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.progress:
            self.progress.__exit__(None, None, None)


def train_sft(
    training: Training, demonstrations: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> dict[str, Any]:
    """Train on prompts with their correct completions, from the newest whole checkpoint if any.

    `max_steps` counts updates and `prompts_per_step` the rollouts of one; the loss is that of the
    completion's tokens alone.

    Args:
        demonstrations: token ids of prompt and completion, of every correct rollout.

    Returns:
        what the run did, in numbers; its newest checkpoint holds the final policy.
    """
    recipe, processes = training.recipe, process_state().num_processes
    if recipe.prompts_per_step % processes:
        raise RunError(
            f"{recipe.prompts_per_step} rollouts an update cannot be shared out among "
            f"{processes} processes; change prompts_per_step"
        )
    each = recipe.prompts_per_step // processes
    at_once = max(n for n in range(1, min(each, recipe.rows_per_pass) + 1) if each % n == 0)
    rows = {
        "input_ids": [[*prompt, *completion] for prompt, completion in demonstrations],
        "labels": [
            [_NO_LOSS] * len(prompt) + list(completion) for prompt, completion in demonstrations
        ],
    }
    whole = checkpoints(training.folder)
    before = load_state(whole[-1])[0]["seconds"] if whole else 0.0
    policy = trainable_policy(training)
    settings = SFTConfig(
        output_dir=str(training.folder),
        seed=training.seed,
        max_steps=recipe.max_steps,
        per_device_train_batch_size=at_once,
        gradient_accumulation_steps=each // at_once,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=recipe.max_grad_norm,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        save_strategy="steps",
        save_steps=recipe.save_every,
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        gradient_checkpointing=torch.cuda.is_available(),
        bf16=recipe.lora_rank == 0 and torch.cuda.is_available(),
        use_cpu=not torch.cuda.is_available(),
        ddp_timeout=int(COLLECTIVES.total_seconds()),
    )
    use_one_gpu(settings)
    trainer = SFTTrainer(
        model=policy.model,
        args=settings,
        train_dataset=Dataset.from_dict(rows),
        processing_class=policy.tokenizer,
        peft_config=lora_config(recipe) if recipe.lora_rank else None,
        callbacks=[_Saving(training, len(demonstrations), before)],
    )
    add_before_rounding(trainer.model)
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=str(whole[-1]) if whole else None)
    return load_state(checkpoints(training.folder)[-1])[0]
