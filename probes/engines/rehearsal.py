"""Whether a model can be sampled and differentiated here, tried with a few tokens.

What an architecture's code does with a cache or a hook cannot be read from its configuration. Where
the weights are loaded anyway, a few tokens are drawn and differentiated before anything is spent.
Where they are not (vLLM and servers have their own), one block of each kind is differentiated, with
zeros for weights: it tells which modules our gradients cannot reach, and nothing else.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from curate.errors import RunError, UsageError
from probes.engines.base import Engine, SampleRequest
from probes.gradients.batch import TokenizedRollout
from probes.gradients.lora import GradientProbe
from probes.gradients.tap import Adapter
from probes.models.files import ModelFiles
from probes.models.load import Policy, PolicyOutline, is_out_of_memory

_TEXTS = ("What is 12 + 7?", "Name it: x.")
_COMPLETION = 3
# What code raises that is used in another way than it was written for.
_FAILURES = (
    *(RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError, LookupError),
    *(AssertionError, RunError),
)


def rehearse_sampling(policy: Policy, engine: Engine) -> None:
    """Draw a few tokens with an engine.

    Raises:
        UsageError: it fails, with the reason.
    """
    requests = [
        SampleRequest(str(number), prompt, 0, 2)
        for number, prompt in enumerate(_prompts(policy.tokenizer))
    ]
    try:
        list(engine.sample(requests))
    except _FAILURES as error:
        if is_out_of_memory(error):
            raise
        raise UsageError(
            f"{_named(policy.files, policy)} cannot be sampled by --engine {engine.name}: "
            f"{_reason(error)}; --engine vllm or server may know it"
        ) from error


def rehearse_gradients(files: ModelFiles, model: Policy | PolicyOutline, adapter: Adapter) -> None:
    """Differentiate a few tokens; without weights, see which modules cannot be reached.

    Raises:
        UsageError: it fails, with the reason.
    """
    prompts = _prompts(model.tokenizer)
    rollouts = [TokenizedRollout(prompt, prompts[0][:_COMPLETION]) for prompt in prompts]
    try:
        policy = model if isinstance(model, Policy) else _of_zeros(files, model)
        GradientProbe(policy, _small(adapter)).rehearse(rollouts)
    except _FAILURES as error:
        if not isinstance(model, Policy) and not isinstance(error, RunError):
            return  # A block may need those that are not there.
        if is_out_of_memory(error):
            raise
        raise UsageError(
            f"{_named(files, model)} cannot be differentiated: {_reason(error)}; where it is about "
            "some modules, name others with --gradient-targets"
        ) from error


def _of_zeros(files: ModelFiles, outline: PolicyOutline) -> Policy:
    """The policy with one block of each kind and zeros for weights, which take no memory.

    (Memory that holds zeros and is only read is not there.)
    """
    model = copy.deepcopy(outline.model)
    for name, blocks in list(model.named_modules()):
        if isinstance(blocks, torch.nn.ModuleList) and not any(map(str.isdigit, name.split("."))):
            kinds = {
                tuple((part, type(module)) for part, module in block.named_modules()): block
                for block in reversed(blocks)
            }
            above, _, last = name.rpartition(".")
            few = torch.nn.ModuleList(reversed(kinds.values()))
            setattr(model.get_submodule(above), last, few)
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            # Torch's own zeros are written, and so are there.
            zeros = torch.from_numpy(np.zeros(parameter.shape, dtype=np.float32))
            setattr(module, name, torch.nn.Parameter(zeros, requires_grad=False))
        for name, buffer in list(module.named_buffers(recurse=False)):
            module._buffers[name] = torch.zeros(buffer.shape, dtype=buffer.dtype)
    return Policy(
        files=files,
        model=model.eval(),
        tokenizer=outline.tokenizer,
        device=torch.device("cpu"),
        dtype=torch.float32,
        eos_token_ids=outline.eos_token_ids,
        context_length=outline.context_length,
    )


def _named(files: ModelFiles, model: Policy | PolicyOutline) -> str:
    return f"model {files.name} ({model.model.config.model_type})"


def _small(adapter: Adapter) -> Adapter:
    """The same modules, and little to compute."""
    return replace(adapter, rank=1, dim=None)


def _prompts(tokenizer: Any) -> list[list[int]]:
    """Token ids of plain text: a model may treat some others, such as those of images, apart."""
    found = [list(tokenizer(text, add_special_tokens=False)["input_ids"]) or [0] for text in _TEXTS]
    return [found[0] * 2, found[1]]


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
