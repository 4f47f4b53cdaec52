"""Rollouts in one pass, and which of their tokens are the same computation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class TokenizedRollout:
    """The token ids of one rollout, as they were sampled."""

    prompt_token_ids: Sequence[int]
    completion_token_ids: Sequence[int]

    @property
    def tokens(self) -> int:
        """Length of prompt and completion together."""
        return len(self.prompt_token_ids) + len(self.completion_token_ids)


class Batch:
    """Rollouts side by side, a row each, and which of their tokens are the same computation.

    Rows are padded on the right, where a causal model's tokens do not see the padding. A rollout's
    last token is never an input. Positions count through the rows: row * columns + column.

    Attributes:
        ids: (rows, columns) token ids.
        tokens: (tokens,) positions that hold a token and not padding.
        prefixes: (prefixes,) a position for every distinct prefix.
        prefix_of: (rows * columns,) the row of `prefixes` with the same prefix; 0 at padding.
        predictions: (completion tokens,) positions whose next token is of a completion.
        shares: (completion tokens,) weight of each in the loss of its rollout.
        edges, edge_tokens: (edges,) a position and next token for every distinct prediction.
        edge_of: (completion tokens,) the row of `edges` with the same prediction.
    """

    def __init__(self, rollouts: Sequence[TokenizedRollout], device: torch.device) -> None:
        self.rows = len(rollouts)
        self.columns = max(rollout.tokens for rollout in rollouts) - 1
        ids = np.zeros((self.rows, self.columns), dtype=np.int64)
        numbers: dict[tuple[int, int], int] = {}
        inputs, input_prefixes = [], []
        predictions, predicted_prefixes, predicted, shares = [], [], [], []
        for row, rollout in enumerate(rollouts):
            tokens = [*map(int, rollout.prompt_token_ids), *map(int, rollout.completion_token_ids)]
            prefixes = []
            prefix = -1
            for token in tokens:
                prefix = numbers.setdefault((prefix, token), len(numbers))
                prefixes.append(prefix)
            last, first = len(tokens) - 1, len(rollout.prompt_token_ids)
            start = row * self.columns
            ids[row, :last] = tokens[:-1]
            inputs.append(np.arange(start, start + last))
            input_prefixes.append(prefixes[:-1])
            predictions.append(np.arange(start + first - 1, start + last))
            predicted_prefixes.append(prefixes[first:])
            predicted.append(tokens[first:])
            shares.append(np.full(last + 1 - first, 1 / (last + 1 - first), dtype=np.float32))

        def move(array: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(array).to(device)

        tokens_at = np.concatenate(inputs)
        _, first_with, prefix_of = np.unique(
            np.concatenate(input_prefixes), return_index=True, return_inverse=True
        )
        everywhere = np.zeros(self.rows * self.columns, dtype=np.int64)
        everywhere[tokens_at] = prefix_of
        self.ids = move(ids)
        self.tokens = move(tokens_at)
        self.prefixes = move(tokens_at[first_with])
        self.prefix_of = move(everywhere)
        predictions_at = np.concatenate(predictions)
        _, first_with, edge_of = np.unique(
            np.concatenate(predicted_prefixes), return_index=True, return_inverse=True
        )
        self.predictions = move(predictions_at)
        self.shares = move(np.concatenate(shares))
        self.edges = move(predictions_at[first_with])
        self.edge_tokens = move(np.concatenate(predicted)[first_with])
        self.edge_of = move(edge_of)
        self._places = {device: (self.tokens, self.prefixes, self.prefix_of)}

    def places(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """`tokens`, `prefixes`, `prefix_of` on the device of a layer: a model may have several."""
        if device not in self._places:
            first = next(iter(self._places.values()))
            self._places[device] = (
                first[0].to(device),
                first[1].to(device),
                first[2].to(device),
            )
        return self._places[device]
