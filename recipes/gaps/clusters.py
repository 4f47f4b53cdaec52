"""Items that would teach each other, if one of them were learned: candidates for mid-training.

Clusters are by average linkage of the mutual alignment of `recipes.gaps.evidence`, in which a pair
that is not above noise counts as 0: within a cluster two items do for each other, on average, at
least half of what they do for themselves. So a cluster is never an effect of noise and may be
smaller than the truth where rollouts are few.

A cluster of which less than a quarter lies within the span of the items outside it is one that
nobody in the set teaches. The share is that of the products between its items, each scaled to its
own length: no item meets itself, so that the noise of their gradients adds nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from recipes.gaps.evidence import Evidence, Measured, moderated, share_of_pairs
from recipes.gaps.reasons import OUTSIDE_BELOW, Estimate
from recipes.gaps.span import Span

ALIGNED_FROM = 0.5
CANDIDATE, PERHAPS, TAUGHT = "candidate", "perhaps", "taught"


@dataclass(frozen=True)
class Cluster:
    """Items that would teach each other."""

    places: NDArray[np.intp]
    """Among the items asked about, the most central first."""
    alignment: float
    """The mean over its pairs of what they do for each other over what they do for themselves."""
    inside: Estimate
    """The share of its gradient within the span of the items outside."""
    verdict: str
    """candidate: nobody outside teaches it; perhaps: the same, not certain; or taught."""


def find_clusters(evidence: Evidence, span: Span, items: Sequence[int]) -> list[Cluster]:
    """Clusters of two items at least, the largest first.

    Args:
        evidence: of the items asked about.
        span: of the training signal.
        items: their places in the run.
    """
    mutual = evidence.mutual
    if len(mutual) < 2:
        return []
    distance = squareform(1 - mutual, checks=False)
    labels = fcluster(linkage(distance, "average"), 1 - ALIGNED_FROM, "distance")
    found = []
    for label in np.unique(labels):
        places = np.flatnonzero(labels == label)
        if len(places) > 1:
            found.append(_cluster(places, evidence, span, items))
    return sorted(found, key=lambda each: (-len(each.places), -each.alignment, each.places[0]))


def _cluster(
    places: NDArray[np.intp], evidence: Evidence, span: Span, items: Sequence[int]
) -> Cluster:
    within = evidence.mutual[np.ix_(places, places)]
    size = len(places)
    order = np.argsort(-within.sum(axis=1), kind="stable")
    inside = _inside(places, evidence, span, items)
    verdict = TAUGHT
    if inside.high < OUTSIDE_BELOW:
        verdict = CANDIDATE
    elif inside.value < OUTSIDE_BELOW:
        verdict = PERHAPS
    alignment = float(within.sum() / (size * (size - 1)))
    return Cluster(places[order], alignment, inside, verdict)


def _inside(
    places: NDArray[np.intp], evidence: Evidence, span: Span, items: Sequence[int]
) -> Estimate:
    slopes = evidence.slopes[places]
    left_out = span.without([items[n] for n in places])
    within = (slopes @ span.vectors.T).astype(np.float64) @ left_out.T
    size = len(places)
    ones = np.ones(size)
    part, _, to_part = share_of_pairs(within, ones)
    whole, _, to_whole = share_of_pairs(slopes.astype(np.float64), ones)
    if not whole > 0:
        return Estimate(np.nan, np.nan, np.nan)
    value = float(np.clip(part / whole, 0, 1))
    influence = 2 * (to_part - value * to_whole) / whole
    own = float(np.var(influence, ddof=1)) if size > 2 else 0.0
    # Two items say nothing of how far a third would differ: rollouts of an item stand for them.
    free = np.array([max(size - 2, 0), 1.0])
    variance, freedom = moderated(np.array([own, evidence.between_draws]), free, 0.0)
    found = Measured.of(np.array([value]), variance[:1] / size, freedom[:1], most=1.0)
    return Estimate(*(float(each[0]) for each in (found.value, found.low, found.high)))
