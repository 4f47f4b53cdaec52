"""In which precision a recipe trains a model, and whether one GPU holds it."""

from __future__ import annotations

import torch

from probes.models.files import ModelFiles
from probes.models.load import HALF, choose_device, choose_dtype, takes_several_gpus
from recipes.recipe import Recipe

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
