"""Training rollouts by vLLM: TRL's, in the process that trains and on its GPU ("colocate").

TRL loads vLLM beside the model that is trained, hands it the weights after every update, and
corrects by importance sampling for what the two compute differently. That is its `VLLMGeneration`,
used here as it is but for three things. Adapters are merged into copies of the weights that are
rounded at random (`probes.models.adapters`): TRL merges and unmerges them in the weights
themselves, which in bfloat16 loses small steps and leaves the weights other ones each time. What
drives the draws is set before each of them, so that they do not depend on what was drawn before,
nor training on the draws. And completions end by the tokens that end them in the probe.
"""

from __future__ import annotations

import gc
import os
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from hashlib import sha256
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from peft import PeftModel

from curate.errors import RunError, UsageError
from probes.engines.base import Rollout, SampleRequest
from probes.engines.choose import TRANSFORMERS, VLLM
from probes.engines.vllm import FAILURES, hint, one_line_failures, quiet, reason_of
from probes.models.adapters import adapted_layers, merged_weight
from probes.models.files import ModelFiles
from probes.models.load import Policy, choose_dtype, outline_policy, weight_bytes
from recipes.recipe import Recipe
from recipes.train.placement import TRAINED_BYTES, is_spread
from recipes.train.processes import gathered

# Of the memory that vLLM is given, which weights may take: the rest is for keys and values.
_WEIGHTS_OF_VLLM = 0.8
# Of what is free on the GPU, which training and vLLM may take together before the first pass.
_MOST_TAKEN = 0.9
# What fails where vLLM does.
_DRAWING = "drawing training rollouts"
# What vLLM's start puts there for torch.distributed, as `accelerate launch` would.
_LAUNCH = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def choose_generation(
    recipe: Recipe, files: ModelFiles, *, begun_with: str = "", trust_remote_code: bool = False
) -> str:
    """What draws training rollouts, `vllm` or `transformers`: the same in all processes.

    Each process asks its own GPU, and every one must call this: they take vLLM where all can.

    Args:
        begun_with: what drew them so far, where a training goes on.
        trust_remote_code: run Python code that comes with the model.

    Raises:
        UsageError: vLLM is asked for, or drew them so far, and here it cannot.
    """
    if recipe.generation == TRANSFORMERS:
        return TRANSFORMERS
    obstacle = _obstacle(recipe, files, trust_remote_code)
    fits = recipe.generation == VLLM or (not obstacle and _fits(recipe, files))
    every = gathered((begun_with, obstacle, fits))
    # One folder is every process's, unless one does not see it yet.
    begun_with = every[0][0]
    obstacle = next((each for _, each, _ in every if each), "")
    if begun_with == TRANSFORMERS:
        return TRANSFORMERS
    if obstacle and begun_with == VLLM:
        raise UsageError(
            f"recipe {recipe.name}: vLLM drew the rollouts of this training so far, and cannot go "
            f"on here: {obstacle}; go on where it can, or remove the checkpoints to begin anew"
        )
    if obstacle and recipe.generation == VLLM:
        raise UsageError(
            f'recipe {recipe.name}: generation = "vllm" cannot work here: {obstacle}; '
            f'"auto" and "{TRANSFORMERS}" can'
        )
    return VLLM if begun_with == VLLM or all(each for _, _, each in every) else TRANSFORMERS


def _obstacle(recipe: Recipe, files: ModelFiles, trust_remote_code: bool) -> str:
    """Why vLLM cannot draw training rollouts on this machine; "" where it can."""
    if not torch.cuda.is_available():
        return (
            "without a GPU vLLM packs the weights that it loads for its kernels and takes no "
            "others afterwards, so that it would sample from the initial policy"
        )
    if find_spec("vllm") is None:
        return "vLLM is not installed (pip install 'rl-curate[vllm]')"
    if is_spread(recipe, files):
        return "the model is spread over several GPUs, and TRL's vLLM has that of its process"
    if _is_mixture(files, trust_remote_code):
        return (
            "the model is a mixture of experts, whose weights vLLM names and stores otherwise than "
            "the model that is trained, so that it would not take them after an update"
        )
    return ""


