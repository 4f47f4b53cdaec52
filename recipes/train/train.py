"""Train a policy by a recipe, from its newest checkpoint if there is one, and export the result."""

from __future__ import annotations

import copy
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from transformers import PrinterCallback, TrainerCallback

from curate.errors import UsageError
from curate.progress import Progress
from probes.engines.choose import VLLM
from probes.models.adapters import merge
from probes.models.export import exported_folder
from probes.models.files import ModelFiles
from probes.models.load import Policy, choose_device, choose_dtype, forget_quantization, load_policy
from probes.verifiers.pool import VerifierPool
from recipes.recipe import Recipe
from recipes.train.checkpoints import checkpoints
from recipes.train.grpo import RecipeTrainer
from recipes.train.kept_rollouts import KeptRollouts
from recipes.train.placement import (
    REFERENCE_SHARE,
    refuse_to_spread_in_each_process,
    training_dtype_and_share,
)
from recipes.train.processes import process_state
from recipes.train.prompts import PromptStream, TrainingItem
from recipes.train.settings import trainer_settings
from recipes.train.vllm import choose_generation, vllm_settings


@dataclass(frozen=True)
class Training:
    """What one run trains on, and with what.

    Attributes:
        recipe: what to do.
        seed: of prompts, sampling and adapter.
        files: the initial policy.
        items: what is trained on, in the recipe's order.
        held_out: what is evaluated on the way; may be empty.
        max_tokens: of a completion, in training and on held-out items.
        pool: judges completions; not entered.
        folder: of checkpoints.
        keep_checkpoints: all of them, not only the newest.
        trust_remote_code: run Python code that comes with the model.
        kept: rollouts of the probe for the first step; None: all are sampled.
        generation: what draws training rollouts, `vllm` or `transformers`; where "", GRPO chooses
            as it begins (`choose_generation`), knowing nothing of how it was begun.
    """

    recipe: Recipe
    seed: int
    files: ModelFiles
    items: Sequence[TrainingItem]
    held_out: Sequence[TrainingItem]
    max_tokens: int
    pool: VerifierPool
    folder: Path
    keep_checkpoints: bool = False
    trust_remote_code: bool = False
    kept: KeptRollouts | None = None
    generation: str = ""

    @property
    def longest_prompt(self) -> int:
        """Tokens of the longest prompt, of held-out items too."""
        return max(len(item.prompt_token_ids) for item in (*self.items, *self.held_out))


def trainable_policy(training: Training) -> Policy:
    """Load the initial policy in the form that it is trained in.

    A model that is too large for one GPU is spread over all.

    Raises:
        UsageError: it does not suit the recipe, or several processes cannot have one each.
    """
    refuse_to_spread_in_each_process(training.recipe, training.files)
    dtype, share = training_dtype_and_share(training.recipe)
    policy = load_policy(
        training.files,
        dtype=dtype,
        share=share,
        trust_remote_code=training.trust_remote_code,
    )
    longest = training.longest_prompt
    if longest + training.max_tokens > policy.context_length:
        raise UsageError(
            f"recipe {training.recipe.name}: completions of {training.max_tokens:,} tokens after a "
            f"prompt of {longest:,} exceed the model's context of {policy.context_length:,}; "
            "lower max_completion_length"
        )
    policy = replace(policy, tokenizer=copy.deepcopy(policy.tokenizer))
    # Text is judged as it was in the probe, whose spaces are not cleaned up either.
    policy.tokenizer.clean_up_tokenization_spaces = False
    forget_quantization(policy.model)
    if not training.recipe.lora_rank:
        policy.model.requires_grad_(True)
    if policy.tokenizer.pad_token is None:
        # TRL pads with the end token; a row's mask tells them apart.
        policy.tokenizer.pad_token = policy.tokenizer.eos_token
    return policy


def initial_policy(training: Training) -> Any:
    """The model that the KL term holds on to where all parameters are trained, frozen."""
    return load_policy(
        training.files,
        dtype=torch.float32,
        share=REFERENCE_SHARE,
        trust_remote_code=training.trust_remote_code,
    ).model


