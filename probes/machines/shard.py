"""`--shard I/N`: the part of a run's items that one of N machines does, in a folder of its own."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from curate.errors import UsageError
from curate.run.names import SHARDS


@dataclass(frozen=True)
class Part:
    """The items whose position in `items.parquet`, divided by `of`, leaves `number` - 1."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def folder(self, run_dir: Path) -> Path:
        """Where this part of a run is done: a run folder of its own."""
        return run_dir / SHARDS / f"{self.number}-of-{self.of}"

    def own(self, items: int) -> NDArray[np.bool_]:
        """Whether each item belongs to this part, shape (items,)."""
        return np.asarray(np.arange(items) % self.of == self.number - 1)


def parse_part(text: str) -> Part:
    """Read `I/N`, with 1 <= I <= N.

    Raises:
        UsageError: it is something else.
    """
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    part = Part(int(match[1]), int(match[2])) if match else Part(0, 0)
    if not 1 <= part.number <= part.of:
        raise UsageError(f"--shard is {text!r}; it must be I/N with I from 1 to N, such as 1/8")
    return part
