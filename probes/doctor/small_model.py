"""A small transformer made in code, for machines to be tried with: no download, no tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, Qwen2Config

from probes.models.attention import use_grouped_attention
from probes.models.files import ModelFiles
from probes.models.load import Policy

_SEED = 42
_END_TOKENS = frozenset(range(16))  # of 256: completions end at random, and differ in length
_CONTEXT = 32 * 1024
_SHAPES = {
    "0.5B": (24, 896, 4864, 14, 2, 151_936),
    "1.5B": (28, 1536, 8960, 12, 2, 151_936),
    "7B": (28, 3584, 18_944, 28, 4, 152_064),
}
"""Of Qwen 2.5: blocks, width, inner width, heads, heads of keys, vocabulary."""


def small_policy(device: torch.device, dtype: torch.dtype) -> Policy:
    """Make a random transformer of a million parameters, the same in every precision.

    Its weights are numbers of bfloat16, so that results in another precision differ by what was
    computed and not by what was stored.
    """
    config = _config(4, 128, 384, 4, 2, 256)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        model = from_config(config)
    model = model.to(device).eval().requires_grad_(False)
    # Buffers, such as the frequencies of positions, stay in float32, as in a model that is loaded.
    for each in model.parameters():
        each.data = each.data.to(torch.bfloat16).to(dtype)
    if device.type == "cpu":
        use_grouped_attention(model)
    return _policy(model, device, dtype)


def policy_of_size(size: str, dtype: torch.dtype) -> Policy:
    """Qwen 2.5 of a size in `SIZES`, without its weights: all of it is on the meta device."""
    with torch.device("meta"):
        model = from_config(_config(*_SHAPES[size]), dtype=dtype)
    return _policy(model, torch.device("meta"), dtype)


SIZES = tuple(_SHAPES)
"""Sizes of models whose longest rollouts are told."""


def from_config(config: Any, **more: Any) -> Any:
    """A model with random weights."""
    auto: Any = AutoModelForCausalLM
    return auto.from_config(config, **more)


def _config(
    blocks: int, width: int, inner: int, heads: int, key_heads: int, vocabulary: int
) -> Qwen2Config:
    return Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=blocks,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        max_position_embeddings=_CONTEXT,
        # Wide enough that some next tokens are likelier than others.
        initializer_range=0.1,
        bos_token_id=None,
        eos_token_id=min(_END_TOKENS),
    )


def _policy(model: Any, device: torch.device, dtype: torch.dtype) -> Policy:
    files = ModelFiles("a small model made in code", Path(), None, None, "")
    return Policy(files, model, None, device, dtype, _END_TOKENS, _CONTEXT)
