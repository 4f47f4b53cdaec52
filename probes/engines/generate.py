"""Sample rollouts by transformers' own `generate`, for models without plain keys and values.

State-space layers, linear attention and convolutions keep states that have no columns: neither can
rows join and leave one cache, nor may a prompt be padded on its left. Here the rows of a batch are
samples of one prompt, and the model's own code keeps its cache. Tokens are drawn by inverse
transform from each sample's own uniform numbers, as in the engine that this is a part of.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from transformers import DynamicCache, GenerationConfig, LogitsProcessor, LogitsProcessorList
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from curate.errors import RunError
from probes.engines.base import (
    RequestStream,
    Rollout,
    SampleRequest,
    Truncation,
    uniform_draws,
)
from probes.engines.drawing import draw, log_probabilities_of
from probes.models.load import Policy, is_out_of_memory

# What the engine's steps hand to a model.
_STEP = ("attention_mask", "position_ids", "past_key_values", "logits_to_keep")


def has_plain_attention(model: Any) -> bool:
    """Whether every layer of a model keeps keys and values alone, which one cache can hold.

    Told by what the architecture says: the layers of its cache, and what its `forward` takes.
    """
    if getattr(model, "_is_stateful", False):
        return False
    takes = inspect.signature(type(model).forward).parameters
    # What wraps a model for its training takes anything and names nothing.
    if "input_ids" in takes and not set(_STEP) <= takes.keys():
        return False
    layers = DynamicCache(config=model.config.get_text_config()).layers
    # Where a configuration tells of no layers, they are made as they are first used: plain ones.
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)


def generate_rollouts(
    policy: Policy,
    requests: Iterable[SampleRequest],
    *,
    seed: int,
    temperature: float,
    truncation: Truncation,
    max_tokens: int,
    most_rows: Callable[[int], int],
    is_over: Callable[[], bool] = lambda: False,
) -> Iterator[Rollout]:
    """Yield every rollout asked for, prompt by prompt.

    Args:
        policy: any causal language model of transformers.
        requests: what is wanted.
        seed, temperature, truncation, max_tokens: of the sampling.
        most_rows: samples at once, by the tokens of their prompt; halved when memory runs out.
        is_over: asked between two prompts whether to stop.

    Raises:
        RunError: one single rollout does not fit into memory.
    """
    stream, waiting = RequestStream(requests), list[SampleRequest]()
    fits: float = math.inf
    while not is_over():
        waiting = waiting or stream.take(1)
        if not waiting:
            return
        request = waiting.pop()
        most = min(most_rows(len(request.prompt_token_ids)), fits)
        now = replace(request, samples=int(min(request.samples, most)))
        left = request.samples - now.samples
        if left:
            first = request.first_sample + now.samples
            waiting.append(replace(request, first_sample=first, samples=left))
        try:
            rollouts = _generate(policy, now, seed, temperature, truncation, max_tokens)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            if now.samples == 1:
                raise RunError(
                    f"out of memory with a single rollout in the batch ({error}); "
                    "lower --max-tokens or use a machine with more memory"
                ) from error
            waiting.append(now)
            fits = now.samples // 2
            continue
        yield from rollouts


def _generate(
    policy: Policy,
    request: SampleRequest,
    seed: int,
    temperature: float,
    truncation: Truncation,
    max_tokens: int,
) -> list[Rollout]:
    samples = range(request.first_sample, request.first_sample + request.samples)
    prompt = [int(token) for token in request.prompt_token_ids]
    uniform = [
        torch.from_numpy(uniform_draws(seed, request.item_id, sample, max_tokens))
        for sample in samples
    ]
    drawing = _Drawing(torch.stack(uniform).to(policy.device), len(prompt), temperature, truncation)
    ids = torch.tensor([prompt], device=policy.device).expand(len(samples), -1).contiguous()
    ends = sorted(policy.eos_token_ids)
    settings = _settings(
        max_new_tokens=max_tokens,
        do_sample=False,
        use_cache=True,
        eos_token_id=ends or None,
        pad_token_id=ends[0] if ends else 0,
    )
    with torch.inference_mode(), _without_defaults(policy.model):
        policy.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            generation_config=settings,
            logits_processor=LogitsProcessorList([drawing]),
        )
    tokens = torch.cat(drawing.tokens, dim=1).tolist()
    scores = torch.cat(drawing.scores, dim=1).tolist()
    return [
        _rollout(request.item_id, sample, drawn, scored, policy.eos_token_ids)
        for sample, drawn, scored in zip(samples, tokens, scores, strict=True)
    ]


def _settings(**values: Any) -> GenerationConfig:
    return GenerationConfig(**values)  # type: ignore[no-untyped-call]


class _Drawing(LogitsProcessor):
    """Draws each row's next token, and leaves `generate` no other choice.

    Attributes:
        tokens, scores: of each step, (rows, 1): ids, and their log-probabilities at temperature 1.
    """

    def __init__(
        self, uniform: torch.Tensor, start: int, temperature: float, truncation: Truncation
    ) -> None:
        self.tokens: list[torch.Tensor] = []
        self.scores: list[torch.Tensor] = []
        self._uniform = uniform
        self._start = start
        self._temperature = temperature
        self._truncation = truncation

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> Any:
        step = input_ids.shape[1] - self._start
        uniform = self._uniform[:, step : step + 1]
        tokens = draw(scores, uniform, self._temperature, self._truncation)
        self.tokens.append(tokens)
        self.scores.append(log_probabilities_of(scores, tokens))
        return torch.full_like(scores, float("-inf")).scatter(1, tokens, 0.0)


def _rollout(
    item_id: str, sample: int, tokens: list[int], scores: list[float], ends: frozenset[int]
) -> Rollout:
    """A row up to its first end token: after that `generate` goes on for the others' sake."""
    length = next((n for n, token in enumerate(tokens, 1) if token in ends), len(tokens))
    reason = "stop" if tokens[length - 1] in ends else "length"
    return Rollout(item_id, sample, tokens[:length], reason, sum(scores[:length]))


@contextmanager
def _without_defaults(model: Any) -> Iterator[None]:
    """Keep penalties and the like of the model's generation config from what is drawn."""
    own = model.generation_config
    model.generation_config = _settings()
    try:
        yield
    finally:
        model.generation_config = own
