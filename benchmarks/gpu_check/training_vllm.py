"""Does GRPO with TRL's vLLM sample from the policy that it trains? On a model of random weights.

    python -m benchmarks.gpu_check.training_vllm

It trains a few steps with `generation = "vllm"` and prints, for each, how far the log-probabilities
that vLLM gave are from those of the model in training, then loads vLLM once more as another seed
would. Exit status 1 when they are further apart than 0.1 on average, or the mean ratio is further
than 0.2 from 1: weights did not arrive.

It needs trl, peft and vLLM. Without a GPU vLLM packs its weights as it loads them and takes no
others; here it is kept from it (vLLM 0.31), so that all else can be tried.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from probes.models.files import resolve_model
from probes.verifiers.pool import VerifierPool
from recipes.recipe import Recipe
from recipes.train import vllm
from recipes.train.prompts import TrainingItem
from recipes.train.train import Training, train_grpo
from tests.tiny import WORDS, save_tiny_model

RECIPE = Recipe(
    name="training-vllm",
    max_steps=3,
    prompts_per_step=2,
    num_generations=16,
    updates_per_step=1,
    learning_rate=1e-2,
    lora_rank=4,
    max_completion_length=24,
    max_sampling_rounds=4,
    save_every=10,
    generation="vllm",
    vllm_gpu_memory_utilization=0.2,
)


def _save_model(folder: Path) -> Path:
    """The tests' tokenizer, and a model whose heads are of a size that vLLM's kernels take."""
    save_tiny_model(folder)
    small = LlamaConfig.from_pretrained(folder)
    sizes = {"hidden_size": 128, "intermediate_size": 128, "head_dim": 64}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "initializer_range": 0.1}
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**{**small.to_dict(), **sizes, **heads})).save_pretrained(folder)
    return folder


def _keep_weights_plain() -> None:
    """Have vLLM keep the weights of linear layers as they are on a CPU, so that it takes others."""
    from vllm.model_executor.layers import utils

    def plain(layer: torch.nn.Module, remove_weight: bool) -> None:
        layer.cpu_linear = torch.nn.functional.linear

    utils.dispatch_cpu_unquantized_gemm = plain
    vllm._obstacle = lambda *_: ""


def main() -> int:
    """Train, print, and tell by the exit status whether vLLM has the policy's weights."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
    if not torch.cuda.is_available():
        _keep_weights_plain()
    prompts = {"a": ("what", "is", "3"), "b": ("=", "?")}
    is_off, seen = False, 0
    with tempfile.TemporaryDirectory() as folder:
        files = resolve_model(str(_save_model(Path(folder) / "model")))
        with VerifierPool("tests.scripted_reward:reward", workers=1) as pool:
            training = Training(
                recipe=RECIPE,
                seed=1,
                files=files,
                items=[
                    TrainingItem(name, tuple(WORDS.index(word) for word in words), "3")
                    for name, words in prompts.items()
                ],
                held_out=(),
                max_tokens=RECIPE.max_completion_length,
                pool=pool,
                folder=Path(folder) / "1",
            )
            for seed in (1, 2):
                own = dataclasses.replace(training, seed=seed, folder=Path(folder) / str(seed))
                for line in train_grpo(own).progress.metrics:
                    if "sampling/sampling_logp_difference/mean" not in line:
                        continue
                    apart = line["sampling/sampling_logp_difference/mean"]
                    ratio = line["sampling/importance_sampling_ratio/mean"]
                    seen += 1
                    is_off = is_off or apart > 0.1 or abs(ratio - 1) > 0.2
                    print(
                        f"seed {seed}, step {line['step']}: a token's log-probabilities are "
                        f"{apart:.4f} apart, mean ratio {ratio:.3f}"
                    )
    return int(is_off or not seen)


if __name__ == "__main__":
    sys.exit(main())
