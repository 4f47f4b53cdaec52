"""How well the gradients of groups and of single items agree: the numbers behind two heatmaps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cards.report.items import TAGS, Ints, ReportItems, sample_by_tag
from curate.errors import RunError
from curate.run.features import RolloutFeatures
from curate.run.names import GRADIENTS
from curate.run.run import Run
from probes.gradients.alignment import align, quantile_interval, resample_items, sum_groups
from probes.gradients.similarity import mean_directions

CONFIDENCE = 0.95
# As many as the paper compares (arXiv 2605.16787, section 5).
ITEMS_PER_GROUP = 100
# Of them, those in the heatmap of single items: more would be finer than a pixel.
SHOWN_PER_GROUP = 24
_GROUP_BYTES = 48 * 2**20
_RESAMPLES = 1000
_SEED = 0


def gradient_facts(run: Run, items: ReportItems) -> dict[str, Any] | None:
    """Mean cosines between groups of items, and cosines between single items.

    Groups are the confirmed tags where there are some, else the predicted ones. Up to 100 items of
    each, fewer where their features would not fit into 48 MiB.

    Returns:
        None where the gradients were removed. `blocks`: `cosine`, `rollout_cosine` with
        intervals (groups × groups) and `agreement` (groups), as `probes.gradients.alignment`
        defines them. `items`: the mean cosine of a correct rollout of one and one of the other
        (items × items), null on the diagonal. Null is unknown.

    Raises:
        RunError: the gradients are damaged.
    """
    found = run.features()
    if found is None:
        return None
    chosen = _chosen(found, items)
    lines = np.flatnonzero(np.isin(found.item, chosen))
    sample = replace(
        found,
        features=np.asarray(found.features[lines]),
        item=found.item[lines],
        weights=found.weights[lines],
        reward=found.reward[lines],
        accepted=None,
        completion_tokens=None,
    )
    group = np.full(len(items), -1, dtype=np.int64)
    group[chosen] = items.group[chosen]
    present = [each for each in range(len(TAGS)) if (group == each).any()]
    try:
        blocks = _blocks(sample, group, present)
        cosines = _item_cosines(sample, items, chosen)
    except ValueError as error:
        raise RunError(f"{run.path / GRADIENTS} is damaged: {error}") from error
    return {
        "groups_from": "trainability" if items.confirmed is None else "confirmed_trainability",
        "confidence": CONFIDENCE,
        "resamples": _RESAMPLES,
        "blocks": blocks,
        "items": cosines,
    }


def _chosen(found: RolloutFeatures, items: ReportItems) -> Ints:
    """Items with two draws or more, a sample of each group; positions, ascending."""
    rows = np.bincount(found.item, minlength=len(items))
    draws = np.bincount(found.item, found.weights, minlength=len(items))
    row_bytes = found.features.shape[1] * found.features.itemsize
    chosen: list[Ints] = []
    for each in range(len(TAGS)):
        among = (items.group == each) & (draws > 1)
        members = sample_by_tag(items, among, ITEMS_PER_GROUP)
        fitting = np.cumsum(rows[members]) * row_bytes <= _GROUP_BYTES
        chosen.append(members[fitting])
    return np.sort(np.concatenate(chosen))


def _blocks(sample: RolloutFeatures, group: Ints, present: list[int]) -> dict[str, Any]:
    # Of the chosen items alone: of all they would be a gigabyte for a million.
    chosen = np.flatnonzero(group >= 0)
    place = np.full(len(group), -1, dtype=np.int64)
    place[chosen] = np.arange(len(chosen))
    counts = resample_items(group[chosen], _RESAMPLES, np.random.default_rng(_SEED))
    sums = sum_groups(sample, place, group[chosen], len(TAGS), counts)
    sets = np.array([[place == each for place in range(len(TAGS))] for each in present], dtype=bool)
    told: dict[str, Any] = {"groups": [TAGS[each] for each in present], "items": []}
    if not present:
        return told
    alignment = align(sums, sets, CONFIDENCE)
    told["items"] = alignment.items.tolist()
    for name in ("cosine", "rollout_cosine", "agreement"):
        values = getattr(alignment, name)
        low, high = quantile_interval(values[1:], alignment.items, CONFIDENCE)
        told[name] = _plain(values[0])
        told[f"{name}_low"], told[f"{name}_high"] = _plain(low), _plain(high)
    return told


def _item_cosines(sample: RolloutFeatures, items: ReportItems, chosen: Ints) -> dict[str, Any]:
    """m_i · m_j: unbiased for the cosine of two rollouts, whatever the number of rollouts."""
    shown = np.concatenate(
        [chosen[items.group[chosen] == each][:SHOWN_PER_GROUP] for each in range(len(TAGS))]
    )
    # By group, and within it from the items most like the easy ones to the least.
    order = np.lexsort((shown, -np.nan_to_num(items.similarity[shown], nan=-2), items.group[shown]))
    shown = shown[order]
    place = {item: at for at, item in enumerate(shown.tolist())}
    directions = np.zeros((len(shown), sample.features.shape[1]), dtype=np.float32)
    for positions, _, means in mean_directions(sample.features, sample.item, sample.weights):
        for item, mean in zip(positions.tolist(), means, strict=True):
            if item in place:
                directions[place[item]] = mean
    cosines = (directions @ directions.T).astype(np.float64)
    np.fill_diagonal(cosines, np.nan)
    return {
        "item": shown.tolist(),
        "item_id": items.ids[shown].tolist(),
        "group": [TAGS[each] for each in items.group[shown].tolist()],
        "cosine": _plain(cosines, 3),
        # What two unrelated rollouts show by chance of the projection.
        "noise": round(float(sample.features.shape[1]) ** -0.5, 4),
    }


def _plain(values: NDArray[np.float64], digits: int = 4) -> Any:
    """Nested lists, with None for what is unknown."""
    plain = np.round(values, digits).astype(object)
    plain[~np.isfinite(values)] = None
    return plain.tolist()
