"""In which precision a recipe trains a model, and whether one GPU holds it."""

from __future__ import annotations

import torch

from curate.errors import UsageError
from probes.models.files import ModelFiles
from probes.models.load import HALF, choose_device, choose_dtype, takes_several_gpus
from recipes.recipe import Recipe
from recipes.train.processes import gathered, process_state

# Bytes of a parameter where all are trained: weights, reference, gradients and AdamW in float32,
# and what runs in bfloat16. The activations of a pass come on top.
TRAINED_BYTES = 22
_WEIGHT_BYTES = 4
REFERENCE_SHARE = _WEIGHT_BYTES / (TRAINED_BYTES - _WEIGHT_BYTES)
"""Of a GPU's free memory that the reference of the KL term may take, once the policy is there."""


def training_dtype_and_share(recipe: Recipe) -> tuple[torch.dtype, float]:
    """The precision of a policy in training, and the share of a GPU that its weights may take.

    An adapter is trained on frozen weights in the precision of the probe. All parameters are
    trained in float32: in bfloat16 updates as small as the paper's would be lost to rounding.
    """
    if recipe.lora_rank:
        return choose_dtype(choose_device()), HALF
    return torch.float32, _WEIGHT_BYTES / TRAINED_BYTES


def is_spread(recipe: Recipe, files: ModelFiles) -> bool:
    """Whether a model is spread over the GPUs of this machine where a recipe trains it."""
    dtype, share = training_dtype_and_share(recipe)
    return takes_several_gpus(files, choose_device(), dtype, share)


def refuse_to_spread_in_each_process(recipe: Recipe, files: ModelFiles) -> None:
    """Check that each of several processes can have the model whole; every process must call it.

    Raises:
        UsageError: on the GPU of one of them it cannot be trained.
    """
    processes = process_state().num_processes
    if processes > 1 and any(gathered(is_spread(recipe, files))):
        raise UsageError(
            f"model {files.name} is too large to be trained on one GPU, and each of "
            f"{processes} processes trains it whole; without `accelerate launch` one process "
            "spreads it over all GPUs"
        )
