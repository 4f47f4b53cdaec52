"""Tiny random models of architectures that are not all attention and plain linear layers."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from tests.tiny import WORDS, save_tiny_model

_COMMON = {
    "vocab_size": len(WORDS),
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "initializer_range": 0.2,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "bos_token_id": None,
    "tie_word_embeddings": False,
}
_ATTENTION = {
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 64,
    "max_position_embeddings": 256,
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
SETTINGS: dict[str, dict[str, Any]] = {
    # Gated delta networks, one layer in two of attention, experts.
    "qwen3_next": _ATTENTION
    | _EXPERTS
    | {
        "layer_types": ["linear_attention", "full_attention"],
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "shared_expert_intermediate_size": 16,
    },
    # Short convolutions beside attention.
    "lfm2": _ATTENTION
    | {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    # State spaces alone.
    "mamba2": {
        "num_heads": 8,
        "head_dim": 8,
        "expand": 2,
        "state_size": 8,
        "n_groups": 1,
        "chunk_size": 16,
    },
    # The same of the first kind, one of whose linear layers is never called.
    "mamba": {"state_size": 4},
    # A linear layer of its own kind, whose output is added to in place.
    "falcon": {
        "num_attention_heads": 4,
        "new_decoder_architecture": False,
        "multi_query": False,
        "max_position_embeddings": 256,
    },
    # The same, and a router that is a linear layer and gives two tensors.
    "llama4_text": _ATTENTION
    | {
        "intermediate_size_mlp": 64,
        "num_local_experts": 4,
        "num_experts_per_tok": 1,
        "moe_layers": [1],
        "attention_chunk_size": 128,
    },
    # Experts as one tensor a layer, and a router that multiplies by its weight itself.
    "qwen3_moe": _ATTENTION | _EXPERTS,
    "mixtral": _ATTENTION
    | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    # With biases, its matrices the other way round, and gate and up projection interleaved.
    "gpt_oss": _ATTENTION
    | {
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "layer_types": ["sliding_attention", "full_attention"],
        "sliding_window": 8,
    },
    # A dense layer first; a router in float32 that chooses among groups; shared experts.
    "deepseek_v3": {
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 256,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 8,
        "v_head_dim": 8,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "n_group": 2,
        "topk_group": 1,
        "moe_intermediate_size": 16,
        "first_k_dense_replace": 1,
    },
}

_IMAGES_TOO = {
    "vision_config": {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 8,
        "patch_size": 4,
    },
    "mm_tokens_per_image": 4,
    "image_token_index": 17,
    "boi_token_index": 16,
    "eoi_token_index": 16,
}


def save_architecture(folder: Path, kind: str, *, seed: int = 0) -> Path:
    """Save a tiny random model with the words of `tests.tiny`.

    Its kind is one of `SETTINGS`, or `gemma3`, which reads images too.
    """
    save_tiny_model(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(seed)
    if kind == "gemma3":
        text = _COMMON | _ATTENTION | {"layer_types": ["sliding_attention", "full_attention"]}
        config = AutoConfig.for_model(kind, text_config=text, **_IMAGES_TOO)
    else:
        config = AutoConfig.for_model(kind, **_COMMON, **SETTINGS[kind])
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():  # Some kinds leave experts empty.
        if parameter.ndim > 2:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
