"""LoRA adapters on weights of low precision, without losing to rounding what they have learned.

An adapter of few or small steps gives far less than its layer does. PEFT adds the two once the
layer's output is rounded, and what is below half a rounding step of a number that is rounded
already is lost: not on average but always. Merging loses it in the same way, since weights in
bfloat16 are such numbers. Of a first step at usual learning rates nearly nothing is left
(docs/benchmarks.md). So here an adapter is added before a layer's product is rounded, and weights
that it is merged into are rounded up or down at random, in proportion to how near either is: what
it has learned is then kept on average.

A layer's bias is added after that, and rounds once more. Nothing of the adapter is lost to it on
average; added to a bias before the product, it would be, as it is to any number that is rounded
already. But an adapter that gives nothing yet leaves some outputs of such a layer a rounding step
away from the layer's own.

PEFT is imported by whoever has an adapter; nothing here needs it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

# Bits by which float32 is longer than bfloat16.
_BITS = 16


def adapted_layers(model: Any) -> dict[str, Any]:
    """Find PEFT's layers that put a LoRA adapter beside a linear layer, by full name."""
    return {
        name: module
        for name, module in model.named_modules()
        if hasattr(module, "lora_A")
        and isinstance(getattr(module, "base_layer", None), torch.nn.Linear | Conv1D)
    }


def add_before_rounding(model: Any) -> None:
    """Have a model's adapters added to their layers' products before these are rounded, in place.

    The adapters compute in their own precision, float32 by PEFT's default. Layers in float32 stay
    as they are, and so does what PEFT does with adapters that are switched off or merged, or are
    several at once.
    """
    for layer in adapted_layers(model).values():
        if layer.base_layer.weight.dtype.itemsize < torch.float32.itemsize:
            # Hooks that spread a model over devices have put a forward of their own on modules.
            layer.forward = _added_in_product(layer, layer.forward)


def _added_in_product(layer: Any, own: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def forward(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        base, names = layer.base_layer, layer.active_adapters
        is_plain = (
            not (args or kwargs or layer.disable_adapters or layer.merged)
            and len(names) == 1
            and names[0] in layer.lora_A
            and names[0] not in getattr(layer, "lora_variant", ())  # DoRA and the like.
            and x.dtype == base.weight.dtype
        )
        if not is_plain:
            return own(x, *args, **kwargs)
        name = names[0]
        down, up = layer.lora_A[name], layer.lora_B[name]
        hidden = layer.lora_dropout[name](x.to(down.weight.dtype))
        added = (up(down(hidden)) * layer.scaling[name]).to(x.dtype)
        matrix = base.weight if isinstance(base, Conv1D) else base.weight.T
        # A product of low precision is summed in float32, beginning with what is added to it.
        output: torch.Tensor = torch.addmm(added.flatten(0, -2), x.flatten(0, -2), matrix)
        if base.bias is not None:
            # Not with what is added: of that a bias in low precision would swallow all but noise.
            output = output + base.bias
        return output.view(*x.shape[:-1], -1)

    return forward


def merged_weight(layer: Any, *, seed: int = 0) -> torch.Tensor:
    """The weight of a layer of `adapted_layers` with its adapter in it, in the weight's precision.

    In bfloat16 each number is rounded up or down at random, so that its expectation is exact. The
    seed alone decides at which share of a step each goes up: while an adapter grows they follow one
    by one, and those that it does not move stay as they are.
    """
    weight: torch.Tensor = layer.base_layer.weight.detach()
    (name,) = layer.active_adapters
    added: torch.Tensor = layer.get_delta_weight(name).detach()
    exact = weight.float() + added.float()
    if weight.dtype != torch.bfloat16:
        return exact.to(weight.dtype)
    random = torch.Generator(weight.device).manual_seed(seed)
    # Cutting the last bits rounds towards zero; a carry out of them rounds away from it.
    noise = torch.randint(
        2**_BITS, exact.shape, generator=random, dtype=torch.int32, device=weight.device
    )
    bits = (exact.view(torch.int32) + noise) >> _BITS << _BITS
    return bits.view(torch.float32).to(weight.dtype)


def merge(adapted: Any, *, seed: int = 0) -> Any:
    """Give the plain model of a `PeftModel`, its adapter merged into the weights, in place.

    Args:
        adapted: with one active LoRA adapter on linear layers.
        seed: as for `merged_weight`.
    """
    for layer in adapted_layers(adapted).values():
        layer.base_layer.weight.data = merged_weight(layer, seed=seed)
    return adapted.unload()