@lru_cache
def _is_mixture(files: ModelFiles, trust_remote_code: bool) -> bool:
    """Whether a model has experts, be they one tensor a layer or in a form of their own."""
    model = outline_policy(files, trust_remote_code=trust_remote_code).model
    return any(
        name.rpartition(".")[2] == "experts" or "Experts" in type(module).__name__
        for name, module in model.named_modules()
    )


def _fits(recipe: Recipe, files: ModelFiles) -> bool:
    """Whether a GPU seems to hold the model twice: as it is trained, and in vLLM."""
    free, total = torch.cuda.mem_get_info()
    dtype = choose_dtype(torch.device("cuda"))
    weights = weight_bytes(files, dtype)
    if not weights:
        return False  # A GGUF file does not say how large it is when it is expanded.
    share = recipe.vllm_gpu_memory_utilization * total
    # Beside an adapter the weights are frozen, in the precision of the probe.
    training = weights if recipe.lora_rank else weights / dtype.itemsize * TRAINED_BYTES
    return weights <= _WEIGHTS_OF_VLLM * share and training + share <= _MOST_TAKEN * free


def vllm_settings(
    recipe: Recipe, policy: Policy, longest: int, max_tokens: int, *, trust_remote_code: bool
) -> dict[str, Any]:
    """TRL's settings for generation by vLLM.

    Args:
        longest: tokens of the longest prompt.
        max_tokens: of a completion.
        trust_remote_code: run Python code that comes with the model.
    """
    return {
        "use_vllm": True,
        "vllm_mode": "colocate",
        "vllm_gpu_memory_utilization": recipe.vllm_gpu_memory_utilization,
        "vllm_enable_sleep_mode": recipe.vllm_enable_sleep_mode,
        "vllm_max_model_length": longest + max_tokens,
        "vllm_importance_sampling_correction": recipe.vllm_importance_sampling_correction,
        "vllm_importance_sampling_mode": recipe.vllm_importance_sampling_mode,
        "max_completion_length": max_tokens,
        "trust_remote_code": trust_remote_code,
        "generation_kwargs": {
            # The policy's own end tokens and no others, as in the probe.
            "ignore_eos": True,
            "stop_token_ids": sorted(policy.eos_token_ids),
            "detokenize": False,
        },
    }


