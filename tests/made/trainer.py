"""A training of a small recipe, and its trainer before the first step."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from probes.models.files import ModelFiles
from probes.models.load import Policy
from probes.verifiers.pool import VerifierPool
from recipes.recipe import Recipe
from recipes.train.grpo import RecipeTrainer
from recipes.train.prompts import PromptStream, TrainingItem
from recipes.train.settings import trainer_settings
from recipes.train.train import Training, initial_policy, lora_config, trainable_policy
from recipes.train.vllm import vllm_settings


def made_training(
    files: ModelFiles,
    pool: VerifierPool,
    folder: Path,
    recipe: Recipe,
    items: Sequence[TrainingItem],
    seed: int = 1,
) -> Training:
    """A training on some items, without held-out ones."""
    return Training(
        recipe=recipe,
        seed=seed,
        files=files,
        items=items,
        held_out=(),
        max_tokens=recipe.max_completion_length,
        pool=pool,
        folder=folder,
    )


def made_trainer(
    run: Training, policy: Policy | None = None, reference: Any = None
) -> RecipeTrainer:
    """A trainer that has not begun; the stream gives its items in their order, over and over.

    Args:
        policy, reference: as they are to be used; loaded as for the training where None.
    """
    recipe = run.recipe
    policy = policy or trainable_policy(run)
    if reference is None and recipe.beta and not recipe.lora_rank:
        reference = initial_policy(run)
    generation = {}
    if recipe.generation == "vllm":
        generation = vllm_settings(
            recipe, policy, run.longest_prompt, run.max_tokens, trust_remote_code=False
        )
    return RecipeTrainer(
        policy,
        recipe,
        PromptStream(run.items, seed=run.seed, shuffle=False),
        run.pool,
        seed=run.seed,
        max_tokens=run.max_tokens,
        settings=trainer_settings(recipe, run.seed, run.folder, generation=generation),
        adapter=lora_config(recipe) if recipe.lora_rank else None,
        reference=reference,
    )
