"""Did new items' gradients come near their parents', and the parents nearer to what is trained on?

The paper (arXiv 2605.16787) asks it of problems that were written from the unlearnable ones: alike
in meaning, were they alike in gradient? For item i let m_i be the mean of its correct rollouts'
gradients, each at unit length; m_i · m_j is the expected cosine of two rollouts of different items,
unbiased however few there are (`probes.gradients.alignment`). With p(i) the parent of new item i,

    to_parent         mean of m_i · m_p(i)
    to_other_parents  mean of m_i · m_q over the parents q that are not its own
    parents_before    mean of m_p · m_j over the other items j of the first run
    parents_after     the same over those and the new items; `parents_change` is the difference

of each parent first, then over parents, whose bootstrap gives the intervals. New items are near
their parents only if `difference`, to_parent less to_other_parents, is above 0: all problems of a
kind share some direction.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from curate.errors import UsageError
from curate.run.features import RolloutFeatures
from curate.run.run import Run
from curate.tagged.rows import open_tagged
from probes.gradients.alignment import FEWEST_ITEMS
from recipes.statistics.changes import mean_interval

Floats = NDArray[np.float64]

_PARENT = "parent_item_id"
_NAMES = (
    "to_parent", "to_other_parents", "difference",
    "parents_before", "parents_after", "parents_change",
)  # fmt: skip
_RESAMPLES = 1000


def parents_of(run: Run) -> dict[str, str]:
    """Return the parent of each item of a run that `curate augment` made; both by item_id."""
    try:
        source = open_tagged(run.path).source
    except UsageError:
        return {}  # The tagged file was moved away.
    found = {}
    for row in source.rows():
        value = row.value or {}
        item_id, parent = value.get("item_id"), value.get(_PARENT)
        if isinstance(item_id, str) and isinstance(parent, str) and item_id and parent:
            found[item_id] = parent
    return found


def compare_new_items(
    a: Run, b: Run, parent_of: dict[str, str], *, seed: int = 0
) -> dict[str, Any]:
    """Compare new items, which the second run probed, with their parents in the first.

    Args:
        a: the run that they were written from.
        b: a probe of them by the same policy.
        parent_of: `parents_of` the second run.
        seed: of the bootstrap.

    Returns:
        `new_items` and `parents`: how many there are, and `with_gradients` of each; the means of
        the module's text, each with `mean`, `low` and `high`, None where unknown; and a `note`
        where nothing could be compared.
    """
    told: dict[str, Any] = {"new_items": len(parent_of), "parents": len(set(parent_of.values()))}

    told |= {"with_gradients": {"new_items": 0, "parents": 0}, **dict.fromkeys(_NAMES)}
    told["note"] = None
    features = a.features(), b.features()
    if features[0] is None or features[1] is None:
        return told | {"note": "a run has no gradients/rollouts.npy"}
    if _projection(a) != _projection(b):
        return told | {"note": "the two runs took gradients of another policy or projection"}
    old_ids, new_ids = (
        {item_id: place for place, item_id in enumerate(run.ids.to_pylist())} for run in (a, b)
    )
    old, new = _unit_means(features[0], len(old_ids)), _unit_means(features[1], len(new_ids))
    pairs = [
        (new_ids[child], old_ids[parent])
        for child, parent in parent_of.items()
        if child in new_ids and parent in old_ids
    ]
    pairs = [(i, p) for i, p in pairs if np.isfinite(new[i, 0]) and np.isfinite(old[p, 0])]
    told["with_gradients"] = {
        "new_items": len(pairs), "parents": len({parent for _, parent in pairs}),
    }  # fmt: skip
    if not pairs:
        return told | {"note": "no new item and its parent both have a correct rollout"}
    for name, values in _per_parent(old, new, pairs).items():
        told[name] = _mean(values, seed)
    return told


def _projection(run: Run) -> tuple[Any, ...]:
    config = run.config
    settings = (config.gradient_dim, config.gradient_rank, config.gradient_alpha)
    adapter = run.manifest.get("seeds", {}).get("adapter")
    return (*settings, config.gradient_targets, adapter, run.weight_hash)


def _unit_means(features: RolloutFeatures, items: int) -> Floats:
    """m_i of each item, (items, dim); nan for an item without a correct rollout."""
    sums = np.zeros((items, features.features.shape[1]))
    draws = np.bincount(features.item, features.weights, minlength=items)
    for item in np.flatnonzero(draws):
        start, stop = np.searchsorted(features.item, [item, item + 1])
        rows = np.asarray(features.features[start:stop], dtype=np.float64)
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        unit = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)
        sums[item] = features.weights[start:stop] @ unit
    with np.errstate(invalid="ignore"):
        return np.asarray(sums / draws[:, None])


def _per_parent(old: Floats, new: Floats, pairs: list[tuple[int, int]]) -> dict[str, Floats]:
    """Each mean of each parent, (parents,); nan where a parent has none."""
    children = np.array([child for child, _ in pairs])
    parent = np.array([each for _, each in pairs])
    parents = np.unique(parent)
    measured = np.flatnonzero(np.isfinite(old[:, 0]))
    sum_old, sum_new = old[measured].sum(axis=0), new[np.unique(children)].sum(axis=0)
    sum_parents, own = old[parents].sum(axis=0), np.einsum("ij,ij->i", old, old)
    count_new = len(np.unique(children))
    values: dict[str, list[float]] = {
        name: [] for name in ("to_parent", "to_other_parents", "parents_before", "parents_after")
    }
    for each in parents:
        mean_child = new[children[parent == each]].mean(axis=0)
        others = sum_old @ old[each] - own[each]
        values["to_parent"].append(mean_child @ old[each])
        values["to_other_parents"].append(
            _ratio(mean_child @ (sum_parents - old[each]), len(parents) - 1)
        )
        values["parents_before"].append(_ratio(others, len(measured) - 1))
        values["parents_after"].append(
            _ratio(others + sum_new @ old[each], len(measured) - 1 + count_new)
        )
    found = {name: np.array(each) for name, each in values.items()}
    found["difference"] = found["to_parent"] - found["to_other_parents"]
    found["parents_change"] = found["parents_after"] - found["parents_before"]
    return found


def _ratio(total: float, count: int) -> float:
    return total / count if count else float("nan")


def _mean(values: Floats, seed: int) -> dict[str, float | None] | None:
    known = values[np.isfinite(values)]
    if not len(known):
        return None
    low, high = None, None
    if len(known) >= FEWEST_ITEMS:
        low, high = mean_interval(known, _RESAMPLES, seed)
    return {"mean": float(known.mean()), "low": low, "high": high}
