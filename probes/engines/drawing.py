"""Drawing tokens from logits by inverse transform, and what the drawn ones are worth."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from probes.engines.base import WHOLE, Truncation

# Logits that are drawn from in one go on a CPU.
_VALUES_AT_ONCE = 2**20


def draw(
    logits: torch.Tensor,
    uniform: torch.Tensor,
    temperature: float,
    truncation: Truncation = WHOLE,
) -> torch.Tensor:
    """Draw tokens by inverse transform, several from each row.

    Args:
        logits: (rows, vocabulary), any float type.
        uniform: (rows, draws) in [0, 1).
        temperature: divides the logits.
        truncation: what tokens are drawn from.

    Returns:
        token ids, (rows, draws) int64.
    """
    tokens = torch.empty(uniform.shape, dtype=torch.long, device=logits.device)
    for some in _few_rows(logits):
        scaled = logits[some].float() / temperature
        if not truncation.is_whole:
            scaled = truncated(scaled, truncation)
        cumulative = torch.softmax(scaled, dim=-1).cumsum(dim=-1)
        # Scaling by the last entry keeps rounding from leaving a gap below 1.
        target = uniform[some].float() * cumulative[:, -1:]
        tokens[some] = torch.searchsorted(cumulative, target, right=True)
    return tokens.clamp_max_(logits.shape[-1] - 1)


def truncated(logits: torch.Tensor, truncation: Truncation) -> torch.Tensor:
    """Leave tokens out: their logits become minus infinity; the most probable one always stays.

    Args:
        logits: (rows, vocabulary) float32, divided by the temperature.
        truncation: what stays.
    """
    nothing = float("-inf")
    if truncation.min_p > 0:
        least = logits.amax(dim=-1, keepdim=True) + math.log(truncation.min_p)
        logits = logits.masked_fill(logits < least, nothing)
    if 0 < truncation.top_k < logits.shape[-1]:
        least = torch.topk(logits, truncation.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < least, nothing)
    if truncation.top_p < 1:
        ordered, places = logits.sort(dim=-1, descending=True)
        probabilities = torch.softmax(ordered, dim=-1)
        # A token goes where those before it are enough.
        before = probabilities.cumsum(dim=-1) - probabilities
        goes = torch.zeros_like(logits, dtype=torch.bool)
        goes.scatter_(1, places, before >= truncation.top_p)
        # The first has none before it, but rounding may say otherwise.
        goes.scatter_(1, places[:, :1], False)
        logits = logits.masked_fill(goes, nothing)
    return logits


def log_probabilities_of(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of tokens at temperature 1.

    Args:
        logits: (rows, vocabulary), any float type.
        tokens: (rows, draws) int64.

    Returns:
        (rows, draws) float32, in nats.
    """
    normalizers = [torch.logsumexp(logits[some].float(), dim=-1) for some in _few_rows(logits)]
    return logits.gather(1, tokens).float() - torch.cat(normalizers)[:, None]


def _few_rows(logits: torch.Tensor) -> Iterator[slice]:
    """Rows a few at a time on a CPU, where the steps between would each take a copy of them all.

    On a GPU that has memory, fewer and larger steps are faster.
    """
    rows = len(logits)
    few = max(1, _VALUES_AT_ONCE // logits.shape[-1]) if logits.device.type == "cpu" else rows
    for first in range(0, rows, max(1, few)):
        yield slice(first, first + few)
