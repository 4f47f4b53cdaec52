"""Items of which one is enough: the same prompt, nearly the same, or the same gradient."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from recipes.augment.duplicates import DuplicateIndex

_BLOCK = 256
_DIM = 512
# Of a cosine seen in `_DIM` dimensions: three to four times its error.
_MARGIN = 0.15


def same_prompts(prompts: Sequence[str], order: Sequence[int]) -> dict[int, int]:
    """Find items whose prompt is that of an earlier one, or nearly (`recipes.augment.duplicates`).

    Args:
        prompts: of the items.
        order: in which they are looked at.

    Returns:
        for each duplicate, the earlier item.
    """
    index = DuplicateIndex((), like=prompts)
    kept: list[int] = []
    found = {}
    for item in order:
        earlier = index.find(prompts[item])
        if earlier is None:
            index.add(prompts[item])
            kept.append(item)
        else:
            found[item] = kept[earlier.position]
    return found


def same_gradients(
    gradients: NDArray[np.float32], order: Sequence[int], least: float
) -> dict[int, tuple[int, float]]:
    """Find items whose gradient goes where that of an earlier one goes.

    Args:
        gradients: (items, dim), zero of an item that has none.
        order: in which they are looked at.
        least: the cosine from which on.

    Returns:
        for each duplicate, the earlier item and the cosine.
    """
    norms = np.linalg.norm(gradients, axis=1)
    order = [item for item in order if norms[item] > 0]
    if not order:
        return {}
    units = gradients[order] / norms[order, None]
    seen, margin = units, 0.0
    if units.shape[1] > 2 * _DIM:
        project = np.random.default_rng(0).normal(size=(units.shape[1], _DIM)) / _DIM**0.5
        seen, margin = units @ project.astype(np.float32), _MARGIN
        seen /= np.linalg.norm(seen, axis=1, keepdims=True)
    is_kept = np.ones(len(order), dtype=bool)
    found = {}
    for start in range(0, len(order), _BLOCK):
        stop = min(start + _BLOCK, len(order))
        likely = seen[start:stop] @ seen[:stop].T >= least - margin
        for place in range(start, stop):
            earlier = np.flatnonzero(likely[place - start, :place] & is_kept[:place])
            cosines = units[earlier] @ units[place]
            if len(earlier) and cosines.max() >= least:
                is_kept[place] = False
                most = int(cosines.argmax())
                found[order[place]] = (order[earlier[most]], float(cosines[most]))
    return found