def lora_config(recipe: Recipe) -> LoraConfig:
    """The adapter that a recipe trains, on all linear layers."""
    return LoraConfig(
        r=recipe.lora_rank,
        lora_alpha=recipe.lora_alpha,
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


class _Following(TrainerCallback):
    """Shows progress, evaluates held-out items, and stops at the rollout budget."""

    def __init__(self, training: Training) -> None:
        self.training = training
        self.trainer: RecipeTrainer | None = None
        self.progress: Progress | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        recipe = self.training.recipe
        if process_state().is_main_process:
            self.progress = Progress(
                f"training {recipe.name}, seed {self.training.seed}",
                recipe.max_steps,
                "steps",
                done=state.global_step // recipe.updates_per_step,
            )
        if state.global_step == 0:
            self._evaluate(0)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        recipe, trainer = self.training.recipe, self.trainer
        assert trainer is not None
        step, rest = divmod(state.global_step, recipe.updates_per_step)
        if rest:
            return
        if self.progress:
            rows = [row for row in trainer.progress.rows if row["step"] == step]
            rewards = [row["mean_reward"] for row in rows if row["mean_reward"] is not None]
            mean = sum(rewards) / len(rewards) if rewards else float("nan")
            kept = sum(row["trained"] for row in rows)
            self.progress.advance(
                note=f"mean reward {mean:.3f} over {len(rows)} groups, {kept} with a signal"
            )
        is_last = step == recipe.max_steps
        if 0 < recipe.rollout_budget <= trainer.progress.rollouts and not is_last:
            control.should_training_stop = control.should_save = is_last = True
        if is_last or (recipe.evaluate_every and step % recipe.evaluate_every == 0):
            self._evaluate(step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        assert self.trainer is not None
        step = state.global_step // self.training.recipe.updates_per_step
        self.trainer.progress.metrics.append({"step": step, **(logs or {})})

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.progress:
            self.progress.__exit__(None, None, None)

    def _evaluate(self, step: int) -> None:
        training, trainer = self.training, self.trainer
        assert trainer is not None
        if not training.held_out:
            return
        counts = trainer.pass_counts(
            training.held_out,
            training.recipe.held_out_rollouts,
            training.recipe.evaluation_temperature,
        )
        trainer.progress.held_out += [
            {
                "step": step,
                "rollouts": trainer.progress.rollouts,
                "item_id": item_id,
                "total_rollouts": judged,
                "total_correct_rollouts": correct,
            }
            for item_id, judged, correct in counts
        ]


def train_grpo(training: Training) -> RecipeTrainer:
    """Train until the recipe's end, from the newest whole checkpoint if there is one.

    Raises:
        UsageError: the model or the machine does not suit the recipe.

    Returns:
        the trainer, whose newest checkpoint in `training.folder` holds the final policy.
    """
    recipe, processes = training.recipe, process_state().num_processes
    generation = training.generation or choose_generation(
        recipe, training.files, trust_remote_code=training.trust_remote_code
    )
    following = _Following(training)
    stream = PromptStream(
        training.items, seed=training.seed, shuffle=training.recipe.order == "shuffle"
    )
    with training.pool as pool, warnings.catch_warnings():
        # Advice on settings that the recipe decides, repeated at every start.
        warnings.simplefilter("ignore")
        policy = trainable_policy(training)
        is_full = not recipe.lora_rank
        vllm: dict[str, Any] = {}
        if generation == VLLM:
            # Where vLLM finds the configuration; the weights it is given.
            policy.model.name_or_path = str(exported_folder(training.files))
            vllm = vllm_settings(
                recipe,
                policy,
                training.longest_prompt,
                training.max_tokens,
                trust_remote_code=training.trust_remote_code,
            )
        settings = trainer_settings(
            recipe, training.seed, training.folder, processes=processes, generation=vllm
        )
        trainer = RecipeTrainer(
            policy,
            recipe,
            stream,
            pool,
            seed=training.seed,
            max_tokens=training.max_tokens,
            settings=settings,
            keep_checkpoints=training.keep_checkpoints,
            kept=training.kept,
            adapter=None if is_full else lora_config(recipe),
            # An adapter that is switched off is the initial policy.
            reference=initial_policy(training) if is_full and recipe.beta else None,
            callbacks=[following],
        )
        trainer.remove_callback(PrinterCallback)
        following.trainer = trainer
        whole = checkpoints(training.folder)
        try:
            if whole:
                trainer.restore(whole[-1])
            # A run that its budget ended is at its end, whatever `max_steps` says.
            if not (whole and 0 < recipe.rollout_budget <= trainer.progress.rollouts):
                trainer.train(resume_from_checkpoint=str(whole[-1]) if whole else None)
        finally:
            trainer.close()
    return trainer


def export_policy(
    training: Training, checkpoint: Path, folder: Path, *, dtype: torch.dtype | None = None
) -> None:
    """Write the policy of a checkpoint as a plain Hugging Face folder, an adapter merged into it.

    It is written aside and renamed when it is whole.

    Args:
        dtype: of the weights; None for that of the initial policy, in which what an adapter adds is
            rounded at random (see `probes.models.adapters`).
    """
    aside = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    policy = load_policy(
        training.files,
        device=torch.device("cpu"),
        dtype=dtype or choose_dtype(choose_device()),
        trust_remote_code=training.trust_remote_code,
    )
    forget_quantization(policy.model)
    model = policy.model
    if training.recipe.lora_rank:
        model = merge(PeftModel.from_pretrained(model, checkpoint))
    else:
        _load_weights(model, checkpoint)
    model.save_pretrained(aside)
    policy.tokenizer.save_pretrained(aside)
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)


def _load_weights(model: Any, checkpoint: Path) -> None:
    from safetensors.torch import load_file

    weights: dict[str, torch.Tensor] = {}
    for file in sorted(checkpoint.glob("model*.safetensors")):
        weights |= load_file(file)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    tied = {name for name in missing if "lm_head" in name or "embed" in name}
    if unexpected or set(missing) - tied:
        raise UsageError(f"checkpoint {checkpoint} is not of this model: {sorted(missing)[:1]}")
    model.tie_weights()
