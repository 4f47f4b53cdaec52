"""How many tokens the loss of a training clips, by group: for the log, `clipped_fraction`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from accelerate.utils import gather_object


class ClippedTokens:
    """Tokens that were clipped, and all tokens, of each group on this process."""

    def __init__(self) -> None:
        self._sums: dict[int, list[float]] = {}

    def add(self, groups: Sequence[int], is_clipped: torch.Tensor, mask: torch.Tensor) -> None:
        """Count what a pass of the loss clipped.

        Args:
            groups: (rows,), the group of each row.
            is_clipped: (rows, columns).
            mask: (rows, columns), 1 for the tokens of a completion.
        """
        clipped, tokens = (is_clipped * mask).sum(1).tolist(), mask.sum(1).tolist()
        for group, some, all_ in zip(groups, clipped, tokens, strict=True):
            sums = self._sums.setdefault(group, [0.0, 0.0])
            sums[0] += some
            sums[1] += all_

    def settle(self, rows: Sequence[dict[str, Any]]) -> None:
        """Put the shares into the log's rows and begin anew; every process must call it."""
        sums: dict[int, list[float]] = {}
        for part in gather_object([self._sums]):
            sums |= part
        # What was clipped is of the groups logged last.
        for row in reversed(rows):
            if not sums:
                break
            clipped, tokens = sums.pop(row["group"], (0.0, 0.0))
            if tokens:
                row["clipped_fraction"] = clipped / tokens
        self._sums = {}
