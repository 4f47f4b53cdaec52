"""Reading gradients of rollouts from a file a block at a time, items whole."""

from __future__ import annotations

import mmap

import numpy as np
from numpy.typing import NDArray


def item_blocks(
    item_index: NDArray[np.integer], weights: NDArray[np.integer], rows_per_block: int
) -> list[NDArray[np.intp]]:
    """Rows with weight, items in order and whole, in blocks of `rows_per_block` where they fit."""
    rows = np.flatnonzero(weights > 0)
    rows = rows[np.argsort(item_index[rows], kind="stable")]
    if not len(rows):
        return []
    starts = np.flatnonzero(np.diff(item_index[rows], prepend=-1))
    blocks, first = [], 0
    for start, end in zip(starts, [*starts[1:], len(rows)], strict=True):
        if end - first > rows_per_block and start > first:
            blocks.append(rows[first:start])
            first = int(start)
    return [*blocks, rows[first:]]


def release(features: NDArray[np.floating]) -> None:
    """Let go of the pages of a memmap that were read; they would count as this process's memory."""
    base: object = features
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, mmap.mmap):
        base.madvise(mmap.MADV_DONTNEED)
