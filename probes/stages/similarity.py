"""The similarity stage: a run's items against its easy items, after each round and at the end."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from curate.run.features import RolloutFeatures, joined
from curate.run.folder import RunFolder
from curate.run.names import TARGET
from curate.run.rollouts import Outcomes, nullable
from curate.run.tables import ITEMS
from probes.gradients.similarity import Similarity, measure_similarity
from probes.gradients.target import measure_target_similarity
from probes.statistics.plan import Plan, sequential_interval

# Below that many items that are easy beyond doubt, all easy ones are compared with.
FEWEST_EASY_ITEMS = 5


def measure_items(
    features: RolloutFeatures, found: Outcomes, row_of: Mapping[str, int], plan: Plan
) -> Similarity:
    """Measure the similarity of a run's items to its easy items, arrays of shape (items,).

    Args:
        features: of the rollouts; the correct ones are measured.
        found: the outcomes of all rollouts, which tell the easy items.
        row_of: position of each item by item_id.
        plan: of the rounds; its tau is where an item is easy.
    """
    is_easy = found.is_easy(plan.tau)
    # A hard item that looks easy by luck would lift all items that resemble it, so those that
    # are easy beyond doubt are compared with, if they are enough.
    low, _ = sequential_interval(plan, found.judged, found.correct)
    firm = low >= plan.tau
    correct = features.correct
    return measure_similarity(
        correct.features,
        correct.item,
        correct.weights,
        is_easy,
        is_reference=firm if firm.sum() >= FEWEST_EASY_ITEMS else is_easy,
        ties=item_ties(row_of),
        confidence=similarity_confidence(plan),
    )


def measure_to_target(run: RunFolder, row_of: Mapping[str, int], plan: Plan) -> dict[str, pa.Array]:
    """Measure the similarity of a run's items to those of its target: columns by name."""
    target_ids = ITEMS.read(run / TARGET, "item_id")["item_id"]
    target_row_of = {item_id: row for row, item_id in enumerate(target_ids.to_pylist())}
    found = measure_target_similarity(
        joined(run.path, row_of).correct,
        joined(run / TARGET, target_row_of).correct,
        row_of,
        target_row_of,
        ties=item_ties(target_row_of),
        confidence=similarity_confidence(plan),
        scratch=run.path,
    )
    return {
        "target_similarity": nullable(found.similarity),
        "target_similarity_low": nullable(found.low),
        "target_similarity_high": nullable(found.high),
    }


def similarity_confidence(plan: Plan) -> float:
    """Of one interval of a similarity, so that those of all rounds hold at once.

    As for the pass rate: an interval is looked at after every round, and must hold whatever
    made the item stop.
    """
    return 1 - (1 - plan.confidence) / len(plan.looks)


def item_ties(row_of: Mapping[str, int]) -> NDArray[np.uint64]:
    """A number for each item that depends on it alone: its id, which is a hash."""
    return np.array([int(item_id, 16) for item_id in row_of], dtype=np.uint64)


def similarity_table(item_ids: pa.ChunkedArray, found: Similarity) -> pa.Table:
    """The table of `similarity.parquet`, without a target's columns."""
    exists = found.nearest >= 0
    offsets = np.concatenate([[0], exists.sum(axis=1).cumsum()])
    nearest = item_ids.take(pa.array(found.nearest[exists])).combine_chunks()
    return pa.table(
        {
            "item_id": item_ids,
            "gradient_similarity": nullable(found.similarity),
            "gradient_similarity_low": nullable(found.low),
            "gradient_similarity_high": nullable(found.high),
            "standard_error": nullable(found.standard_error),
            "degrees_of_freedom": nullable(found.degrees_of_freedom),
            "gradient_reliability": nullable(found.reliability),
            "rollouts_used": found.rollouts_used,
            "similarity_easy": nullable(found.similarity_easy),
            "similarity_hard": nullable(found.similarity_hard),
            "nearest": pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), nearest),
        }
    )
