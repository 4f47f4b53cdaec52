"""Models of the checks, with random weights from configurations, and rollouts for them."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    GptOssConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3MoeConfig,
)

from probes.gradients.batch import TokenizedRollout
from probes.gradients.lora import GradientProbe
from probes.gradients.tap import Adapter
from probes.models.attention import NAME as GROUPED
from probes.models.attention import use_grouped_attention
from probes.models.files import ModelFiles
from probes.models.load import Policy

ALL = 10**9
"""As a limit of tokens: none."""


@dataclass(frozen=True)
class Place:
    """Where the checks run.

    Attributes:
        device: that is checked.
        is_small: whether models and rollouts are small, so that a CPU gets through.
        folder: for files.
    """

    device: torch.device
    is_small: bool
    folder: Path

    @property
    def is_gpu(self) -> bool:
        """Whether memory can be counted and bounded."""
        return self.device.type == "cuda"


def qwen2(place: Place, size: str, layers: int = 0) -> Any:
    """Configuration of Qwen 2.5 of 0.5B or 1.5B, or of a hundredth of it where all is small."""
    if place.is_small:
        return Qwen2Config(
            vocab_size=512, hidden_size=64, intermediate_size=192, num_hidden_layers=layers or 3,
            num_attention_heads=4, num_key_value_heads=2, initializer_range=0.1,
            max_position_embeddings=32_768, eos_token_id=1,
        )  # fmt: skip
    blocks, width, inner, heads = {"0.5B": (24, 896, 4864, 14), "1.5B": (28, 1536, 8960, 12)}[size]
    return Qwen2Config(
        vocab_size=151_936, hidden_size=width, intermediate_size=inner,
        num_hidden_layers=layers or blocks, num_attention_heads=heads, num_key_value_heads=2,
        max_position_embeddings=32_768, tie_word_embeddings=True, eos_token_id=1,
    )  # fmt: skip


def llama_tiny() -> Any:
    """Configuration of a model of a few thousand weights that draws varied tokens."""
    return LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=2048,
        initializer_range=0.2, eos_token_id=1, tie_word_embeddings=False,
    )  # fmt: skip


def experts_tiny() -> dict[str, Any]:
    """Configurations of two architectures whose experts are one tensor a layer."""
    common: dict[str, Any] = {
        "vocab_size": 256, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "eos_token_id": 1,
        "max_position_embeddings": 512, "initializer_range": 0.1,
    }  # fmt: skip
    return {
        "Qwen3-MoE": Qwen3MoeConfig(
            **common, moe_intermediate_size=32, num_experts=8, num_experts_per_tok=2
        ),
        "gpt-oss": GptOssConfig(
            **common, num_local_experts=4, num_experts_per_tok=2, sliding_window=16
        ),
    }


def random_policy(config: Any, device: torch.device, dtype: torch.dtype, seed: int = 0) -> Policy:
    """A policy of random weights, which are numbers of bfloat16 whatever the dtype."""
    auto: Any = AutoModelForCausalLM
    torch.manual_seed(seed)
    with torch.device(device):  # Large models take long to fill on a CPU.
        model = auto.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for each in model.parameters():
            each.copy_(each.to(torch.bfloat16))
    return policy_of(model, device, dtype)


def policy_of(model: Any, device: torch.device, dtype: torch.dtype) -> Policy:
    """A model as a policy, on a device and in a dtype of its own."""
    model = model.to(device).eval().requires_grad_(False)
    # Buffers, such as the frequencies of positions, stay in float32, as in a model that is loaded.
    for each in model.parameters():
        each.data = each.data.to(dtype)
    if device.type == "cpu":
        use_grouped_attention(model)
    elif model.config._attn_implementation == GROUPED:
        model.set_attn_implementation("sdpa")
    files = ModelFiles("random", Path(), None, None, "")
    context = int(model.config.get_text_config().max_position_embeddings)
    return Policy(files, model, None, device, dtype, frozenset({1}), context)


def copied(policy: Policy, device: torch.device, dtype: torch.dtype) -> Policy:
    """The same weights elsewhere, or in another precision."""
    return policy_of(copy.deepcopy(policy.model), device, dtype)


def saved_folder(config: Any, folder: Path, dtype: torch.dtype) -> Path:
    """A model folder with random weights and a tokenizer of few words."""
    words = ["<pad>", "<eos>", "<unk>", *map(str, range(10))]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"
    ).save_pretrained(folder)
    cpu = torch.device("cpu")
    auto: Any = AutoModelForCausalLM
    with torch.device(cpu):
        auto.from_config(config, dtype=dtype).save_pretrained(folder)
    return folder


def rollouts_of(
    count: int, vocabulary: int, *, prompt: int = 24, most: int = 40, seed: int = 0
) -> list[TokenizedRollout]:
    """Ragged rollouts, four of each prompt, some of which begin alike."""
    rng = np.random.default_rng(seed)
    found: list[TokenizedRollout] = []
    while len(found) < count:
        ids = rng.integers(2, vocabulary, size=int(rng.integers(2, prompt))).tolist()
        start = rng.integers(2, vocabulary, size=3).tolist()
        for number in range(4):
            rest = rng.integers(2, vocabulary, size=int(rng.integers(2, most))).tolist()
            found.append(TokenizedRollout(ids, [*start[: number % 3], *rest]))
    return found[:count]


def long_rollout(tokens: int, vocabulary: int, seed: int = 0) -> TokenizedRollout:
    """One rollout of so many tokens, prompt included."""
    ids = np.random.default_rng(seed).integers(2, vocabulary, size=tokens).tolist()
    return TokenizedRollout(ids[:32], ids[32:])


def features_of(
    policy: Policy, rollouts: list[TokenizedRollout], adapter: Adapter | None = None, **limits: int
) -> dict[int, np.ndarray]:
    """Features by place; what did not fit has none."""
    found: dict[int, np.ndarray] = {}
    for places, features in GradientProbe(policy, adapter, **limits).gradients(rollouts):
        found |= dict(zip(places, features, strict=True))
    return found


def stacked(found: dict[int, np.ndarray]) -> np.ndarray:
    """Features in order, (rollouts, dim)."""
    return np.stack([found[place] for place in sorted(found)]).astype(np.float64)


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Cosine of each row with the other's, (rows,)."""
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return np.einsum("rd,rd->r", one, other) / np.maximum(lengths, 1e-30)