class TrainingVllm:
    """TRL's vLLM, as the trainer draws from it.

    Args:
        generation: of TRL, in its mode `colocate`.
        end_tokens: that end a completion.
        seed: of the draws.
    """

    def __init__(self, generation: Any, end_tokens: frozenset[int], seed: int) -> None:
        self.generation = generation
        self.end_tokens = end_tokens
        self.seed = seed
        self._step = -1
        generation._iter_named_params = self._weights

    def draw(
        self, requests: Sequence[SampleRequest], temperature: float, step: int
    ) -> Iterator[tuple[Rollout, list[float]]]:
        """Draw from the policy as it is now, in the order of the requests.

        Args:
            temperature: of the draws.
            step: updates so far: with another one the weights are handed over first.

        Returns:
            rollouts, and of each token its log-probability in the distribution that it was drawn
            from, nan where vLLM gave none.
        """
        if not requests:
            return
        if step != self._step:
            with one_line_failures(_DRAWING):
                self.generation.sync_weights()
            self._step = step
        self.generation.temperature = temperature
        prompts = [list(each.prompt_token_ids) for each in requests for _ in range(each.samples)]
        with one_line_failures(_DRAWING), _random_numbers(_seed_of(self.seed, requests)):
            _, drawn, logs, _ = self.generation.generate(
                prompts=prompts, images=None, num_generations=1
            )
        rows = iter(zip(drawn, logs, strict=True))
        for request in requests:
            for place in range(request.samples):
                ids, values = next(rows)
                yield (
                    Rollout(
                        item_id=request.item_id,
                        sample=request.first_sample + place,
                        completion_token_ids=list(ids),
                        finish_reason="stop" if ids[-1] in self.end_tokens else "length",
                    ),
                    [float("nan") if value[0] is None else value[0] for value in values],
                )

    def _weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The weights by the names of the initial model, adapters merged into copies of them."""
        model = self.generation.model
        if not isinstance(model, PeftModel):
            for name, parameter in model.named_parameters():
                yield name, parameter.data
            return
        base = model.get_base_model()
        adapted = {f"{name}.base_layer.weight": each for name, each in adapted_layers(base).items()}
        for name, parameter in base.named_parameters():
            if ".lora_" in name:
                continue
            layer = adapted.get(name)
            weight = parameter.data if layer is None else merged_weight(layer)
            yield name.replace(".base_layer", ""), weight

    def close(self, *, alone: bool) -> None:
        """Shut vLLM down and free its memory.

        Args:
            alone: no other process trains, so that vLLM's process group is its own.
        """
        from vllm.distributed import cleanup_dist_env_and_memory, destroy_model_parallel

        self.generation.llm.llm_engine.engine_core.shutdown()
        del self.generation.llm
        if alone:
            cleanup_dist_env_and_memory()
        else:
            destroy_model_parallel()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def importance_ratios(
    trained: torch.Tensor, drawn: torch.Tensor, mask: torch.Tensor, *, mode: str, most: float
) -> torch.Tensor:
    """How much more probable what was drawn is to the model that is trained, as TRL bounds it.

    Args:
        trained, drawn: log-probabilities of each token in the model that is trained and in vLLM,
            (rollouts, columns); nan counts as no difference.
        mask: 1 at completion tokens.
        mode: `token_` for a ratio of each token, `sequence_` for one of each rollout; with
            `truncate` a larger one counts as `most`, with `mask` it takes no part.
        most: the largest ratio.

    Returns:
        (rollouts, columns), or (rollouts, 1).
    """
    difference = torch.nan_to_num((trained - drawn) * mask, nan=0.0)
    if mode.startswith("sequence"):
        difference = difference.sum(dim=-1, keepdim=True)
    ratio = torch.exp(difference)
    if mode.endswith("truncate"):
        return ratio.clamp(max=most)
    return ratio.masked_fill(ratio > most, 0.0)


def _seed_of(seed: int, requests: Sequence[SampleRequest]) -> int:
    """A seed, 63 bits, that these requests have and no others."""
    asked = [f"{each.item_id}\0{each.first_sample}\0{each.samples}" for each in requests]
    key = sha256("\0".join([str(seed), *asked]).encode()).digest()
    return int.from_bytes(key[:8], "little") >> 1


@contextmanager
def _random_numbers(seed: int) -> Iterator[None]:
    """Seed what vLLM draws from, which in one process is also what training draws from."""
    kept = random.getstate(), np.random.get_state()
    gpus = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=gpus):
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(kept[0])
            np.random.set_state(kept[1])


@contextmanager
def starting(files: ModelFiles) -> Iterator[None]:
    """Have TRL load vLLM without a word, and undo what that puts into the environment.

    Processes that are begun later would take themselves for a part of this one's training.

    Raises:
        RunError: it cannot be loaded.
    """
    kept = {name: os.environ.get(name) for name in _LAUNCH}
    try:
        with quiet():
            yield
    except FAILURES as error:
        raise RunError(
            f"TRL's vLLM cannot load {files.name} beside the model that is trained: "
            f"{reason_of(error)}{hint()}; the recipe's vllm_gpu_memory_utilization says how much "
            f'memory it takes, and generation = "{TRANSFORMERS}" does without it'
        ) from error
    finally:
        for name, value in kept.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
