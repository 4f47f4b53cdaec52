"""Attention as plain matrix products, for CPUs whose fused bfloat16 kernel is slow.

On a CPU, torch's fused attention spends milliseconds a layer on a decoding step that two matrix
products do in a fraction of it. Keys and values shared by a group of query heads are not repeated:
the group's queries are folded into the rows of the product instead. Scores and their softmax are
in float32, as in the models' own eager attention.
"""

from __future__ import annotations

from typing import Any

import torch

from probes.models.light import import_lightly

import_lightly()  # Before a model's code does.

from transformers import AttentionInterface, AttentionMaskInterface  # noqa: E402
from transformers.integrations.sdpa_attention import sdpa_attention_forward  # noqa: E402
from transformers.masking_utils import eager_mask  # noqa: E402

NAME = "curate_grouped"
# Longer queries go to the fused kernel: the score matrix would grow with the square of the length.
_LONGEST_QUERY = 1024


def grouped_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend, in the form that transformers' attention interface asks for.

    Args:
        module: the attention layer (not used).
        query: (batch, heads, queries, head_dim).
        key, value: (batch, key_heads, columns, head_dim), `heads` a multiple of `key_heads`.
        attention_mask: additive, (batch, 1, queries, columns), or None for no mask.
        scaling: of the scores; 1/sqrt(head_dim) where None.

    Returns:
        (batch, queries, heads, head_dim), and None for the attention weights.
    """
    batch, heads, queries, head_dim = query.shape
    if queries > _LONGEST_QUERY:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    key_heads = key.shape[1]
    group = heads // key_heads
    scale = head_dim**-0.5 if scaling is None else scaling
    folded = query.reshape(batch, key_heads, group * queries, head_dim)
    scores = torch.matmul(folded, key.transpose(-1, -2)).float() * scale
    scores = scores.view(batch, key_heads, group, queries, -1)
    if attention_mask is not None:
        scores = scores + attention_mask[:, :, None, :, : key.shape[-2]]
    weights = torch.softmax(scores, dim=-1).to(value.dtype)
    folded = torch.matmul(weights.view(batch, key_heads, group * queries, -1), value)
    return folded.view(batch, heads, queries, -1).transpose(1, 2).contiguous(), None


def use_grouped_attention(model: Any) -> bool:
    """Switch a model to `grouped_attention` where its architecture takes one; tell whether it did.

    Architectures that change the scores themselves (soft caps, attention sinks) keep their own.
    """
    config = model.config.get_text_config()
    own_scores = getattr(config, "attn_logit_softcapping", None) or "sinks" in str(
        [name for name, _ in model.named_parameters() if "self_attn" in name][:12]
    )
    if not getattr(model, "_supports_attention_backend", False) or own_scores:
        return False
    AttentionInterface.register(NAME, grouped_attention)
    AttentionMaskInterface.register(NAME, eager_mask)
    model.set_attn_implementation(NAME)
    return True
