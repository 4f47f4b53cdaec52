"""What a report tells of the items that training is not known to solve: what is missing for them.

It is what `curate gaps` finds (`recipes.gaps`), and costs no model and no rollout.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cards.report.items import ReportItems
from curate.run.run import Run
from probes.stages.without_policy import NO_POLICY
from recipes.gaps.gaps import gaps_of
from recipes.gaps.reasons import REASONS

# The lift is measured from all of them again: some ten seconds.
MOST_GRADIENTS = 200_000
_MOST_CLUSTERS = 12
_MOST_EXAMPLES = 5


def gap_facts(run: Run, items: ReportItems) -> tuple[dict[str, Any], dict[int, str]]:
    """Reasons and clusters, and the sentence of each item by its position.

    Args:
        run: finished.
        items: of the run.

    Returns:
        the facts: `why_none` where nothing can be told, else `items`, `directions`, `reasons`
        (each with its meaning, and how many items have it for certain and by the values alone),
        `clusters` (the largest, with positions of examples) and how many there are.

    Raises:
        RunError: a file of the run is missing or damaged.
    """
    if not run.config.has_policy:
        return {"why_none": NO_POLICY}, {}
    features = run.features()
    # The gradients were removed, or an earlier version kept no lengths.
    if features is None or features.completion_tokens is None:
        return {"why_none": "the run folder has no gradients of rollouts with their lengths"}, {}
    if len(features.item) > MOST_GRADIENTS:
        why = f"{len(features.item):,} gradients take minutes: `curate gaps` tells"
        return {"why_none": why}, {}
    found = gaps_of(run)
    place = {str(name): at for at, name in enumerate(items.ids)}
    facts = found.facts
    clusters = [
        {
            **{name: each[name] for name in ("items", "verdict", "alignment")},
            **{name: each[name] for name in ("inside", "inside_low", "inside_high")},
            "examples": [place[name] for name in each["item_ids"][:_MOST_EXAMPLES]],
        }
        for each in facts["clusters"][:_MOST_CLUSTERS]
    ]
    told = {
        "why_none": None,
        "items": facts["items"],
        "directions": facts["directions"],
        "reasons": [
            {
                "reason": reason,
                "meaning": meaning,
                "certain": facts["reasons"][reason],
                "likely": facts["likely"][reason],
            }
            for reason, meaning in REASONS.items()
            if facts["reasons"][reason] or facts["likely"][reason]
        ],
        "clusters": clusters,
        "of_clusters": len(facts["clusters"]),
        "notes": facts["notes"],
    }
    return told, {place[line["item_id"]]: line["gap_reason"] for line in found.lines}


def at_places(sentences: dict[int, str], places: np.ndarray[Any, Any]) -> dict[int, str]:
    """The sentences by position among the items at these places alone."""
    return {at: sentences[place] for at, place in enumerate(places.tolist()) if place in sentences}
