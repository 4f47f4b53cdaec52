"""Similarity of the training items to a target: the items of the evaluation that RL is for."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from curate.run.features import RolloutFeatures
from probes.gradients.similarity import Similarity, measure_similarity

_ROWS_AT_ONCE = 4096


def measure_target_similarity(
    training: RolloutFeatures,
    target: RolloutFeatures,
    row_of: Mapping[str, int],
    target_row_of: Mapping[str, int],
    *,
    ties: NDArray[np.uint64],
    confidence: float,
    scratch: Path,
) -> Similarity:
    """Measure the training items by `measure_similarity`, with the target's items as references.

    An item that is in both sets has the same rollouts in both; it is never its own reference.

    Args:
        training, target: features of the correct rollouts of either.
        row_of, target_row_of: position of each item by item_id, in either.
        ties: a number for each target item that depends on it alone, (target items,).
        confidence: of the intervals.
        scratch: a folder for a temporary file of all features.

    Returns:
        arrays of shape (training items,); `nearest` are positions in the target.
    """
    items, dim = len(row_of), training.features.shape[1]
    place = np.array(
        [row_of.get(item_id, items + row) for item_id, row in target_row_of.items()], dtype=np.int64
    )
    # Of an item in both sets one copy of the rollouts is enough: the other is the same.
    new = place[target.item] >= items
    with tempfile.NamedTemporaryFile(dir=scratch, prefix=".stacked.", suffix=".tmp") as file:
        for part in (training.features, target.features[new]):
            for start in range(0, len(part), _ROWS_AT_ONCE):
                file.write(np.ascontiguousarray(part[start : start + _ROWS_AT_ONCE]).tobytes())
        file.flush()
        rows = len(training.features) + int(new.sum())
        # An empty file cannot be mapped.
        features = (
            np.memmap(file.name, dtype=np.float32, mode="r", shape=(rows, dim))
            if rows
            else np.empty((0, dim), dtype=np.float32)
        )
        everything = items + len(target_row_of)
        is_reference = np.zeros(everything, dtype=bool)
        is_reference[place] = True
        all_ties = np.zeros(everything, dtype=np.uint64)
        all_ties[place] = ties
        found = measure_similarity(
            features,
            np.concatenate([training.item, place[target.item[new]]]),
            np.concatenate([training.weights, target.weights[new]]),
            is_reference,
            ties=all_ties,
            confidence=confidence,
        )
    back = np.full(everything + 1, -1)
    back[place] = np.arange(len(place))
    return Similarity(
        **{
            name: back[values[:items]] if name == "nearest" else values[:items]
            for name, values in vars(found).items()
        }
    )
