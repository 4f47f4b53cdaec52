"""The modules of a model that are linear maps, whatever its architecture calls them."""

from __future__ import annotations

from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

# Falcon's computes the same by another product. A router that is made a linear layer of its own
# kind (Llama 4) gives other things than the product.
_SAME_PRODUCT = ("FalconLinear",)
_FORWARDS = (torch.nn.Linear.forward, Conv1D.forward)


def linear_layers(model: Any) -> dict[str, torch.nn.Module]:
    """Find the modules whose output is their input times a matrix, and perhaps a bias.

    Returns:
        `torch.nn.Linear` and `Conv1D` modules by full name, in the model's order; their own kinds
        that compute something else are left out.
    """
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D)
        and (type(module).forward in _FORWARDS or type(module).__name__ in _SAME_PRODUCT)
    }
