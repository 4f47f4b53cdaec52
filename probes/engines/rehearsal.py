"""Whether a model can be sampled and differentiated here, tried with a few tokens.

What an architecture's code does with a cache or a hook cannot be read from its configuration. Where
the weights are loaded anyway, a few tokens are drawn and differentiated before anything is spent.
Where they are not (vLLM and servers have their own), the same is tried on the model's outline,
which has no numbers: code that branches on numbers, as that of some experts does, tells nothing
there.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from curate.errors import RunError, UsageError
from probes.engines.base import Engine, SampleRequest
from probes.gradients.lora import Adapter, GradientProbe, TokenizedRollout
from probes.models.load import ModelFiles, Policy, PolicyOutline, is_out_of_memory

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
    """Differentiate a few tokens; of a model without numbers, see whether our own code refuses.

    Raises:
        UsageError: it fails, with the reason.
    """
    prompts = _prompts(model.tokenizer)
    rollouts = [TokenizedRollout(prompt, prompts[0][:_COMPLETION]) for prompt in prompts]
    try:
        if isinstance(model, Policy):
            GradientProbe(model, _small(adapter)).rehearse(rollouts)
        else:
            # One that is given its memory needs not ask how much there is.
            GradientProbe(_without_numbers(files, model), _small(adapter), batch_tokens=1).rehearse(
                rollouts
            )
    except _FAILURES as error:
        if is_out_of_memory(error):
            raise
        if not isinstance(model, Policy) and not isinstance(error, RunError):
            return  # It needs numbers.
        raise UsageError(
            f"{_named(files, model)} cannot be differentiated: {_reason(error)}; where it is about "
            "some modules, name others with --gradient-targets"
        ) from error


def _without_numbers(files: ModelFiles, outline: PolicyOutline) -> Policy:
    return Policy(
        files=files,
        model=outline.model.eval().requires_grad_(False),
        tokenizer=outline.tokenizer,
        device=torch.device("meta"),
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
