"""Log-probabilities of a group's completions with their common prompt computed once.

The rollouts of a group share their prompt. Side by side in rows of their own, as trainers lay them
out, the prompt goes through the model once for each of them. Packed, one row holds the prompt less
its last token, and then for every completion that last token and the completion; the attention mask
lets a completion see the prompt and itself, and its positions go on from the prompt's end. What
comes out is the same but for rounding; docs/benchmarks.md has what it saves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

# Longer rows cost more in attention, whose mask is dense here, than the prompt would.
_LONGEST_ROW = 2048
# Packing must save at least this share of the tokens to be worth a dense mask.
_LEAST_SAVED = 0.2


@dataclass(frozen=True)
class Packing:
    """Rows of the model's input that hold several rollouts each.

    Attributes:
        ids, positions, labels: (rows, columns) int64; labels are -100 but at completion tokens.
        segments: (rows, columns): 0 for the prompt, else the number of the completion from 1;
            -1 at padding.
        row_of, column_of: (completion tokens,) where each completion token stands, in the order of
            the unpacked batch.
    """

    ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    labels: NDArray[np.int64]
    segments: NDArray[np.int64]
    row_of: NDArray[np.int64]
    column_of: NDArray[np.int64]


def can_pack(config: Any) -> bool:
    """Whether a token of this model sees all tokens before it, and nothing else joins them.

    A window that slides, or a state that is carried along, knows nothing of the packed mask.
    """
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    is_windowed = getattr(config, "sliding_window", None) and getattr(
        config, "use_sliding_window", True
    )
    return kinds == {"full_attention"} and not is_windowed


def pack(prompts: list[list[int]], completions: list[list[int]]) -> Packing | None:
    """Lay rollouts out so that those of one prompt share it; None where that saves too little.

    Args:
        prompts, completions: token ids of each rollout; a prompt and a completion have at least
            one token.
    """
    rows = _assign(prompts, completions)
    columns = max(
        len(prompts[row[0]]) - 1 + sum(len(completions[place]) + 1 for place in row) for row in rows
    )
    unpacked = len(prompts) * (max(map(len, prompts)) + max(map(len, completions)))
    if len(rows) * columns > (1 - _LEAST_SAVED) * unpacked:
        return None
    shape = (len(rows), columns)
    ids, positions = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    labels, segments = np.full(shape, -100), np.full(shape, -1)
    places: list[tuple[int, int, int]] = []  # rollout, row, first column of the completion
    for number, row in enumerate(rows):
        prompt = prompts[row[0]]
        shared = len(prompt) - 1
        ids[number, :shared] = prompt[:-1]
        positions[number, :shared] = np.arange(shared)
        segments[number, :shared] = 0
        column = shared
        for segment, place in enumerate(row, start=1):
            tokens = [prompt[-1], *completions[place]]
            part = slice(column, column + len(tokens))
            ids[number, part] = tokens
            positions[number, part] = np.arange(shared, shared + len(tokens))
            labels[number, column + 1 : part.stop] = completions[place]
            segments[number, part] = segment
            places.append((place, number, column + 1))
            column = part.stop
    places.sort()
    lengths = [len(completions[place]) for place, _, _ in places]
    row_of = np.repeat([row for _, row, _ in places], lengths)
    column_of = np.concatenate(
        [np.arange(first, first + n) for (_, _, first), n in zip(places, lengths, strict=True)]
    )
    return Packing(ids, positions, labels, segments, row_of, column_of)


def _assign(prompts: list[list[int]], completions: list[list[int]]) -> list[list[int]]:
    """Which rollouts stand in each row: those of one prompt, as many as a row may hold."""
    rows: list[list[int]] = []
    open_row: dict[tuple[int, ...], tuple[int, int]] = {}  # row and its length, by prompt
    for place, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        key = tuple(prompt)
        row, length = open_row.get(key, (-1, _LONGEST_ROW))
        if length + len(completion) + 1 > _LONGEST_ROW:
            row, length = len(rows), len(prompt) - 1
            rows.append([])
        rows[row].append(place)
        open_row[key] = (row, length + len(completion) + 1)
    return rows


def attention_mask(
    segments: NDArray[np.int64], dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """Additive mask, (rows, 1, columns, columns): 0 where a token may look, else the least number.

    A token sees those before it that are of the prompt or of its own completion. Padding sees
    itself alone, so that no row of the softmax is empty.
    """
    segment = torch.from_numpy(segments).to(device)
    same = segment.unsqueeze(2) == segment.unsqueeze(1)
    of_prompt = (segment == 0).unsqueeze(1) & (segment > 0).unsqueeze(2)
    columns = segments.shape[1]
    earlier = torch.ones(columns, columns, dtype=torch.bool, device=device).tril()
    allowed = (same | of_prompt) & earlier
    mask = torch.zeros(allowed.shape, dtype=dtype, device=device)
    return mask.masked_fill_(allowed.logical_not(), torch.finfo(dtype).min).unsqueeze(1)


def packed_log_probs(
    forward: Callable[..., Any],
    packing: Packing,
    completion_mask: torch.Tensor,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Run the model on a packed batch; put log-probabilities and entropies back in rollout rows.

    Args:
        forward: the model with TRL's fused head: called with input_ids, attention_mask,
            position_ids, labels; its `log_probs[:, t]` and `entropy[:, t]` are those of token t+1.
        completion_mask: (rollouts, completion columns), 1 at completion tokens.
        dtype: of the model's hidden states.

    Returns:
        log-probabilities and entropies, (rollouts, completion columns), 0 at padding; no entropies
        where the model's head gives none.
    """
    device = completion_mask.device
    outputs = forward(
        input_ids=torch.from_numpy(packing.ids).to(device),
        attention_mask=attention_mask(packing.segments, dtype, device),
        position_ids=torch.from_numpy(packing.positions).to(device),
        labels=torch.from_numpy(packing.labels).to(device),
        fused_lm_head=True,
    )
    width = packing.ids.shape[1] - 1
    places = torch.from_numpy(packing.row_of * width + packing.column_of - 1).to(device)
    where = completion_mask.bool()

    def unpacked(values: torch.Tensor) -> torch.Tensor:
        # The head of a model that is spread over GPUs lies on another one than the tokens.
        values = values.to(device)
        empty = values.new_zeros(where.shape)
        return empty.masked_scatter(where, values.flatten().index_select(0, places))

    entropies = None if outputs.entropy is None else unpacked(outputs.entropy)
    return unpacked(outputs.log_probs), entropies
